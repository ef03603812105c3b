"""F3 on rows whose truth is built in, and what its figure draws of it."""

import numpy as np
import pandas as pd
import pytest
from drawn import assert_drawn, labels, legend, looks, ticks, upright
from made_rows import DOUBLINGS, LENGTHS, PAIR, one_question
from scipy import special

from vdp_utils import figures, stats
from vdp_utils.errors import VDPError
from vdp_utils.figures.priors import TAKEN
from vdp_utils.findings import priors as f3


def by_hand(scale=1.0):
    """Two images of two questions each."""
    return pd.DataFrame(
        one_question(dict(own=0.9, none=0.5 + 1e-9, blank=0.2, swapped=0.1), scale=scale)
        + one_question(dict(own=0.8, none=0.2, blank=0.8, swapped=0.6), question_id="1",
                       answer="no", scale=scale)
        + one_question(dict(own=0.3, none=0.6, blank=0.4, swapped=0.3), "i1", scale=scale)
        + one_question(dict(own=0.4, none=0.1, blank=0.9, swapped=0.4), "i1", "1", "no",
                       scale=scale))


def divergence(p, q):
    return p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))


@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_f3_s_pairs_by_hand(scale):
    """Also where the options hold only a hundredth of what the model might say."""
    found = f3.pairs(by_hand(scale).sample(frac=1, random_state=1))
    found = found.sort_values(["image_id", "question_id"], ignore_index=True)
    assert found[["image_id", "question_id"]].to_numpy().tolist() == [
        ["i0", "0"], ["i0", "1"], ["i1", "0"], ["i1", "1"]]
    assert found["own"].tolist() == ["yes", "yes", "no", "no"]
    assert found["none"].tolist() == ["yes", "no", "yes", "no"]
    assert found["answer"].tolist() == ["yes", "no", "yes", "no"]
    assert found["correct"].tolist() == [True, False, False, True]
    assert found["prior_right"].tolist() == [True, True, True, True]
    assert found["margin"].to_numpy(float) == pytest.approx(
        special.logit([0.9, 0.2, 0.3, 0.6]))
    expected = dict(none=[0.5, 0.2, 0.6, 0.1], blank=[0.2, 0.8, 0.4, 0.9],
                    swapped=[0.1, 0.6, 0.3, 0.4])
    own = np.array([0.9, 0.8, 0.3, 0.4])
    for image, other in expected.items():
        np.testing.assert_allclose(found[f"kl_{image}"].astype(float),
                                   divergence(own, np.array(other)), atol=1e-7)
    assert found["kl_none"][0] == pytest.approx(0.9 * np.log(1.8) + 0.1 * np.log(0.2))
    assert found["flip_none"].tolist() == [False, True, True, False]
    assert found["flip_blank"].tolist() == [True, False, False, True]
    assert found["flip_swapped"].tolist() == [True, False, False, False]
    for image in expected:
        assert (found[f"agree_{image}"] == 1 - found[f"flip_{image}"]).all()


def test_f3_s_summary_and_accuracy_by_prior_by_hand():
    found = f3.pairs(by_hand())
    summary = f3.summary(found).set_index("measure")["value"]
    assert summary["agreement"] == 0.5
    assert summary["Cohen's kappa"] == pytest.approx(0)  # one each of the four pairs of answers
    assert summary["flip rate, none"] == 0.5 and summary["flip rate, blank"] == 0.5
    assert summary["flip rate, swapped"] == 0.25
    for image in f3.IMAGES[1:]:
        assert summary[f"KL, {image}"] == pytest.approx(found[f"kl_{image}"].mean())
    assert len(summary) == 8
    found["prior_right"] = [True, False, True, False]
    split = f3.by_prior(found).set_index("prior_right")["value"]
    assert split.to_dict() == {True: 0.5, False: 0.5}
    found.loc[2, "correct"] = True
    split = f3.by_prior(found).set_index("prior_right")["value"]
    assert split.to_dict() == {True: 1.0, False: 0.5}
    only = found.assign(prior_right=[True, False, True, True])  # wrong for one image alone
    assert f3.by_prior(only)["prior_right"].tolist() == [True]


