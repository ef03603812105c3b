"""F1 on rows whose truth is built in, its figure, and how a verdict is kept."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from made_rows import LENGTHS

from vdp_utils import figures, findings
from vdp_utils.figures import style
from vdp_utils.findings import decline

FALL = {0: 0.97, 256: 0.85, 1024: 0.75, 4096: 0.5}
FLAT = dict.fromkeys(LENGTHS, 0.9)


def rows_with(accuracy, images=40, seed=0):
    """Presence rows of {context kind: {length: chance to be right}}, four questions an image."""
    rng, lines = np.random.default_rng(seed), []
    for kind, by_length in accuracy.items():
        for length, right in by_length.items():
            for image in range(images):
                for question in range(4):
                    correct = bool(rng.random() < right)
                    answer = ("yes", "no")[question % 2]
                    lines.append(dict(
                        image_id=f"i{image}", question_id=str(question), context_kind=kind,
                        context_length=length, answer=answer, correct=correct,
                        predicted=answer if correct else {"yes": "no", "no": "yes"}[answer],
                        margin=rng.normal(1 if correct else -1, 0.3)))
    return pd.DataFrame(lines)


@pytest.fixture(scope="module")
def falling():
    return rows_with({kind: FALL for kind in findings.KINDS})


@pytest.fixture(scope="module")
def summary(falling):
    return decline.summary(falling)


def vertical_lines(axes):
    return [line for line in axes.lines
            if len(line.get_xdata()) == 2 and line.get_xdata()[0] == line.get_xdata()[1]]


def test_the_decline_figure_says_what_it_shows(summary):
    figure = figures.decline(summary, 512, "embedded-s")
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["balanced accuracy", "yes-rate", "answer margin (nats)"]
    for axes in figure.axes:
        assert axes.get_xlabel() == "context length (tokens)"
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0", "256", "1k", "4k"]
        assert list(axes.get_xticks()) == list(LENGTHS)
    (legend,) = figure.legends
    assert {text.get_text() for text in legend.get_texts()} == {
        style.KINDS[kind][0] for kind in findings.KINDS}
    heading = figure.get_suptitle()
    assert "embedded-s" in heading and "n = 40 images" in heading and "95 %" in heading
    assert "chance" in [text.get_text() for text in figure.axes[0].texts]


def test_accuracies_at_chance_are_hollow(summary):
    figure = figures.decline(summary, None, "embedded-s")
    for axes, name in zip(figure.axes, decline.MEASURES):
        part = summary[summary["measure"] == name]
        known = (part["low"] <= 0.5) & (0.5 <= part["high"]) & (name == "balanced accuracy")
        hollow = np.concatenate([line.get_ydata() for line in axes.lines
                                 if line.get_markerfacecolor() == "white"] or [[]])
        assert sorted(hollow) == sorted(part.loc[known, "value"])
        assert bool(len(hollow)) == (name == "balanced accuracy")


def test_values_and_intervals_are_drawn_where_they_are(summary):
    figure = figures.decline(summary, None, "embedded-s")
    for axes, name in zip(figure.axes, decline.MEASURES):
        drawn = {bars.get_label(): bars for bars in axes.containers}
        assert len(drawn) == 3
        low, high = axes.get_ylim()
        for kind in findings.KINDS:
            part = summary[(summary["measure"] == name) & (summary["context_kind"] == kind)]
            line, _, (bars,) = drawn[style.KINDS[kind][0]].lines
            np.testing.assert_allclose(line.get_ydata().astype(float), part["value"])
            np.testing.assert_allclose(line.get_xdata().astype(float), part["context_length"],
                                       rtol=0.06)
            ends = np.array([segment[:, 1] for segment in bars.get_segments()], dtype=float)
            np.testing.assert_allclose(ends, part[["low", "high"]])
            assert low <= ends.min() and ends.max() <= high  # none is cut off


def test_lines_can_be_told_apart_without_colour(summary):
    axes = figures.decline(summary, None, "embedded-s").axes[0]
    lines = [bars.lines[0] for bars in axes.containers]
    assert len({line.get_marker() for line in lines}) == len({line.get_linestyle()
                                                              for line in lines}) == 3


@pytest.mark.parametrize("trained", [512, None])
def test_the_longest_trained_context_is_marked_where_it_is_known(summary, trained):
    figure = figures.decline(summary, trained, "embedded-s")
    for axes in figure.axes:
        assert [line.get_xdata()[0] for line in vertical_lines(axes)] == [trained] * bool(trained)
    said = [text.get_text() for text in figure.axes[0].texts]
    assert ("longest trained\nwith images" in said) == bool(trained)


def test_the_summary_has_one_line_a_kind_length_and_measure(falling, summary):
    assert len(summary) == 3 * len(LENGTHS) * len(decline.MEASURES)
    assert (summary["low"] <= summary["value"]).all()
    assert (summary["value"] <= summary["high"]).all()
    assert (summary["n_images"] == 40).all() and (summary["n_rows"] == 160).all()
    chosen = summary.set_index(["context_kind", "context_length", "measure"])
    part = falling.query("context_kind == 'other_images' and context_length == 1024")
    found = chosen.loc[("other_images", 1024)]["value"]
    assert found["answer margin (nats)"] == pytest.approx(part["margin"].mean())
    assert found["yes-rate"] == pytest.approx((part["predicted"] == "yes").mean())
    assert found["balanced accuracy"] == pytest.approx(part["correct"].mean())  # it is balanced


def test_the_table_shows_values_with_intervals_by_length_and_kind(summary):
    table = findings.as_text(summary, "balanced accuracy")
    assert list(table.index) == list(LENGTHS) and set(table.columns) == set(findings.KINDS)
    line = summary.query("measure == 'balanced accuracy' and context_kind == 'same_image' "
                         "and context_length == 256").iloc[0]
    assert table.loc[256, "same_image"] == f"{line.value:.3f} [{line.low:.3f}, {line.high:.3f}]"


def test_one_changed_row_changes_the_table(falling, summary):
    changed = falling.copy()
    at = changed.query("context_kind == 'same_image' and context_length == 256").index[0]
    changed.loc[at, "correct"] = not changed.loc[at, "correct"]
    before = findings.as_text(summary, "balanced accuracy")
    after = findings.as_text(decline.summary(changed), "balanced accuracy")
    different = before != after
    assert different.loc[256, "same_image"] and different.to_numpy().sum() == 1


def test_the_tests_compare_the_ends_and_the_trend_stands_beside(falling):
    table = decline.tests(falling).set_index("context_kind")
    beside = decline.beside(falling, 512).set_index(["context_kind", "measure"])
    assert list(table.index) == sorted(findings.KINDS) and (table["context_length"] == 4096).all()
    assert table["p_holm"].to_numpy() == pytest.approx(3 * table["p"].to_numpy())
    for kind, part in falling.groupby("context_kind"):
        right = part.groupby("context_length")["correct"].mean()
        line = table.loc[kind]
        assert line["effect"] == pytest.approx(right[0] - right[4096])
        assert line["low"] <= line["effect"] <= line["high"] and line["limit"] == ""
        drop, change = (beside.loc[kind, name]["value"]
                        for name in ("drop to 256 tokens", "change per doubling"))
        assert drop == pytest.approx(right[0] - right[256])  # the longest of those up to 512
        assert change == pytest.approx(np.polyfit(np.log2(1 + right.index), right, 1)[0])
    for trained in (None, 0):
        assert set(decline.beside(falling, trained)["measure"]) == {"change per doubling"}


RISE = dict(zip(LENGTHS, (0.65, 0.75, 0.85, 0.97)))
CHANCE = dict.fromkeys(LENGTHS, 0.5)


@pytest.mark.parametrize("by_kind, expected", [
    ((FALL, FALL, FALL), "reproduced"),
    ((FLAT, FLAT, FLAT), "not reproduced"),
    ((FLAT, FALL, FLAT), "partly"),
    ((FALL, FALL, RISE), "partly"),
    ((RISE, RISE, RISE), "contradicted"),
    ((FLAT | {4096: 0.88},) * 3, "inconclusive"),  # perhaps more than is of interest
    ((FLAT | {256: 0.5},) * 3, "not reproduced"),  # a drop in the middle alone
    ((FALL, FALL, CHANCE), "reproduced"),  # what is at chance cannot fall
    ((CHANCE,) * 3, "inconclusive")])
def test_the_verdict_finds_the_fall_that_is_built_in(by_kind, expected):
    rows = rows_with(dict(zip(findings.KINDS, by_kind)), images=150, seed=2)
    verdict = decline.verdict(decline.tests(rows))
    assert verdict.verdict == expected and verdict.finding == "F1"
    assert (verdict.rule, verdict.n) == (decline.RULE, 150)
    assert "from 0 to 4096" in verdict.effect
    right = rows.groupby(["context_kind", "context_length"])["correct"].mean()
    assert {kind: one.value for kind, one in verdict.estimates.items()} == pytest.approx(
        {kind: right[kind, 0] - right[kind, 4096] for kind in findings.KINDS})


@pytest.mark.parametrize("model, name", [
    ("embedded-s", "F1_embedded-s_verdict.json"), ("embedded-m", "F1_embedded-m_verdict.json"),
    ("llava-hf/llava-1.5-7b-hf", "F1_llava-hf-llava-1.5-7b-hf_verdict.json")])
def test_the_verdict_is_stored_as_it_is_shown_with_its_model(falling, tmp_path, model, name):
    verdict = decline.verdict(decline.tests(falling))
    findings.save_verdict(verdict, tmp_path, model)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    stored = json.loads((tmp_path / name).read_text())
    assert stored.pop("model") == model
    assert stored == verdict.to_row() and stored["verdict"] == "reproduced"


def test_the_verdicts_of_all_models_stand_side_by_side(falling, tmp_path):
    verdict = decline.verdict(decline.tests(falling))
    for model in ("embedded-s", "embedded-s-far", "llava-hf/llava-1.5-7b-hf"):
        findings.save_verdict(verdict, tmp_path, model)
    for finding in ("F2", "F10"):
        (tmp_path / f"{finding}_x_verdict.json").write_text("{}")
    table = findings.verdicts(tmp_path, "F1")["estimate [95 %]"]
    assert set(table.index.get_level_values("model")) == {
        "embedded-s", "embedded-s-far", "llava-hf/llava-1.5-7b-hf"}
    assert table["embedded-s-far", "reproduced"].to_dict() == {
        kind: str(estimate) for kind, estimate in verdict.estimates.items()}


@pytest.mark.parametrize("dtype, stored", [
    ("float32", None), (torch.float32, None), ("bfloat16", "bfloat16"),
    (torch.float16, "float16")])
def test_a_verdict_says_in_which_dtype_it_was_measured_but_for_float32(falling, tmp_path, dtype,
                                                                       stored):
    for one in ("float32", dtype):
        findings.save_verdict(decline.verdict(decline.tests(falling)), tmp_path, "x", one)
    name = f"F1_x-{stored}_verdict.json" if stored else "F1_x_verdict.json"
    assert json.loads((tmp_path / name).read_text()).get("dtype") == stored
    shown = findings.verdicts(tmp_path, "F1").index.get_level_values("model")
    assert {*shown} == {"x", f"x, {stored}" if stored else "x"}
