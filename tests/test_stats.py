"""Intervals, tests, contrasts and verdicts, on rows whose truth is built in."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from vdp_utils import stats
from vdp_utils.errors import VDPError
from vdp_utils.stats import Estimate, Verdict

repeatable = settings(derandomize=True, deadline=None, max_examples=40)

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


def width(estimate):
    return estimate.high - estimate.low


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


@pytest.mark.parametrize("images", [5, 40, 150])  # all signs once; draws kept; more than are kept
def test_draws_are_scipys_so_that_numbers_agree_to_the_bit(images):
    values = np.random.default_rng(images).normal(0.2, size=images)
    for _ in range(2):
        expected = scipy_stats.bootstrap(
            (values,), np.mean, method="BCa", n_resamples=stats.RESAMPLES, batch=1000,
            rng=np.random.default_rng(0)).confidence_interval
        assert stats.bca(np.mean, values) == (values.mean(), *expected)
        assert stats.sign_flip(values) == scipy_stats.permutation_test(
            (values,), np.mean, permutation_type="samples", n_resamples=stats.RESAMPLES,
            batch=1000, rng=np.random.default_rng(0)).pvalue


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


def test_accuracy_test_sums_what_images_add_and_flips_their_signs():
    rng = np.random.default_rng(3)
    a, b = (presence_rows(rng.random((40, 2)) < share) for share in (0.9, 0.4))
    found = stats.accuracy_test((1, a), (-1, b))
    assert found.effect == stats.balanced_accuracy_difference(a, b)
    rises = stats.rise(b, a, "correct")["rise"]  # one yes- and one no-question an image
    assert found.effect.value == pytest.approx(rises.mean())
    assert found.p == stats.sign_flip(rises) < 0.01
    assert stats.accuracy_test((1, a), (-1, a)).p == 1
    assert set(found.columns()) == {"effect", "low", "high", "p", "n_images", "n_rows"}


def test_accuracy_test_weighs_images_by_their_questions():
    a, b = presence_rows([[1, 1], [0, 1], [1, 0]]), presence_rows([[0, 1], [0, 0], [1, 1]])
    a, b = (rows[(rows["image_id"] != "i000") | (rows["answer"] == "yes")] for rows in (a, b))
    yes, no = ([r[r["answer"] == word]["correct"].mean() for r in (a, b)] for word in ("yes", "no"))
    found = stats.accuracy_test((1, a), (-1, b)).effect.value
    assert found == pytest.approx((yes[0] - yes[1] + no[0] - no[1]) / 2)


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
    assert got.effect.value == pytest.approx(slopes.mean())
    assert got.effect.low < got.effect.value < got.effect.high < 0
    assert (got.effect.n_images, got.effect.n_rows) == (50, 200)
    assert got.p == pytest.approx(2 / 10000)
    up = stats.trend(length_rows(1 - accuracy))
    assert up.effect.value == pytest.approx(-got.effect.value) and up.p == got.p


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
    assert numbers(got.effect) == (0, 0, 0) and got.p == 1


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


# ---- contrasts of balanced accuracy


def recalls(yes, no, images=4):
    """Rows with ten yes- and ten no-questions an image, of which so many tenths are right."""
    line = np.zeros(20)
    line[::2], line[1::2] = np.arange(10) < 10 * yes, np.arange(10) < 10 * no
    return presence_rows(np.tile(line, (images, 1)))


def four_parts(seed, images=60, questions=6, hard=1.0):
    """correct (4, images, questions); how hard an image is, is the same in all four."""
    rng = np.random.default_rng(seed)
    chance = rng.beta(0.8 / hard, 0.2 / hard, (images, 1))
    loss = np.array([0.0, 0.3, 0.0, 0.1])[:, None, None]
    return rng.random((4, images, questions)) < chance - loss


SIGNS = (1, -1, -1, 1)


def contrast(parts):
    return stats.balanced_accuracy_contrast(*zip(SIGNS, map(presence_rows, parts)))


def test_a_difference_in_differences_is_what_is_built_in():
    """The image costs (0.9 - 0.6 + 0.8 - 0.5) / 2, the words (1 - 0.9 + 0.7 - 0.8) / 2."""
    parts = recalls(0.9, 0.8), recalls(0.6, 0.5), recalls(1.0, 0.7), recalls(0.9, 0.8)
    got = stats.balanced_accuracy_contrast(*zip(SIGNS, parts))
    assert numbers(got) == pytest.approx((0.3, 0.3, 0.3))  # the images are all the same
    assert (got.n_images, got.n_rows) == (4, 80)


def test_recalls_pool_questions_so_that_yes_and_no_weigh_the_same():
    """Of a part's questions three in four are about what is there: recalls 1 and 0, not 0.75."""
    rows = presence_rows(np.tile([1, 0, 1, 0], (6, 1)))
    rows.loc[rows["question_id"] == "q1", ["answer", "correct"]] = ["yes", True]
    got = stats.balanced_accuracy_contrast((1, rows), (-1, rows.assign(correct=0)))
    assert got.value == pytest.approx(0.5)


