"""F4 on rows whose truth is built in: who loses what as the context grows."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from drawn import assert_drawn, legend, points

from vdp_utils import figures
from vdp_utils.errors import Lacking
from vdp_utils.figures.style import KINDS
from vdp_utils.findings import proportion as f4
from vdp_utils.sources import scenes

LENGTHS = (0, 256, 1024, 4096)


def rows_with(loss=0.0, crowding=0.0, images=150, seed=3, kinds=("other_images",), far=0.3,
              no_right=0.9):
    """Yes- and no-questions; recall 0.95 without a context.

    Per doubling of the length to 4096, an object of middling size loses `far` / 12 of it, `loss` /
    12 more for each halving of its share, and `crowding` / 12 for each object above the mean.
    """
    rng, lines = np.random.default_rng(seed), []
    for image in range(images):
        items = int(rng.integers(1, 9))
        for question in range(4):
            noun = scenes.NOUNS[int(rng.integers(len(scenes.NOUNS)))]
            halvings = rng.uniform(1.4, 6.6)
            for kind in kinds:
                for length in LENGTHS:
                    more = far + loss * (halvings - 4) + crowding * (items - 4.5)
                    chance = 0.95 - more * np.log2(1 + length) / 12
                    yes = question % 2 == 0
                    correct = bool(rng.random() < (chance if yes else no_right))
                    lines.append(dict(
                        image_id=f"i{image:03d}", question_id=str(question), nouns=noun,
                        context_kind=kind, context_length=length, correct=correct,
                        answer="yes" if yes else "no",
                        target_share=2.0 ** -halvings if yes else 0.0,
                        margin=4 * chance + rng.normal(), items=items))
    return pd.DataFrame(lines)


def samples_of(rows):
    return [SimpleNamespace(image_id=image, picture=SimpleNamespace(
        items=[None] * int(n), frequency=scenes.noun_frequency().get))
            for image, n in rows.groupby("image_id")["items"].first().items()]


def proportion(rows):
    return f4.yes_questions(rows, samples_of(rows))


def test_objects_without_a_box_are_left_out_and_none_with_one_is_said():
    rows = rows_with(images=20)
    boxed = rows["image_id"] < "i010"
    found = proportion(rows.assign(target_share=rows["target_share"].where(boxed)))
    assert set(found["image_id"]) == set(rows["image_id"][boxed & (rows["answer"] == "yes")])
    assert found["halvings"].notna().all()
    with pytest.raises(Lacking, match="a box is known: give a source with boxes"):
        proportion(rows.assign(target_share=np.nan))


def test_only_yes_questions_count_on_log2_scales():
    rows = proportion(rows_with())
    assert set(rows["answer"]) == {"yes"}
    assert (2 ** -rows["halvings"]).to_numpy() == pytest.approx(rows["target_share"].to_numpy())
    assert (2 ** rows["doublings"] - 1).to_numpy() == pytest.approx(
        rows["context_length"].to_numpy(), abs=1e-6)


def test_frequency_counts_training_scenes():
    found = scenes.noun_frequency()
    with_cow = sum("cow" in scenes.compose("train", i).counts for i in range(2000))
    assert found["cow"] == with_cow > 0 and set(found) == set(scenes.NOUNS)
    scene = scenes.compose("evaluation", 0)
    assert (scene.frequency("cow"), scene.frequency("goat")) == (with_cow, 0)


@pytest.mark.parametrize("rows, expected", [
    (dict(loss=0.1), "reproduced"),
    (dict(loss=-0.1), "contradicted"),
    (dict(loss=0.0, images=600, far=0.1), "not reproduced"),
    (dict(loss=0.0, images=30), "inconclusive")])
def test_the_verdict_finds_the_loss_that_is_built_in(rows, expected):
    rows = rows_with(**rows)
    table = f4.tests(rows, proportion(rows))
    verdict = f4.verdict(table)
    assert verdict.verdict == expected and verdict.rule == f4.RULE
    assert list(verdict.estimates) == ["other_images at 4096"]
    (effect,) = verdict.estimates.values()
    assert effect.n_images == verdict.n == rows["image_id"].nunique()
    assert (effect.value, effect.low) == tuple(table.loc[0, ["effect", "low"]])


def test_the_effect_is_the_slope_of_the_loss_over_halvings():
    rows = rows_with(0.1)
    yes = proportion(rows)
    (line,) = f4.tests(rows, yes).itertuples()
    keys = ["image_id", "question_id"]
    wide = yes.pivot(index=[*keys, "halvings"], columns="context_length", values="correct")
    lost = wide[0].astype(float) - wide[4096].astype(float)
    slope = np.polyfit(wide.index.get_level_values("halvings"), lost, 1)[0]
    assert line.effect == pytest.approx(slope) and line.low < slope < line.high
    assert line.holds == (line.controlled > 0) and line.limit == ""
    assert slope == pytest.approx(0.1, abs=0.05)


def test_a_loss_of_one_kind_alone_is_partly():
    rows = pd.concat([rows_with(0.1), rows_with(0.0, kinds=("same_image",), seed=1)])
    assert f4.verdict(f4.tests(rows, proportion(rows))).verdict == "partly"


def test_controls_take_what_is_due_to_the_number_of_objects():
    """Where crowded scenes suffer more and hold the smaller objects, size is not to blame."""
    rows = rows_with(crowding=0.08, images=300)
    yes = rows["answer"] == "yes"
    rows.loc[yes, "target_share"] = 0.35 / rows.loc[yes, "items"] ** 1.2 * np.exp(
        np.random.default_rng(0).normal(0, 0.3, yes.sum()))
    table = f4.tests(rows, proportion(rows))
    assert table["low"][0] > 0 and table["p_holm"][0] < 0.05 and not table["holds"][0]
    assert abs(table["controlled"][0]) < table["effect"][0] / 2
    assert f4.verdict(table).verdict == "inconclusive"


def test_each_kind_is_judged_at_its_longest_length_above_chance():
    rows = rows_with(0.1, kinds=("same_image", "other_images"))
    blind = (rows["context_kind"] == "other_images") & (rows["context_length"] == 4096)
    rows.loc[blind, "correct"] = rows.loc[blind, "answer"] == "no"  # no to everything
    table = f4.tests(rows, proportion(rows)).set_index("context_kind")
    assert table["context_length"].to_dict() == {"same_image": 4096, "other_images": 1024}
    assert set(table["limit"]) == {""}
    rows.loc[rows["context_length"] > 0, "correct"] = rows["answer"] == "no"
    table = f4.tests(rows, proportion(rows))
    assert set(table["limit"]) == {"floor"}
    assert list(f4.verdict(table).estimates) == ["other_images at 4096 (floor)",
                                                 "same_image at 4096 (floor)"]
    rows["correct"] = True
    assert set(f4.tests(rows, proportion(rows))["limit"]) == {"ceiling"}


# ---- beside the rule


def answered(odds, guess, lapse, images=800, seed=0):
    """Yes-questions answered by a psychometric function."""
    rng = np.random.default_rng(seed)
    rows = rows_with(images=images, seed=seed)
    yes = proportion(rows)
    chances = f4.Psychometric(np.array(odds), guess, lapse)(yes["halvings"], yes["doublings"])
    return yes.assign(correct=rng.random(len(yes)) < chances)


ODDS = (-0.5, 0.1, -0.15, 6.0)  # of halvings, doublings, both, 1


def test_the_fit_finds_the_psychometric_function_that_is_built_in():
    true = f4.Psychometric(np.array(ODDS), 0.1, 0.15)
    found = f4.fit(answered(ODDS, 0.1, 0.15))
    assert (found.guess, found.lapse) == pytest.approx((0.1, 0.15), abs=0.05)
    halvings, doublings = np.meshgrid([1.5, 3, 4.5, 6], [0, 8, 10, 12])
    assert found(halvings, doublings) == pytest.approx(true(halvings, doublings), abs=0.06)
    assert found.odds[2] == pytest.approx(-0.15, abs=0.05)


def test_the_fit_is_the_likeliest_and_counts_each_answer_so_often():
    yes = answered(ODDS, 0.05, 0.05, images=60)
    times = np.random.default_rng(1).integers(0, 3, len(yes)).astype(float)
    found, twice = f4.fit(yes, times), f4.fit(yes.loc[yes.index.repeat(times)])

    def likelihood(psychometric):
        chance = psychometric(yes["halvings"], yes["doublings"])
        return times @ np.log(np.where(yes["correct"], chance, 1 - chance))

    best = likelihood(found)
    assert likelihood(twice) == pytest.approx(best, abs=0.02)  # of another scaling: the ridge's
    for step in np.eye(4) * 0.02:
        for sign in (-1, 1):
            moved = f4.Psychometric(found.odds + sign * step, found.guess, found.lapse)
            assert likelihood(moved) < best


@pytest.mark.parametrize("right", [True, False])
def test_answers_without_any_error_are_fitted_too(right):
    found = f4.fit(proportion(rows_with(images=20)).assign(correct=right))
    assert np.isfinite(found.odds).all()
    chances = found(np.array([2.0, 6.0]), np.array([0.0, 12.0]))
    assert chances == pytest.approx(float(right), abs=0.05)


def test_other_scales_say_what_is_built_in(monkeypatch):
    """An interaction in log-odds and in margin, above 0 where small objects lose more."""
    monkeypatch.setattr(f4, "RESAMPLES", 49)
    for odds in (ODDS, (-1.5, -0.6, 0.1, 6.0)):
        product, yes = odds[2], answered(odds, 0.02, 0.02, images=200)
        yes["margin"] = product * yes["halvings"] * yes["doublings"]
        table = pd.DataFrame([dict(context_kind="other_images", context_length=1024)])
        found = f4.other_scales(yes, table).set_index("scale")
        assert found.loc["margin (nats)", "value"] == pytest.approx(-product * np.log2(1025))
        line = found.loc["log-odds"]
        assert np.sign([line["low"], line["value"], line["high"]]).tolist() == [
            -np.sign(product)] * 3
        assert (line["n_images"], line["n_rows"]) == (200, 1600)


def test_bins_hold_a_quarter_of_the_questions_each_and_what_the_fit_expects_there():
    rows = proportion(rows_with(0.1))
    found = f4.fits(rows)
    summary = f4.summary(rows, found)
    for length, part in summary.groupby("context_length"):
        assert list(part["bin"]) == [0, 1, 2, 3] and part["n_rows"].sum() == 300
        assert part["n_rows"].min() >= 74 and part["share"].is_monotonic_increasing
        middle = found["other_images"](-np.log2(part["share"]), np.log2(1 + length))
        assert part["expected"].to_numpy() == pytest.approx(middle, abs=0.03)
        assert (part["value"] - part["expected"]).abs().max() < 0.15


def test_the_figure_draws_points_curves_and_what_the_curves_miss():
    kinds = ("same_image", "other_images")
    rows = proportion(rows_with(0.1, kinds=kinds))
    found = f4.fits(rows)
    summary, curves = f4.summary(rows, found), f4.curves(rows, found)
    lengths = [0, 1024, 4096]
    figure = figures.proportion(summary, curves, lengths, "S")
    above, below = np.array(figure.axes).reshape(2, 2)
    assert [axes.get_title() for axes in above] == [KINDS[kind][0] for kind in kinds]
    assert "n = 150 images" in figure.get_suptitle() and len(legend(figure)) == 3
    for top, bottom, kind in zip(above, below, kinds):
        for length, bars in zip(lengths, bottom.containers):
            part = summary[(summary["context_kind"] == kind)
                           & (summary["context_length"] == length)]
            assert_drawn(top, f"{length} context tokens",
                         part.assign(percent=100 * part["share"]), "percent")
            np.testing.assert_allclose(points(bars)[1], part["value"] - part["expected"])
            (line,) = [line for line in top.lines if len(line.get_xdata()) == 40
                       and line.get_color() == bars.lines[0].get_color()]
            halvings = -np.log2(line.get_xdata() / 100)
            np.testing.assert_allclose(line.get_ydata(),
                                       found[kind](halvings, np.log2(1 + length)))
