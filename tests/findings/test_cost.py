"""F9: ratios of times, the front of operating points, and the figures of both."""

import itertools

import numpy as np
import pandas as pd
import pytest

from vdp_utils import figures, paths, stats
from vdp_utils.commands import bench
from vdp_utils.findings import cost, ranking
from vdp_utils.measuring.pruned import NONE

RATIOS = {0.5: 0.7, 0.75: 0.5, 0.9: 0.4}


@pytest.fixture(autouse=True)
def enough_resamples(monkeypatch):
    """For Holm over this many cells."""
    monkeypatch.setattr(stats, "RESAMPLES", 1999)


def table_with(first=RATIOS, token=0.9, length=1024, strategies=("accumulated",),
               modes=cost.MODES, images=30):
    """Times whose ratios to no pruning are `first` by rate (evict: 1.1) and `token`."""
    rng, lines = np.random.default_rng(0), []
    for image in range(images):
        base = rng.uniform(0.5, 2)  # prompts differ far more than ratios do
        for mode, strategy, rate in [(NONE, NONE, 0.0),
                                     *itertools.product(modes, strategies, first)]:
            ratio = 1 if strategy == NONE else 1.1 if mode == "evict" else first[rate]
            lines.append(dict(
                image_id=f"i{image:02d}", question_id="0", context_length=length, mode=mode,
                strategy=strategy, rate=rate, ttft_s=base * ratio * rng.normal(1, 0.02),
                tpot_s=0.02 * base * (token if rate else 1) * rng.normal(1, 0.02),
                cache_bytes=1000 * (1 - rate)))
    return pd.DataFrame(lines)


@pytest.mark.parametrize("first, token, expected", [
    (RATIOS, 0.9, "reproduced"),
    (RATIOS, 1.1, "partly"),
    ({0.5: 1.2, 0.75: 1.1, 0.9: 0.9}, 0.9, "partly"),
])
def test_the_verdict_follows_the_rule(first, token, expected):
    table = cost.tests(table_with(first, token))
    verdict = cost.verdict(table)
    assert (verdict.finding, verdict.verdict, verdict.n) == ("F9", expected, 30)
    assert len(table) == 9
    for name, ratio in zip(cost.MEASURES.values(), (first[0.5], token, 0.5)):
        estimate = verdict.estimates[name]
        assert estimate.value == pytest.approx(ratio, rel=0.02)
        assert estimate.low <= estimate.value <= estimate.high
    line = table[(table["measure"] == "cache") & (table["rate"] == 0.9)]
    assert line["effect"].item() == pytest.approx(np.log(10)) and line["p_holm"].item() < 0.05


def test_only_the_paper_s_reading_is_judged_and_each_mode_beside_the_plain_pass():
    rows = table_with()
    table = cost.summary(rows).set_index(["mode", "rate", "measure"])["value"]
    assert table["evict", 0.5, "time to first token"] == pytest.approx(1.1, rel=0.02)
    assert table["compress compact", 0.9, "cache"] == pytest.approx(0.1)
    alone = rows[rows["mode"].isin([NONE, "compress compact"])]
    pd.testing.assert_frame_equal(cost.tests(rows), cost.tests(alone))


def answers_with(accuracy, length=512, images=40):
    """`ranking.answers`-like rows with these shares of right answers {(strategy, rate): share}."""
    rng = np.random.default_rng(1)
    return pd.DataFrame([
        dict(layer="default", target=target, strategy=strategy, rate=rate, context_length=length,
             image_id=f"i{image}",
             question_id=str(number), answer=answer, correct=float(rng.random() < share))
        for target in ("image", "text")
        for (strategy, rate), share in accuracy.items() for image in range(images)
        for number, answer in enumerate(("yes", "no"))])


def test_the_front_holds_what_nothing_beats_in_both():
    names = ("accumulated", "head", "bm25")
    times = cost.summary(pd.concat([
        table_with(length=512, strategies=names, modes=cost.MODES[:1]),
        table_with(length=2048, modes=cost.MODES[:1])]))
    accuracy = {(name, rate): share for name, share in zip(names, (1, 0, 0))
                for rate in RATIOS} | {(NONE, rate): 0 for rate in RATIOS}
    near = times[times["context_length"] == 512]
    table = cost.pareto(near, answers_with(accuracy))
    assert len(table) == 1 + 3 * 3 and (table["context_length"] == 512).all()
    front = table[table["pareto_front"]]
    assert {("accumulated", 0.9)} <= set(zip(front["strategy"], front["rate"]))
    assert not (front["strategy"] == NONE).any()  # slower than all, and no more accurate
    for one, other in itertools.product(front.itertuples(), table.itertuples()):
        assert not (other.time < one.time and other.accuracy > one.accuracy)
    longer = cost.by_length(times, answers_with(
        {(NONE, 0.0): 0.2, ("accumulated", 0.5): 0.6, ("accumulated", 0.6): 0.7}, 2048).query(
            "target == 'image'").assign(image="own", context_kind="misleading",
                                        mode=cost.MODES[0]))
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
    assert [one.modes for one in cost.conditions(uneven, 60)] == [cost.MODES]