@pytest.mark.parametrize("lacking", [["none"], ["own"], ["own", "none"]])
def test_f3_refuses_missing_images_by_name(lacking):
    rows = by_hand()
    with pytest.raises(VDPError, match=rf"lack the images \[{str(sorted(lacking))[1:-1]}\]"):
        f3.pairs(rows[~rows["image"].isin(lacking)])


def test_f3_needs_no_more_than_answers_with_and_without_the_image():
    """What is left says the same as where blank and swapped images were measured too."""
    rows = by_hand()
    found, whole = f3.pairs(rows[rows["image"].isin(["own", "none"])]), f3.pairs(rows)
    others = [name for name in whole if name.endswith(("blank", "swapped"))]
    assert len(others) == 8 and found[others].isna().all().all()
    pd.testing.assert_frame_equal(found.drop(columns=others), whole.drop(columns=others))
    summary, split = f3.summary(found), f3.by_prior(found)
    assert summary["measure"].tolist() == [
        "agreement", "Cohen's kappa", "KL, none", "flip rate, none"]
    figure = figures.priors(summary, split, None, "embedded-m")
    assert [len(axes.containers) for axes in figure.axes] == [2, 1, 1, 2]
    for axes, measure in zip(figure.axes[1:], ("KL", "flip rate")):
        assert_drawn(axes, "image left out", summary[summary["measure"] == f"{measure}, none"])
    assert len(legend(figure)) == 5
    assert not {"image blanked", "image swapped"} & set(legend(figure))


def test_f3_judges_the_same_with_or_without_blank_and_swapped_images():
    rows = moved((WEAKER, EVEN))
    verdicts = []
    for images in (("own", "none"), f3.IMAGES):
        found = f3.pairs(rows[rows["image"].isin(images)])
        verdicts.append(f3.verdict(f3.tests(found), found))
    assert verdicts[0] == verdicts[1] and verdicts[0].verdict == "partly"


def test_f3_refuses_a_kind_that_lacks_the_answers_without_image():
    rows = by_hand()
    lacking = rows[rows["image"] != "none"].assign(context_kind="misleading")
    with pytest.raises(VDPError, match=r"after \['misleading'\] contexts rows with or without"):
        f3.pairs(pd.concat([rows, lacking]))


def test_f3_takes_what_was_measured_after_each_context():
    """Blank images after one kind only, and text descriptions, which concern another finding."""
    rows = by_hand()
    told = rows[rows["image"] == "own"].assign(image="text")
    other = rows[rows["image"] != "blank"].assign(context_kind="misleading")
    found = f3.pairs(pd.concat([rows, told, other]))
    assert found["context_kind"].value_counts().to_dict() == {"misleading": 4, "other_images": 4}
    by_kind = {kind: part.set_index(["image_id", "question_id"]).sort_index()
               for kind, part in found.groupby("context_kind")}
    for image in f3.IMAGES[1:]:
        for name in (f"kl_{image}", f"flip_{image}", f"agree_{image}"):
            assert by_kind["other_images"][name].notna().all()
            if image == "blank":
                assert by_kind["misleading"][name].isna().all()
            else:
                assert (by_kind["misleading"][name] == by_kind["other_images"][name]).all()
    alone = f3.pairs(rows)
    pd.testing.assert_frame_equal(
        found[found["context_kind"] == "other_images"].sort_values(f3.KEYS, ignore_index=True),
        alone[found.columns].sort_values(f3.KEYS, ignore_index=True), check_dtype=False)
    summary = f3.summary(found).groupby("context_kind")["measure"].apply(set)
    assert summary["other_images"] - summary["misleading"] == {"KL, blank", "flip rate, blank"}
    figure = figures.priors(f3.summary(found), f3.by_prior(found), None, "embedded-s")
    flips = figure.axes[2], figure.axes[6]
    counts = [[len(bars.lines[0].get_xdata()) for bars in axes.containers] for axes in flips]
    assert counts == [[1, 1, 1], [1, 0, 1]]


