"""F2 on rows whose truth is built in, and what its figure draws of it."""

import numpy as np
import pandas as pd
import pytest
from drawn import assert_drawn, legend, looks, ticks, upright
from made_rows import LENGTHS, PAIR, asked
from matplotlib.colors import to_rgba

from vdp_utils import figures
from vdp_utils.errors import VDPError
from vdp_utils.figures import style
from vdp_utils.figures.text_control import TOLD
from vdp_utils.findings import as_text, text_control as f2
from vdp_utils.lvlm import prompts

FALL = {0: 0.95, 256: 0.85, 1024: 0.75, 4096: 0.55}
FLAT = dict.fromkeys(LENGTHS, 0.9)
LATE = FLAT | {4096: 0.5}


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
    places = {("other_images", image): {n: right - 0.1 for n, right in FALL.items()}
              for image in ("text_middle", "text_last")}
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
    rows = told(controlled([FALL], [FLAT], ("other_images",)), images=5)
    lost = (rows["image"] == "text") & (rows["context_length"] == 4096) & (
        rows["image_id"] == "i003") & (rows["question_id"] == "2")
    with pytest.raises(VDPError, match=r"lacks 1 .*i003"):
        f2.tests(rows[~lost], 1024)


def test_f2_refuses_image_and_words_at_other_lengths(text_rows):
    short = text_rows[(text_rows["image"] == "own") | (text_rows["context_length"] < 4096)]
    with pytest.raises(VDPError, match=r"differ in the lengths \[4096\]: measure both"):
        f2.tests(short, 512)


def test_f2_s_summary_and_places_are_accuracies(text_rows):
    summary = f2.summary(text_rows)
    places = f2.places(text_rows[text_rows["context_kind"] == "other_images"])
    assert len(summary) == 6 * len(LENGTHS) and len(places) == 3 * len(LENGTHS)
    assert set(places["image"]) == {"text", "text_middle", "text_last"}
    last = text_rows["image"] == "text_last"
    lacking = text_rows[~(last & (text_rows["context_length"] == max(LENGTHS)))]
    fewer = f2.places(lacking[lacking["context_kind"] == "other_images"])
    assert set(fewer["context_length"]) == set(LENGTHS) - {max(LENGTHS)}
    right = text_rows.groupby(["context_kind", "image", "context_length"])["correct"].mean()
    for line in summary.itertuples():
        expected = right[line.context_kind, line.image, line.context_length]
        assert line.value == pytest.approx(expected) and line.low <= line.value <= line.high
        assert (line.measure, line.n_images, line.n_rows) == ("balanced accuracy", 60, 240)
    for line in places.itertuples():
        assert line.value == pytest.approx(right["other_images", line.image, line.context_length])
    shown = as_text(summary[summary["context_kind"] == "misleading"], "balanced accuracy", "image")
    assert shown.loc[0, "own"].startswith(f"{right['misleading', 'own', 0]:.3f} [")


@pytest.fixture(scope="module")
def text_tables(text_rows):
    return (f2.summary(text_rows[text_rows["image"].isin(f2.IMAGES)]),
            f2.places(text_rows[text_rows["context_kind"] == "other_images"]))


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
