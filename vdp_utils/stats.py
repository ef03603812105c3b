"""Estimates, intervals, tests and verdicts from tidy rows.

The sampling unit is the image: questions about one image share its luck, so every interval
resamples images, with all their rows. Intervals are BCa bootstrap intervals (Efron 1987, by
scipy.stats.bootstrap) at 95 %, from a fixed random state: the same rows in any order give the
same numbers.

Rows are a DataFrame with at least `image_id`, and what a function asks for of `question_id`,
`answer` ("yes" or "no"), `predicted`, `correct` and `context_length`. Select one condition's rows
first; `correct` may also be a share in [0, 1], e.g. a question's mean over random seeds.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import pandas as pd
from scipy import stats

from vdp_utils.errors import VDPError

RESAMPLES = 9999
BLOCK, KEPT = 2**16, 2**20  # numbers resampled at a time, for the cache; drawn and kept: memory
ALPHA = 0.05
CHANCE, CEILING = 0.5, 0.99  # of balanced accuracy
VERDICTS = ("reproduced", "partly", "contradicted", "inconclusive", "not reproduced")
SCHEME = (
    "A cell speaks for the claim where its effect goes the claimed way and a two-sided sign-flip "
    "test over images, after Holm over all cells, has p < 0.05; against it where it goes the other "
    "way so. Cells at floor or ceiling do not count. Reproduced: every cell for. Partly: some for. "
    "Contradicted: some against, none for. Not reproduced: none for or against, and every 95 % BCa "
    "interval ends below the smallest effect of interest. Inconclusive: else, or if no cell "
    "counts.")


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval and what it rests on."""

    value: float
    low: float
    high: float
    n_images: int
    n_rows: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Test:
    """An effect and the two-sided p-value of a sign-flip test over images against none."""

    __test__ = False  # nothing for pytest to collect

    effect: Estimate
    p: float

    def columns(self) -> dict[str, float]:
        """The effect's columns of a table of cells: effect, low, high, p, n_images, n_rows."""
        found = dict(vars(self.effect))
        return {"effect": found.pop("value"), "p": self.p} | found


def image_means(rows: pd.DataFrame, value: str, by: Sequence[str] = ()) -> pd.DataFrame:
    """Return the mean of `value` by image and the columns `by`: (image_id, *by, value)."""
    _check(rows, "image_id", value, *by)
    keys = [rows[name] for name in ("image_id", *by)]
    return rows[value].astype(float).groupby(keys, sort=True).mean().reset_index()


