"""F6 on tables whose truth is built in: what pruning wins back, and the figures of it."""

import numpy as np
import pandas as pd
import pytest

from vdp_utils import figures, paths, stats
from vdp_utils.attention.pruner import LAYER, default_layer
from vdp_utils.errors import VDPError
from vdp_utils.findings import recovery
from vdp_utils.measuring.pruned import COMPACT, NONE
from vdp_utils.measuring.store import ResultStore

EVERYWHERE = {(kind, length): 0.3 for kind in recovery.KINDS for length in (512, 2048)}


@pytest.fixture(autouse=True)
def enough_resamples(monkeypatch):
    """For Holm over this many cells."""
    monkeypatch.setattr(stats, "RESAMPLES", 1999)


def table_with(gains, cost=0.4, images=60, best=0.95, kept=1.0, kl=0.0):
    """`gains` {(kind, length): share of answers that the rate 0.5 mends}; context spoils `cost`.

    With old positions it mends the share `kept` of that. Pruned, the options of a swapped image are
    `kl` nats nearer to each other.
    """
    rng, lines = np.random.default_rng(0), []
    settings = [(NONE, 0.0), *((mode, rate) for mode in recovery.MODES for rate in (0.5, 0.9))]
    for kind in recovery.KINDS:
        for number, answer in enumerate(("yes", "no")):
            for length in (0, 512, 2048):
                for image, luck in enumerate(rng.permutation((np.arange(images) + 0.5) / images)):
                    for mode, rate in settings if length else settings[:1]:
                        gain = gains.get((kind, length), 0) if rate else 0
                        gain *= 1 if mode in (COMPACT, NONE) else kept
                        correct = luck < (best - (cost - gain if length else 0))
                        for own in ("own", "swapped"):
                            nearer = kl if rate else 0
                            lines.append(dict(
                                image_id=f"i{image:02d}", question_id=str(number), answer=answer,
                                context_kind=kind, context_length=length, rate=rate, mode=mode,
                                strategy="accumulated" if rate else NONE, image=own,
                                correct=correct, predicted=answer if correct else "no",
                                log_likelihoods=([-0.1, -2.5] if own == "own" else
                                                 [-0.7 - nearer, -0.7 + nearer]),
                                attention=np.full(8, 0.3 if rate else 0.25)))
    return pd.DataFrame(lines)


@pytest.mark.parametrize("gains, cost, best, expected", [
    (EVERYWHERE, 0.4, 0.95, "reproduced"),
    ({("misleading", 2048): 0.3}, 0.4, 0.95, "partly"),
    ({("misleading", 2048): -0.3}, 0.4, 0.95, "contradicted"),
    ({}, 0.4, 0.95, "not reproduced"),
    ({}, 0, 0.95, "inconclusive"),  # where nothing is lost, nothing can be won back
    (EVERYWHERE, 0.5, 0.7, "inconclusive"),  # a gain that ends at chance is none
])
def test_the_verdict_follows_the_rule(gains, cost, best, expected):
    rows = table_with(gains, cost, best=best)
    tests = recovery.tests(rows)
    verdict = recovery.verdict(tests, rows)
    assert (verdict.finding, verdict.verdict, verdict.n) == ("F6", expected, 60)
    assert len(tests) == 4 and (tests["cost"] - cost).abs().max() < 0.15
    assert (tests["limit"] == ("" if cost else "no cost")).all()
    for kind in recovery.KINDS:
        wanted = np.mean([gains.get((kind, length), 0) for length in (512, 2048)])
        assert verdict.estimates[kind].value == pytest.approx(wanted, abs=0.06)


def test_the_headline_takes_a_kind_s_costly_lengths_only():
    rows = table_with({("misleading", 2048): 0.3})
    rows = rows[(rows["context_kind"] == "other_images") | (rows["context_length"] != 512)]
    cheap = table_with({}, cost=0)
    cheap = cheap[(cheap["context_kind"] == "misleading") & (cheap["context_length"] == 512)]
    rows = pd.concat([rows, cheap])
    tests = recovery.tests(rows)
    assert tests.query("limit != ''")[recovery.CELL].to_numpy().tolist() == [["misleading", 512]]
    estimate = recovery.verdict(tests, rows).estimates["misleading"]
    assert estimate.value == pytest.approx(0.3, abs=0.05)


def test_every_mode_s_gain_is_listed_and_the_distance_is_their_difference():
    table = recovery.gains(table_with(EVERYWHERE, kept=0.2)).set_index(
        [*recovery.CELL, "mode", "rate"])
    assert len(table) == 2 * 2 * 4 * 2
    here = table.loc["misleading", 512]
    assert here.loc[(COMPACT, 0.5), "effect"] - here.loc[("compress", 0.5), "effect"] == (
        pytest.approx(here.loc[("distance", 0.5), "effect"]))
    assert here.loc[("distance", 0.5), "effect"] == pytest.approx(0.24, abs=0.1)
    assert here.loc[("distance", 0.5), "p_holm"] < 0.05 < here.loc[("prefill", 0.5), "p_holm"]


def test_a_return_to_the_image_is_a_paired_difference():
    table = recovery.returns(table_with(EVERYWHERE, kl=0.3))
    assert len(table) == 2 * 2 * 2 * 2
    for measure, change in (("attention on image", 0.05), ("KL, swapped", 0.3)):
        part = table[table["measure"] == measure]
        assert (part["effect"] > 0.5 * change).all() and (part["p_holm"] < 0.05).all()
    flat = recovery.returns(table_with(EVERYWHERE))
    assert (flat.loc[flat["measure"] == "KL, swapped", "effect"] == 0).all()
    assert (flat.loc[flat["measure"] == "KL, swapped", "p_holm"] == 1).all()


