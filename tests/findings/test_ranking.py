"""F7: strategies compared on tables whose truth is built in, and the figures of them."""

import numpy as np
import pandas as pd
import pytest

from vdp_utils import figures
from vdp_utils.figures.ranking import _cliques
from vdp_utils.findings import ranking
from vdp_utils.measuring.pruned import NONE

GOOD = {name: 0.3 for name in ranking.GROUPS}


def table_with(gains, images=50, lengths=(128, 512), rates=(0.5, 0.9)):
    """`gains` {strategy: share of answers it mends}; without pruning half of them are right."""
    rng, lines = np.random.default_rng(0), []

    def ask(image, strategy, rate, length, luck, gain, **how):
        for number, answer in enumerate(("yes", "no")):
            lines.append(dict(
                image_id=image, question_id=str(number), answer=answer, context_length=length,
                strategy=strategy, rate=rate, correct=bool(luck[number] < 0.5 + gain),
                **dict(mode="prefill", layer=0, positions="kept") | how))

    for image in (f"i{n:02d}" for n in range(images)):
        for length in lengths:
            luck = rng.random(2)
            ask(image, NONE, 0.0, length, luck, 0)
            for text in ranking.contenders():
                for rate in rates:
                    noise = rng.normal(0, 0.02)
                    ask(image, text, rate, length, luck + noise, gains.get(text.split()[0], 0))
        for name in ranking.SETS:
            ask(image, name, 0.5, 512, luck, 0.1)
        ask(image, NONE, 0.0, 512, luck, 0)
        for layer in (1, 2):
            for text in ("accumulated", "random 0"):
                ask(image, text, 0.5, 512, luck, 0.1, layer=layer)
        for mode, positions in ranking.MODES:
            ask(image, "accumulated", 0.5, 512, luck, 0 if mode == "evict" else 0.2, mode=mode,
                positions=positions)
    return pd.DataFrame(lines)


@pytest.mark.parametrize("gains, expected", [
    (GOOD | dict(accumulated=0.45), "reproduced"),
    (GOOD, "partly"),  # robust, not better
    (GOOD | dict(accumulated=0.45, head=0.0), "partly"),  # better, not robust
    (GOOD | dict(head=0.0), "not reproduced"),
    (GOOD | dict(accumulated=0.45, inverse=0.0, fastv_visual=-0.4, text_first=-0.4), "reproduced"),
    (GOOD | dict(accumulated=0.4, snapkv=0.45), "partly"),
])
def test_the_verdict_follows_the_rule(gains, expected):
    found = ranking.answers(table_with(gains))
    table = ranking.tests(found)
    verdict = ranking.verdict(table)
    assert (verdict.finding, verdict.verdict, verdict.n) == ("F7", expected, 50)
    assert verdict.estimate.value == pytest.approx(gains["accumulated"] - gains["random"], abs=0.05)
    assert table["mean_rank"].is_monotonic_increasing
    assert set(table["strategy"]) == set(ranking.GROUPS)


def test_seeds_are_averaged_and_the_ablations_left_out():
    rows = table_with(GOOD)
    found = ranking.answers(rows)
    assert len(found) == (len(ranking.GROUPS) + 1) * 2 * 2 * 100
    one = found.query("strategy == 'random' and image_id == 'i00' and context_length == 128 "
                      "and rate == 0.5 and question_id == '0'")
    mine = rows[rows["strategy"].str.fullmatch(r"random \d") & (rows["image_id"] == "i00")
                & (rows["context_length"] == 128) & (rows["rate"] == 0.5)
                & (rows["question_id"] == "0")]
    assert len(mine) == ranking.SEEDS and one["correct"].item() == mine["correct"].mean()


def test_ranks_follow_demsar():
    found = pd.DataFrame(
        [dict(image_id=f"i{n}", strategy=name, correct=correct)
         for n in range(4) for name, correct in dict(a=1, b=0.5 if n else 1, c=0.0).items()])
    ranks = ranking.mean_ranks(found)
    assert ranks.to_dict() == {"a": (1 * 3 + 1.5) / 4, "b": (2 * 3 + 1.5) / 4, "c": 3.0}
    assert ranking.critical_difference(4, 14) == pytest.approx(1.25, abs=0.005)  # his example
    assert ranking.critical_difference(5, 30) == pytest.approx(
        2.728 * (5 * 6 / (6 * 30)) ** 0.5, abs=1e-3)
    assert _cliques(np.array([1, 1.5, 2.2, 4, 4.1]), 1.0) == [(0, 1), (1, 2), (3, 4)]
    assert _cliques(np.array([1.0, 3.0]), 1.0) == []


def test_ablations_change_one_thing_each():
    table = ranking.ablations(table_with(GOOD))
    assert table["setting"].is_unique and (table["n_images"] == 50).all()
    gain = table.set_index("setting")["gain"]
    assert gain["evict"] == 0 and gain["compress, kept positions"] == pytest.approx(0.2, abs=0.1)
    assert table["setting"].iloc[0] == "layer 0, max, all queries"
    assert table["behind"].iloc[0] == 0
    assert list(dict.fromkeys(table["group"])) == [
        "as it is", "heads and queries", "scoring layer", "random tokens go", "mode", "what goes"]


def test_the_figures_show_every_strategy_and_setting():
    rows = table_with(GOOD | dict(accumulated=0.45))
    found = ranking.answers(rows)
    table = ranking.tests(found)
    figure = figures.strategies(table, ranking.cells(found), 2.0, "S")
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == list(table["strategy"]) and labels[0] == "accumulated"
    assert "n = 50 images" in figure.get_suptitle()
    assert len(figure.axes[1].texts) == len(table) * 4
    ablated = ranking.ablations(rows)
    figure = figures.ablations(ablated, "S")
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == list(
        ablated["setting"])