def bca(statistic: Callable[..., np.ndarray], *columns: np.ndarray,
        resamples: int | None = None) -> tuple[float, float, float]:
    """Return (value, low, high) of `statistic(*columns, axis=-1)` over images.

    Each column has shape (images,); images are resampled with all their columns. Where BCa is
    undefined, the interval comes from the bootstrap's percentiles: it has zero width when all
    resamples agree, e.g. when every image is equal. That says that the sample shows no spread, not
    that the population has none. Raises VDPError for fewer than two images.
    """
    columns = tuple(np.asarray(column, dtype=float) for column in columns)
    n = len(columns[0])
    if n < 2:
        raise VDPError(f"an interval over images needs at least 2 images, got {n}: measure more")
    value = float(statistic(*columns, axis=-1))
    if all((column == column[0]).all() for column in columns):
        return value, value, value
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # of degenerate data, handled below
        found = np.concatenate([statistic(*(column[drawn] for column in columns), axis=-1)
                                for drawn in _blocks(_draws, n, resamples or RESAMPLES)])
        result = stats.bootstrap(
            columns, statistic, paired=True, vectorized=True, method="BCa", n_resamples=0,
            bootstrap_result=SimpleNamespace(bootstrap_distribution=found),
            batch=max(1, BLOCK // n))
    low, high = result.confidence_interval
    if not np.isfinite([low, high]).all():
        low, high = np.nanquantile(found, [0.025, 0.975])
    return value, float(low), float(high)


def _draws(rng: np.random.Generator, samples: int, n: int) -> np.ndarray:
    """Return which of n images each sample has: (samples, n). Those of scipy.stats.bootstrap."""
    return rng.integers(0, n, (samples, n))


def _signs(rng: np.random.Generator, samples: int, n: int) -> np.ndarray:
    """Return the signs of n images in each sample: (samples, n), of scipy.stats.permutation_test.

    Samples lie next to each other in memory, so that the sums over images are scipy's to the bit.
    """
    pairs = rng.permuted(np.tile(np.array([1, -1], np.int8), (samples, n, 1)), axis=-1)
    return np.ascontiguousarray(pairs[..., 0].T).T


def _blocks(draw: Callable, n: int, samples: int) -> Iterable[np.ndarray]:
    """Return `samples` draws for n images in blocks (samples, n), the same ones every time."""
    return _kept(draw, n, samples) if n * samples <= KEPT else _drawn(draw, n, samples)


def _drawn(draw: Callable, n: int, samples: int) -> Iterator[np.ndarray]:
    rng, size = np.random.default_rng(0), max(1, BLOCK // n)
    for start in range(0, samples, size):
        yield draw(rng, min(size, samples - start), n)


@lru_cache(8)  # of 8 MB at most
def _kept(draw: Callable, n: int, samples: int) -> list[np.ndarray]:
    return list(_drawn(draw, n, samples))


def mean_estimate(rows: pd.DataFrame, column: str) -> Estimate:
    """Return the mean over images of each image's mean of `column`."""
    means = image_means(rows, column)[column]
    return Estimate(*bca(np.mean, means), len(means), len(rows))


def by_group(rows: pd.DataFrame, by: Sequence[str], measures, sort: bool = True) -> pd.DataFrame:
    """Return one line a group and measure: the columns `by`, `measure`, and those of `Estimate`.

    `measures` maps a name to a function of the group's rows, or to the column whose mean is meant:
    where that has missing values, there is no line. One function or column instead of a mapping
    gives lines without `measure`.
    """
    lines, alone = [], not isinstance(measures, Mapping)
    for key, part in rows.groupby(list(by), sort=sort):
        for name, measure in ({"": measures} if alone else measures).items():
            if callable(measure) or part[measure].notna().all():
                found = measure(part) if callable(measure) else mean_estimate(part, measure)
                named = {} if alone else {"measure": name}
                lines.append(dict(zip(by, key)) | named | vars(found))
    return pd.DataFrame(lines)


def rise(a: pd.DataFrame, b: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return by image the mean of `column` in `b` minus that in `a`: (image_id, rise)."""
    before, after = (image_means(part, column).set_index("image_id")[column] for part in (a, b))
    return (after - before).rename("rise").reset_index()


def yes_rate(rows: pd.DataFrame) -> Estimate:
    """Return the share of "yes" among the predictions: 0.5 without bias, if half the answers are.

    Needs the columns image_id and predicted.
    """
    _check(rows, "image_id", "predicted")
    return mean_estimate(rows.assign(yes=rows["predicted"] == "yes"), "yes")


def balanced_accuracy(rows: pd.DataFrame) -> Estimate:
    """Return the mean of the recall on yes-questions and the recall on no-questions.

    Constant answers score 0.5. The recalls pool all questions; each image is resampled with its
    counts of right and of all yes- and no-questions. Needs image_id, answer and correct.
    """
    counts = _counts(rows)
    return Estimate(*bca(_balanced, *counts.to_numpy().T), len(counts), len(rows))


def balanced_accuracy_difference(a: pd.DataFrame, b: pd.DataFrame) -> Estimate:
    """Return balanced accuracy of `a` minus that of `b`: a `balanced_accuracy_contrast`."""
    return balanced_accuracy_contrast((1, a), (-1, b))


def balanced_accuracy_contrast(*parts: tuple[float, pd.DataFrame]) -> Estimate:
    """Return the weighted sum of balanced accuracies of (weight, rows) pairs, paired over images.

    Weights 1, -1, -1, 1 give a difference in differences. An image is resampled in all parts.
    Needs image_id, question_id, answer and correct. Raises VDPError unless all parts hold the same
    questions, each once, with the same answers.
    """
    first = _questions(parts[0][1], "part 0")
    for number, (_, rows) in enumerate(parts[1:], 1):
        questions = _questions(rows, f"part {number}")
        for have, lack, name in ((first, questions, f"part {number}"),
                                 (questions, first, "part 0")):
            missing = sorted(have.keys() - lack.keys())
            if missing:
                raise VDPError(
                    f"{name} lacks {len(missing)} questions of another part, e.g. (image, "
                    f"question) {missing[:3]}: measure them or leave them out of all")
        odd = sorted(key for key, answer in first.items() if questions[key] != answer)
        if odd:
            raise VDPError(f"parts differ in the right answer of {odd[:3]}: compare equal ones")
    weights = [weight for weight, _ in parts]
    columns = [column for _, rows in parts for column in _counts(rows).to_numpy().T]

    def statistic(*counts, axis=-1):
        return sum(weight * _balanced(*counts[4 * n:4 * n + 4], axis=axis)
                   for n, weight in enumerate(weights))

    return Estimate(*bca(statistic, *columns), len(columns[0]), len(parts[0][1]))


def accuracy_test(*parts: tuple[float, pd.DataFrame]) -> Test:
    """Return a `balanced_accuracy_contrast` of (weight, rows) pairs, tested by `sign_flip`.

    An image's value is what it adds to the contrast.
    """
    effect, shares = balanced_accuracy_contrast(*parts), 0.0
    for weight, rows in parts:
        counts = _counts(rows)
        for answer in ("yes", "no"):
            right, asked = counts[f"{answer} right"], counts[f"{answer} all"]
            shares = shares + weight * right / asked.sum() / 2 * len(counts)
    return Test(effect, sign_flip(shares))


def mean_test(rows: pd.DataFrame, column: str) -> Test:
    """Return the `mean_estimate` of a column of differences, tested by `sign_flip`."""
    return Test(mean_estimate(rows, column), sign_flip(image_means(rows, column)[column]))


def kappa(pairs: pd.DataFrame, other: pd.DataFrame | None = None) -> Estimate:
    """Return Cohen's (1960) kappa of the columns `a` and `b` ("yes" or "no"), pooled over rows.

    Agreement beyond what the two yes-rates give by chance; 0 where chance alone explains all of it,
    as when both always say the same word. With `other`, the kappa of `other` minus that of `pairs`,
    paired over images. Needs image_id, a and b.
    """
    tables = [_agreements(part) for part in (pairs, other) if part is not None]
    if len(tables) == 1:
        found = bca(_kappa, *tables[0].to_numpy().T)
    else:
        if not tables[0].index.equals(tables[1].index):
            raise VDPError("pairs and other hold different images: measure all under both")
        found = bca(lambda *c, axis=-1: _kappa(*c[4:], axis=axis) - _kappa(*c[:4], axis=axis),
                    *tables[0].to_numpy().T, *tables[1].to_numpy().T)
    return Estimate(*found, len(tables[0]), len(pairs))


def _agreements(pairs: pd.DataFrame) -> pd.DataFrame:
    """Return (images, 4): rows, rows that agree, rows whose `a` and whose `b` is yes."""
    _check(pairs, "image_id", "a", "b")
    return pd.DataFrame(dict(
        image_id=pairs["image_id"], rows=1.0, same=(pairs["a"] == pairs["b"]).astype(float),
        a=(pairs["a"] == "yes").astype(float), b=(pairs["b"] == "yes").astype(float),
    )).groupby("image_id", sort=True).sum()


def _kappa(rows, same, a, b, axis=-1):
    rows, same, a, b = (part.sum(axis) for part in (rows, same, a, b))
    chance = (a * b + (rows - a) * (rows - b)) / rows**2
    beyond = np.where(chance < 1 - 1e-12, 1 - chance, 1)
    return np.where(chance < 1 - 1e-12, (same / rows - chance) / beyond, 0.0)


def rank_correlation(rows: pd.DataFrame, x: str, y: str) -> Estimate:
    """Return Spearman's rank correlation of two columns over rows, its interval over images.

    Ties get mean ranks; 0 where a column is constant. Images are resampled with all their rows.
    """
    _check(rows, "image_id", x, y)
    values = rows[[x, y]].to_numpy(float).T
    images, image = np.unique(rows["image_id"].to_numpy(str), return_inverse=True)
    ranks = [_rank_shares(value, image, len(images)) for value in values]

    def correlation(times):
        weights, n = times[:, image], (times @ np.bincount(image))[:, None]
        a, b = (times @ share - n / 2 for share in ranks)  # their mean is n / 2
        both, *own = (np.einsum("ij,ij->i", weights * one, other)
                      for one, other in ((a, b), (a, a), (b, b)))
        scale = np.sqrt(own[0] * own[1])
        return np.where(scale > 1e-9, both / np.maximum(scale, 1e-9), 0.0)

    return over_images(correlation, len(images), len(rows))


def _rank_shares(values: np.ndarray, image: np.ndarray, count: int) -> np.ndarray:
    """Return (images, rows): what one draw of an image adds to the mean rank of each row.

    Rows of less value count one, equal ones a half. `times @ shares` are then the mean ranks, less
    a half, of (samples, images) draws: a matrix product instead of a sort for each sample.
    """
    shares = np.empty((count, len(values)))
    for number in range(count):
        own = np.sort(values[image == number])
        shares[number] = np.searchsorted(own, values) + np.searchsorted(own, values, "right")
    return shares / 2


def over_images(statistic, count: int, rows: int, resamples: int | None = None) -> Estimate:
    """Return the estimate of a statistic of how often each of `count` images is drawn.

    `statistic` takes (samples, images), and gives (samples,); `rows` is how many they have in all.
    `resamples` is RESAMPLES by default.
    """
    def drawn_statistic(drawn, axis=-1):
        drawn = np.moveaxis(np.asarray(drawn, dtype=int), axis, -1)
        flat = drawn.reshape(-1, drawn.shape[-1])
        place = flat + count * np.arange(len(flat))[:, None]
        times = np.bincount(place.ravel(), minlength=count * len(flat)).reshape(-1, count)
        found = [statistic(part.astype(float))
                 for part in np.array_split(times, -(-len(flat) // 256))]
        return np.concatenate(found).reshape(drawn.shape[:-1])

    return Estimate(*bca(drawn_statistic, np.arange(count), resamples=resamples), count, rows)


def trend(rows: pd.DataFrame, x: str = "context_length", value: str = "correct") -> Test:
    """Test whether `value` changes steadily with `x` >= 0; effect: its change per doubling of 1+x.

    Each image gives one least-squares slope of its means of `value` against log2(1 + x). The
    effect is the mean slope, its p-value a two-sided sign-flip test of that mean
    (scipy.stats.permutation_test; at least 2 / (RESAMPLES + 1)). Page's test was left aside: its
    variance assumes no ties, which a few questions an image are full of (in a trial it rejected
    0.4 % of null samples at the 5 % level, and missed trends that this test finds); Wilcoxon's
    assumes symmetric slopes, which unevenly spaced lengths break (7.8 %; this test 4.4 %).
    Raises VDPError unless every image has every x.
    """
    table = image_means(rows, value, [x]).pivot(index="image_id", columns=x, values=value)
    if table.isna().to_numpy().any():
        image, length = table.isna().stack().idxmax()
        raise VDPError(f"image {image!r} has no row at {x} = {length}: measure all images at all")
    steps = np.asarray(table.columns, dtype=float)
    if len(steps) < 2 or steps.min() < 0:
        raise VDPError(f"a trend needs two or more values of {x}, none negative; got {steps}")
    steps = np.log2(1 + steps)
    steps -= steps.mean()
    changes = table.to_numpy() - table.to_numpy()[:, :1]  # exactly 0, not 1e-17, where flat
    slopes = changes @ steps / (steps @ steps)
    estimate = Estimate(*bca(np.mean, slopes), len(slopes), len(rows))
    return Test(estimate, sign_flip(slopes))


def slope(rows: pd.DataFrame, y: str, x: str, given: Sequence[str] = ()) -> Test:
    """Return the least-squares slope of column `y` on `x`, beside `given` and 1, over rows.

    Images are resampled with all their rows. For `sign_flip` an image's value is what its rows add
    to the slope: the product of what `given` and 1 leave unexplained of `x` and of `y` (Frisch and
    Waugh 1933). Raises VDPError where they leave nothing of `x`.
    """
    _check(rows, "image_id", y, x, *given)
    columns = np.column_stack([rows[[x, *given]].to_numpy(float), np.ones(len(rows)),
                               rows[y].to_numpy(float)])
    images, image = np.unique(rows["image_id"].to_numpy(str), return_inverse=True)
    ends, others = columns[:, [0, -1]], columns[:, 1:-1]
    left_x, left_y = (ends - others @ np.linalg.lstsq(others, ends)[0]).T
    if left_x @ left_x < 1e-9 * (ends[:, 0] @ ends[:, 0] + 1e-9):
        raise VDPError(f"{x} does not vary beside {[*given, 1]}: there is no slope to find")
    adds = np.bincount(image, left_x * left_y) / (left_x @ left_x) * len(images)
    products = np.zeros((len(images), columns.shape[1], columns.shape[1]))
    np.add.at(products, image, columns[:, :, None] * columns[:, None, :])

    def coefficient(times):
        sums = np.tensordot(times, products, 1)
        left = sums[:, :-1, :-1] + 1e-9 * np.eye(columns.shape[1] - 1)  # of few, equal images
        return np.linalg.solve(left, sums[:, :-1, -1:])[:, 0, 0]

    return Test(over_images(coefficient, len(images), len(rows)), sign_flip(adds))


def sign_flip(values: Sequence[float]) -> float:
    """Return the two-sided p-value of a mean of zero: each image's value may have either sign.

    At least 2 / (RESAMPLES + 1), by scipy.stats.permutation_test; `values` has one value an image,
    such as a difference between two conditions.
    """
    values = np.asarray(values, dtype=float)
    if 2.0 ** len(values) <= RESAMPLES:  # every pattern of signs once
        test = stats.permutation_test((values,), np.mean, permutation_type="samples",
                                      vectorized=True, n_resamples=RESAMPLES)
    else:
        blocks = iter(_blocks(_signs, len(values), RESAMPLES))
        test = stats.monte_carlo_test(
            values, lambda size: next(blocks) * values, np.mean, vectorized=True,
            n_resamples=RESAMPLES, batch=max(1, BLOCK // len(values)))
    return float(test.pvalue)


def holm(pvalues: Sequence[float]) -> np.ndarray:
    """Return p-values adjusted for their number (Holm 1979), in the given order."""
    p = np.asarray(pvalues, dtype=float)
    if not ((p >= 0) & (p <= 1)).all():
        raise VDPError(f"p-values must lie in [0, 1], got {p}: leave out tests that were not made")
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    return adjusted


def limit(*accuracies: Estimate) -> str:
    """Return "floor" where all balanced accuracies are at chance, "ceiling" where all are near 1.

    At chance: the interval holds 0.5. Else "": there is room for a difference.
    """
    if all(a.low <= CHANCE <= a.high for a in accuracies):
        return "floor"
    return "ceiling" if all(a.value >= CEILING for a in accuracies) else ""


def family(cells: pd.DataFrame) -> pd.DataFrame:
    """Return the cells of one claim with `p_holm`: Holm over those that count, 1 for others.

    Those count whose `limit` is "", or all where there is no such column.
    """
    counts = cells["limit"] == "" if "limit" in cells else np.ones(len(cells), bool)
    cells = cells.assign(p_holm=1.0)
    cells.loc[counts, "p_holm"] = holm(cells.loc[counts, "p"])
    return cells


def speaks(cells: pd.DataFrame) -> pd.Series:
    """Return what each cell of a `family` says of the claim: "for", "against" or "".

    `effect` is positive where it goes the claimed way. Where there is a column `holds`, a cell
    speaks for the claim only where that is true too.
    """
    known, holds = cells["p_holm"] < ALPHA, cells.get("holds", True)
    return pd.Series(np.select([known & (cells["effect"] > 0) & holds,
                                known & (cells["effect"] < 0)], ["for", "against"], ""),
                     cells.index)


def judge(cells: pd.DataFrame, smallest: float | pd.Series) -> str:
    """Return the verdict's word by SCHEME for the cells of a `family`.

    `smallest` is the smallest effect of interest, in the effect's unit: one for all cells, or a
    Series of one a cell.
    """
    counted = cells[cells["limit"] == ""] if "limit" in cells else cells
    said = speaks(counted)
    if len(said) and (said == "for").all():
        return "reproduced"
    if (said == "for").any():
        return "partly"
    if (said == "against").any():
        return "contradicted"
    small = len(said) and (cells["high"] < smallest)[counted.index].all()
    return "not reproduced" if small else "inconclusive"


def shown(cells: pd.DataFrame) -> pd.DataFrame:
    """Return the cells of a `family` for reading: rounded, and p_holm as text.

    Where the test gave its least p-value, the adjusted one is said to be no more than it is.
    """
    least = (cells["p"] <= 1.001 * 2 / (RESAMPLES + 1)) & (cells["p_holm"] < 1)
    texts = [f"{'<= ' * low}{p:.2g}" for low, p in zip(least, cells["p_holm"])]
    return cells.drop(columns=["p", "n_images", "n_rows"]).round(3).assign(p_holm=texts)


@dataclass(frozen=True)
class Verdict:
    """What became of one of the paper's claims, by a rule that was written down beforehand.

    `effect` says in words what `estimates` measure, one by context kind (or whatever else parts
    them), `n` how many images they rest on at most.
    """

    finding: str
    claim: str
    verdict: str
    effect: str
    estimates: Mapping[str, Estimate]
    rule: str

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise VDPError(f"verdict {self.verdict!r} of {self.finding} must be one of {VERDICTS}")

    @property
    def n(self) -> int:
        return max(estimate.n_images for estimate in self.estimates.values())

    def __str__(self) -> str:
        return f"{self.verdict} (n = {self.n} images): {self.effect}: {self._estimates()}"

    def _estimates(self) -> str:
        return "; ".join(f"{name} {one}" for name, one in self.estimates.items())

    def to_row(self) -> dict[str, str]:
        """Return the verdict as texts by column, for JSON."""
        return {"finding": self.finding, "claim": self.claim, "verdict": self.verdict,
                "effect": self.effect, "estimate [95 %]": self._estimates(),
                "images": str(self.n), "rule": self.rule}


def _check(rows: pd.DataFrame, *columns: str) -> None:
    missing = [column for column in columns if column not in rows]
    if missing:
        raise VDPError(f"rows lack the columns {missing}: they have {list(rows.columns)}")
    if rows.empty:
        raise VDPError("there are no rows: check what they were selected by")
    holes = [column for column in columns if rows[column].isna().any()]
    if holes:
        raise VDPError(f"rows have missing values in {holes}: drop those rows first, knowingly")


def _counts(rows: pd.DataFrame) -> pd.DataFrame:
    """Return (images, 4): right yes-, all yes-, right no- and all no-questions of each image."""
    _check(rows, "image_id", "answer", "correct")
    found = set(rows["answer"])
    if found != {"yes", "no"}:
        raise VDPError(f"balanced accuracy needs the answers 'yes' and 'no', got {sorted(found)}")
    right, counts = rows["correct"].to_numpy(float), {}
    for answer in ("yes", "no"):
        asked = (rows["answer"] == answer).to_numpy(float)
        counts |= {f"{answer} right": asked * right, f"{answer} all": asked}
    return pd.DataFrame(counts).groupby(rows["image_id"].to_numpy(), sort=True).sum()


def _balanced(yes_right, yes_all, no_right, no_all, axis=-1):
    return (yes_right.sum(axis) / yes_all.sum(axis) + no_right.sum(axis) / no_all.sum(axis)) / 2


def _questions(rows: pd.DataFrame, name: str) -> dict[tuple, str]:
    """Return the right answer by (image, question)."""
    _check(rows, "image_id", "question_id", "answer")
    keys = list(zip(rows["image_id"], rows["question_id"], strict=True))
    questions = dict(zip(keys, rows["answer"], strict=True))
    if len(questions) < len(keys):
        raise VDPError(f"{name} holds a question more than once: select one condition's rows")
    return questions
