"""F11 on made-up rows whose best rates are built in."""

import numpy as np
import pandas as pd
import pytest

from vdp_utils import figures, stats
from vdp_utils.attention.law import LAWS
from vdp_utils.findings import law
from vdp_utils.findings.law import HELD_OUT, LENGTHS, RATES, VARIANTS
from vdp_utils.measuring.pruned import NONE

IMAGES = 30


@pytest.fixture(autouse=True, scope="module")
def fewer_fits():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(law, "RESAMPLES", 199)
        yield


def made(kept, steep=0.06, images=IMAGES):
    """Rows in which accuracy falls with the distance of log2(kept share) from `kept(length)`."""
    rng, lines = np.random.default_rng(0), []
    for length in LENGTHS:
        for at in (0.0, *RATES):
            off = np.log2(1 - at) - np.log2(kept(length))
            right = np.clip(0.95 - steep * off**2, 0.05, 0.95)
            for image in range(images):
                for target in ("own", "text_middle"):
                    for question in range(2):
                        for strategy, mode in VARIANTS.values() if at else [(NONE, NONE)]:
                            lines.append(dict(
                                image_id=f"i{image:02d}", question_id=str(question),
                                answer=("yes", "no")[question], image=target,
                                context_length=length, rate=at, strategy=strategy, mode=mode,
                                correct=rng.random() < right))
    return pd.DataFrame(lines)


def number_kept(length):
    return min(1.0, 100 / length)


@pytest.fixture(scope="module")
def rising():
    return made(number_kept)


def test_the_best_rate_is_that_of_the_truth(rising):
    table = law.best_rates(rising)
    mine = table[table["variant"] == law.PAPERS].set_index("context_length")
    for length in LENGTHS[1:]:
        assert mine.loc[length, "value"] == pytest.approx(1 - number_kept(length), abs=0.12)
        assert mine.loc[length, "low"] <= mine.loc[length, "value"] <= mine.loc[length, "high"]


def test_a_law_is_told_from_a_constant(rising):
    found = law.answers(rising)
    table = law.laws(found)
    assert table["aic"].is_monotonic_increasing and set(table["law"]) == set(LAWS)
    assert table["law"].iloc[0] in ("power", "constant number kept", "saturating")
    assert table["value"].iloc[0] == pytest.approx(1 - number_kept(HELD_OUT), abs=0.1)
    assert law.rise(found).low > 0
    flat = law.answers(made(lambda length: 0.3))
    slope = law.rise(flat)
    assert slope.low < 0 < slope.high or abs(slope.value) < 0.03


def test_a_law_that_helps_is_reproduced_and_none_is_not():
    steep = law.answers(made(number_kept, steep=0.15, images=60))
    table = law.tests(steep)
    verdict = law.verdict(table, steep)
    assert table["rate"].iloc[0] > table["fixed"].iloc[0]
    assert (verdict.verdict, verdict.n) == ("reproduced", 60)
    flat = law.answers(made(lambda length: 0.3))
    assert law.verdict(law.tests(flat), flat).verdict in ("not reproduced", "inconclusive")


@pytest.mark.parametrize("name", LAWS)
def test_a_law_fits_what_it_made(name):
    lengths = np.array([128, 256, 512, 1024])
    terms, shapes = LAWS[name]
    shape = shapes[len(shapes) // 2]
    weights = {"linear": (0.6, -0.05), "logarithmic": (0.8, -0.15)}.get(name, (0.5, 0.2))
    kept = sum(w * t for w, t in zip(weights, terms(lengths / 128.0, shape)))
    squares, found = law.fit(name, lengths, (1 - kept)[None])
    assert squares[0] < 1e-9
    assert law.rate(name, found, 512)[0] == pytest.approx(1 - kept[2], abs=1e-4)


def test_the_rate_between_two_measured_ones_is_interpolated(rising):
    found = law.answers(rising)
    low, middle, high = (law._at(found, at)["correct"] for at in (0.3, 0.4, 0.5))
    assert middle.tolist() == pytest.approx(((low + high) / 2).tolist())
    part = law._at(found, 0.5)
    rows = rising[(rising["context_length"] == HELD_OUT) & (rising["rate"] == 0.5)
                  & (rising["mode"] == "compress compact") & (rising["strategy"] == "accumulated")]
    assert part["correct"].mean() == pytest.approx(rows["correct"].mean())
    assert stats.balanced_accuracy(part[part["target"] == "image"]).n_images == IMAGES


def test_the_figure_says_what_was_fitted(rising):
    found = law.answers(rising)
    table = law.laws(found)
    drawn = figures.law(law.accuracies(rising), law.best_rates(rising), table, law.predicted,
                        HELD_OUT, "a model")
    texts = [text.get_text() for text in drawn.axes[1].get_legend().get_texts()]
    assert f"law: {table['law'].iloc[0]}" in texts and "during prefill" in texts
    assert "30 images" in drawn.get_suptitle()