def test_weights_one_and_minus_one_are_the_difference():
    a, b = (presence_rows(part) for part in four_parts(1)[:2])
    there = stats.balanced_accuracy_contrast((1, a), (-1, b))
    assert there == stats.balanced_accuracy_difference(a, b)
    values = [stats.balanced_accuracy(part).value for part in (a, b)]
    assert there.value == pytest.approx(values[0] - values[1])
    back = stats.balanced_accuracy_contrast((-1, a), (1, b))
    assert back.value == pytest.approx(-there.value)


@pytest.mark.parametrize("weights", [(1,), (2,), (0.5, 0.5), (1, -1, -1, 1), (3, 0, -2, 1)])
def test_a_contrast_is_the_weighted_sum_of_accuracies(weights):
    parts = [presence_rows(part) for part in four_parts(2)[:len(weights)]]
    got = stats.balanced_accuracy_contrast(*zip(weights, parts))
    single = [stats.balanced_accuracy(part) for part in parts]
    assert got.value == pytest.approx(sum(w * one.value for w, one in zip(weights, single)))
    assert got.low < got.value < got.high
    if weights == (1,):
        assert got == single[0]


def test_a_part_may_come_in_any_order():
    parts = [presence_rows(part) for part in four_parts(3)]
    mixed = [part.sample(frac=1, random_state=n) for n, part in enumerate(parts)]
    assert stats.balanced_accuracy_contrast(*zip(SIGNS, mixed)) == contrast(four_parts(3))


def test_pairing_narrows_the_interval():
    """With each part's images in another order, the same numbers say less."""
    parts = four_parts(4, hard=4.0)
    rng = np.random.default_rng(0)
    apart = [part[rng.permutation(len(part))] for part in parts]
    paired, unpaired = contrast(parts), contrast(apart)
    assert paired.value == pytest.approx(unpaired.value)
    assert width(paired) < 0.8 * width(unpaired)


def test_the_interval_is_that_of_a_plain_loop_over_images():
    parts = four_parts(5)
    rng, values = np.random.default_rng(0), []
    for _ in range(3000):
        drawn = rng.integers(0, parts.shape[1], parts.shape[1])
        values.append(np.dot(SIGNS, parts[:, drawn].mean((1, 2))))  # as many yes as no
    got = contrast(parts)
    assert (got.low, got.high) == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=0.015)


def test_more_questions_about_the_same_images_do_not_narrow_a_contrast():
    parts = four_parts(6)
    assert numbers(contrast(np.tile(parts, 5))) == pytest.approx(numbers(contrast(parts)))


