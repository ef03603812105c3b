import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from vdp_utils import stats
from vdp_utils.errors import VDPError
from vdp_utils.stats import Estimate, Verdict

ANSWERS = ("yes", "no")


def presence_rows(correct, lengths=(0,)):
    """Return rows for `correct` of shape (images, questions); yes and no take turns."""
    correct = np.asarray(correct, dtype=bool)
    return pd.DataFrame(
        {
            "image_id": f"i{image:03d}",
            "question_id": f"q{question}",
            "answer": ANSWERS[question % 2],
            "predicted": ANSWERS[(question + (not right)) % 2],
            "correct": right,
            "context_length": length,
        }
        for length in lengths
        for image, line in enumerate(correct)
        for question, right in enumerate(line)
    )


def draw(seed, images=60, questions=4, accuracy=0.8, spread=1.0):
    """Return correct (images, questions) where some images are harder than others."""
    rng = np.random.default_rng(seed)
    p = rng.beta(accuracy / spread, (1 - accuracy) / spread, size=(images, 1))
    return rng.random((images, questions)) < p


def numbers(estimate):
    return estimate.value, estimate.low, estimate.high


# ---- intervals


def test_mean_estimate_is_scipys_bca_over_image_means():
    rows = presence_rows(draw(0))
    means = draw(0).mean(axis=1)
    expected = scipy_stats.bootstrap(
        (means,), np.mean, method="BCa", n_resamples=20000, rng=np.random.default_rng(5)
    ).confidence_interval
    got = stats.mean_estimate(rows, "correct")
    assert got.value == pytest.approx(means.mean())
    assert (got.low, got.high) == pytest.approx((expected.low, expected.high), abs=0.004)
    assert (got.n_images, got.n_rows) == (60, 240)


def test_interval_is_bca_and_not_the_percentile_interval():
    values = np.random.default_rng(1).lognormal(sigma=1.5, size=40)
    _, low, high = stats.bca(np.mean, values)
    percentile = scipy_stats.bootstrap(
        (values,), np.mean, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    assert low > percentile.low and high > percentile.high * 1.02


def test_images_count_equally_however_many_questions_they_have():
    rows = pd.concat([presence_rows([[1, 1]] * 2), presence_rows([[1, 1], [0, 0]])])
    assert stats.mean_estimate(rows, "correct").value == pytest.approx((1 + 0.5) / 2)


def test_more_questions_about_the_same_images_do_not_narrow_the_interval():
    rows = presence_rows(draw(2))
    copies = [rows.assign(question_id=rows["question_id"] + tag) for tag in "abcd"]
    many = pd.concat(copies)
    for estimate in (stats.balanced_accuracy, stats.yes_rate):
        assert numbers(estimate(many)) == pytest.approx(numbers(estimate(rows)))


def test_same_rows_in_any_order_give_the_same_numbers():
    rows = presence_rows(draw(3))
    assert stats.balanced_accuracy(rows) == stats.balanced_accuracy(rows.sample(frac=1))
    assert stats.mean_estimate(rows, "correct") == stats.mean_estimate(rows[::-1], "correct")


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("questions", [[2] * 5, [2, 4, 6, 8, 2]])
def test_equal_images_give_a_finite_interval_of_no_width(right, questions):
    rows = pd.concat(
        presence_rows([[right] * count]).assign(image_id=f"i{image}")
        for image, count in enumerate(questions)
    )
    for estimate in (stats.balanced_accuracy(rows), stats.mean_estimate(rows, "correct")):
        assert numbers(estimate) == (right, right, right)


@pytest.mark.parametrize("images", [2, 3, 7, 50])
@pytest.mark.parametrize("value", [0.1, 1 / 3])
def test_rounding_does_not_widen_the_interval_of_equal_images(images, value):
    got, low, high = stats.bca(np.mean, np.full(images, value))
    assert got == low == high == pytest.approx(value)


def test_interval_is_finite_where_some_resamples_lack_an_answer():
    rows = presence_rows([[1, 0], [1, 1], [0, 1]])
    rows = rows[(rows["image_id"] == "i000") | (rows["answer"] == "yes")]
    # No is never right; of the resamples with i000, 3/19 have 1 yes of 3 right, 7/19 all 3.
    assert numbers(stats.balanced_accuracy(rows)) == pytest.approx((2 / 6, 1 / 6, 3 / 6))


def test_one_image_has_no_interval():
    with pytest.raises(VDPError, match="at least 2 images"):
        stats.balanced_accuracy(presence_rows([[1, 0]]))


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    truth, covered, runs = 0.75, 0, 100
    for seed in range(runs):
        got = stats.balanced_accuracy(presence_rows(draw(seed, 40, 4, truth, spread=0.5)))
        covered += got.low <= truth <= got.high
    assert 0.89 <= covered / runs <= 0.99


# ---- balanced accuracy and yes-rate


def test_balanced_accuracy_by_hand():
    rows = presence_rows([[1, 1, 1, 0], [1, 0, 0, 0]])  # yes: 3 of 4, no: 1 of 4
    rows = pd.concat([rows, rows[(rows["answer"] == "yes") & (rows["image_id"] == "i000")]])
    got = stats.balanced_accuracy(rows)  # yes: 5 of 6
    assert got.value == pytest.approx((5 / 6 + 1 / 4) / 2)
    assert (got.n_images, got.n_rows) == (2, 10)


@pytest.mark.parametrize("said", ANSWERS)
def test_a_constant_answer_scores_one_half(said):
    rows = presence_rows([[1, 1, 1]] * 3).assign(predicted=said)
    rows["correct"] = rows["answer"] == said
    assert stats.balanced_accuracy(rows).value == 0.5
    assert stats.yes_rate(rows).value == (said == "yes")


def test_yes_rate_counts_predictions():
    rows = presence_rows([[1, 0], [1, 1], [1, 1], [1, 1]])  # yes/yes, then yes/no
    assert stats.yes_rate(rows).value == pytest.approx(5 / 8)


def test_balanced_accuracy_interval_against_a_plain_loop():
    correct = draw(4)
    rng, values = np.random.default_rng(0), []
    for _ in range(4000):
        pick = correct[rng.integers(0, len(correct), len(correct))]
        values.append((pick[:, ::2].mean() + pick[:, 1::2].mean()) / 2)
    got = stats.balanced_accuracy(presence_rows(correct))
    assert (got.low, got.high) == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=0.015)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=30))
