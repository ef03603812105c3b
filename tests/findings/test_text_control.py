"""F2 on rows whose truth is built in, and what its figure draws of it."""

import numpy as np
import pandas as pd
import pytest
from drawn import assert_drawn, legend, looks, ticks, upright
from made_rows import LENGTHS, PAIR, asked
from matplotlib.colors import to_rgba

from vdp_utils import figures, stats
from vdp_utils.errors import VDPError
from vdp_utils.figures import style
from vdp_utils.figures.text_control import VERSIONS
from vdp_utils.findings import as_text, text_control as f2
from vdp_utils.lvlm import prompts

FALL = {0: 0.95, 256: 0.75, 1024: 0.65, 4096: 0.6}
FLAT = dict.fromkeys(LENGTHS, 0.9)
LATE = FLAT | {4096: 0.6}
CHANCE, TOP = FLAT | {4096: 0.5}, dict.fromkeys(LENGTHS, 1.0)


def told(accuracy, images=60, seed=0):
    """Presence rows of {(context kind, image or text): {length: chance to be right}}.

    Nine in ten questions are as hard under one condition as under another.
    """
    rng, tables = np.random.default_rng(seed), []
    hard = rng.random(4 * images)
    for (kind, image), by_length in accuracy.items():
        for length, right in by_length.items():
            rows = asked(images, 4, context_kind=kind, context_length=length, image=image)
            luck = np.where(rng.random(len(rows)) < 0.9, hard, rng.random(len(rows)))
            tables.append(rows.assign(correct=luck < right))
    return pd.concat(tables, ignore_index=True)


def controlled(own, text, kinds=PAIR):
    """{(kind, image): accuracy by length} from one for each kind of images and of texts."""
    return {(kind, image): by_length for kind, *both in zip(kinds, own, text)
            for image, by_length in zip(f2.IMAGES, both)}


@pytest.fixture(scope="module")
def text_rows():
    places = {("other_images", image): {n: right - 0.1 for n, right in FALL.items()}
              for image in ("text_middle", "text_last")}
    return told(controlled([FALL] * 2, [FLAT] * 2) | places)


@pytest.mark.parametrize("own, text, expected", [
    ((FALL, FALL), (FLAT, FLAT), "reproduced"),
    ((FLAT, FLAT), (FLAT, FLAT), "not reproduced"),  # no effect
    ((FALL, FALL), (FALL, FALL), "not reproduced"),  # both suffer alike
    ((FLAT, FLAT), (FALL, FALL), "contradicted"),  # text suffers more
    ((FALL, FALL), (FLAT, FALL), "partly"),  # one kind
    ((FALL, FLAT), (FALL, FALL), "contradicted"),
    ((LATE, LATE), (FLAT, FLAT), "partly"),  # at one length
    ((CHANCE, CHANCE), (CHANCE, CHANCE), "not reproduced"),  # says nothing there, and none before
    ((TOP, TOP), (TOP, TOP), "inconclusive"),  # nothing is lost that could be compared
    ((dict.fromkeys(LENGTHS, 0.6),) * 2, (FLAT, FLAT), "not reproduced")])  # worse at any length
def test_f2_finds_the_difference_of_losses_that_is_built_in(own, text, expected):
    rows = told(controlled(own, text), images=150)
    verdict = f2.verdict(f2.tests(rows))
    assert verdict.verdict == expected and verdict.finding == "F2"
    assert (verdict.rule, verdict.n) == (f2.RULE, 150)


def test_f2_s_losses_are_those_of_the_rows(text_rows):
    rows = text_rows[text_rows["image"].isin(f2.IMAGES)]
    table = f2.tests(rows.sample(frac=1, random_state=0))
    assert list(zip(table["context_kind"], table["context_length"])) == [
        (kind, length) for kind in sorted(PAIR) for length in LENGTHS[1:]]
    right = rows.groupby(["context_kind", "image", "context_length"])["correct"].mean()
    for line in table.itertuples():  # as many yes- as no-questions: balanced is plain accuracy
        own, text = (right[line.context_kind, image] for image in f2.IMAGES)
        assert line.loss_image == pytest.approx(own[0] - own[line.context_length])
        assert line.loss_text == pytest.approx(text[0] - text[line.context_length])
        assert line.effect == pytest.approx(line.loss_image - line.loss_text)
        assert line.low < line.effect < line.high
        assert line.n_images == 60
    assert table["p_holm"].to_numpy() == pytest.approx(stats.holm(table["p"]))


@pytest.mark.parametrize("own, text, limit", [
    (0.5, 0.5, "floor"), (0.5, 0.9, ""), (0.9, 0.5, ""), (0.0, 0.0, "floor"), (0.0, 0.3, ""),
    (1.0, 1.0, "ceiling"), (1.0, 0.9, "")])
