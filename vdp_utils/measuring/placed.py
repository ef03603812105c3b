"""Answers with tokens at other positions, pruned or not: what text costs, and what distance."""

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch

from vdp_utils.attention.positions import Placement
from vdp_utils.attention.pruner import ContextPruner, default_layer
from vdp_utils.attention.recording import decoder_of, record
from vdp_utils.lvlm import prompts
from vdp_utils.lvlm.load import LVLM
from vdp_utils.measuring import timing
from vdp_utils.measuring.measure import (Condition, condition, halves, judged, kinds_of, place,
                                         prefix_of)
from vdp_utils.measuring.scoring import prefill, score
from vdp_utils.sources.samples import Sample


@dataclass(frozen=True)
class PlacedCondition(Condition):
    """A condition under a `Placement`; at a rate above 0 the shortened prompt runs."""

    placement: str = "plain"
    places: int = 0  # positions that `gap` adds or `squeezed` leaves
    rate: float = 0.0
    positions: str = "compact"  # of the shortened prompt's tokens: closed up, or "kept"
    layer: int = 0  # that scores
    moved: str = "all"  # or "last": which images `near` moves


def placed_condition(lvlm: LVLM, context_kind: str, context_length: int, placement: str = "plain",
                     places: int = 0, rate: float = 0.0, positions: str = "compact",
                     image: str = "own", moved: str = "all") -> PlacedCondition:
    """A condition with placed tokens. VDPError for one that the model cannot be put under."""
    base = condition(lvlm, context_kind, context_length, image)
    if placement == "gap":
        prompts.check_length(lvlm, context_length + places)
    one = PlacedCondition(**vars(base), placement=placement, places=places, rate=rate,
                          positions=positions, moved=moved,
                          layer=default_layer(len(decoder_of(lvlm.model).layers)) if rate else 0)
    _placed(lvlm, one, torch.zeros(1, 1))
    return one


@contextmanager
def around(lvlm: LVLM, one: PlacedCondition, kinds: torch.Tensor):
    """Tokens stand, and are pruned, as the condition says; `kinds` (1, L) are the prompt's."""
    with ExitStack() as stack:
        for each in _placed(lvlm, one, kinds):
            stack.enter_context(each(lvlm.model))
        yield


def _placed(lvlm: LVLM, one: PlacedCondition, kinds: torch.Tensor) -> list:
    """The condition's `Placement` and, where it prunes, its `ContextPruner`."""
    found = [Placement(one.placement, one.places or None, one.moved, kinds=kinds)]
    if one.rate:
        found.append(ContextPruner(one.rate, mode="compress", layer=one.layer, kinds=kinds,
                                   positions=one.positions, processor=lvlm.processor))
    return found


@torch.no_grad()
def placed_sample(lvlm: LVLM, sample: Sample, one: PlacedCondition) -> list[dict]:
    """Rows of one sample, as `measure` stores them: each question with its prompt placed so.

    Columns: image_id, question_id, context_kind, context_length, image, placement, places, rate,
    positions; options, log_likelihoods (nats), answer, predicted, correct and margin, and without
    pruning attention, all as `measure` has them. Without pruning, which looks at the question too,
    all questions continue one cached prefix.
    """
    prefix, scores, masses = prefix_of(lvlm, sample, one), [], []
    asking = [prompts.asking(lvlm, question, one.image) for question in sample.questions]
    if one.rate:
        for question, asked in zip(sample.questions, asking):
            with around(lvlm, one, kinds_of(lvlm, prefix, asked)):
                scores.append(score(lvlm, prefix, None, asked, question.options))
            masses.append(halves(torch.empty(0)))
    else:
        with around(lvlm, one, kinds_of(lvlm, prefix)):
            cache = prefill(lvlm, prefix)
            for question, asked in zip(sample.questions, asking):
                with record(lvlm.model, mass="last",
                            kinds=kinds_of(lvlm, prefix, asked)) as recording:
                    scores.append(score(lvlm, prefix, cache, asked, question.options))
                masses.append(halves(torch.stack(
                    [recording[n].mass[0, :, 0].mean(0) for n in sorted(recording)])))
    return [_place(sample, number, one) | judged(question, scores[number])
            | dict(attention=masses[number]) for number, question in enumerate(sample.questions)]


def _place(sample: Sample, number: int, one: PlacedCondition) -> dict:
    return place(sample, number, one) | {name: getattr(one, name) for name in (
        "image", "placement", "places", "rate", "positions")}


@torch.no_grad()
def placed_times_sample(lvlm: LVLM, sample: Sample, one: PlacedCondition) -> list[dict]:
    """Rows of one sample: each question's prompt timed, placed and pruned so, after a warm-up.

    Columns: image_id, question_id, context_kind, context_length, image, placement, places, rate,
    positions; ttft_s, tpot_s and cache_bytes as `pruned.times_sample` has them, and plain_ttft_s,
    the time to first token of the same prompt as it is, taken right after.
    """
    prefix, rows = prefix_of(lvlm, sample, one), []
    for number, question in enumerate(sample.questions):
        whole = prompts.join(prefix, prompts.asking(lvlm, question, one.image))
        inputs = prompts.tensors(whole, lvlm.device)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        lvlm.model(**inputs, use_cache=True, logits_to_keep=1)
        with around(lvlm, one, kinds_of(lvlm, whole)):
            found = timing.prefill_and_decode(lvlm.model, inputs)
        plain = timing.prefill_and_decode(lvlm.model, inputs)["ttft_s"]
        rows.append(_place(sample, number, one) | found | dict(plain_ttft_s=plain))
    return rows
