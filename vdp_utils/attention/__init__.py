"""The tool: record, prune and place tokens in any transformers LVLM. It knows nothing of scenes.

`tokens` says which token is what, `recording` instruments attention, `strategies` score tokens
from `evidence`, `law` gives a rate by length, `kept` holds the budget and what stays, `modes` run a
prompt without the rest, `pruner` puts a mode around a model, `positions` gives tokens other places,
and `theory` states what dropping does to one softmax.
"""

from vdp_utils.attention.modes import MODES
from vdp_utils.attention.positions import PLACEMENTS, Placement
from vdp_utils.attention.pruner import ContextPruner
from vdp_utils.attention.recording import record
from vdp_utils.attention.strategies import STRATEGIES
from vdp_utils.attention.tokens import Kind, token_kinds, visual_token_ids

__all__ = ["ContextPruner", "Kind", "MODES", "PLACEMENTS", "Placement", "STRATEGIES", "record",
           "token_kinds", "visual_token_ids"]
