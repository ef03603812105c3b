"""F2, F3 and F5 on rows whose truth is built in, and what their figures draw of it."""

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgba
from scipy import special
from scipy import stats as scipy_stats

from vdp_utils import figures, stats
from vdp_utils.attention.tokens import Kind
from vdp_utils.errors import VDPError
from vdp_utils.figures import style
from vdp_utils.figures.priors import TAKEN
from vdp_utils.figures.text_control import TOLD
from vdp_utils.findings import as_text, attention as f5, priors as f3, text_control as f2
from vdp_utils.lvlm import prompts
from vdp_utils.sources import scenes
from vdp_utils.sources.samples import presence_samples

LENGTHS = (0, 256, 1024, 4096)
DOUBLINGS = {length: np.log2(1 + length) for length in LENGTHS}


@pytest.fixture(autouse=True)
def fewer_resamples(monkeypatch):
    monkeypatch.setattr(stats, "RESAMPLES", 999)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def asked(images, questions, **more):
    """One row a question: yes and no take turns."""
    return pd.DataFrame(dict(image_id=f"i{image:03d}", question_id=str(number),
                             answer=("yes", "no")[number % 2], **more)
                        for image in range(images) for number in range(questions))


# ---- what is drawn


def points(bars):
    """(x, y, low, high) of the points of one curve with intervals."""
    line, _, (ends,) = bars.lines
    low, high = np.array([segment[:, 1] for segment in ends.get_segments()], float).T
    return (*np.asarray(line.get_xydata(), float).T, low, high)


def assert_drawn(axes, label, part, x="context_length", rtol=0.11, atol=0.0):
    """The panel has exactly one curve of this label, with the table's values and intervals."""
    (bars,) = [bars for bars in axes.containers if bars.get_label() == label]
    part = part.sort_values(x)
    at, value, low, high = points(bars)
    assert len(part) == len(at) > 0
    np.testing.assert_allclose(at, part[x], rtol=rtol, atol=atol)
    for drawn, name in ((value, "value"), (low, "low"), (high, "high")):
        np.testing.assert_allclose(drawn, part[name].astype(float), atol=1e-9)
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    assert left <= at.min() and at.max() <= right  # none is cut off
    assert bottom <= low.min() and high.max() <= top


def labels(axes):
    return [bars.get_label() for bars in axes.containers]


def legend(figure):
    (found,) = figure.legends
    return [text.get_text() for text in found.get_texts()]


def upright(axes):
    """Where vertical lines are drawn."""
    return sorted({float(line.get_xdata()[0]) for line in axes.lines
                   if len(line.get_xdata()) == 2 and line.get_xdata()[0] == line.get_xdata()[1]})


def ticks(axis):
    return [tick.get_text() for tick in axis.get_ticklabels()]


def looks(axes):
    lines = [bars.lines[0] for bars in axes.containers]
    return {(line.get_marker(), line.get_linestyle()) for line in lines}


# ---- F2: the same questions about scenes told in words

FALL = {0: 0.95, 256: 0.85, 1024: 0.75, 4096: 0.55}
FLAT = dict.fromkeys(LENGTHS, 0.9)
LATE = FLAT | {4096: 0.5}
PAIR = ("other", "mentions")


def told(accuracy, images=60, seed=0):
    """Presence rows of {(context kind, image or words): {length: chance to be right}}."""
    rng, tables = np.random.default_rng(seed), []
    for (kind, image), by_length in accuracy.items():
        for length, right in by_length.items():
            rows = asked(images, 4, context_kind=kind, context_length=length, image=image)
            tables.append(rows.assign(correct=rng.random(len(rows)) < right))
    return pd.concat(tables, ignore_index=True)


def controlled(own, words, kinds=PAIR):
    """{(kind, image): accuracy by length} from one for each kind of images and of words."""
    return {(kind, image): by_length for kind, *both in zip(kinds, own, words)
            for image, by_length in zip(f2.IMAGES, both)}


@pytest.fixture(scope="module")
def text_rows():
    places = {("other", image): {n: right - 0.1 for n, right in FALL.items()}
              for image in ("words_middle", "words_last")}
    return told(controlled([FALL] * 2, [FLAT] * 2) | places)


@pytest.mark.parametrize("trained, expected", [
    (None, [4096]), (0, [4096]), (100, [4096]), (256, [256, 4096]), (1000, [256, 4096]),
    (1024, [1024, 4096]), (4096, [4096]), (9000, [4096])])
def test_f2_looks_up_to_the_longest_trained_context_and_to_the_longest(text_rows, trained,
                                                                       expected):
    assert f2.spans(text_rows, trained) == expected


@pytest.mark.parametrize("own, words, expected", [
    ((FALL, FALL), (FLAT, FLAT), "reproduced"),
    ((FLAT, FLAT), (FLAT, FLAT), "not reproduced"),  # no effect
    ((FALL, FALL), (FALL, FALL), "not reproduced"),  # both suffer alike
    ((FLAT, FLAT), (FALL, FALL), "not reproduced"),  # words suffer more
    ((FALL, FALL), (FLAT, FALL), "partly"),  # one kind
    ((FALL, FLAT), (FALL, FALL), "not reproduced"),
    ((LATE, LATE), (FLAT, FLAT), "partly"),  # beyond the trained length only
    ((dict.fromkeys(LENGTHS, 0.6),) * 2, (FLAT, FLAT), "not reproduced")])  # worse at any length
def test_f2_finds_the_difference_of_losses_that_is_built_in(own, words, expected):
    rows = told(controlled(own, words))
    table = f2.tests(rows, 1024)
    verdict = f2.verdict(table, rows)
    assert verdict.verdict == expected and verdict.finding == "F2"
    assert (verdict.rule, verdict.n) == (f2.RULE, 60)
    assert "up to 4096" in verdict.effect
    truth = np.mean([a[0] - a[4096] - b[0] + b[4096] for a, b in zip(own, words)])
    assert verdict.estimate.low - 0.05 < truth < verdict.estimate.high + 0.05


