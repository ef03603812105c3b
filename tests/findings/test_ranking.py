"""F7: strategies compared on tables whose truth is built in, and the figures of them."""

import numpy as np
import pandas as pd
import pytest

from vdp_utils import figures, paths, stats
from vdp_utils.findings import ranking
from vdp_utils.measuring.pruned import COMPACT, NONE
from vdp_utils.measuring.store import ResultStore

GOOD = {name: 0.2 for name in ranking.GROUPS}
BETTER = GOOD | dict(accumulated=0.4, oracle=0.4)


@pytest.fixture(autouse=True)
def enough_resamples(monkeypatch):
    """For Holm over this many cells."""
    monkeypatch.setattr(stats, "RESAMPLES", 1999)


def table_with(gains, images=50, text=None):
    """`gains` {strategy: share of answers it mends}; without pruning half of them are right.

    `text` are those where the answer stands in the text, the same as in the image if not given.
    """
    rng, lines = np.random.default_rng(0), []
    gains = {"own": gains, "text_middle": gains if text is None else text}
    for number, answer in enumerate(("yes", "no")):
        for length, rates in ranking.RATES.items():
            for image, luck in enumerate(rng.permutation((np.arange(images) + 0.5) / images)):
                how = dict(image_id=f"i{image:02d}", question_id=str(number), answer=answer,
                           context_length=length)
                for target, won in gains.items():
                    asked = [(NONE, 0.0, NONE, -1)]
                    asked += [(text, rate, COMPACT, layer) for text in ranking.contenders()
                              for rate in rates for layer in (0, 1)]
                    if target == "own":
                        asked += [(name, rate, "prefill", 1) for name in ranking.VISUAL
                                  for rate in rates]
                    for strategy, rate, mode, layer in asked:
                        name = strategy if strategy in won else strategy.rsplit(" ", 1)[0]
                        gain = won.get(name, 0) * (1 if layer else 0.5)
                        noise = rng.normal(0, 0.02) if rate else 0
                        lines.append(dict(
                            **how, image=target, strategy=strategy, rate=rate, mode=mode,
                            layer=layer, correct=bool(luck + noise < 0.5 + gain)))
    return pd.DataFrame(lines)


@pytest.mark.parametrize("gains, robust, better, expected", [
    (BETTER, "reproduced", "reproduced", "reproduced"),
    (GOOD, "reproduced", "not reproduced", "partly"),
    (BETTER | dict(head=0.0), "partly", "reproduced", "partly"),
    (BETTER | dict(inverse=0.0), "reproduced", "reproduced", "reproduced"),  # a control
    (GOOD | dict(snapkv=0.4), "reproduced", "contradicted", "partly"),
    (dict.fromkeys(GOOD, -0.3), "contradicted", "not reproduced", "contradicted"),
])
def test_the_verdict_follows_the_rule(gains, robust, better, expected):
    table = ranking.tests(ranking.answers(table_with(gains)))
    verdict = ranking.verdict(table)
    assert (verdict.finding, verdict.verdict, verdict.n) == ("F7", expected, 50)
    for part, word in dict(robust=robust, better=better).items():
        assert stats.judge(table[table["part"] == part], ranking.SMALLEST) == word
    over_none, over_random = (one.value for one in verdict.estimates.values())
    assert over_none == pytest.approx(gains["accumulated"], abs=0.07)
    assert over_random == pytest.approx(gains["accumulated"] - gains["random"], abs=0.07)
    assert set(table.loc[table["part"] == "robust", "strategy"]) == (
        set(ranking.GROUPS) - set(ranking.BOUNDS))


def test_robust_asks_the_image_alone_and_better_asks_both_targets():
    rows = table_with(BETTER, text=GOOD | dict(accumulated=0.0))
    table = ranking.tests(ranking.answers(rows)).set_index(["part", "strategy"])
    assert table.loc[("robust", "accumulated"), "effect"] == pytest.approx(0.4, abs=0.07)
    assert table.loc[("better", "random"), "effect"] == pytest.approx(0.0, abs=0.05)