def test_summary_and_figures_show_what_was_measured():
    rows = table_with({("other_images", 512): 0.3}, kept=0.5)
    described = rows[(rows["context_length"] == 512) & (rows["context_kind"] == "other_images")
                     & (rows["image"] == "own") & rows["mode"].isin([COMPACT, NONE])]
    rows = pd.concat([rows, described.assign(image=recovery.DESCRIBED)])
    summary = recovery.summary(rows)
    kl = summary[summary["measure"] == "KL, swapped"]["value"]
    expected = 0.913 * (np.log(0.917) - np.log(0.5)) + 0.083 * (np.log(0.083) - np.log(0.5))
    assert kl.between(expected - 0.02, expected + 0.02).all()
    mass = summary[summary["measure"] == "attention on image"].groupby("rate")["value"].unique()
    assert np.concatenate(mass.to_list()) == pytest.approx([0.25, 0.3, 0.3, 0.25])
    assert set(summary["mode"]) == set(recovery.MODES) and (summary["n_images"] == 60).all()
    figure = figures.recovery(summary, "S")
    assert "n = 60 images" in figure.get_suptitle() and len(figure.axes) == 4
    for axes in figure.axes:
        assert len(axes.containers) == 3 and len(axes.collections) > 3
    assert "what distance costs" in [text.get_text() for text in figure.legends[0].get_texts()]
    figure = figures.returning(summary, "S")
    assert [axes.get_title() for axes in figure.axes[:2]] == ["other images context",
                                                              "misleading context"]
    assert all(len(axes.containers) == 2 for axes in figure.axes)
    table = recovery.targets(rows)
    assert list(table["target"]) == ["image"] * 3 + ["text"] * 3
    hurt = figures.targets(table, "S")
    assert {text.get_text() for text in hurt.axes[0].get_legend().get_texts()} == {
        "answer in the image", "answer in the context"}
    alone = recovery.targets(rows[rows["image"] != recovery.DESCRIBED])  # no text descriptions
    assert set(alone["target"]) == {"image"} and len(figures.targets(alone, "S").axes) == 1


def test_a_length_measured_after_one_kind_only_is_no_matter():
    rows = table_with({("misleading", 2048): 0.3})
    rows = rows[(rows["context_length"] < 2048) | (rows["context_kind"] == "misleading")]
    found = recovery.image_target(rows)
    assert set(found.loc[found["context_kind"] == "other_images", "context_length"]) == {512}
    assert len(recovery.tests(rows)) == 3


def test_far_contexts_are_asked_at_few_rates_and_with_the_own_image(uneven):
    near, far = recovery.NEAR, 2 * recovery.NEAR
    asked = recovery.conditions(uneven, (0, near, far), described_length=near)
    rates = {(one.context_kind, one.context_length, one.image): one.rates for one in asked}
    for kind in recovery.KINDS:
        assert rates[kind, 0, "own"] == () and rates[kind, near, "own"] == recovery.RATES
        assert rates[kind, far, "own"] == rates[kind, near, "swapped"] == recovery.FEW_RATES
        assert (kind, far, "swapped") not in rates
    assert {one.modes for one in asked if one.image == "own"} == {recovery.MODES}
    assert {one.layers for one in asked} == {(default_layer(4),)}


def test_rows_without_the_anchor_are_refused():
    rows = table_with({})
    with pytest.raises(VDPError, match="lack the length 0"):
        recovery.tests(rows[rows["context_length"] > 0])


def layer_rows(gains, images=40):
    """Validation rows whose gain at each layer is built in, the same in every cell."""
    rng, lines = np.random.default_rng(0), []
    for kind in recovery.KINDS:
        for image in range(images):
            for number, answer in enumerate(("yes", "no")):
                luck = rng.random()
                lines += [dict(image_id=f"i{image}", question_id=str(number), answer=answer,
                               context_kind=kind, context_length=512, layer=layer,
                               strategy=NONE if layer < 0 else "accumulated",
                               correct=luck < 0.5 + gain) for layer, gain in gains.items()]
    return pd.DataFrame(lines)


def test_the_layer_of_the_highest_mean_gain_is_chosen_and_the_earliest_of_equal_ones(uneven):
    table = recovery.by_layer(layer_rows({-1: 0, 0: 0.1, 1: 0.3, 2: 0.3, 3: -0.1}))
    assert list(table.index) == [0, 1, 2, 3] and table.shape[1] == 3
    assert table["mean"].tolist() == pytest.approx([0.1, 0.3, 0.3, -0.1], abs=0.07)
    assert recovery.best_layer(table) == 1
    late = recovery.by_layer(layer_rows({-1: 0, 0: 0.1, 1: 0.3, 2: 0.2, 3: 0.6}))
    assert recovery.best_layer(late) == 1  # behind the middle nothing is saved
    (one, *_) = recovery.layer_conditions(uneven, (64,))
    assert one.layers == (0, 1, 2, 3) and one.modes == (COMPACT,) and one.rates == (0.5,)


def test_the_default_layer_is_the_one_that_validation_scenes_chose():
    store = ResultStore(paths.results("full"))
    stored = [one for one in store.conditions(recovery.LAYERS) if one["model"] == "embedded-s"]
    if not stored:
        pytest.skip("no validation rows are stored: run notebook 06")
    rows = pd.concat([store.read(recovery.LAYERS, one) for one in stored])
    assert recovery.best_layer(recovery.by_layer(rows)) == LAYER == default_layer(6)
