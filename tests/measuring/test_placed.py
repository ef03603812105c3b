"""Answers at other positions: the same from a shared prefix as from whole prompts, and resumed."""

import pytest
import torch

from vdp_utils.attention.positions import Placement
from vdp_utils.attention.pruner import ContextPruner
from vdp_utils.errors import VDPError
from vdp_utils.lvlm import prompts
from vdp_utils.measuring.measure import kinds_of, measure, prefix_of
from vdp_utils.measuring.placed import placed_condition, placed_sample
from vdp_utils.measuring.scoring import score
from vdp_utils.measuring.store import ResultStore
from vdp_utils.sources.samples import presence_samples


@pytest.fixture(scope="module")
def samples():
    return presence_samples("evaluation", 2, 1)


@pytest.mark.parametrize("placement, places, rate", [
    ("plain", 0, 0), ("near", 0, 0), ("gap", 50, 0), ("squeezed", 20, 0), ("plain", 0, 0.5),
    ("near", 0, 0.5)])
def test_an_answer_is_that_of_its_whole_prompt_placed_and_pruned_so(uneven, samples, placement,
                                                                   places, rate):
    sample, length = samples[0], 0 if placement == "gap" else 90
    one = placed_condition(uneven, "misleading", length, placement, places, rate)
    rows = placed_sample(uneven, sample, one)
    plain = placed_sample(uneven, sample, placed_condition(uneven, "misleading", length))
    prefix = prefix_of(uneven, sample, one)
    for row, other, question in zip(rows, plain, sample.questions):
        asked = prompts.asking(uneven, question)
        kinds = kinds_of(uneven, prefix, asked)
        with torch.no_grad(), Placement(placement, places or None, kinds=kinds)(uneven.model):
            if rate:
                with ContextPruner(rate, mode="compress", positions="compact",
                                   kinds=kinds)(uneven.model):
                    expected = score(uneven, prefix, None, asked, question.options)
            else:
                expected = score(uneven, prefix, None, asked, question.options)
        assert row["log_likelihoods"] == pytest.approx(expected, abs=1e-4)
        same = other["log_likelihoods"] == pytest.approx(expected, abs=1e-4)
        assert same == (placement == "plain" and not rate)
        assert (row["placement"], row["places"], row["rate"]) == (placement, places, rate)


def test_rows_are_stored_and_not_measured_again(uneven, samples, tmp_path):
    one, store = placed_condition(uneven, "other_images", 40, "near"), ResultStore(tmp_path)
    first = measure(uneven, samples, [one], store, "probe", each=placed_sample)
    again = measure(uneven, samples, [one], store, "probe", each=lambda *_: 1 / 0)
    assert len(first) == 4 and first.equals(again)


@pytest.mark.parametrize("length, options, message", [
    (0, dict(placement="gap", places=9_000), "does not fit"),
    (40, dict(placement="gap"), "length=None does not go with placement 'gap'"),
    (40, dict(placement="near", places=5), "length=5 does not go with placement 'near'"),
    (40, dict(placement="nearer"), "unknown placement 'nearer'"),
    (40, dict(rate=1), "give a share of the context")])
def test_what_cannot_be_asked_is_refused(uneven, length, options, message):
    with pytest.raises(VDPError, match=message):
        placed_condition(uneven, "other_images", length, **options)
