"""Contrasts, kappa and rank correlation on rows whose truth is built in."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from vdp_utils import stats
from vdp_utils.errors import VDPError

repeatable = settings(derandomize=True, deadline=None, max_examples=40)


@pytest.fixture(autouse=True)
def fewer_resamples(monkeypatch):
    monkeypatch.setattr(stats, "RESAMPLES", 999)


def width(estimate):
    return estimate.high - estimate.low


def numbers(estimate):
    return estimate.value, estimate.low, estimate.high


def asked(correct):
    """Rows of `correct` (images, questions): even questions are yes-, odd ones no-questions."""
    correct = np.asarray(correct)
    images, questions = correct.shape
    return pd.DataFrame(dict(
        image_id=[f"i{n:03d}" for n in range(images) for _ in range(questions)],
        question_id=[str(n) for _ in range(images) for n in range(questions)],
        answer=["yes" if n % 2 == 0 else "no" for _ in range(images) for n in range(questions)],
        correct=correct.ravel()))


def recalls(yes, no, images=4):
    """Rows with ten yes- and ten no-questions an image, of which so many tenths are right."""
    line = np.zeros(20)
    line[::2], line[1::2] = np.arange(10) < 10 * yes, np.arange(10) < 10 * no
    return asked(np.tile(line, (images, 1)))


def four_parts(seed, images=60, questions=6, hard=1.0):
    """correct (4, images, questions); how hard an image is, is the same in all four."""
    rng = np.random.default_rng(seed)
    chance = rng.beta(0.8 / hard, 0.2 / hard, (images, 1))
    loss = np.array([0.0, 0.3, 0.0, 0.1])[:, None, None]
    return rng.random((4, images, questions)) < chance - loss


SIGNS = (1, -1, -1, 1)


def contrast(parts):
    return stats.balanced_accuracy_contrast(*zip(SIGNS, map(asked, parts)))


# ---- contrasts of balanced accuracy


def test_a_difference_in_differences_is_what_is_built_in():
    """The image costs (0.9 - 0.6 + 0.8 - 0.5) / 2, the words (1 - 0.9 + 0.7 - 0.8) / 2."""
    parts = recalls(0.9, 0.8), recalls(0.6, 0.5), recalls(1.0, 0.7), recalls(0.9, 0.8)
    got = stats.balanced_accuracy_contrast(*zip(SIGNS, parts))
    assert numbers(got) == pytest.approx((0.3, 0.3, 0.3))  # the images are all the same
    assert (got.n_images, got.n_rows) == (4, 80)


def test_recalls_pool_questions_so_that_yes_and_no_weigh_the_same():
    """Of a part's questions three in four are about what is there: recalls 1 and 0, not 0.75."""
    rows = asked(np.tile([1, 0, 1, 0], (6, 1)))
    rows.loc[rows["question_id"] == "1", ["answer", "correct"]] = ["yes", 1]
    got = stats.balanced_accuracy_contrast((1, rows), (-1, rows.assign(correct=0)))
    assert got.value == pytest.approx(0.5)


def test_weights_one_and_minus_one_are_the_difference():
    a, b = (asked(part) for part in four_parts(1)[:2])
    there = stats.balanced_accuracy_contrast((1, a), (-1, b))
    assert there == stats.balanced_accuracy_difference(a, b)
    values = [stats.balanced_accuracy(part).value for part in (a, b)]
    assert there.value == pytest.approx(values[0] - values[1])
    back = stats.balanced_accuracy_contrast((-1, a), (1, b))
    assert back.value == pytest.approx(-there.value)


@pytest.mark.parametrize("weights", [(1,), (2,), (0.5, 0.5), (1, -1, -1, 1), (3, 0, -2, 1)])
def test_a_contrast_is_the_weighted_sum_of_accuracies(weights):
    parts = [asked(part) for part in four_parts(2)[:len(weights)]]
    got = stats.balanced_accuracy_contrast(*zip(weights, parts))
    single = [stats.balanced_accuracy(part) for part in parts]
    assert got.value == pytest.approx(sum(w * one.value for w, one in zip(weights, single)))
    assert got.low < got.value < got.high
    if weights == (1,):
        assert got == single[0]


def test_a_part_may_come_in_any_order():
    parts = [asked(part) for part in four_parts(3)]
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
    rows = asked(four_parts(7, images=3)[0])
    lacking = rows[(rows["image_id"] != "i001") | (rows["question_id"] != "4")]
    for place in range(4):
        parts = [rows] * 4
        parts[place] = lacking
        with pytest.raises(VDPError, match=rf"part {place} lacks 1 .*\('i001', '4'\)"):
            stats.balanced_accuracy_contrast(*zip(SIGNS, parts))
        parts[place] = pd.concat([rows, rows[:1]])
        with pytest.raises(VDPError, match=f"part {place} holds a question more than once"):
            stats.balanced_accuracy_contrast(*zip(SIGNS, parts))
    renamed = rows.replace({"image_id": {"i002": "i009"}})
    with pytest.raises(VDPError, match=r"part 3 lacks 6 .*'i002'"):
        stats.balanced_accuracy_contrast(*zip(SIGNS, [rows, rows, rows, renamed]))
    turned = rows.assign(answer=rows["answer"].map({"yes": "no", "no": "yes"}))
    with pytest.raises(VDPError, match=r"differ in the right answer of \[\('i000', '0'\)"):
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


def test_intervals_of_rank_correlations_cover_the_truth_although_images_are_alike_inside():
    """With a fifth of the spread inside images, rows resampled singly would cover too rarely."""
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
    monkeypatch.setattr(stats, "bca", lambda *given: caught.append(given) or (0, 0, 0))
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