def test_a_contrast_refuses_parts_with_other_questions():
    rows = presence_rows(four_parts(7, images=3)[0])
    lacking = rows[(rows["image_id"] != "i001") | (rows["question_id"] != "q4")]
    for place in range(4):
        parts = [rows] * 4
        parts[place] = lacking
        with pytest.raises(VDPError, match=rf"part {place} lacks 1 .*\('i001', 'q4'\)"):
            stats.balanced_accuracy_contrast(*zip(SIGNS, parts))
        parts[place] = pd.concat([rows, rows[:1]])
        with pytest.raises(VDPError, match=f"part {place} holds a question more than once"):
            stats.balanced_accuracy_contrast(*zip(SIGNS, parts))
    renamed = rows.replace({"image_id": {"i002": "i009"}})
    with pytest.raises(VDPError, match=r"part 3 lacks 6 .*'i002'"):
        stats.balanced_accuracy_contrast(*zip(SIGNS, [rows, rows, rows, renamed]))
    turned = rows.assign(answer=rows["answer"].map({"yes": "no", "no": "yes"}))
    with pytest.raises(VDPError, match=r"differ in the right answer of \[\('i000', 'q0'\)"):
        stats.balanced_accuracy_contrast(*zip(SIGNS, [rows, rows, turned, rows]))


# ---- kappa


def answers(yes_yes, yes_no, no_yes, no_no, images=10, seed=0):
    """Rows with so many pairs of answers, dealt to the images at random."""
    pairs = ([("yes", "yes")] * yes_yes + [("yes", "no")] * yes_no + [("no", "yes")] * no_yes
             + [("no", "no")] * no_no)
    image = np.random.default_rng(seed).permutation(np.arange(len(pairs)) % images)
    return pd.DataFrame(pairs, columns=["a", "b"]).assign(image_id=[f"i{n:03d}" for n in image])


def random_answers(seed, images=50, questions=4, agree=0.7, yes=0.5):
    """Rows whose `b` is a copy of `a` with the chance `agree` (an image's), else its own."""
    rng = np.random.default_rng(seed)
    size = images, questions
    copied = rng.random(size) < rng.beta(2 * agree, 2 * (1 - agree), (images, 1))
    a, other = rng.random(size) < yes, rng.random(size) < yes
    said = [np.where(x.ravel(), "yes", "no") for x in (a, np.where(copied, a, other))]
    return pd.DataFrame(dict(image_id=np.repeat([f"i{n:03d}" for n in range(images)], questions),
                             a=said[0], b=said[1]))


def test_kappa_by_hand():
    """35 of 50 agree; yes is said 25 and 30 times, so chance agrees in half: 0.2 / 0.5."""
    got = stats.kappa(answers(20, 5, 10, 15))
    assert got.value == pytest.approx(0.4)
    assert got.low < 0.4 < got.high and (got.n_images, got.n_rows) == (10, 50)


@pytest.mark.parametrize("seed, yes", [(0, 0.5), (1, 0.8), (2, 0.1)])
def test_kappa_is_the_closed_formula_of_two_by_two_tables(seed, yes):
    pairs = random_answers(seed, yes=yes)
    counts = pd.crosstab(pairs["a"], pairs["b"])
    (nn, ny), (yn, yy) = counts.loc[["no", "yes"], ["no", "yes"]].to_numpy().tolist()
    expected = 2 * (yy * nn - yn * ny) / ((yy + yn) * (yn + nn) + (yy + ny) * (ny + nn))
    assert stats.kappa(pairs).value == pytest.approx(expected)
    turned = pairs.rename(columns=dict(a="b", b="a"))
    assert numbers(stats.kappa(turned)) == pytest.approx(numbers(stats.kappa(pairs)))


@pytest.mark.parametrize("counts, expected", [
    ((25, 0, 0, 25), 1), ((0, 25, 25, 0), -1),
    ((50, 0, 0, 0), 0), ((0, 0, 0, 50), 0),  # both always the same word
    ((30, 20, 0, 0), 0), ((0, 0, 20, 30), 0),  # one of them always the same word
    ((0, 50, 0, 0), 0), ((9, 21, 6, 14), 0)])  # never the same; independent of each other
def test_kappa_is_agreement_beyond_chance(counts, expected):
    got = stats.kappa(answers(*counts))
    assert got.value == pytest.approx(expected)
    assert got.low - 1e-9 <= expected <= got.high + 1e-9
    if 50 in counts:
        assert numbers(got) == (0, 0, 0)


