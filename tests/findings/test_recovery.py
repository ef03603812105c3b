"""F6 on tables whose truth is built in: what pruning wins back, and the figures of it."""

import numpy as np
import pandas as pd
import pytest

from vdp_utils import figures
from vdp_utils.errors import VDPError
from vdp_utils.findings import recovery


def table_with(gains, cost=0.4, images=60, kinds=("other_images", "misleading")):
    """`gains` {(kind, length): share of answers that rate 0.5 mends}; context spoils `cost`."""
    rng, lines = np.random.default_rng(0), []
    for kind in kinds:
        for image in range(images):
            for number, answer in enumerate(("yes", "no")):
                for length in (0, 512, 2048):
                    luck = rng.random()
                    for rate in (0.0,) if not length else (0.0, 0.5, 0.9):
                        gain = gains.get((kind, length), 0) if rate else 0
                        correct = luck < (0.95 if not length else 0.95 - cost + gain)
                        for own in ("own", "swapped"):
                            lines.append(dict(
                                image_id=f"i{image:02d}", question_id=str(number), answer=answer,
                                context_kind=kind, context_length=length, rate=rate, image=own,
                                correct=correct, predicted=answer if correct else "no",
                                log_likelihoods=[-0.1, -2.5] if own == "own" else [-0.7, -0.7],
                                attention=np.full(8, 0.25)))
    return pd.DataFrame(lines)


@pytest.mark.parametrize("gains, cost, expected", [
    ({("other_images", 512): .3, ("other_images", 2048): .3,
      ("misleading", 512): .3, ("misleading", 2048): .3}, .4,
     "reproduced"),
    ({("misleading", 2048): .3}, .4, "partly"),
    ({}, .4, "not reproduced"),
    ({}, 0, "not reproduced"),
])
def test_the_verdict_follows_the_rule(gains, cost, expected):
    rows = table_with(gains, cost)
    tests = recovery.tests(rows)
    verdict = recovery.verdict(tests, rows)
    assert (verdict.finding, verdict.verdict, verdict.n) == ("F6", expected, 60)
    assert verdict.estimate.value == pytest.approx(sum(gains.values()) / 4, abs=0.05)
    assert len(tests) == 2 * 2 * 2 and (tests["cost"] - cost).abs().max() < 0.15


def test_summary_and_figures_show_what_was_measured():
    rows = table_with({("other_images", 512): 0.3})
    told = rows[(rows["context_length"] == 512) & (rows["context_kind"] == "other_images")
                & (rows["image"] == "own")]
    rows = pd.concat([rows, told.assign(image=recovery.TOLD)])
    summary = recovery.summary(rows)
    kl = summary[summary["measure"] == "KL, swapped"]["value"]
    expected = 0.913 * (np.log(0.917) - np.log(0.5)) + 0.083 * (np.log(0.083) - np.log(0.5))
    assert kl.between(expected - 0.02, expected + 0.02).all()
    assert set(summary.loc[summary["measure"] == "attention on image", "value"]) == {0.25}
    assert set(summary["rate"]) == {0.0, 0.5, 0.9, 1.0}
    assert (summary["n_images"] == 60).all()
    figure = figures.recovery(summary, "S")
    assert "n = 60 images" in figure.get_suptitle() and len(figure.axes) == 6
    table = recovery.targets(rows)
    assert list(table["target"]) == ["image"] * 3 + ["text"] * 3
    hurt = figures.targets(table, "S")
    assert {text.get_text() for text in hurt.axes[0].get_legend().get_texts()} == {
        "answer in the image", "answer in the context"}


def test_a_length_measured_behind_one_kind_only_is_no_matter():
    rows = table_with({("misleading", 2048): 0.3})
    rows = rows[(rows["context_length"] < 2048) | (rows["context_kind"] == "misleading")]
    found = recovery.image_target(rows)
    assert set(found.loc[found["context_kind"] == "other_images", "context_length"]) == {512}
    assert len(recovery.tests(rows)) == 3 * 2


def test_far_contexts_are_asked_at_few_rates_and_with_the_own_image(uneven):
    near, far = recovery.NEAR, 2 * recovery.NEAR
    asked = recovery.conditions(uneven, (0, near, far), told_length=near)
    rates = {(one.context_kind, one.context_length, one.image): one.rates for one in asked}
    for kind in ("other_images", "misleading"):
        assert rates[kind, 0, "own"] == () and rates[kind, near, "own"] == recovery.RATES
        assert rates[kind, far, "own"] == rates[kind, near, "swapped"] == recovery.FEW_RATES
        assert (kind, far, "swapped") not in rates


def test_rows_without_the_anchor_are_refused():
    rows = table_with({})
    with pytest.raises(VDPError, match="lack the length 0"):
        recovery.tests(rows[rows["context_length"] > 0])