def test_f2_s_losses_are_those_of_the_rows(text_rows):
    rows = text_rows[text_rows["image"].isin(f2.IMAGES)]
    table = f2.tests(rows.sample(frac=1, random_state=0), 1024)
    assert list(zip(table["context_kind"], table["span"])) == [
        (kind, span) for kind in sorted(PAIR) for span in (1024, 4096)]
    right = rows.groupby(["context_kind", "image", "context_length"])["correct"].mean()
    for line in table.itertuples():  # as many yes- as no-questions: balanced is plain accuracy
        own, words = (right[line.context_kind, image] for image in f2.IMAGES)
        assert line.loss_image == pytest.approx(own[0] - own[line.span])
        assert line.loss_words == pytest.approx(words[0] - words[line.span])
        assert line.more_with_image == pytest.approx(line.loss_image - line.loss_words)
        assert line.low < line.more_with_image < line.high
        assert line.n_images == 60
    far = table[table["span"] == 4096]["more_with_image"].mean()
    assert f2.verdict(table, rows).estimate.value == pytest.approx(far)


def test_f2_without_a_known_training_looks_at_the_longest_context_only():
    """So what happens late only is enough for a model whose training is unknown."""
    rows = told(controlled([LATE] * 2, [FLAT] * 2))
    table = f2.tests(rows, None)
    assert set(table["span"]) == {4096} and len(table) == 2
    assert f2.verdict(table, rows).verdict == "reproduced"


def test_f2_compares_the_same_questions_only():
    rows = told(controlled([FALL], [FLAT], ("other",)), images=5)
    lost = (rows["image"] == "words") & (rows["context_length"] == 4096) & (
        rows["image_id"] == "i003") & (rows["question_id"] == "2")
    with pytest.raises(VDPError, match=r"lacks 1 .*i003"):
        f2.tests(rows[~lost], 1024)


def test_f2_s_summary_and_places_are_accuracies(text_rows):
    summary = f2.summary(text_rows)
    places = f2.places(text_rows[text_rows["context_kind"] == "other"])
    assert len(summary) == 6 * len(LENGTHS) and len(places) == 3 * len(LENGTHS)
    assert set(places["image"]) == {"words", "words_middle", "words_last"}
    last = text_rows["image"] == "words_last"
    lacking = text_rows[~(last & (text_rows["context_length"] == max(LENGTHS)))]
    fewer = f2.places(lacking[lacking["context_kind"] == "other"])
    assert set(fewer["context_length"]) == set(LENGTHS) - {max(LENGTHS)}
    right = text_rows.groupby(["context_kind", "image", "context_length"])["correct"].mean()
    for line in summary.itertuples():
        expected = right[line.context_kind, line.image, line.context_length]
        assert line.value == pytest.approx(expected) and line.low <= line.value <= line.high
        assert (line.measure, line.n_images, line.n_rows) == ("balanced accuracy", 60, 240)
    for line in places.itertuples():
        assert line.value == pytest.approx(right["other", line.image, line.context_length])
    shown = as_text(summary[summary["context_kind"] == "mentions"], "balanced accuracy", "image")
    assert shown.loc[0, "own"].startswith(f"{right['mentions', 'own', 0]:.3f} [")


@pytest.fixture(scope="module")
def text_tables(text_rows):
    return (f2.summary(text_rows[text_rows["image"].isin(f2.IMAGES)]),
            f2.places(text_rows[text_rows["context_kind"] == "other"]))


def test_f2_s_figure_draws_image_and_words_by_kind_and_the_places(text_tables):
    summary, places = text_tables
    figure = figures.text_control(summary, places, 1024, "embedded-s")
    assert [axes.get_title() for axes in figure.axes] == [
        *(style.KINDS[kind][0] for kind in PAIR), "where the words stand (other)"]
    for axes, kind in zip(figure.axes, PAIR):
        part = summary[summary["context_kind"] == kind]
        assert len(axes.containers) == 2
        for image in f2.IMAGES:
            assert_drawn(axes, TOLD[image][0], part[part["image"] == image])
    last = figure.axes[-1]
    assert len(last.containers) == 3
    for image in prompts.PLACES:
        assert_drawn(last, TOLD[image][0], places[places["image"] == image])
    for axes in figure.axes:
        assert axes.get_xlabel() == "context length (tokens)"
        assert ticks(axes.xaxis) == ["0", "256", "1k", "4k"]
        assert list(axes.get_xticks()) == list(LENGTHS)
        assert "chance" in [text.get_text() for text in axes.texts]
        assert upright(axes) == [1024]
        assert len(looks(axes)) == len(axes.containers)  # told apart without colour
    assert figure.axes[0].get_ylabel() == "balanced accuracy"
    assert sorted(legend(figure)) == sorted(label for label, *_ in TOLD.values())
    heading = figure.get_suptitle()
    assert "embedded-s" in heading and "n = 60 images" in heading and "95 %" in heading


def test_f2_s_words_look_the_same_in_each_panel(text_tables):
    """One legend is for all panels."""
    figure = figures.text_control(*text_tables, None, "embedded-s")
    for label in [text[0] for text in TOLD.values()]:
        lines = [bars.lines[0] for axes in figure.axes for bars in axes.containers
                 if bars.get_label() == label]
        assert len({(to_rgba(line.get_color()), line.get_marker(), line.get_linestyle())
                    for line in lines}) == 1
    assert [upright(axes) for axes in figure.axes] == [[], [], []]


