"""Where pictures, questions and dialogues come from."""

from vdp_utils.sources.photographs import open_source
from vdp_utils.sources.samples import one_pair, one_question

__all__ = ["one_pair", "one_question", "open_source"]
