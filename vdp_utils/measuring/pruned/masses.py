"""F8: what dropping context does to the answer position's attention."""

from collections import defaultdict

import torch

from vdp_utils.attention import theory
from vdp_utils.attention.pruner import ContextPruner
from vdp_utils.attention.recording import record
from vdp_utils.attention.tokens import Kind
from vdp_utils.lvlm.load import LVLM
from vdp_utils.measuring.measure import last_rows, place
from vdp_utils.measuring.pruned.conditions import PrunedCondition, asked
from vdp_utils.sources.samples import Sample


def _last_rows(lvlm: LVLM, inputs: dict) -> list[torch.Tensor]:
    """Attention of the prompt's last token in every layer: (heads, keys) each."""
    with record(lvlm.model, accumulated=("last",)) as recording:
        lvlm.model(**inputs, use_cache=True, logits_to_keep=1)
    return last_rows(recording)


@torch.no_grad()
def masses_sample(lvlm: LVLM, sample: Sample, one: PrunedCondition) -> list[dict]:
    """What dropping context does to the answer position's attention: rows as `measure` stores them.

    Columns: image_id, question_id, context_kind, context_length, layer (that scores), and flat
    float32 lists of layers (`before`: the image's mass without pruning) or rates x layers. Of every
    rate and layer, means over heads: `predicted`, the image's mass with queries and keys held fixed
    (theory (1)), `after`, as measured; `entropy_before`, `entropy_frozen` (held fixed),
    `entropy_after`; and shares of heads: `mass_falls` and `entropy_rises` with both held fixed,
    `falls_measured`, `premise` (of theory (b): no dropped weight exceeds a kept one) and
    `exceptions` (to (a), (b) or (c); theorems have none).
    """
    rows = []
    for number, question in enumerate(sample.questions):
        inputs, kinds = asked(lvlm, sample, one, question)
        plain = torch.stack(_last_rows(lvlm, inputs)).double()  # (layers, heads, L)
        image, context = kinds[0] == Kind.IMAGE, kinds[0] == Kind.CONTEXT
        found = defaultdict(list)
        visual = plain[..., image].sum(-1)
        for rate in one.rates:
            with ContextPruner(rate, one.strategy, layer=one.layer, kinds=kinds)(
                    lvlm.model) as pruner:
                rest = _last_rows(lvlm, inputs)
            kept = torch.zeros_like(image)
            kept[pruner.kept.index[0]] = True
            after = torch.stack([pruner.kept.spread(row) for row in rest]).double()
            frozen = theory.renormalised(plain, kept)
            moved, measured = frozen[..., image].sum(-1), after[..., image].sum(-1)
            low, high = theory.mass_bounds(visual, plain[..., context], int((~kept).sum()))
            premise = theory.lowest_go(plain, kept)
            exception = ((moved < visual - 1e-9)
                         | (premise & ~theory.majorises(frozen, plain, 1e-9))
                         | (moved < low - 1e-9) | (moved > high + 1e-9))
            entropies = [theory.entropy(x) for x in (plain, frozen, after)]
            for name, values in dict(
                    predicted=moved, after=measured, entropy_before=entropies[0],
                    entropy_frozen=entropies[1], entropy_after=entropies[2],
                    mass_falls=moved < visual - 1e-9, falls_measured=measured < visual - 1e-6,
                    entropy_rises=entropies[1] > entropies[0] + 1e-9, premise=premise,
                    exceptions=exception).items():
                found[name].append(values.double().mean(-1))
        rows.append(dict(
            **place(sample, number, one), layer=one.layer,
            before=visual.mean(-1).float().cpu().numpy(),
            **{name: torch.cat(values).float().cpu().numpy() for name, values in found.items()}))
    return rows