@pytest.mark.parametrize("kinds", [PAIR, PAIR[:1]])
def test_f2_s_figure_has_no_panel_of_places_where_there_is_one_place_only(text_rows, kinds):
    rows = text_rows[text_rows["image"].isin(f2.IMAGES) & text_rows["context_kind"].isin(kinds)]
    places, summary = f2.places(rows), f2.summary(rows)
    assert places.empty
    figure = figures.text_control(summary, places, 1024, "embedded-m")
    assert [axes.get_title() for axes in figure.axes] == [style.KINDS[kind][0] for kind in kinds]
    for axes, kind in zip(figure.axes, kinds):
        part = summary[summary["context_kind"] == kind]
        assert len(axes.containers) == 2
        for image in f2.IMAGES:
            assert_drawn(axes, TOLD[image][0], part[part["image"] == image])
    assert sorted(legend(figure)) == sorted(TOLD[image][0] for image in f2.IMAGES)


# ---- F3: answers with and without the image


def one_question(probabilities, image_id="i0", question_id="0", answer="yes", kind="other",
                 length=0, scale=1.0):
    """Rows of one question from the chance of "yes" under each image."""
    lines = []
    for image, yes in probabilities.items():
        predicted = "yes" if yes > 0.5 else "no"
        lines.append(dict(
            image_id=image_id, question_id=question_id, answer=answer, context_kind=kind,
            context_length=length, image=image, predicted=predicted, correct=predicted == answer,
            log_likelihoods=[np.log(yes * scale), np.log((1 - yes) * scale)],
            margin=(1 if answer == "yes" else -1) * float(special.logit(yes))))
    return lines


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
    lacking = rows[rows["image"] != "none"].assign(context_kind="mentions")
    with pytest.raises(VDPError, match=r"behind \['mentions'\] rows with or without"):
        f3.pairs(pd.concat([rows, lacking]))


def test_f2_refuses_image_and_words_at_other_lengths(text_rows):
    short = text_rows[(text_rows["image"] == "own") | (text_rows["context_length"] < 4096)]
    with pytest.raises(VDPError, match=r"differ in the lengths \[4096\]: measure both"):
        f2.tests(short, 512)


def test_f3_s_figure_has_no_line_where_the_training_is_not_known(prior_tables):
    figure = figures.priors(*prior_tables, None, "embedded-s")
    assert all(upright(axes) == [] for axes in figure.axes)


def test_f3_takes_what_was_measured_behind_each_context():
    """Blank images behind one kind only, and words that concern another finding."""
    rows = by_hand()
    told = rows[rows["image"] == "own"].assign(image="words")
    other = rows[rows["image"] != "blank"].assign(context_kind="mentions")
    found = f3.pairs(pd.concat([rows, told, other]))
    assert found["context_kind"].value_counts().to_dict() == {"mentions": 4, "other": 4}
    by_kind = {kind: part.set_index(["image_id", "question_id"]).sort_index()
               for kind, part in found.groupby("context_kind")}
    for image in f3.IMAGES[1:]:
        for name in (f"kl_{image}", f"flip_{image}", f"agree_{image}"):
            assert by_kind["other"][name].notna().all()
            if image == "blank":
                assert by_kind["mentions"][name].isna().all()
            else:
                assert (by_kind["mentions"][name] == by_kind["other"][name]).all()
    alone = f3.pairs(rows)
    pd.testing.assert_frame_equal(
        found[found["context_kind"] == "other"].sort_values(f3.KEYS, ignore_index=True),
        alone[found.columns].sort_values(f3.KEYS, ignore_index=True), check_dtype=False)
    summary = f3.summary(found).groupby("context_kind")["measure"].apply(set)
    assert summary["other"] - summary["mentions"] == {"KL, blank", "flip rate, blank"}
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
STRONGER = dict(zip(LENGTHS, (0.2, 0.6, 1.2, 2.0)))
TO_YES = dict(zip(LENGTHS, (0, 5, 10, 20)))
BLUNTER = dict(zip(LENGTHS, (1, 0.6, 0.4, 0.2)))
SHARPER = dict(zip(LENGTHS, (0.1, 0.5, 2, 6)))


@pytest.mark.parametrize("rows, expected", [
    (dict(evidence=WEAKER), "reproduced"),
    (dict(evidence=EVEN), "not reproduced"),
    (dict(evidence=STRONGER), "not reproduced"),
    (dict(evidence=(WEAKER, EVEN)), "partly"),
    (dict(evidence=EVEN, drift=TO_YES), "partly"),  # the same word, not the same answers
    (dict(evidence=(WEAKER, EVEN), drift=(None, TO_YES)), "partly"),  # one kind of each
    (dict(evidence=EVEN, sharp=BLUNTER), "not reproduced"),  # KL falls, no answer changes
    (dict(evidence=WEAKER, sharp=SHARPER), "not reproduced")])  # agreement rises, KL does not fall
def test_f3_finds_the_fading_image_that_is_built_in(rows, expected):
    found = f3.pairs(moved(**rows))
    verdict = f3.verdict(f3.tests(found), found)
    assert verdict.verdict == expected and verdict.finding == "F3"
    assert (verdict.rule, verdict.n) == (f3.RULE, 50) and "from 0 to 4096" in verdict.effect
    agree = (found["own"] == found["none"]).groupby(found["context_length"]).mean()
    assert verdict.estimate.value == pytest.approx(agree[4096] - agree[0])


def test_f3_s_kappa_is_what_tells_turning_to_one_word():
    """Agreement and KL say "reproduced" for every kind; kappa, that it is the same word."""
    found = f3.pairs(moved(EVEN, TO_YES))
    table = f3.tests(found)
    assert (table["low"] > 0).all() and (table["kl_slope_per_doubling"] < 0).all()
    assert (table["p_holm"] < 0.05).all() and (table["kappa_low"] <= 0).all()
    assert (found[found["context_length"] == 4096][["own", "none"]] == "yes").all().all()
    assert f3.verdict(table.assign(kappa_low=0.01), found).verdict == "reproduced"