def test_agreement_by_turning_to_one_word_raises_agreement_but_not_kappa():
    near, far = answers(20, 5, 5, 20), answers(46, 2, 2, 0)
    for pairs, share in ((near, 0.8), (far, 0.92)):
        assert (pairs["a"] == pairs["b"]).mean() == pytest.approx(share)
    assert stats.kappa(near, far).value < 0


def test_kappa_pools_rows_however_they_lie_in_images():
    """An image of many rows counts with all of them."""
    rows = [answers(2, 0, 0, 2, images=2), answers(20, 20, 20, 20, images=1)]
    rows[1]["image_id"] = "much"
    got = stats.kappa(pd.concat(rows))
    assert got.value == pytest.approx(stats.kappa(answers(22, 20, 20, 22)).value)
    assert got.value == pytest.approx(4 / 84)


def test_kappa_s_interval_resamples_whole_images():
    pairs = random_answers(3)
    assert numbers(stats.kappa(pd.concat([pairs] * 10))) == pytest.approx(
        numbers(stats.kappa(pairs)))
    apart = pairs.assign(image_id=np.arange(len(pairs)))  # as if no two rows shared an image
    assert width(stats.kappa(apart)) < 0.9 * width(stats.kappa(pairs))


def test_the_difference_of_kappas_is_other_minus_pairs():
    low, high = random_answers(4, agree=0.3), random_answers(5, agree=0.9)
    got = stats.kappa(low, high)
    assert got.value == pytest.approx(stats.kappa(high).value - stats.kappa(low).value)
    assert 0 < got.low < got.value < got.high
    back = stats.kappa(high, low)
    assert back.value == pytest.approx(-got.value)
    assert numbers(stats.kappa(low, low)) == (0, 0, 0)
    assert numbers(stats.kappa(low, low.sample(frac=1, random_state=0))) == (0, 0, 0)


def test_the_difference_of_kappas_is_paired():
    """Where the same images agree at both lengths, what differs is known better."""
    pairs = random_answers(6, agree=0.5)
    other = pairs.copy()
    other.loc[::9, "b"] = other.loc[::9, "a"]
    renamed = dict(zip(pairs["image_id"].unique(),
                       np.random.default_rng(0).permutation(pairs["image_id"].unique())))
    paired = stats.kappa(pairs, other)
    apart = stats.kappa(pairs, other.assign(image_id=other["image_id"].map(renamed)))
    assert paired.value == pytest.approx(apart.value)
    assert width(paired) < 0.7 * width(apart)


def test_kappa_refuses_different_images_and_rows_without_answers():
    pairs = random_answers(7)
    for part in (pairs[pairs["image_id"] != "i003"],
                 pairs.replace({"image_id": {"i003": "i903"}})):
        for two in ((pairs, part), (part, pairs)):
            with pytest.raises(VDPError, match="different images"):
                stats.kappa(*two)
    with pytest.raises(VDPError, match=r"lack the columns \['b'\]"):
        stats.kappa(pairs.drop(columns="b"))


# ---- rank correlation


def correlated(seed, images=60, questions=4, rho=0.5, within=1.0, rounded=None):
    """Rows of bivariate normal x and y; `within` is the part of their spread inside images."""
    rng = np.random.default_rng(seed)
    root = np.linalg.cholesky([[1, rho], [rho, 1]])
    between = rng.normal(size=(images, 1, 2)) * np.sqrt(1 - within)
    values = (between + rng.normal(size=(images, questions, 2)) * np.sqrt(within)) @ root.T
    x, y = values.reshape(-1, 2).T
    if rounded is not None:
        x, y = np.round(x, rounded), np.round(y, rounded)
    return pd.DataFrame(dict(image_id=np.repeat([f"i{n:03d}" for n in range(images)], questions),
                             x=x, y=y))


@pytest.mark.parametrize("rounded", [None, 1, 0])
def test_rank_correlation_is_scipys_with_and_without_ties(rounded):
    rows = correlated(0, rounded=rounded)
    got = stats.rank_correlation(rows, "x", "y")
    assert (rounded is None) == rows["x"].is_unique
    assert got.value == pytest.approx(scipy_stats.spearmanr(rows["x"], rows["y"]).statistic)
    assert got.low < got.value < got.high and (got.n_images, got.n_rows) == (60, 240)


