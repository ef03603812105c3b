"""F12 on tables whose truth is built in: what pruning does in dialogues, and the judge's mean."""

import numpy as np
import pandas as pd
import pytest
from drawn import assert_drawn, labels, legend

from vdp_utils import figures, stats
from vdp_utils.findings import mmdu
from vdp_utils.findings.mmdu import BARE, PLAIN, PRUNED
from vdp_utils.measuring.judge import OVERALL, SCORES

CELLS = [(kind, which) for kind in mmdu.KINDS for which in ("earlier", "latest")]


@pytest.fixture
def few_resamples(monkeypatch):
    """Where no p-value matters."""
    monkeypatch.setattr(stats, "RESAMPLES", 99)


def table_with(gains, cost=0.4, bare=0.95, images=60):
    """`gains` {(kind, which): share of answers that pruning mends}; what was said spoils `cost`."""
    rng, lines = np.random.default_rng(0), []
    asked = [(kind, *key) for kind in mmdu.KINDS for key in mmdu.SETTINGS if key[0]]
    asked += [("same_image", *key) for key in list(mmdu.SETTINGS)[:3]]
    for number, (which, answer) in enumerate([(which, answer) for which in ("earlier", "latest")
                                              for answer in ("yes", "no")]):
        for image, luck in enumerate(rng.permutation((np.arange(images) + 0.5) / images)):
            for kind, history, placement, moved, rate in asked:
                gain = gains.get((kind, which), 0) if rate and placement == "plain" else 0
                correct = luck < bare - (cost - gain if history else 0)
                lines.append(dict(
                    image_id=f"d{image:02d}", question_id=str(number), answer=answer,
                    context_kind=kind, history=history, placement=placement, moved=moved,
                    rate=rate, kind="presence", latest=which == "latest", turn=number,
                    distance=150.0 if which == "latest" else 500.0, correct=float(correct),
                    predicted=answer, pictures=2 + image % 5, f1=0.5 + rate / 4, rouge_l=0.25))
    return pd.DataFrame(lines)


@pytest.mark.parametrize("gains, cost, bare, expected, limit", [
    (dict.fromkeys(CELLS, 0.3), 0.4, 0.95, "reproduced", ""),
    ({("misleading", "earlier"): 0.3}, 0.4, 0.95, "partly", ""),
    ({("misleading", "earlier"): -0.3}, 0.4, 0.95, "contradicted", ""),
    ({}, 0.4, 0.95, "not reproduced", ""),
    ({}, 0, 0.95, "inconclusive", "no cost"),
    (dict.fromkeys(CELLS, 0.3), 0.4, 0.55, "inconclusive", "floor"),  # follows no several images
    (dict.fromkeys(CELLS, 0.3), 0.5, 0.7, "inconclusive", ""),  # a gain that ends at chance
])
def test_the_verdict_follows_the_rule(gains, cost, bare, expected, limit):
    rows = table_with(gains, cost, bare)
    tests = mmdu.tests(rows)
    verdict = mmdu.verdict(tests, rows)
    assert (verdict.finding, verdict.verdict, verdict.n) == ("F12", expected, 60)
    assert list(zip(tests["context_kind"], tests["which"])) == sorted(CELLS)
    assert set(tests["limit"]) == {limit}
    for kind in mmdu.KINDS:
        wanted = np.mean([gains.get((kind, which), 0) for which in ("earlier", "latest")])
        name = f"{kind} ({limit})" if limit else kind
        assert verdict.estimates[name].value == pytest.approx(wanted, abs=0.06)


def test_the_headline_takes_the_cells_that_count():
    rows = table_with({("misleading", "earlier"): 0.3})
    easy = rows["latest"] & (rows["rate"] == 0)
    rows.loc[easy, "correct"] = rows[easy].groupby(["image_id", "question_id"])[
        "correct"].transform("max")
    tests = mmdu.tests(rows)
    assert set(tests.loc[tests["which"] == "latest", "limit"]) == {"no cost"}
    assert mmdu.verdict(tests, rows).estimates["misleading"].value == pytest.approx(0.3, abs=0.05)


def test_turns_that_a_condition_did_not_ask_are_left_out_of_all(few_resamples):
    rows = table_with(dict.fromkeys(CELLS, 0.3), images=20)
    last = (rows["image_id"] == "d00") & (rows["rate"] == 0) & rows["history"]
    rows.loc[last, ["f1", "rouge_l", "correct"]] = np.nan
    assert set(mmdu.tests(rows)["n_images"]) == {19}
    assert mmdu.by_turn(rows)["n_images"].max() == 19