def test_f3_s_tests_are_paired_ends_and_trends_of_the_pairs():
    found = f3.pairs(moved((WEAKER, STRONGER)))
    table = f3.tests(found.sample(frac=1, random_state=0))
    assert table["context_kind"].tolist() == sorted(PAIR)
    kappa = f3.summary(found).query("measure == \"Cohen's kappa\"").set_index(
        ["context_kind", "context_length"])["value"]
    for line in table.itertuples():
        part = found[found["context_kind"] == line.context_kind]
        agree = part.groupby("context_length")["agree_none"].mean()
        assert line.agreement_rise == pytest.approx(agree[4096] - agree[0])
        assert line.low < line.agreement_rise < line.high
        both = kappa[line.context_kind]
        assert line.kappa_rise == pytest.approx(both[4096] - both[0])
        assert line.kappa_low < line.kappa_rise < line.kappa_high
        kl = part.groupby("context_length")["kl_none"].mean()
        slope = np.polyfit([DOUBLINGS[n] for n in kl.index], kl.to_numpy(float), 1)[0]
        assert line.kl_slope_per_doubling == pytest.approx(slope)
    assert np.sign(table["kl_slope_per_doubling"]).tolist() == [1, -1]  # mentions, other
    assert table["p_holm"].to_numpy() == pytest.approx(stats.holm(table["p"]))


def test_f3_s_trend_is_over_all_lengths():
    """The ends alone say that KL falls; over all lengths it does not."""
    found = f3.pairs(moved(dict(zip(LENGTHS, (1.2, 3.0, 3.0, 1.0))), kinds=("other",)))
    kl = found.groupby("context_length")["kl_none"].mean()
    table = f3.tests(found)
    assert kl[4096] < kl[0] and table["kl_slope_per_doubling"][0] > 0
    assert f3.verdict(table.assign(low=0.1, kappa_low=0.1), found).verdict == "not reproduced"


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


# ---- F5: attention

LAYERS, HEADS = 3, 2
TEMPLATE, IMAGE, QUESTION = 20, 100, 12  # tokens


def attended(image_share, images=12, kinds=PAIR, lengths=LENGTHS, noise=0.1, seed=0, **more):
    """Rows in which the answer position's attention on the image is what `image_share` says.

    `image_share(kind, layer, length)` is a layer's share; of the rest the context gets what is
    due to its tokens. `noise` is the spread of the share's logarithm between rows.
    """
    rng, tables = np.random.default_rng(seed), []
    for kind in kinds:
        for length in lengths:
            rows = asked(images, 2, context_kind=kind, context_length=length, image="own",
                         template_tokens=TEMPLATE, image_tokens=IMAGE, context_tokens=length)
            rows["question_tokens"] = QUESTION + rng.integers(0, 3, len(rows))
            maps, heads = [], []
            for row in rows.itertuples():
                share = np.array([image_share(kind, layer, length) for layer in range(LAYERS)])
                share = np.minimum(share * np.exp(noise * rng.normal(size=LAYERS)), 0.99)
                counts = np.array([TEMPLATE, 0, length, row.question_tokens])
                layers = (1 - share)[:, None] * counts / counts.sum()
                layers[:, Kind.IMAGE] = share
                maps.append(layers.ravel().astype(np.float16))
                heads.append((share[:, None] * [0.3, 0.9]).ravel().astype(np.float16))
            tables.append(rows.assign(attention=maps, head_image=heads))
    return pd.concat(tables, ignore_index=True).assign(**more)


def uniform(kind, layer, length):
    """What attention that is the same on each token puts on the image."""
    return IMAGE / (TEMPLATE + IMAGE + length + QUESTION + 1)


def leaving(kind, layer, length):
    """Attention that leaves the image faster than uniform attention would."""
    return uniform(kind, layer, length) * 2.0 ** (-layer - DOUBLINGS[length] / 6)


def faintly_leaving(kind, layer, length):
    return 0.1 * leaving(kind, layer, length)


def holding(kind, layer, length):
    return 0.1 * (layer + 1)


def coming(kind, layer, length):
    return 0.02 * 2.0 ** (DOUBLINGS[length] / 4)


def in_one_layer(changing, steady, where=1):
    return lambda kind, layer, length: (changing if layer == where else steady)(
        kind, layer, length)


def in_one_kind(changing, steady):
    return lambda kind, layer, length: (changing if kind == "other" else steady)(
        kind, layer, length)


def test_f5_s_shares_are_by_layer_in_the_order_of_kinds_and_add_up():
    rows = attended(leaving)[:2]
    first = np.array([[0.1, 0.2, 0.3, 0.4], [0.5, 0.25, 0.125, 0.125], [0, 1, 0, 0]])
    maps = [first.ravel().astype(np.float16), first[::-1].ravel().astype(np.float16)]
    rows = rows.assign(attention=maps)
    layers = f5.by_layer(rows)
    assert layers["layer"].tolist() == [0, 1, 2] * 2
    assert layers["question_id"].tolist() == ["0"] * 3 + ["1"] * 3
    shares = layers[["mass_template", "mass_image", "mass_context", "mass_question"]]
    np.testing.assert_allclose(shares, [*first, *first[::-1]], atol=1e-3)
    assert [int(kind) for kind in f5.NAMES] == [1, 2, 3, 0]
    for kind, name in f5.NAMES.items():
        assert kind.name.lower() == name
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-3)
    whole = f5.by_layer(attended(leaving))
    assert len(whole) == LAYERS * 2 * 12 * 2 * len(LENGTHS)
    np.testing.assert_allclose(whole.filter(like="mass_").sum(axis=1), 1, atol=2e-3)


def test_f5_s_preference_is_the_log_ratio_to_uniform_attention():
    rows = attended(holding, lengths=(0, 868), images=2, noise=0)
    rows["question_tokens"] = 12  # so the image has 100 tokens of 132, and of 1000
    layers = f5.by_layer(rows).groupby(["context_length", "layer"])["prefers_image"].first()
    for length, total in ((0, 132), (868, 1000)):
        for layer in range(LAYERS):
            expected = np.log2(0.1 * (layer + 1) / (100 / total))
            assert layers[length, layer] == pytest.approx(expected, abs=2e-3)
    context = f5.by_layer(rows)
    assert context[context["context_length"] == 0]["prefers_context"].isna().all()
    far = context[context["context_length"] == 868]
    assert far["prefers_context"].to_numpy() == pytest.approx(
        np.log2(far["mass_context"] / 0.868))