def test_estimates_are_finite_and_in_range(correct):
    got = stats.balanced_accuracy(presence_rows(correct))
    assert got.value == pytest.approx(np.mean(correct))
    assert 0 <= got.low <= got.high <= 1
    assert not np.isnan(numbers(got)).any()


# ---- differences


def test_difference_is_paired_by_image():
    a = draw(5, images=80, questions=4, spread=3)
    b = a.copy()
    b[::8, :] = False
    got = stats.balanced_accuracy_difference(presence_rows(a), presence_rows(b)[::-1])
    single = [stats.balanced_accuracy(presence_rows(x)) for x in (a, b)]
    assert got.value == pytest.approx(single[0].value - single[1].value)
    assert got.value > 0 and got.low > 0
    assert got.high - got.low < 0.8 * min(one.high - one.low for one in single)
    assert (got.n_images, got.n_rows) == (80, 320)


def test_difference_changes_sign_with_the_order_and_is_zero_for_equals():
    a, b = presence_rows(draw(6)), presence_rows(draw(7))
    there, back = (stats.balanced_accuracy_difference(*pair) for pair in ((a, b), (b, a)))
    assert there.value == -back.value
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low), abs=0.005)
    assert numbers(stats.balanced_accuracy_difference(a, a)) == (0, 0, 0)


def test_difference_takes_shares_for_means_over_seeds():
    a = presence_rows(draw(8))
    b = a.assign(correct=a["correct"] * 0.5)
    half = stats.balanced_accuracy(a).value / 2
    assert stats.balanced_accuracy_difference(a, b).value == pytest.approx(half)


def test_difference_names_what_is_missing():
    a = presence_rows([[1, 0], [1, 1], [0, 1]])
    lacking = a[(a["image_id"] != "i001") | (a["question_id"] != "q1")]
    with pytest.raises(VDPError, match=r"part 1 lacks 1 .*\('i001', 'q1'\)"):
        stats.balanced_accuracy_difference(a, lacking)
    with pytest.raises(VDPError, match=r"part 0 lacks 1 .*\('i001', 'q1'\)"):
        stats.balanced_accuracy_difference(lacking, a)
    with pytest.raises(VDPError, match="part 1 holds a question more than once"):
        stats.balanced_accuracy_difference(a, pd.concat([a, a[:1]]))
    with pytest.raises(VDPError, match=r"differ in the right answer of \[\('i000', 'q0'\)"):
        other = a.copy()
        other.loc[0, "answer"] = "no"
        stats.balanced_accuracy_difference(a, other)


# ---- tests


def test_mcnemar_by_hand():
    a, b = [1, 1, 1, 1, 1, 1, 0, 0, 1], [0, 0, 0, 0, 0, 1, 1, 0, 1]
    got = stats.mcnemar(a, b)
    assert (got.only_a, got.only_b) == (5, 1)
    assert got.p == pytest.approx(2 * (1 + 6) / 2**6)
    assert stats.mcnemar(b, a).p == pytest.approx(got.p)
    assert stats.mcnemar(a, a).p == 1.0
    with pytest.raises(VDPError, match="differ in length"):
        stats.mcnemar(a, b[1:])


def test_holm_by_hand():
    got = stats.holm([0.04, 0.01, 0.03, 0.5])
    assert got == pytest.approx([0.09, 0.04, 0.09, 0.5])
    assert stats.holm([0.9, 0.8]).tolist() == [1, 1]
    assert len(stats.holm([])) == 0
    with pytest.raises(VDPError, match="p-values"):
        stats.holm([0.1, float("nan")])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.001, 0.5))
def test_holm_rejects_what_stepping_down_rejects(p, alpha):
    rejected, ordered = np.zeros(len(p), dtype=bool), np.argsort(p, kind="stable")
    for step, index in enumerate(ordered):
        if p[index] * (len(p) - step) > alpha:
            break
        rejected[index] = True
    assert ((stats.holm(p) <= alpha) == rejected).all()


