"""The one error the study raises for input it cannot use."""


class VDPError(ValueError):
    """Bad input: the message names the input and says what to do about it."""


class Lacking(VDPError):
    """What a notebook asks for is not in this data: `vdp run` ends it there, with this sentence."""