def moved(evidence, drift=None, sharp=None, images=50, kinds=PAIR, seed=0):
    """Answers of {length: weight of what the image shows} on top of what the question suggests.

    `evidence`, `drift` (towards yes, with and without the image) and `sharp` (what all log-odds
    are multiplied with) are by length, or one such a kind.
    """
    rng, lines = np.random.default_rng(seed), []
    by_kind = [[x if x is None or isinstance(x, dict) else x[n] for x in (evidence, drift, sharp)]
               for n in range(len(kinds))]
    for image in range(images):
        for number in range(4):
            answer = ("yes", "no")[number % 2]
            prior = rng.normal(0, 2)
            shown = (1 if number % 2 == 0 else -1) * rng.normal(2, 0.5)
            for kind, (weights, drifts, factors) in zip(kinds, by_kind):
                for length in weights:
                    base = prior + rng.normal(0, 0.2) + (drifts or {}).get(length, 0)
                    odds = dict(own=base + weights[length] * shown, none=base, blank=base + 0.1,
                                swapped=base - 0.5 * weights[length] * shown)
                    factor = (factors or {}).get(length, 1)
                    lines += one_question(
                        {name: special.expit(factor * x) for name, x in odds.items()},
                        f"i{image:03d}", str(number), answer, kind, length)
    return pd.DataFrame(lines)


WEAKER = dict(zip(LENGTHS, (2.0, 1.2, 0.6, 0.2)))
EVEN = dict.fromkeys(LENGTHS, 1.0)
STRONGER = dict(zip(LENGTHS, (0.8, 1.2, 1.6, 2.4)))
TO_YES = dict(zip(LENGTHS, (0, 5, 10, 20)))
BLUNTER = dict(zip(LENGTHS, (1, 0.6, 0.4, 0.2)))
SHARPER = dict(zip(LENGTHS, (0.5, 1, 2, 5)))


@pytest.mark.parametrize("rows, expected", [
    (dict(evidence=WEAKER), "reproduced"),
    (dict(evidence=EVEN), "not reproduced"),
    (dict(evidence=STRONGER), "contradicted"),
    (dict(evidence=(WEAKER, EVEN)), "partly"),
    (dict(evidence=EVEN, drift=TO_YES), "partly"),  # KL: the same word, not the same answers
    (dict(evidence=EVEN, sharp=BLUNTER), "partly"),  # KL falls, no answer changes
    (dict(evidence=WEAKER | {4096: 0.5}, sharp=SHARPER), "partly"),  # KL does not fall
    (dict(evidence=dict.fromkeys(LENGTHS, 0.0)), "inconclusive")])  # it never decided anything
def test_f3_finds_the_fading_image_that_is_built_in(rows, expected):
    found = f3.pairs(moved(**rows, images=80))
    verdict = f3.verdict(f3.tests(found), found)
    assert verdict.verdict == expected and verdict.finding == "F3"
    assert (verdict.rule, verdict.n) == (f3.RULE, 80) and "from 0 to 4096" in verdict.effect
    agree = (found["own"] == found["none"]).groupby(
        [found["context_kind"], found["context_length"]]).mean()
    assert {kind: one.value for kind, one in verdict.estimates.items()} == pytest.approx(
        {kind: agree[kind, 4096] - agree[kind, 0] for kind in PAIR})


def test_f3_s_kappa_is_what_tells_turning_to_one_word():
    """Agreement rises in each kind; kappa says that it is the same word."""
    found = f3.pairs(moved(EVEN, TO_YES))
    table = f3.tests(found).set_index("measure").loc["agreement"]
    assert (table["low"] > 0).all() and (table["p_holm"] < 0.05).all()
    assert not table["holds"].any() and (table["kappa_rise"] <= 0).all()
    assert (found[found["context_length"] == 4096][["own", "none"]] == "yes").all().all()
    assert (stats.speaks(table) == "").all()
    assert (stats.speaks(table.assign(holds=True)) == "for").all()