@repeatable
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=3, max_size=12))
def test_few_rows_full_of_ties_are_ranked_as_scipy_does(values):
    rows = pd.DataFrame(values, columns=["x", "y"]).assign(image_id=np.arange(len(values)))
    constant = rows["x"].nunique() == 1 or rows["y"].nunique() == 1
    got = stats.rank_correlation(rows, "x", "y")
    if constant:
        assert numbers(got) == (0, 0, 0)
    else:
        assert got.value == pytest.approx(scipy_stats.spearmanr(rows["x"], rows["y"]).statistic)
        assert -1 - 1e-9 <= got.low <= got.high <= 1 + 1e-9


def test_only_ranks_count():
    rows = correlated(1)
    bent = rows.assign(x=np.exp(3 * rows["x"]), y=rows["y"] ** 3)
    assert stats.rank_correlation(bent, "x", "y") == stats.rank_correlation(rows, "x", "y")
    for sign in (1, -1):
        straight = rows.assign(y=sign * rows["x"] ** 3)
        assert numbers(stats.rank_correlation(straight, "x", "y")) == pytest.approx((sign,) * 3)


def test_intervals_of_rank_correlations_cover_the_truth_although_images_are_alike_inside(
        monkeypatch):
    """With a fifth of the spread inside images, rows resampled singly would cover too rarely."""
    monkeypatch.setattr(stats, "RESAMPLES", 999)
    rho, covered, runs = 0.5, 0, 60
    truth = 6 / np.pi * np.arcsin(rho / 2)  # Spearman's of a bivariate normal
    for seed in range(runs):
        got = stats.rank_correlation(correlated(seed, 50, rho=rho, within=0.2), "x", "y")
        covered += got.low <= truth <= got.high
    assert 0.87 <= covered / runs <= 0.99


def test_ten_copies_of_every_row_give_the_same_interval():
    rows = correlated(2, within=0.5, rounded=1)
    once, tenfold = (stats.rank_correlation(part, "x", "y")
                     for part in (rows, pd.concat([rows] * 10)))
    assert numbers(tenfold) == pytest.approx(numbers(once))
    assert (tenfold.n_images, tenfold.n_rows) == (60, 2400)


def test_rank_correlation_s_interval_is_scipys_over_images():
    rows = correlated(3, images=40, within=0.3)
    x, y = (rows[name].to_numpy().reshape(40, 4) for name in "xy")

    def plain(drawn):
        drawn = drawn.astype(int)
        return scipy_stats.spearmanr(x[drawn].ravel(), y[drawn].ravel()).statistic

    expected = scipy_stats.bootstrap(
        (np.arange(40.0),), plain, vectorized=False, method="BCa", n_resamples=2000,
        rng=np.random.default_rng(9)).confidence_interval
    got = stats.rank_correlation(rows, "x", "y")
    assert (got.low, got.high) == pytest.approx((expected.low, expected.high), abs=0.04)


def test_each_resample_is_ranked_anew(monkeypatch):
    rows, caught = correlated(6, images=8, rounded=0), []
    monkeypatch.setattr(stats, "bca", lambda *given, **_: caught.append(given) or (0, 0, 0))
    stats.rank_correlation(rows, "x", "y")
    ((statistic, images),) = caught
    drawn = np.random.default_rng(0).choice(images, (3, 5, 8))
    found = statistic(drawn, axis=-1)
    assert found.shape == (3, 5)
    x, y = (rows[name].to_numpy().reshape(8, 4) for name in "xy")
    for value, line in zip(found.ravel(), drawn.reshape(-1, 8)):
        expected = scipy_stats.spearmanr(x[line].ravel(), y[line].ravel()).statistic
        assert value == pytest.approx(expected)
    np.testing.assert_allclose(statistic(drawn.swapaxes(0, 2), axis=0), found.T)


