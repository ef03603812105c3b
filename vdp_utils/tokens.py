"""Which token is image, context, question or template."""

from enum import IntEnum


class Kind(IntEnum):
    """The kind of one prompt token. Only context tokens may ever be pruned."""

    TEMPLATE = 0
    IMAGE = 1
    CONTEXT = 2
    QUESTION = 3