@pytest.mark.parametrize("length", [0, 1, 64, 4096, 100_000])
def test_f5_s_preference_is_0_under_uniform_attention_whatever_the_length(length):
    rows = attended(uniform, lengths=(length,), images=3)
    counts = rows[["template_tokens", "image_tokens", "context_tokens",
                   "question_tokens"]].to_numpy()
    even = counts / counts.sum(1, keepdims=True)
    rows["attention"] = list(np.tile(even, LAYERS).astype(np.float16))
    layers = f5.by_layer(rows)
    assert layers["prefers_image"].to_numpy() == pytest.approx(0, abs=2e-3)
    if length:
        assert layers["prefers_context"].to_numpy() == pytest.approx(0, abs=2e-3)


@pytest.mark.parametrize("share, expected", [
    (leaving, "reproduced"),
    (uniform, "partly"),  # there is more text, and no preference changes
    (holding, "not reproduced"),
    (coming, "not reproduced"),
    (in_one_layer(holding, leaving), "partly"),  # one layer does not follow
    (in_one_layer(uniform, leaving), "partly"),
    (in_one_kind(leaving, uniform), "partly"),
    (in_one_kind(uniform, holding), "partly"),  # the image's share falls for one kind
    (in_one_layer(faintly_leaving, coming), "not reproduced")])  # in one layer, not on the whole
def test_f5_finds_the_move_that_is_built_in(share, expected):
    layers = f5.by_layer(attended(share))
    table = f5.tests(layers)
    verdict = f5.verdict(table, layers)
    assert verdict.verdict == expected and verdict.finding == "F5"
    assert (verdict.rule, verdict.n) == (f5.RULE, 12) and "from 0 to 4096" in verdict.effect
    mass = layers.groupby("context_length")["mass_image"].mean()
    assert verdict.estimate.value == pytest.approx(mass[0] - mass[4096])


def test_f5_s_tests_are_the_slopes_by_kind_and_layer():
    """A share that falls by 0.01, 0.02, 0.03 with each doubling; Holm's 12 tests are 6 and 6."""
    layers = f5.by_layer(attended(
        lambda kind, layer, length: 0.6 - 0.01 * (layer + 1) * DOUBLINGS[length], noise=0.01))
    table = f5.tests(layers)
    assert list(zip(table["context_kind"], table["layer"])) == [
        (kind, layer) for kind in sorted(PAIR) for layer in range(LAYERS)]
    assert table["mass_slope"].to_numpy() == pytest.approx([-0.01, -0.02, -0.03] * 2, abs=1e-3)
    assert table["mass_p_holm"].to_numpy() == pytest.approx(6 * 2 / 1000)
    prefers = layers.groupby(["context_kind", "layer", "context_length"])["prefers_image"].mean()
    for line in table.itertuples():
        found = prefers[line.context_kind, line.layer]
        slope = np.polyfit([DOUBLINGS[n] for n in found.index], found, 1)[0]
        assert line.preference_slope == pytest.approx(slope)
    assert f5.falls(table, "mass").all() and not f5.falls(table, "preference").any()
    assert (f5.falls(table, "mass") == (table["mass_slope"] < 0)).all()
    doubtful = table.assign(mass_p_holm=0.05)
    assert not f5.falls(doubtful, "mass").any()


@pytest.mark.parametrize("name", ["mass", "preference"])
def test_f5_asks_for_share_and_preference_in_every_layer_of_every_kind(name):
    layers = f5.by_layer(attended(leaving))
    table = f5.tests(layers)
    assert f5.verdict(table, layers).verdict == "reproduced"
    for line in table.index[::2]:
        unsure, rising = table.copy(), table.copy()
        unsure.loc[line, f"{name}_p_holm"] = 0.06
        rising.loc[line, f"{name}_slope"] *= -1
        for other in (unsure, rising):
            assert f5.verdict(other, layers).verdict == "partly"


def test_f5_s_summary_is_over_layers_and_leaves_out_what_is_not_there():
    layers = f5.by_layer(attended(leaving))
    summary = f5.summary(layers)
    measures = [f"attention on {name}" for name in f5.NAMES.values()]
    assert set(summary["measure"]) == {*measures, "preference for image", "preference for context"}
    for (kind, length), part in summary.groupby(["context_kind", "context_length"]):
        mine = layers[(layers["context_kind"] == kind) & (layers["context_length"] == length)]
        found = part.set_index("measure")
        assert ("preference for context" in found.index) == (length > 0)
        assert found.loc[measures, "value"].sum() == pytest.approx(1, abs=2e-3)
        assert found.loc["attention on image", "value"] == pytest.approx(mine["mass_image"].mean())
        assert found.loc["preference for image", "value"] == pytest.approx(
            mine["prefers_image"].mean())
        assert (found["n_images"] == 12).all() and (found["n_rows"] == 12 * 2 * LAYERS).all()


def test_f5_s_heat_and_heads_are_means_by_length():
    rows = attended(leaving, kinds=("other",), noise=0.2)
    layers = f5.by_layer(rows)
    heat, heads = f5.heat(layers, "mass_image"), f5.heads(rows)
    assert heat.shape == (LAYERS, len(LENGTHS)) and list(heat.columns) == list(LENGTHS)
    assert len(heads) == LAYERS * HEADS * len(LENGTHS)
    wide = heads.set_index(["context_length", "layer", "head"])["mass"]
    for length in LENGTHS:
        part = rows[rows["context_length"] == length]
        maps = np.mean([np.asarray(x, float).reshape(LAYERS, HEADS) for x in part["head_image"]],
                       axis=0)
        for layer in range(LAYERS):
            mean = layers[(layers["context_length"] == length) & (layers["layer"] == layer)]
            assert heat.loc[layer, length] == pytest.approx(mean["mass_image"].mean())
            assert wide[length, layer].to_numpy() == pytest.approx(maps[layer])
            assert wide[length, layer, 1] == pytest.approx(3 * wide[length, layer, 0], rel=2e-3)