def test_f3_s_tests_are_paired_ends_of_the_pairs_and_trends_stand_beside():
    found = f3.pairs(moved((WEAKER, STRONGER)))
    table = f3.tests(found.sample(frac=1, random_state=0))
    assert list(zip(table["context_kind"], table["measure"])) == [
        (kind, measure) for kind in sorted(PAIR) for measure in ("agreement", "KL")]
    assert (table["p_holm"].to_numpy() == stats.holm(table["p"])).all()
    cells = table.set_index(["context_kind", "measure"])
    trends = f3.trends(found).set_index(["context_kind", "measure"])["value"]
    kappa = f3.summary(found).query("measure == \"Cohen's kappa\"").set_index(
        ["context_kind", "context_length"])["value"]
    for kind, part in found.groupby("context_kind"):
        means = part.groupby("context_length")[["agree_none", "kl_none"]].mean().astype(float)
        for measure, column, sign in (("agreement", "agree_none", 1), ("KL", "kl_none", -1)):
            line, mean = cells.loc[kind, measure], means[column]
            assert line["effect"] == pytest.approx(sign * (mean[4096] - mean[0]))
            assert line["low"] < line["effect"] < line["high"] and line["limit"] == ""
            slope = np.polyfit([DOUBLINGS[n] for n in mean.index], mean, 1)[0]
            assert trends[kind, measure] == pytest.approx(slope)
        assert cells.loc[kind, "agreement"]["kappa_rise"] == pytest.approx(
            kappa[kind, 4096] - kappa[kind, 0])
    assert cells["holds"].to_dict() == {
        (kind, measure): measure == "KL" or kind == "other_images"
        for kind in PAIR for measure in f3.SMALLEST}


def test_f3_leaves_out_what_cannot_rise_or_fall():
    found = f3.pairs(moved((dict.fromkeys(LENGTHS, 0.0), WEAKER)))
    cells = f3.tests(found).set_index(["context_kind", "measure"])["limit"]
    assert cells.to_dict() == {
        ("other_images", "agreement"): "ceiling", ("other_images", "KL"): "floor",
        ("misleading", "agreement"): "", ("misleading", "KL"): ""}


@pytest.fixture(scope="module")
def prior_tables():
    found = f3.pairs(moved((WEAKER, EVEN)))
    return f3.summary(found), f3.by_prior(found)


def test_f3_s_figure_draws_agreement_kl_flips_and_accuracy_by_prior(prior_tables):
    summary, split = prior_tables
    figure = figures.priors(summary, split, 1024, "embedded-s")
    panels = np.array(figure.axes).reshape(2, 4)
    assert [axes.get_title() for axes in panels[0]] == [
        "agreement, kappa", "KL divergence (nats)", "flip rate", "accuracy with the image"]
    for line, kind in zip(panels, PAIR):
        part = summary[summary["context_kind"] == kind]
        assert line[0].get_ylabel() == f"context: {kind}"
        assert [len(axes.containers) for axes in line] == [2, 3, 3, 2]
        assert_drawn(line[0], "agreement with the answer without image",
                     part[part["measure"] == "agreement"])
        assert_drawn(line[0], "the same beyond chance (kappa)",
                     part[part["measure"] == "Cohen's kappa"])
        for axes, measure in zip(line[1:], ("KL", "flip rate")):
            for image, label in TAKEN.items():
                assert_drawn(axes, label, part[part["measure"] == f"{measure}, {image}"])
        mine = split[split["context_kind"] == kind]
        for right, word in ((True, "right"), (False, "wrong")):
            assert_drawn(line[3], f"answer without image is {word}",
                         mine[mine["prior_right"] == right])
        for axes in line:
            assert upright(axes) == [1024] and len(looks(axes)) == len(axes.containers)
        assert line[1].get_ylim()[0] == 0
        assert all(axes.get_ylim()[1] >= 1 for axes in line[[0, 2, 3]])
    for axes in panels[-1]:
        assert axes.get_xlabel() == "context (tokens)"
        assert ticks(axes.xaxis) == ["0", "256", "1k", "4k"]
    heading = figure.get_suptitle()
    assert "embedded-s" in heading and "n = 50 images" in heading and "95 %" in heading
    assert sorted(legend(figure)) == sorted(
        {label for axes in panels[0] for label in labels(axes)})
    assert len(legend(figure)) == 7


def test_f3_s_figure_has_no_line_where_the_training_is_not_known(prior_tables):
    figure = figures.priors(*prior_tables, None, "embedded-s")
    assert all(upright(axes) == [] for axes in figure.axes)