@pytest.mark.parametrize("columns", ["xy", "yx", "xx"])
def test_a_constant_column_correlates_with_nothing(columns):
    rows = correlated(4, images=10).assign(x=3.0)
    assert numbers(stats.rank_correlation(rows, *columns)) == (0, 0, 0)


def test_missing_values_and_single_images_are_refused():
    rows = correlated(5, images=5)
    rows.loc[3, "y"] = np.nan
    with pytest.raises(VDPError, match=r"missing values in \['y'\]"):
        stats.rank_correlation(rows, "x", "y")
    with pytest.raises(VDPError, match="at least 2 images"):
        stats.rank_correlation(correlated(5, images=1), "x", "y")


@repeatable
@given(st.data())
def test_ranks_of_drawn_images_are_those_of_values_repeated(data):
    values = data.draw(st.lists(st.one_of(
        st.integers(-3, 3), st.floats(-10, 10, allow_nan=False)), min_size=1, max_size=12))
    values = np.array(values, dtype=float)
    image = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(values),
                                        max_size=len(values))))
    weights = np.array(data.draw(st.lists(
        st.lists(st.integers(0, 4), min_size=4, max_size=4).filter(any), min_size=1, max_size=3)))
    found, weights = weights @ stats._rank_shares(values, image, 4), weights[:, image]
    assert found.shape == weights.shape
    for ranks, times in zip(found, weights):
        expected = scipy_stats.rankdata(np.repeat(values, times), method="average")
        np.testing.assert_allclose(np.repeat(ranks, times) + 0.5, expected)


# ---- slope


def sized(seed, images=40, effect=0.1, crowding=0.0, spread=0.3):
    """Rows in which y is `effect` times x and `crowding` times z, which goes with x; x and y also
    have something of their image's."""
    rng, lines = np.random.default_rng(seed), []
    for image in range(images):
        z, own, luck = rng.normal(), rng.normal(), rng.normal()
        for _ in range(3):
            x = z + own + rng.normal()
            lines.append(dict(image_id=f"i{image:02d}", x=x, z=z,
                              y=effect * x + crowding * z + spread * (luck + rng.normal())))
    return pd.DataFrame(lines)


@pytest.mark.parametrize("given", [(), ("z",)])
def test_slope_is_least_squares_and_what_images_add_sums_to_it(given, monkeypatch):
    rows, flipped = sized(0, crowding=0.4), []
    monkeypatch.setattr(stats, "sign_flip", lambda values: flipped.append(values) or 0.5)
    found = stats.slope(rows, "y", "x", given)
    columns = np.column_stack([rows[["x", *given]], np.ones(len(rows))])
    assert found.effect.value == pytest.approx(np.linalg.lstsq(columns, rows["y"])[0][0])
    assert np.mean(flipped) == pytest.approx(found.effect.value) and np.shape(flipped) == (1, 40)
    assert (found.effect.n_images, found.effect.n_rows, found.p) == (40, 120, 0.5)


def test_slope_lays_what_goes_with_a_given_column_to_that():
    rows = sized(1, images=150, effect=0.0, crowding=0.4)
    alone, beside = stats.slope(rows, "y", "x"), stats.slope(rows, "y", "x", ["z"])
    assert alone.effect.low > 0 and alone.p < 0.05
    assert beside.effect.low < 0 < beside.effect.high and beside.p > 0.05


def test_slope_resamples_whole_images():
    rows = sized(2)
    once, tenfold = (stats.slope(part, "y", "x").effect for part in (rows, pd.concat([rows] * 10)))
    assert numbers(tenfold) == pytest.approx(numbers(once), rel=1e-6)


def test_slope_keeps_its_level_though_rows_of_an_image_are_alike(monkeypatch):
    monkeypatch.setattr(stats, "over_images", lambda *_: None)
    monkeypatch.setattr(stats, "RESAMPLES", 199)
    false = [stats.slope(sized(seed, effect=0.0), "y", "x").p < 0.05 for seed in range(300)]
    assert 0.02 < np.mean(false) < 0.09