def test_f2_leaves_out_where_neither_or_both_have_nothing_left(own, text, limit):
    rows = told(controlled([{0: 1.0, 256: own}], [{0: 1.0, 256: text}], PAIR[:1]))
    (line,) = f2.tests(rows).itertuples()
    assert line.limit == limit


def test_f2_s_estimates_are_each_kind_s_at_its_longest_length_that_counts():
    rows = told(controlled((LATE, TOP), (FLAT, TOP)), images=200)
    assert list(f2.verdict(f2.tests(rows)).estimates) == [
        "misleading at 4096 (ceiling)", "other_images at 4096"]
    cells = f2.tests(rows).assign(limit=["", "", "floor"] * 2)
    found = f2.verdict(cells).estimates
    assert list(found) == ["misleading at 1024", "other_images at 1024"]
    line = cells.set_index(["context_kind", "context_length"]).loc[PAIR[0], 1024]
    assert (found["other_images at 1024"].value, found["other_images at 1024"].low) == (
        line["effect"], line["low"])


def test_f2_compares_the_same_questions_only():
    rows = told(controlled([FALL], [FLAT], ("other_images",)), images=5)
    lost = (rows["image"] == "text") & (rows["context_length"] == 4096) & (
        rows["image_id"] == "i003") & (rows["question_id"] == "2")
    with pytest.raises(VDPError, match=r"lacks 1 .*i003"):
        f2.tests(rows[~lost])


def test_f2_refuses_image_and_text_at_other_lengths(text_rows):
    short = text_rows[(text_rows["image"] == "own") | (text_rows["context_length"] < 4096)]
    with pytest.raises(VDPError, match=r"differ in the lengths \[4096\]: measure both"):
        f2.tests(short)


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
    both = text_rows[text_rows["image"].isin(f2.IMAGES)]
    cells = f2.tests(both)
    cells.loc[cells["context_length"] == 4096, "limit"] = ["floor", ""]
    return (f2.summary(both), f2.places(text_rows[text_rows["context_kind"] == "other_images"]),
            cells)


def test_f2_s_figure_draws_image_and_text_by_kind_and_the_places(text_tables):
    summary, places, cells = text_tables
    figure = figures.text_control(summary, places, cells, 1024, "embedded-s")
    assert [axes.get_title() for axes in figure.axes] == [
        *(style.KINDS[kind][0] for kind in PAIR), "where the description stands"]
    for axes, kind in zip(figure.axes, PAIR):
        part = summary[summary["context_kind"] == kind]
        assert len(axes.containers) == 2
        for image in f2.IMAGES:
            assert_drawn(axes, VERSIONS[image], part[part["image"] == image])
    last = figure.axes[-1]
    assert len(last.containers) == 3
    for image in prompts.PLACES:
        assert_drawn(last, VERSIONS[image], places[places["image"] == image])
    for axes in figure.axes:
        assert axes.get_xlabel() == "context length (tokens)"
        assert ticks(axes.xaxis) == ["0", "256", "1k", "4k"]
        assert list(axes.get_xticks()) == list(LENGTHS)
        assert "chance" in [text.get_text() for text in axes.texts]
        assert upright(axes) == [1024]
        assert len(looks(axes)) == len(axes.containers)  # told apart without colour
    hatched = {axes.get_title(): [patch for patch in axes.patches if patch.get_hatch()]
               for axes in figure.axes}
    (patch,) = hatched.pop(style.KINDS["misleading"][0])  # the one cell that does not count
    assert patch.get_x() < 4096 < patch.get_x() + patch.get_width()
    assert not any(hatched.values())
    assert figure.axes[0].get_ylabel() == "balanced accuracy"
    assert sorted(legend(figure)) == sorted([*VERSIONS.values()]
                                            + ["does not count: floor or ceiling"])
    heading = figure.get_suptitle()
    assert "embedded-s" in heading and "n = 60 images" in heading and "95 %" in heading


def test_f2_s_versions_look_the_same_in_each_panel(text_tables):
    """One legend is for all panels."""
    figure = figures.text_control(*text_tables, None, "embedded-s")
    for label in VERSIONS.values():
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
    figure = figures.text_control(summary, places, f2.tests(rows), 1024, "embedded-m")
    assert [axes.get_title() for axes in figure.axes] == [style.KINDS[kind][0] for kind in kinds]
    for axes, kind in zip(figure.axes, kinds):
        part = summary[summary["context_kind"] == kind]
        assert len(axes.containers) == 2
        for image in f2.IMAGES:
            assert_drawn(axes, VERSIONS[image], part[part["image"] == image])
    assert sorted(legend(figure)) == sorted(VERSIONS[image] for image in f2.IMAGES)