def test_every_setting_is_compared_with_the_whole_dialogue(few_resamples):
    table = mmdu.changes(table_with({("misleading", "earlier"): 0.3})).set_index(
        [*mmdu.CELL, "setting"])
    assert len(table) == 4 * 5 and not {BARE, PLAIN} & set(table.index.get_level_values(2))
    changed = table[table["effect"] != 0].index.tolist()
    assert changed == [("misleading", "earlier", PRUNED)]
    assert table.loc[changed[0], "effect"] == pytest.approx(0.3, abs=0.05)


def test_tables_by_pictures_distance_and_turn(few_resamples):
    rows = table_with(dict.fromkeys(CELLS, 0.3), images=20)
    assert set(mmdu.summary(rows, ("pictures", "setting"))["n_images"]) == {4}
    distances = mmdu.by_distance(rows)
    assert set(distances["distance"]) == {150.0, 500.0} and len(distances) == 2 * 7 * 2
    turns = mmdu.by_turn(rows).set_index(["context_kind", "setting", "measure", "turn"])["value"]
    assert turns["misleading", PRUNED, "token F1", 1] == pytest.approx(0.625)
    assert turns["misleading", PLAIN, "ROUGE-L", 4] == pytest.approx(0.25)
    lone = rows[(rows["image_id"] == "d00") | (rows["turn"] < 2)]
    assert mmdu.by_turn(lone)["turn"].max() == 2


def test_the_figure_shows_what_was_measured(few_resamples):
    rows = table_with({("misleading", "earlier"): 0.3}, images=20)
    summary, distances = mmdu.summary(rows), mmdu.by_distance(rows)
    figure = figures.dialogues(summary, distances, "S")
    assert "S: presence questions" in figure.get_suptitle() and "n = 20" in figure.get_suptitle()
    assert set(legend(figure)) == {"about the latest image", "about an earlier image", PLAIN,
                                   PRUNED, "near, all images", BARE}
    ticks = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    for upper, lower, kind in zip(figure.axes[:2], figure.axes[2:], mmdu.KINDS):
        assert kind.replace("_", " ") in upper.get_title()
        part = summary[summary["context_kind"] == kind]
        for bars, which in zip(upper.containers, ("latest", "earlier")):
            some = part[part["which"] == which]
            x, y = bars.lines[0].get_data()
            drawn = dict(zip([ticks[round(at)] for at in y], x))
            assert drawn == dict(zip(some["setting"], some["value"]))
        for setting in labels(lower):
            assert_drawn(lower, setting, distances[(distances["context_kind"] == kind)
                                                   & (distances["setting"] == setting)], "distance")


def test_the_judge_s_own_overall_is_pooled_over_turns():
    judged = pd.DataFrame([
        dict(image_id="a", rate=0.0, status="scored", **dict.fromkeys(SCORES, 1) | {OVERALL: 9}),
        *(dict(image_id="b", rate=0.0, status="scored", **{OVERALL: 3}) for _ in range(5)),
        dict(image_id="b", rate=0.0, status="refused"),
        dict(image_id="a", rate=0.5, status="timed out")])
    table = mmdu.overall(judged)
    assert table.loc[0.0, "Overall"].startswith("4.000 [3.000, ")  # not 6, the dialogues' mean
    assert table.loc[0.0, ["scored", "refused", "timed out"]].tolist() == [6, 1, 0]
    assert table.loc[0.5, "Overall"].startswith("nan") and table.loc[0.5, "timed out"] == 1
    assert mmdu.overall(judged[:0]).empty


def test_conditions_cross_pruning_and_near(uneven):
    asked = mmdu.conditions(uneven)
    told = [(one.context_kind, one.placement, one.moved, one.rate) for one in asked
            if one.context_length == mmdu.LENGTH]
    assert sorted(told) == sorted((kind, *rest) for kind in mmdu.KINDS
                                  for history, *rest in mmdu.SETTINGS if history)
    assert [(one.history, one.rate) for one in asked if not one.context_length] == [
        (False, 0), (True, 0), (True, 0.5)]
    assert [one.reply_tokens for one in mmdu.as_they_stand(uneven, reply_tokens=9)] == [9, 9]