def test_a_strategy_may_only_count_that_ends_above_chance():
    rows = table_with(dict.fromkeys(GOOD, 0.0))
    plain = rows["strategy"] == NONE
    rows.loc[plain & (rows["image"] == "own"), "correct"] &= np.arange(plain.sum() // 2) % 2 == 0
    table = ranking.tests(ranking.answers(rows))
    gained = table[(table["part"] == "robust") & (table["p_holm"] < 0.05) & (table["effect"] > 0)]
    assert len(gained) and not gained["holds"].any()


def test_seeds_are_averaged_and_no_pruning_stands_at_every_rate_and_layer():
    rows = table_with(GOOD)
    found = ranking.answers(pd.concat([rows, rows.query("strategy == 'none'")]))  # read twice
    cells = sum(map(len, ranking.RATES.values()))
    assert len(found) == 100 * cells * ((len(ranking.GROUPS) + 1) * 4 + len(ranking.VISUAL) + 1)
    where = ("image_id == 'i00' and context_length == 512 and rate == 0.5 and question_id == '0'")
    one = found.query(f"strategy == 'random' and layer == 'default' and target == 'image' and "
                      f"{where}")
    mine = rows.query(f"layer == 1 and image == 'own' and {where}")
    mine = mine[mine["strategy"].str.fullmatch(r"random \d")]
    assert len(mine) == ranking.SEEDS and one["correct"].item() == mine["correct"].mean()
    assert set(found["layer"]) == {"default", "0", "image"}


def test_the_oracle_is_the_upper_bound():
    assert ranking.above_oracle(ranking.answers(table_with(BETTER))).empty
    found = ranking.answers(table_with(BETTER | dict(h2o=0.45, oracle=0.2)))
    assert "h2o" in set(ranking.above_oracle(found)["strategy"])


def test_no_stored_strategy_beats_the_oracle():
    store = ResultStore(paths.results("full"))
    stored = [one for one in store.conditions(ranking.STRATEGIES)
              if one["model"] == "embedded-s" and "layers" in one]
    if not stored:
        pytest.skip("no rows of strategies are stored: run notebook 07")
    rows = pd.concat([store.read(ranking.STRATEGIES, one) for one in stored])
    assert ranking.above_oracle(ranking.answers(rows)).empty


def test_every_strategy_is_measured_in_both_targets_and_image_tokens_as_published(tiny):
    asked = ranking.conditions(tiny, {64: (0.5,)})
    assert [(one.image, one.modes) for one in asked] == [
        ("own", (COMPACT,)), ("text_middle", (COMPACT,)), ("own", ("prefill",))]
    assert set(asked[0].strategies) == set(ranking.contenders())
    assert asked[2].strategies == ranking.VISUAL and asked[2].layers == (ranking.FASTV_LAYER,)


def test_the_figures_show_every_strategy():
    found = ranking.answers(table_with(BETTER, text=GOOD | dict(head=0.4)))
    table = ranking.scores(found)
    assert list(table["value"]) == sorted(table["value"], reverse=True)
    assert set(table["strategy"]) == {*ranking.GROUPS, NONE}
    figure = figures.strategies(table, ranking.cells(found), "S")
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    names = [*table["strategy"], *ranking.VISUAL]
    assert labels == [name.replace("_", " ") for name in names]
    assert "n = 50 images" in figure.get_suptitle()
    assert len(figure.axes[1].texts) == len(table) * 6 + len(ranking.VISUAL) * 3 + 2
    tables = [ranking.scores(found, layer) for layer in ranking.layers(found)]
    front = set(tables[0].query("pareto_front")["strategy"])
    assert "head" in front and "oracle" not in front
    figure = figures.two_targets(tables, "S")
    assert [axes.get_title() for axes in figure.axes] == ["scored at the default layer",
                                                          "scored at layer 0"]
    for axes, one in zip(figure.axes, tables):
        named = set(one.query("pareto_front")["strategy"])
        named |= {NONE, ranking.PAPER, "random", "random_sentences", "inverse", "oracle"}
        assert {text.get_text() for text in axes.texts} == {
            "no pruning" if name == NONE else name.replace("_", " ") for name in named}
        assert len(axes.lines[0].get_xdata()) == one["pareto_front"].sum()