# ---- F5: attention and what the image decides


def causes(images=15, kinds=PAIR, lengths=(0, 1024), seed=0):
    """Rows of every image whose answers move with attention in layer 0, against it in layer 1.

    Layer 2's attention is the same for all rows. Only that of the sample's own image counts.
    """
    rng, lines = np.random.default_rng(seed), []
    for kind in kinds:
        for length in lengths:
            moves = rng.permutation(np.linspace(0.1, 4, 2 * images))
            for place, move in enumerate(moves):
                odds = dict(own=0.0, none=0.2, blank=0.1, swapped=move)
                mine = one_question({name: special.expit(x - 0.5) for name, x in odds.items()},
                                    f"i{place // 2:02d}", str(place % 2),
                                    ("yes", "no")[place % 2], kind, length)
                for row in mine:
                    # As KL grows with the move, so does layer 0's share, if it is the own image.
                    share = move / 10 if row["image"] == "own" else 0.5 - move / 10
                    maps = np.zeros((LAYERS, len(Kind)))
                    maps[:, Kind.IMAGE] = [0.3 + share, 0.5 - share / 2, 0.25]
                    maps[:, Kind.TEMPLATE] = 1 - maps[:, Kind.IMAGE]
                    lines.append(row | dict(
                        attention=maps.ravel().astype(np.float16), template_tokens=TEMPLATE,
                        image_tokens=IMAGE, context_tokens=length, question_tokens=QUESTION))
    return pd.DataFrame(lines)


@pytest.fixture(scope="module")
def correlations():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stats, "RESAMPLES", 999)
        return f5.against_cause(causes(lengths=(0, 256, 512, 1024)))


def test_f5_correlates_the_own_image_s_attention_with_the_answer_s_move(correlations):
    table = correlations.set_index(["context_kind", "context_length", "layer"])
    assert len(table) == 2 * 4 * (LAYERS + 1)
    for kind in PAIR:
        for length in (0, 256, 512, 1024):
            found = table.loc[(kind, length)]
            assert found["value"].to_dict() == pytest.approx(
                {"0": 1, "1": -1, "2": 0, "mean": 1}, abs=1e-3)
            assert (found["n_images"] == 15).all() and (found["n_rows"] == 30).all()


def test_f5_s_correlation_is_spearman_s_over_questions_of_one_kind_and_length():
    rows = causes()
    rng = np.random.default_rng(0)
    for at in rows.index[rows["image"] == "swapped"]:
        yes = special.expit(rng.normal())
        rows.at[at, "log_likelihoods"] = [np.log(yes), np.log(1 - yes)]
    found = f5.against_cause(rows).set_index(["context_kind", "context_length", "layer"])
    pairs = f3.pairs(rows).set_index(f3.KEYS)
    layers = f5.by_layer(rows[rows["image"] == "own"]).set_index(f3.KEYS)
    for (kind, length, layer), line in found.iterrows():
        part = layers if layer == "mean" else layers[layers["layer"] == int(layer)]
        mass = part.groupby(f3.KEYS)["mass_image"].mean()
        mass = mass[mass.index.get_level_values("context_kind") == kind]
        mass = mass[mass.index.get_level_values("context_length") == length]
        moved = pairs["kl_swapped"].loc[mass.index].astype(float)
        if layer != "2":
            expected = scipy_stats.spearmanr(mass, moved).statistic
            assert line["value"] == pytest.approx(expected) and abs(expected) < 0.9
        assert line["low"] <= line["value"] <= line["high"]
    blank = f5.against_cause(rows, "blank")  # another image's move is another number
    assert not np.allclose(blank["value"], found["value"])


@pytest.mark.parametrize("lacking", ["swapped", "blank"])
def test_f5_refuses_to_say_what_a_missing_image_decides(lacking):
    rows = causes(images=3)
    with pytest.raises(VDPError, match=rf"lack the image '{lacking}'"):
        f5.against_cause(rows[rows["image"] != lacking], lacking)


def test_f5_s_layers_that_lose_attention_beside_those_that_cause():
    """By hand: means over lengths; ranks agree for one kind and are opposite for the other."""
    slopes = {"other": [-0.03, -0.02, -0.01], "mentions": [-0.03, -0.02, -0.01]}
    causing = {"other": [[0.5, 0.1], [0.4, 0.4], [0.6, 0.8]],
               "mentions": [[0.9, 0.7], [0.5, 0.1], [0.1, 0.1]]}
    table = pd.DataFrame(dict(context_kind=kind, layer=layer, mass_slope=slope,
                              mass_p_holm=0.01, preference_slope=9.0)
                         for kind, line in slopes.items() for layer, slope in enumerate(line))
    found = pd.DataFrame(
        dict(context_kind=kind, context_length=length, layer=name, value=value, low=-1, high=1)
        for kind, lines in causing.items()
        for name, line in zip(["0", "1", "2", "mean"], [*lines, [7.0, 7.0]])
        for length, value in zip((0, 1024), line))
    both = f5.over_layers(table, found.sample(frac=1, random_state=0))
    assert list(both.columns) == ["context_kind", "layer", "mass_slope", "with_cause",
                                  "rank_correlation"]
    by_kind = {kind: part.sort_values("layer") for kind, part in both.groupby("context_kind")}
    assert set(by_kind) == set(PAIR)
    for kind, part in by_kind.items():
        assert part["layer"].tolist() == ["0", "1", "2"]  # and no "mean"
        assert part["mass_slope"].tolist() == slopes[kind]
        assert part["with_cause"].to_numpy() == pytest.approx(np.mean(causing[kind], axis=1))
    assert by_kind["other"]["rank_correlation"].to_numpy() == pytest.approx(1)
    assert by_kind["mentions"]["rank_correlation"].to_numpy() == pytest.approx(-1)
    lacking = f5.over_layers(table, found[found["layer"] != "1"])
    assert sorted(set(lacking["layer"])) == ["0", "2"]


