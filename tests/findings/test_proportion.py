"""F4 on rows whose truth is built in: who loses what as the context grows."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import special

from vdp_utils import figures, stats
from vdp_utils.errors import VDPError
from vdp_utils.figures.style import KINDS
from vdp_utils.findings import proportion as f4
from vdp_utils.sources import scenes

LENGTHS = (0, 256, 1024, 4096)


def rows_with(product, images=150, seed=3, kinds=("other_images",), objects=0.0):
    """Yes- and no-questions; log-odds of a right yes: 1 + share - length + product x both."""
    rng, lines = np.random.default_rng(seed), []
    for image in range(images):
        items = int(rng.integers(1, 9))
        for question in range(4):
            noun = scenes.NOUNS[int(rng.integers(len(scenes.NOUNS)))]
            share = float(2.0 ** rng.uniform(-6.6, -1.4))
            for kind in kinds:
                for length in LENGTHS:
                    a, b = (np.log2(share) + 4) / 1.5, (np.log2(1 + length) - 7.5) / 4.7
                    odds = 1 + a - b + product * a * b + objects * (items - 4.5) / 2.3 * b
                    yes = question % 2 == 0
                    correct = bool(rng.random() < special.expit(odds if yes else 1))
                    lines.append(dict(
                        image_id=f"i{image:03d}", question_id=str(question), nouns=noun,
                        context_kind=kind, context_length=length, correct=correct,
                        answer="yes" if yes else "no", target_share=share if yes else 0.0,
                        margin=odds + rng.normal(), items=items))
    return pd.DataFrame(lines)


def samples_of(rows):
    return [SimpleNamespace(image_id=image, picture=SimpleNamespace(
        items=[None] * int(n), frequency=scenes.noun_frequency().get))
            for image, n in rows.groupby("image_id")["items"].first().items()]


def proportion(rows):
    return f4.yes_questions(rows, samples_of(rows))


# ---- regression


def test_an_effect_s_interval_resamples_whole_images():
    """Ten copies of each row say nothing new: the interval stays as wide."""
    rows = proportion(rows_with(0.5, images=30))
    once, tenfold = (stats.regression_effect(part, "margin", [f4.SHARE], f4.SHARE,
                                             logistic=False)
                     for part in (rows, pd.concat([rows] * 10)))
    assert once.value == pytest.approx(tenfold.value)
    assert once.high - once.low == pytest.approx(tenfold.high - tenfold.low, rel=1e-3)
    assert once.n_images == 30


def test_an_effect_must_be_a_predictor():
    rows = proportion(rows_with(0, images=5))
    with pytest.raises(VDPError, match="'size' is not among"):
        stats.regression_effect(rows, "correct", [f4.SHARE], "size")


# ---- F4


def test_only_yes_questions_count_and_predictors_are_scaled():
    rows = proportion(rows_with(0.5))
    assert set(rows["answer"]) == {"yes"}
    for name in (f4.SHARE, f4.LENGTH, *f4.CONTROLS):
        assert rows[name].mean() == pytest.approx(0, abs=1e-9)
        assert rows[name].std() == pytest.approx(1)
    assert (rows[f4.PRODUCT] == rows[f4.SHARE] * rows[f4.LENGTH]).all()


def test_frequency_counts_training_scenes():
    found = scenes.noun_frequency()
    with_cow = sum("cow" in scenes.compose("train", i).counts for i in range(2000))
    assert found["cow"] == with_cow > 0 and set(found) == set(scenes.NOUNS)
    scene = scenes.compose("evaluation", 0)
    assert (scene.frequency("cow"), scene.frequency("goat")) == (with_cow, 0)


@pytest.mark.parametrize("product, expected", [(1.0, "reproduced"), (0.0, "not reproduced"),
                                               (-1.0, "not reproduced")])
def test_the_verdict_finds_the_interaction_that_is_built_in(product, expected):
    rows = proportion(rows_with(product))
    tests = f4.tests(rows)
    verdict = f4.verdict(tests, rows)
    assert verdict.verdict == expected and verdict.n == 150
    assert verdict.estimate.low - 0.1 < product < verdict.estimate.high + 0.1


def test_an_interaction_of_one_kind_alone_is_partly():
    rows = pd.concat([rows_with(1.0), rows_with(-0.2, kinds=("same_image",), seed=1)])
    rows = proportion(rows)
    tests = f4.tests(rows)
    assert f4.verdict(tests, rows).verdict == "partly"


def test_controls_take_what_is_due_to_the_number_of_objects():
    """Where crowded scenes suffer more and hold the smaller objects, size is not to blame."""
    rows = rows_with(0.0, objects=-1.2, images=200)
    yes = rows["answer"] == "yes"
    rows.loc[yes, "target_share"] = 0.35 / rows.loc[yes, "items"] ** 1.2 * np.exp(
        np.random.default_rng(0).normal(0, 0.1, yes.sum()))
    tests = f4.tests(proportion(rows)).set_index("model")
    assert tests.loc["right answer", "low"] > 0
    assert tests.loc["right answer, controlled", "low"] < 0


def test_bins_hold_a_quarter_of_the_questions_each():
    rows = proportion(rows_with(0.5))
    summary = f4.summary(rows)
    for _, part in summary.groupby("context_length"):
        assert list(part["bin"]) == [0, 1, 2, 3] and part["n_rows"].sum() == 300
        assert part["n_rows"].min() >= 74 and part["share"].is_monotonic_increasing


def test_curves_are_the_regression_s_and_the_figure_draws_both():
    rows = proportion(rows_with(0.5, kinds=("same_image", "other_images")))
    curves = f4.curves(rows)
    far = rows[(rows["context_length"] == 4096) & (rows["context_kind"] == "other_images")]
    line = curves[(curves["context_length"] == 4096) & (curves["context_kind"] == "other_images")]
    expected = np.interp(np.log(far["target_share"]), np.log(line["share"]), line["recall"])
    assert expected.mean() == pytest.approx(far["correct"].mean(), abs=0.06)
    figure = figures.proportion(f4.summary(rows), curves, [0, 1024, 4096], "S")
    assert [axes.get_title() for axes in figure.axes] == [
        KINDS[kind][0] for kind in ("same_image", "other_images")]
    assert "n = 150 images" in figure.get_suptitle()
    assert len(figure.axes[0].get_legend_handles_labels()[1]) == 3
