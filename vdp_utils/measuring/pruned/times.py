"""F9: time to first token and per output token, with and without pruning."""

import torch

from vdp_utils.lvlm.load import LVLM
from vdp_utils.measuring import timing
from vdp_utils.measuring.pruned.conditions import (AnswerCondition, asked, pruned_around,
                                                   pruned_place)
from vdp_utils.sources.samples import Sample


@torch.no_grad()
def times_sample(lvlm: LVLM, sample: Sample, one: AnswerCondition) -> list[dict]:
    """Rows of one sample: each question's prompt timed without pruning, and pruned in each mode.

    A plain pass that is not timed goes before. Columns: image_id, question_id, context_kind,
    context_length, strategy and mode ("none" without pruning), rate, layer (-1 without);
    ttft_s (the prompt, image included), tpot_s (mean of the next `timing.DECODED`) and
    cache_bytes (of the prompt).
    """
    rows = []
    for number, question in enumerate(sample.questions):
        inputs, kinds = asked(lvlm, sample, one, question)
        lvlm.model(**inputs, use_cache=True, logits_to_keep=1)
        for pruning in one.prunings:
            with pruned_around(lvlm, pruning, kinds):
                found = timing.prefill_and_decode(lvlm.model, inputs)
            rows.append(dict(**pruned_place(sample, number, one, pruning), **found))
    return rows
