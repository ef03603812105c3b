"""F11 on made-up rows whose best rates are built in."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from vdp_utils import figures, stats
from vdp_utils.attention.law import LAWS, rate_of
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
    low, middle, high = (law._at(found, at, HELD_OUT)["correct"] for at in (0.3, 0.4, 0.5))
    assert middle.tolist() == pytest.approx(((low + high) / 2).tolist())
    part = law._at(found, 0.5, HELD_OUT)
    rows = rising[(rising["context_length"] == HELD_OUT) & (rising["rate"] == 0.5)
                  & (rising["mode"] == "compress compact") & (rising["strategy"] == "accumulated")]
    assert part["correct"].mean() == pytest.approx(rows["correct"].mean())
    assert stats.balanced_accuracy(part[part["target"] == "image"]).n_images == IMAGES


def changed(rows, kept, of_image, length=HELD_OUT):
    """Rows in which some images answer right at these rates after a length, and else wrong."""
    mine = rows["image_id"].map(of_image) & (rows["context_length"] == length)
    return rows.assign(correct=rows["correct"].where(~mine, rows["rate"].isin(kept)))


def test_each_target_has_its_accuracies_and_both_their_mean(rising):
    table = law.accuracies(rising).set_index(["target", "context_length", "rate"])["value"]
    mine = rising[(rising["rate"] == 0.3) & (rising["context_length"] == 256)
                  & (rising["mode"] == "compress compact") & (rising["strategy"] == "accumulated")]
    for target, image in (("image", "own"), ("text", "text_middle")):
        expected = mine[mine["image"] == image].groupby("answer")["correct"].mean().mean()
        assert table[target, 256, 0.3] == pytest.approx(expected)
    assert table["both", 256, 0.3] == pytest.approx(
        (table["image", 256, 0.3] + table["text", 256, 0.3]) / 2)


def test_the_best_measured_rate_stands_beside_the_parabola_s(rising):
    """A peak that no parabola follows."""
    peaked = changed(rising, [0.3], lambda image: True, 512)
    table = law.best_rates(peaked).set_index(["variant", "context_length"])
    assert (table.loc[(slice(None), 512), "measured"] == 0.3).all()


@pytest.fixture(scope="module")
def used(rising):
    """After HELD_OUT tokens the first half of the images is right at 0.1 only; of the second, seven
    at 0.5 only and eight at any rate, and after fewer tokens all of the second up to 0.3."""
    rows = changed(rising, [0.1], lambda image: image < "i15")
    for length in LENGTHS[:-1]:
        rows = changed(rows, [0, 0.1, 0.3], lambda image: image >= "i15", length)
    rows = changed(rows, [0.5], lambda image: "i15" <= image < "i22")
    return law.use(law.answers(changed(rows, [0, *RATES], lambda image: image >= "i22")))


def test_a_law_s_use_is_judged_on_images_and_lengths_that_it_did_not_see(used, rising):
    table = used[used["measure"] == law.ACCURACY].set_index(["context_length", "choice"])
    assert len(table) == 4 * len(LENGTHS) and set(table["n_images"]) == {IMAGES / 2}
    end = table.loc[HELD_OUT]
    assert end.loc["oracle", ["rate", "value"]].tolist() == [0.5, 1]
    assert end.loc["no pruning", ["rate", "value"]].tolist() == [0, pytest.approx(8 / 15)]
    first = law.answers(rising[rising["image_id"] < "i15"])  # as it was before it was changed
    fitted = next(law.laws(first).itertuples())
    assert end.loc["law", "rate"] == pytest.approx(law.predicted(fitted, [HELD_OUT])[0])
    assert set(table.xs("best fixed rate", level="choice")["rate"]) == {law.best_fixed(first)}
    assert law.best_fixed(first) != 0.1


def test_what_a_law_gains_is_paired_and_signed(used):
    values = used.pivot(index=["context_length", "choice"], columns="measure", values="value")
    for _, part in values.groupby(level=0):
        part = part.droplevel(0)
        assert part[law.GAIN].tolist() == pytest.approx((part.loc["law", law.ACCURACY]
                                                         - part[law.ACCURACY]).tolist())
    accuracy, gain = (used[(used["measure"] == measure) & (used["context_length"] == HELD_OUT)]
                      .set_index("choice") for measure in (law.ACCURACY, law.GAIN))
    assert -1 < gain.loc["oracle", "low"] < gain.loc["oracle", "high"] < 0
    # each image is as right at the law's rate as without pruning, however much images differ
    assert gain.loc["no pruning", ["low", "high"]].abs().max() < 1e-9
    assert accuracy.loc["no pruning", "high"] - accuracy.loc["no pruning", "low"] > 0.3
    assert gain.loc["law", ["value", "low", "high"]].tolist() == [0, 0, 0]


def test_a_law_is_stored_for_its_weights(rising, tmp_path):
    table = law.laws(law.answers(rising))
    law.save(table, tmp_path, SimpleNamespace(name="some/model", revision="abc"))
    stored = json.loads((tmp_path / "F11_some-model_law.json").read_text())
    assert (stored["model"], stored["revision"]) == ("some/model", "abc")
    model = SimpleNamespace(config=SimpleNamespace(vdp_pruning_law=stored))
    for length in LENGTHS:
        assert rate_of(model, length) == pytest.approx(
            law.predicted(next(table.itertuples()), [length])[0], abs=1e-4)


def test_the_figure_says_what_was_fitted_and_judged(rising):
    found = law.answers(rising)
    table = law.laws(found)
    drawn = figures.law(law.accuracies(rising), law.best_rates(rising), table, law.use(found),
                        law.predicted, "a model")
    said = [[text.get_text() for text in axes.get_legend().get_texts()] for axes in drawn.axes
            if axes.get_legend()]
    assert {f"law: {table['law'].iloc[0]}", "during prefill"} < set(said[1])
    assert said[0] == [f"{length} tokens" for length in LENGTHS]
    assert said[2] == ["law", "best fixed rate", "no pruning", "oracle"]
    assert "30 images" in drawn.get_suptitle() and "other 15" in drawn.axes[4].get_title()