LENGTHS = (0, 1, 3, 7)  # one doubling of 1 + x from one to the next


def length_rows(accuracy):
    """Return rows with a value for each (image, length)."""
    return pd.DataFrame(
        {"image_id": f"i{image:03d}", "context_length": length, "correct": value}
        for image, line in enumerate(accuracy)
        for length, value in zip(LENGTHS, line, strict=True)
    )


def test_trend_finds_the_slope_per_doubling():
    rng = np.random.default_rng(0)
    slopes = rng.normal(-0.1, 0.1, size=(50, 1))
    accuracy = 0.7 + slopes * np.arange(4)
    got = stats.trend(length_rows(accuracy).sample(frac=1, random_state=0))
    assert got.slope.value == pytest.approx(slopes.mean())
    assert got.slope.low < got.slope.value < got.slope.high < 0
    assert (got.slope.n_images, got.slope.n_rows) == (50, 200)
    assert got.p == pytest.approx(2 / 10000)
    up = stats.trend(length_rows(1 - accuracy))
    assert up.slope.value == pytest.approx(-got.slope.value) and up.p == got.p


def test_trend_p_value_is_near_students_for_many_images():
    slopes = np.random.default_rng(3).normal(0.02, 0.1, size=60)
    got = stats.trend(length_rows(slopes[:, None] * np.arange(4)))
    assert got.p == pytest.approx(scipy_stats.ttest_1samp(slopes, 0).pvalue, abs=0.02)


def test_trend_p_value_is_exact_for_few_images():
    got = stats.trend(length_rows(np.outer([1, 2, 3, 4], np.arange(4))))
    assert got.p == pytest.approx(2 / 2**4)


@pytest.mark.parametrize("value", [0.1, 0.9, 1])
@pytest.mark.parametrize("stretch", [1, 256, 300])
def test_trend_without_any_change_is_none(value, stretch):
    rows = length_rows(np.full((20, 4), value))
    got = stats.trend(rows.assign(context_length=rows["context_length"] * stretch))
    assert numbers(got.slope) == (0, 0, 0) and got.p == 1


def test_trend_keeps_its_level_where_most_values_are_ties():
    rng, runs = np.random.default_rng(0), 80
    p = [stats.trend(length_rows(rng.binomial(2, 0.9, (40, 4)) / 2)).p for _ in range(runs)]
    assert 0.01 <= np.mean(np.array(p) < 0.05) <= 0.10


def test_trend_needs_every_image_at_every_length():
    rows = length_rows(np.ones((3, 4)))
    with pytest.raises(VDPError, match="'i001' has no row at context_length = 3"):
        stats.trend(rows.drop(6))
    with pytest.raises(VDPError, match="two or more values"):
        stats.trend(rows[rows["context_length"] == 3])


def test_image_means_by_length():
    rows = presence_rows([[1, 0], [1, 1]], lengths=(0, 64))
    got = stats.image_means(rows, "correct", ["context_length"])
    assert got.to_numpy().tolist() == [
        ["i000", 0, 0.5], ["i000", 64, 0.5], ["i001", 0, 1.0], ["i001", 64, 1.0]
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.drop(columns="answer"), r"lack the columns \['answer'\]"),
        (lambda rows: rows[:0], "no rows"),
        (lambda rows: rows.assign(correct=[None, *rows["correct"][1:]]), r"values in \['correct'"),
        (lambda rows: rows.assign(answer="two"), r"got \['two'\]"),
        (lambda rows: rows.assign(answer="yes"), r"got \['yes'\]"),
    ],
)
def test_unusable_rows_are_named(change, message):
    with pytest.raises(VDPError, match=message):
        stats.balanced_accuracy(change(presence_rows([[1, 0], [1, 1]])))


# ---- verdicts


def test_verdict_table_is_markdown():
    estimate = Estimate(-0.05, -0.0712, -0.03, 300, 2400)
    verdict = Verdict("F1", "falls | declines", "partly", "slope", estimate, 300, "high\n< 0")
    table = stats.verdict_table([verdict.to_row()] * 2).splitlines()
    assert table[0].startswith("| finding | claim | verdict |")
    assert table[1] == "| " + " | ".join(["---"] * 7) + " |"
    line = r"| F1 | falls \| declines | partly | slope | -0.050 [-0.071, -0.030] | 300 | high < 0 |"
    assert table[2:] == [line, line]
    with pytest.raises(VDPError, match="no verdicts"):
        stats.verdict_table([])


def test_verdict_takes_only_the_three_words():
    with pytest.raises(VDPError, match="'maybe' of F1"):
        Verdict("F1", "", "maybe", "", Estimate(0, 0, 0, 1, 1), 1, "")


def test_judge():
    words = [stats.judge(*case) for case in ((True, True), (True, False), (False, True))]
    assert [*words, stats.judge(False, False)] == [
        "reproduced", "reproduced", "partly", "not reproduced"
    ]  # fmt: skip
