"""F9: ratios of times, the front of operating points, and the figures of both."""

import itertools

import numpy as np
import pandas as pd
import pytest

from vdp_utils import figures, paths
from vdp_utils.commands import bench
from vdp_utils.findings import cost, ranking
from vdp_utils.measuring.pruned import NONE

PREFILL = {0.5: 0.7, 0.75: 0.5, 0.9: 0.4}


def table_with(first=PREFILL, token=0.9, length=1024, strategies=("accumulated",),
               modes=cost.MODES, images=30):
    """Times whose ratios to no pruning are `first` by rate (evict: 1.1) and `token`."""
    rng, lines = np.random.default_rng(0), []
    for image, mode in itertools.product(range(images), modes):
        base = rng.uniform(0.5, 2)  # prompts differ far more than ratios do
        for strategy, rate in [(NONE, 0.0), *itertools.product(strategies, first)]:
            ratio = 1 if strategy == NONE else 1.1 if mode == "evict" else first[rate]
            lines.append(dict(
                image_id=f"i{image:02d}", question_id="0", context_length=length, mode=mode,
                strategy=strategy, rate=rate, ttft_s=base * ratio * rng.normal(1, 0.02),
                tpot_s=0.02 * base * (token if rate else 1) * rng.normal(1, 0.02),
                cache_bytes=1000 * (1 - rate)))
    return pd.DataFrame(lines)


@pytest.mark.parametrize("first, token, expected", [
    (PREFILL, 0.9, "reproduced"),
    (PREFILL, 1.1, "partly"),
    ({0.5: 1.2, 0.75: 1.1, 0.9: 0.9}, 0.9, "partly"),
    ({0.5: 1.2, 0.75: 1.1, 0.9: 1.05}, 0.9, "not reproduced"),
])
def test_the_verdict_follows_the_rule(first, token, expected):
    verdict = cost.verdict(cost.summary(table_with(first, token)))
    assert (verdict.finding, verdict.verdict, verdict.n) == ("F9", expected, 30)
    assert verdict.estimate.value == pytest.approx(first[0.75], rel=0.02)
    assert verdict.to_row()["images"] == "30"
    assert verdict.estimate.low < verdict.estimate.value < verdict.estimate.high


def test_each_way_is_compared_with_the_plain_passes_beside_it():
    rows = table_with()
    rows.loc[rows["mode"] == "evict", ["ttft_s", "tpot_s"]] *= 7  # a slower machine
    table = cost.summary(rows).set_index(["mode", "rate", "measure"])["value"]
    assert table["evict", 0.5, "time to first token"] == pytest.approx(1.1, rel=0.02)
    assert table["compress", 0.9, "cache"] == pytest.approx(0.1)


def answers_with(accuracy, length=512, images=40):
    """`ranking.answers`-like rows with these shares of right answers {(strategy, rate): share}."""
    rng = np.random.default_rng(1)
    return pd.DataFrame([
        dict(strategy=strategy, rate=rate, context_length=length, image_id=f"i{image}",
             question_id=str(number), answer=answer, correct=float(rng.random() < share))
        for (strategy, rate), share in accuracy.items() for image in range(images)
        for number, answer in enumerate(("yes", "no"))])


def test_the_front_holds_what_nothing_beats_in_both():
    names = ("accumulated", "head", "bm25")
    times = cost.summary(pd.concat([
        table_with(length=512, strategies=names, modes=("prefill",)),
        table_with(length=2048, modes=("prefill",))]))
    accuracy = {(name, rate): share for name, share in zip(names, (1, 0, 0))
                for rate in PREFILL} | {(NONE, rate): 0 for rate in PREFILL}
    near = times[times["context_length"] == 512]
    table = cost.pareto(near, answers_with(accuracy))
    assert len(table) == 1 + 3 * 3 and (table["context_length"] == 512).all()
    front = table[table["pareto_front"]]
    assert {("accumulated", 0.9)} <= set(zip(front["strategy"], front["rate"]))
    assert not (front["strategy"] == NONE).any()  # slower than all, and no more accurate
    for one, other in itertools.product(front.itertuples(), table.itertuples()):
        assert not (other.time < one.time and other.accuracy > one.accuracy)
    longer = cost.by_length(times, answers_with(
        {(0, 0.0): 0.2, (0, 0.5): 0.6, (0, 0.6): 0.7}, 2048).assign(
            image="own", context_kind="misleading"))
    assert list(longer["rate"]) == [0.0, 0.5]  # what was timed too
    assert list(longer["time"]) == [1.0, pytest.approx(0.7, rel=0.02)]
    figure = figures.pareto(table, longer, "S")
    assert len(figure.axes[0].lines[0].get_xdata()) == len(front)
    assert len(figure.axes[2].containers) == 1
    assert "accumulated 0.9" in {text.get_text() for text in figure.axes[0].texts}


def test_figures_show_the_ratios_and_the_break_even():
    figure = figures.cost(cost.summary(table_with()), "S")
    assert "n = 30 images" in figure.get_suptitle()
    assert [axes.get_title() for axes in figure.axes] == list(cost.MEASURES.values())
    tables = bench.tables_of(paths.bench("full"))
    counts = {model: bench.break_even(tables[name]) for model, name in bench.MODELS.items()}
    figure = figures.break_even(counts)
    for axes, (model, table) in zip(figure.axes, counts.items()):
        assert axes.get_title() == model
        shown = [text.get_text() for text in axes.texts if text.get_text() != "not\nmeasured"]
        assert len(shown) == len(table)
        assert shown.count("never") == np.isinf(table["tokens"]).sum()


def test_baselines_stand_beside_the_modes():
    times = pd.DataFrame([
        dict(length=length, rate=0.75, setting=setting, repeats=5, ttft_s=first,
             tpot_s=0.1, device="x", threads=2)
        for length in (1024, 2048)
        for setting, first in (("none", 2.0), ("prefill, accumulated", 1.0), ("kvpress A", 2.2))])
    figure = figures.baselines(times)
    assert [axes.get_title() for axes in figure.axes] == ["1024 context tokens",
                                                          "2048 context tokens"]
    widths = [bar.get_width() for bar in figure.axes[0].patches]
    assert widths == [pytest.approx(x) for x in (0.5, 1.1, 1.0, 1.0)]


def test_figures_of_the_committed_benchmark_say_so_beside_other_rows():
    tables = bench.tables_of(paths.bench("full"))
    counts = {"wide": bench.break_even(tables["pruning_wide"])}
    for draw, shown in ((figures.break_even, counts),
                        (figures.baselines, tables["baselines_times"])):
        plain, marked = draw(shown).get_suptitle(), draw(shown, committed=True).get_suptitle()
        assert marked == plain + "\nthe committed benchmark, not this run"


def test_every_strategy_but_the_oracle_is_timed(uneven):
    (one,) = cost.strategy_conditions(uneven, 60)
    assert set(one.strategies) == set(ranking.GROUPS) - {"oracle"}
    assert [one.mode for one in cost.conditions(uneven, 60)] == list(cost.MODES)
