"""The one error the study raises for input it cannot use."""


class VDPError(ValueError):
    """Bad input: the message names the input and says what to do about it."""