def test_slope_needs_a_column_that_varies():
    with pytest.raises(VDPError, match=r"x does not vary beside \['z', 1\]"):
        stats.slope(sized(3).assign(x=lambda rows: 2 * rows["z"] + 1), "y", "x", ["z"])


# ---- verdicts


def test_a_verdict_is_stored_as_texts():
    estimate = Estimate(-0.05, -0.0712, -0.03, 300, 2400)
    verdict = Verdict("F1", "declines", "partly", "slope", {"same_image": estimate}, "high < 0")
    assert list(verdict.to_row().values()) == [
        "F1", "declines", "partly", "slope", "same_image -0.050 [-0.071, -0.030]", "300",
        "high < 0"]


def test_verdict_takes_only_the_five_words():
    with pytest.raises(VDPError, match="'maybe' of F1"):
        Verdict("F1", "", "maybe", "", {"": Estimate(0, 0, 0, 1, 1)}, "")


def cells(*lines, **more) -> pd.DataFrame:
    """A family of cells from (effect, p) pairs, each interval 0.02 wide."""
    table = pd.DataFrame(lines, columns=["effect", "p"])
    return table.assign(low=table["effect"] - 0.01, high=table["effect"] + 0.01, **more)


def test_judge_by_the_scheme():
    up, down, small, wide = (0.3, 0.001), (-0.3, 0.001), (0.01, 0.6), (0.2, 0.3)

    def word(*lines, **more):
        return stats.judge(stats.family(cells(*lines, **more)), smallest=0.05)

    assert word(up, up) == "reproduced"
    assert word(up, small) == word(up, down) == "partly"
    assert word(down, small) == word(down, wide) == "contradicted"
    assert word(small, small) == "not reproduced"
    assert word(small, wide) == "inconclusive"
    # cells at a limit do not count, and none is no evidence
    assert word(up, down, limit=["", "floor"]) == "reproduced"
    assert word(up, up, limit=["ceiling", "floor"]) == "inconclusive"
    # a significant effect whose end is not above chance does not speak for the claim
    assert word(up, up, holds=[True, False]) == "partly"
    assert word(up, holds=[False]) == "inconclusive"


def test_each_cell_may_have_its_own_smallest_effect_of_interest():
    table = stats.family(cells((0.01, 0.6), (0.2, 0.3), (0.01, 0.6), limit=["", "", "floor"]))
    assert stats.judge(table, pd.Series([0.05, 0.3, 0.0])) == "not reproduced"
    assert stats.judge(table, pd.Series([0.3, 0.05, 0.3])) == "inconclusive"


def test_a_family_is_corrected_over_the_cells_that_count():
    table = stats.family(cells((0.3, 0.03), (0.3, 0.04), limit=["", "floor"]))
    assert table["p_holm"].tolist() == [0.03, 1.0]
    assert stats.speaks(table).tolist() == ["for", ""]
    assert stats.family(cells((0.3, 0.03), (0.3, 0.04)))["p_holm"].tolist() == [0.06, 0.06]


def test_limits_are_where_no_difference_has_room():
    chance, good, top = (Estimate(v, v - 0.02, v + 0.02, 9, 9) for v in (0.51, 0.8, 0.995))
    below = Estimate(0.2, 0.15, 0.25, 9, 9)  # misled, not guessing: there is room
    assert stats.limit(chance) == stats.limit(chance, chance) == "floor"
    assert stats.limit(chance, good) == stats.limit(below) == stats.limit(good) == ""
    assert stats.limit(top) == "ceiling" and stats.limit(top, good) == ""


def test_p_values_at_the_floor_of_the_test_say_so():
    table = pd.DataFrame(dict(p=[2 / (stats.RESAMPLES + 1), 0.3], p_holm=[0.0052, 0.6],
                              n_images=5, n_rows=5, effect=0.12345))
    shown = stats.shown(table)
    assert list(shown["p_holm"]) == ["<= 0.0052", "0.6"]
    assert list(shown.columns) == ["p_holm", "effect"] and shown["effect"].iloc[0] == 0.123
