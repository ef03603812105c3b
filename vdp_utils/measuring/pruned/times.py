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

    Plain and pruned passes take turns, after a plain one that is not timed. Columns: image_id,
    question_id, context_kind, context_length, strategy ("none" without pruning), rate, mode;
    ttft_s (the prompt, image included), tpot_s (mean of the next `timing.DECODED`) and
    cache_bytes (of the prompt).
    """
    rows = []
    for number, question in enumerate(sample.questions):
        inputs, kinds = asked(lvlm, sample, one, question)
        lvlm.model(**inputs, use_cache=True, logits_to_keep=1)
        for strategy, rate in one.prunings:
            with pruned_around(lvlm, one, strategy, rate, kinds):
                found = timing.prefill_and_decode(lvlm.model, inputs)
            rows.append(dict(
                **pruned_place(sample, number, one, strategy, rate), mode=one.mode, **found))
    return rows