def test_f5_s_tests_and_correlations_go_together(correlations):
    rows = causes(lengths=(0, 256, 512, 1024))
    table = f5.tests(f5.by_layer(rows[rows["image"] == "own"]))
    both = f5.over_layers(table, correlations)
    assert len(both) == 2 * LAYERS
    assert both.loc[both["layer"] == "1", "with_cause"].to_numpy() == pytest.approx(-1, abs=1e-3)


# ---- F5: maps


def mapped(samples, lengths, layers=2):
    """Maps of every question: the share of layer l, patch p is known."""
    lines = []
    for place, sample in enumerate(samples):
        for number, question in enumerate(sample.questions):
            for length in lengths:
                grid = np.full((layers, 100), 0.001)
                grid[:, 10 * place + number] = 0.1
                grid[0] *= 2
                lines.append(dict(
                    image_id=sample.image_id, question_id=str(number), context_kind="other",
                    context_length=length, question=question.text,
                    answer=question.answer.lower(), predicted="yes" if length else "no",
                    map_image=(grid / (1 + length / 1024)).ravel().astype(np.float16)))
    return pd.DataFrame(lines)


def test_f5_s_maps_are_of_each_image_s_first_yes_question():
    maps = pd.DataFrame(
        [(image, question, answer, length, f"{image}{question}{length}")
         for image, answers in (("b", "nyyn"), ("a", "ynny"), ("c", "nnnn"))
         for question, answer in enumerate(answers) for length in (0, 512)],
        columns=["image_id", "question_id", "answer", "context_length", "map_image"])
    maps = maps.assign(answer=maps["answer"].map(dict(y="yes", n="no")),
                       question_id=maps["question_id"].astype(str))
    first = f5.first_questions(maps.sample(frac=1, random_state=3))
    assert first[["image_id", "context_length", "question_id", "map_image"]].to_numpy().tolist() \
        == [["a", 0, "0", "a00"], ["a", 512, "0", "a0512"],
            ["b", 0, "1", "b10"], ["b", 512, "1", "b1512"]]
    assert set(first["answer"]) == {"yes"}


def test_f5_s_maps_are_drawn_on_their_scenes():
    samples, lengths = presence_samples("evaluation", 2, pairs=2), (0, 1024)
    maps = f5.first_questions(mapped(samples, (*lengths, 2048)))
    figure = figures.attention_maps(maps, samples, lengths, "embedded-s")
    panels = np.array(figure.axes).reshape(2, 3)
    for line, sample in zip(panels, samples):
        picture = sample.image()
        mine = maps[maps["image_id"] == sample.image_id].set_index("context_length")
        (shown,) = line[0].images
        assert np.array_equal(np.asarray(shown.get_array()), np.asarray(picture))
        assert line[0].get_title() == mine["question"].iloc[0]
        for axes, length, word, scale in zip(line[1:], lengths, ("no", "yes"), (1, 2)):
            grey, over = axes.images
            assert np.array_equal(np.asarray(grey.get_array()), np.asarray(picture.convert("L")))
            number = int(mine.loc[length, "question_id"])
            expected = np.full((10, 10), 0.01)
            expected[samples.index(sample), number] = 1  # patches go line by line
            np.testing.assert_allclose(over.get_array(), expected, atol=2e-3)
            assert over.get_extent() == [0, scenes.SIZE, scenes.SIZE, 0]
            assert over.origin == "upper" and over.get_clim() == (0, 1)
            percent = 100 * 1.5 * (0.1 + 99 * 0.001) / scale  # of all attention
            name = {0: "0", 1024: "1k"}[length]
            assert axes.get_title() == f"{name} tokens: “{word}”, {percent:.1f} %"
    assert not any(axes.axison for axes in panels.flat)
    assert "embedded-s" in figure.get_suptitle() and "attention" in figure.get_suptitle()


# ---- F5: figures


@pytest.fixture(scope="module")
def attention_tables():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stats, "RESAMPLES", 999)
        rows = attended(leaving, kinds=("other",))
        layers = f5.by_layer(rows)
        return (f5.summary(layers), f5.heat(layers, "mass_image"),
                f5.heat(layers, "prefers_image"), f5.heads(rows))


