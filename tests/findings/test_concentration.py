"""F8's verdict and figure, on tables whose truth is built in."""

import numpy as np
import pandas as pd
import pytest

from vdp_utils import figures, stats
from vdp_utils.findings import concentration

RATES = (0.25, 0.75)


def table_with(gain, spread=0.01, exceptions=0.0, images=30):
    """Layers 0 to 3; `gain` {layer: change of the image's mass}; entropy falls by as much."""
    rng, lines = np.random.default_rng(0), []
    for image in range(images):
        for length in (512, 2048):
            for rate in RATES:
                for layer in range(4):
                    move = gain.get(layer, 0) + rng.normal(0, spread)
                    lines.append(dict(
                        image_id=f"i{image:02d}", question_id="0", context_length=length, rate=rate,
                        layer=layer, later=layer > 0, before=0.1, predicted=0.15, after=0.1 + move,
                        entropy_before=2.0, entropy_frozen=1.8, entropy_after=2 - move,
                        mass_falls=0.0, entropy_rises=0.1, falls_measured=0.2, premise=0.1,
                        exceptions=exceptions, gain=move, gain_predicted=0.05,
                        entropy_change=-move))
    return pd.DataFrame(lines)


@pytest.fixture(autouse=True)
def enough_resamples(monkeypatch):
    """For Holm over this many cells."""
    monkeypatch.setattr(stats, "RESAMPLES", 1999)


@pytest.mark.parametrize("gain, exceptions, expected", [
    ({1: 0.05, 2: 0.05, 3: 0.05}, 0.0, "reproduced"),
    ({1: 0.05, 2: 0.05, 3: -0.03}, 0.0, "partly"),
    ({1: 0.0, 2: -0.05, 3: -0.05}, 0.0, "contradicted"),
    ({1: 0.0, 2: 0.0, 3: 0.0}, 0.0, "not reproduced"),
    ({1: 0.05, 2: 0.05, 3: 0.05}, 0.01, "inconclusive"),  # a theorem that fails is a fault here
])
def test_the_verdict_follows_the_rule(gain, exceptions, expected):
    layers = table_with(gain, exceptions=exceptions)
    table = concentration.tests(layers)
    verdict = concentration.verdict(table, layers)
    assert (verdict.finding, verdict.verdict, verdict.n) == ("F8", expected, 30)
    assert list(verdict.estimates) == ["attention on the image", "entropy"]
    for estimate in verdict.estimates.values():  # entropy falls by as much
        assert estimate.value == pytest.approx(np.mean(list(gain.values())), abs=0.01)
    assert len(table) == 2 * 2 * 2 * 3


def test_the_figure_draws_prediction_and_measurement():
    layers = table_with({1: 0.05, 2: 0.02, 3: -0.02})
    figure = figures.concentration(concentration.tests(layers), layers, "S")
    assert "n = 30 images" in figure.get_suptitle() and len(figure.axes) == 6
    gains, entropies, both = figure.axes[:3]
    for axes, predicted in ((gains, 0.05), (entropies, 0.2)):
        drawn = [line for line in axes.lines if line.get_linestyle() == ":"
                 and len(line.get_xdata()) == 3 and np.allclose(line.get_ydata(), predicted)]
        assert len(drawn) == len(RATES)  # what (a) predicts, and what fixed queries and keys do
    assert "2048 context tokens" in figure.axes[3].get_ylabel()
    assert {axes.get_xlabel() for axes in figure.axes[3:5]} == {"layer"}
    assert both.get_xlim() == both.get_ylim()