def test_f5_s_figure_draws_shares_preferences_layers_and_heads(attention_tables):
    summary, heat, preference, heads = attention_tables
    figure = figures.attention(*attention_tables, 1024, "embedded-s")
    panels = {axes.get_title(): axes for axes in figure.axes if axes.get_title()}
    assert list(panels) == [
        "share of attention", "share / uniform share (log2)", "each head's attention on the image",
        "image's share, by layer", "the same / uniform (log2)",
        "the most visual heads at 1024 tokens"]
    shares, prefers, where, layers, ratios, single = panels.values()

    assert len(shares.containers) == 4 and shares.get_yscale() == "log"
    for name in f5.NAMES.values():
        part = summary[(summary["measure"] == f"attention on {name}") & (summary["value"] > 0)]
        (bars,) = [bars for bars in shares.containers if bars.get_label() == name]
        _, value, low, high = points(bars)
        np.testing.assert_allclose(value, part["value"])
        np.testing.assert_allclose((low, high), (part["low"], part["high"]), atol=1e-9)
        assert shares.get_ylim()[0] < value[value > 0].min()
    assert len(prefers.containers) == 2
    for name in ("image", "context"):
        assert_drawn(prefers, name, summary[summary["measure"] == f"preference for {name}"])
    for axes in (shares, prefers):
        assert [text.get_text() for text in axes.get_legend().get_texts()] == labels(axes)
    for axes in (shares, prefers, single):
        assert axes.get_xlabel() == "context length (tokens)" and upright(axes) == [1024]
        assert ticks(axes.xaxis) == ["0", "256", "1k", "4k"]

    for axes, table in ((layers, heat), (ratios, preference)):
        (image,) = axes.images
        np.testing.assert_allclose(image.get_array(), table)
        assert image.origin == "lower"  # the first layer is the lowest
        assert ticks(axes.xaxis) == ["0", "256", "1k", "4k"]
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("context length (tokens)", "layer")
        assert image.colorbar is not None
        assert image.norm.vmin <= table.to_numpy().min() <= table.to_numpy().max() \
            <= image.norm.vmax
    assert ratios.images[0].norm(0) == pytest.approx(0.5)  # no preference is the map's middle

    wide = heads.pivot(index=["layer", "head"], columns="context_length", values="mass")
    (dots,) = where.collections
    np.testing.assert_allclose(dots.get_offsets(), wide[[0, 4096]])
    np.testing.assert_allclose(dots.get_array(), wide.index.get_level_values("layer"))
    assert (where.get_xlabel(), where.get_ylabel()) == ("at 0 context tokens", "at 4096")
    drawn = {line.get_label(): line for line in single.lines
             if line.get_label().startswith("layer")}
    assert len(drawn) == 6 == LAYERS * HEADS
    for (layer, head), line in wide.iterrows():
        found = drawn[f"layer {layer}, head {head}"]
        np.testing.assert_allclose(found.get_xydata(), list(zip(LENGTHS, line)))
    heading = figure.get_suptitle()
    assert "embedded-s" in heading and "n = 12 images" in heading and "95 %" in heading


@pytest.mark.parametrize("depth, expected", [(6, [0, 1, 2, 3, 4, 5]), (12, [0, 2, 4, 6, 8, 10])])
def test_f5_s_figure_names_as_many_layers_as_there_is_room_for(attention_tables, depth, expected):
    summary, heat, preference, _ = attention_tables
    heads = pd.DataFrame(dict(layer=layer, head=0, context_length=length, mass=0.1)
                         for layer in range(depth) for length in LENGTHS)
    figure = figures.attention(summary, heat, preference, heads, None, "embedded-m")
    (dots,) = figure.axes[2].collections
    assert list(dots.colorbar.get_ticks()) == expected


def test_f5_s_most_visual_heads_are_those_that_look_most_behind_a_middling_context(
        attention_tables):
    summary, heat, preference, _ = attention_tables
    middling = np.array([[0.1, 0.9, 0.3, 0.5], [0.8, 0.2, 0.7, 0.6]])
    heads = pd.DataFrame(
        dict(layer=layer, head=head, context_length=length,
             mass=mass if length == 1024 else 1 - mass)
        for (layer, head), mass in np.ndenumerate(middling) for length in LENGTHS)
    figure = figures.attention(summary, heat, preference, heads, None, "embedded-s")
    single = next(axes for axes in figure.axes
                  if axes.get_title().startswith("the most visual heads"))
    assert [text.get_text() for text in single.get_legend().get_texts()] == [
        f"layer {layer}, head {head}"
        for layer, head in ((0, 1), (1, 0), (1, 2), (1, 3), (0, 3), (0, 2))]
    assert upright(single) == []


def test_f5_s_figure_draws_the_correlations_by_layer(correlations):
    figure = figures.attention_and_cause(correlations, "embedded-s")
    assert [axes.get_title() for axes in figure.axes] == [style.KINDS[kind][0] for kind in PAIR]
    for axes, kind in zip(figure.axes, PAIR):
        assert ticks(axes.xaxis) == ["0", "1", "2", "mean"]
        assert axes.get_xlabel() == "layer"
        assert labels(axes) == [f"{n} context tokens" for n in (0, 512, 1024)]
        for length in (0, 512, 1024):
            part = correlations[(correlations["context_kind"] == kind)
                                & (correlations["context_length"] == length)]
            place = part["layer"].map({"0": 0, "1": 1, "2": 2, "mean": 3})
            assert_drawn(axes, f"{length} context tokens", part.assign(place=place), "place",
                         rtol=0, atol=0.2)
    assert figure.axes[0].get_ylabel() == "Spearman's rank correlation"
    assert legend(figure) == [f"{n} context tokens" for n in (0, 512, 1024)]
    assert "embedded-s" in figure.get_suptitle() and "n = 15 images" in figure.get_suptitle()


def test_f5_s_figure_draws_each_kind_up_to_its_own_longest_context(correlations):
    short = (correlations["context_kind"] == PAIR[1]) & (correlations["context_length"] > 512)
    figure = figures.attention_and_cause(correlations[~short], "embedded-s")
    whole, lacking = figure.axes
    assert labels(whole) == legend(figure) == [f"{n} context tokens" for n in (0, 512, 1024)]
    assert labels(lacking) == [f"{n} context tokens" for n in (0, 512)]
    assert ticks(lacking.xaxis) == ["0", "1", "2", "mean"]


def test_f5_s_layers_stand_in_their_order_also_beyond_ten():
    table = pd.DataFrame(
        dict(context_kind="other", context_length=length, layer=name, value=place / 20,
             low=place / 20 - 0.1, high=place / 20 + 0.1, n_images=5, n_rows=5)
        for length in LENGTHS
        for place, name in enumerate([*map(str, range(12)), "mean"])).sample(
            frac=1, random_state=0)
    (axes,) = figures.attention_and_cause(table, "embedded-s").axes
    assert ticks(axes.xaxis) == [*map(str, range(12)), "mean"]
    for bars in axes.containers:
        at, value, *_ = points(bars)
        np.testing.assert_allclose(value, np.arange(13) / 20)
        np.testing.assert_allclose(at, np.arange(13), atol=0.2)
