"""F11: whether the best pruning rate follows a law of the context's length.

Where a context only misleads the best rate is 1, and there is no law to find. So accuracy is the
mean of F7's two targets at equal rates: where the answer is in the image, and where it stands in
the context. That has an optimum inside.
"""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from vdp_utils import stats
from vdp_utils.attention.law import HIGHEST, LAWS, UNIT, rate
from vdp_utils.findings.ranking import KIND, PAPER, TARGETS, both
from vdp_utils.measuring import pruned
from vdp_utils.measuring.pruned import COMPACT, NONE
from vdp_utils.paths import pruning_law
from vdp_utils.stats import Estimate, Verdict

LAW = "F11_law"  # the table of rows
LENGTHS, HELD_OUT = (128, 256, 512, 1024, 2048), 2048  # laws are fitted to the lengths below it
RATES = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
PAPERS = "the paper's rule"
VARIANTS = {PAPERS: (PAPER, COMPACT), "during prefill": (PAPER, "prefill"),
            "snapkv": ("snapkv", COMPACT), "streaming": ("streaming", COMPACT)}
SMALLEST = 0.02  # of the mean of two balanced accuracies
RESAMPLES = 1999  # each fits every law anew
BEST = np.linspace(0, HIGHEST, 96)  # rates among which the best one is sought
RULE = (
    "After misleading contexts, the paper's rule in the paper's reading, mean of both targets. The "
    f"law is the one of least AIC on the best rates of the lengths below {HELD_OUT}. Effect: "
    f"accuracy after {HELD_OUT} tokens at the rate that it predicts, minus accuracy there at the "
    "one rate that is best for all shorter lengths, on the same questions, interpolated between "
    "the measured rates. One cell; it is for the claim only if the best rate rises with the "
    "length (95 % BCa interval of its change per doubling, all lengths, above 0). Smallest effect "
    f"of interest: {SMALLEST}. " + stats.SCHEME)
ACCURACY, GAIN = "accuracy", "the law's minus this one"  # what `use` measures
QUESTION = ["image_id", "question_id", "answer"]


def conditions(lvlm, lengths=LENGTHS, rates=RATES) -> list:
    """Both targets at every length and rate, by each variant's strategy and mode."""
    others = tuple(dict.fromkeys(name for name, mode in VARIANTS.values() if mode == COMPACT))
    return [pruned.answer_condition(lvlm, KIND, length, rates, names, image, (mode,))
            for length in lengths for image in TARGETS.values()
            for names, mode in ((others, COMPACT), ((PAPER,), "prefill"))]


def answers(rows: pd.DataFrame, variant: str = PAPERS) -> pd.DataFrame:
    """By question, target and length (lines): `correct` at each rate (columns); 0 is no pruning."""
    names = {image: target for target, image in TARGETS.items()}
    strategy, mode = VARIANTS[variant]
    mine = rows[(rows["strategy"] == NONE)
                | ((rows["strategy"] == strategy) & (rows["mode"] == mode))]
    mine = mine.assign(target=mine["image"].map(names), correct=mine["correct"].astype(float))
    return mine.pivot_table(index=[*QUESTION, "target", "context_length"], columns="rate",
                            values="correct")


class Curves:
    """Mean balanced accuracy of the targets by length and rate, for any draws of the images.

    `times` (draws, images) says how often each image is drawn: (draws, lengths, rates).
    """

    def __init__(self, found: pd.DataFrame):
        lengths = found.index.get_level_values("context_length")
        self.lengths, self.rates = np.unique(lengths), found.columns.to_numpy(float)
        self.images = found.index.get_level_values("image_id").unique()
        by = ["image_id", "answer", "target", "context_length"]
        groups = found.groupby(level=by)
        self.short = self.lengths < self.lengths[-1]  # which laws are fitted to
        targets = found.index.unique("target")
        every = pd.MultiIndex.from_product([self.images, ["no", "yes"], targets, self.lengths],
                                           names=by)
        shape = len(self.images), 2 * len(targets), len(self.lengths)
        self.right = groups.sum().reindex(every, fill_value=0).to_numpy().reshape(*shape, -1)
        self.asked = groups.size().reindex(every, fill_value=0).to_numpy(float).reshape(shape)

    def __call__(self, times: np.ndarray) -> np.ndarray:
        right, asked = (np.tensordot(times, part, 1) for part in (self.right, self.asked))
        return (right / np.maximum(asked, 1)[..., None]).mean(1)

    def measured(self) -> np.ndarray:
        """The accuracies (lengths, rates) of the images, each drawn once."""
        return self(np.ones((1, len(self.images))))[0]

    def best(self, times: np.ndarray) -> np.ndarray:
        """The best rate by length (draws, lengths): where a parabola in the logarithm of the share
        kept, least squares over the measured rates, is highest."""
        design, wanted = (np.stack([x**0, x, x * x], -1) for x in (
            np.log2(1 - self.rates), np.log2(1 - BEST)))
        return BEST[(self(times) @ (wanted @ np.linalg.pinv(design)).T).argmax(-1)]

    def estimate(self, statistic) -> Estimate:
        """A statistic (draws,) of `times`, with its interval over images."""
        return stats.over_images(statistic, len(self.images), int(self.asked.sum()), RESAMPLES)


def fit(law: str, lengths, best: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least squares of a law on best rates (draws, lengths).

    Returns the sum of squares (draws,), and (draws, 3) the shape and the weights, 0 where there is
    no second one.
    """
    terms, shapes = LAWS[law]
    squares, found = np.full(len(best), np.inf), np.zeros((len(best), 3))
    for shape in shapes:
        design = np.stack(terms(np.asarray(lengths) / float(UNIT), shape), -1)
        weights = (1 - best) @ np.linalg.pinv(design).T
        left = ((1 - best - weights @ design.T) ** 2).sum(1)
        better = left < squares - 1e-12
        squares[better] = left[better]
        found[better] = np.column_stack([np.full(len(best), shape), weights, weights * 0])[better,
                                                                                          :3]
    return squares, found


def predicted(line, lengths) -> np.ndarray:
    """The rates that a line of `laws` gives for lengths."""
    return np.array([rate(line.law, [[line.shape, line.first, line.second]], length)[0]
                     for length in lengths])


def laws(found: pd.DataFrame) -> pd.DataFrame:
    """One line a law, least AIC first: fitted to the best rates of all lengths but the longest,
    with the rate that it predicts there, its interval from bootstrapping the whole fit, and the
    best rate there."""
    curves = Curves(found)
    short, once = curves.short, np.ones((1, len(curves.images)))
    best, n = curves.best(once), short.sum()
    lines = []
    for law, (terms, shapes) in LAWS.items():
        squares, parameters = fit(law, curves.lengths[short], best[:, short])
        count = len(terms(np.ones(1), 1)) + (len(shapes) > 1)

        def at_the_end(times, law=law):
            some = fit(law, curves.lengths[short], curves.best(times)[:, short])[1]
            return rate(law, some, curves.lengths[-1])

        lines.append(dict(law=law, aic=n * np.log(squares[0] / n + 1e-6) + 2 * count,
                          shape=parameters[0, 0], first=parameters[0, 1], second=parameters[0, 2])
                     | vars(curves.estimate(at_the_end)) | dict(best=best[0, ~short][0]))
    return pd.DataFrame(lines).sort_values("aic", ignore_index=True)


def best_rates(rows: pd.DataFrame) -> pd.DataFrame:
    """The best rate with its interval by variant and length, one line each; beside it that of the
    measured rates which is best, `measured`."""
    lines = []
    for variant in VARIANTS:
        curves = Curves(answers(rows, variant))
        highest = curves.rates[curves.measured().argmax(1)]
        for number, length in enumerate(curves.lengths):
            found = curves.estimate(partial(_best_at, curves, number))
            lines.append(dict(variant=variant, context_length=length, measured=highest[number])
                         | vars(found))
    return pd.DataFrame(lines)


def _best_at(curves: Curves, number: int, times) -> np.ndarray:
    return curves.best(times)[:, number]


def accuracies(rows: pd.DataFrame) -> pd.DataFrame:
    """Accuracy with its interval by target, or "both" for their mean, length and rate, one line
    each; the paper's rule."""
    found, lines = answers(rows), []
    for target in (*TARGETS, "both"):
        part = found if target == "both" else found.xs(target, level="target", drop_level=False)
        curves = Curves(part)
        lines += [dict(target=target, context_length=length, rate=one) | vars(curves.estimate(
            lambda times, a=a, b=b, curves=curves: curves(times)[:, a, b]))
            for a, length in enumerate(curves.lengths) for b, one in enumerate(curves.rates)]
    return pd.DataFrame(lines)


def rise(found: pd.DataFrame) -> Estimate:
    """The best rate's change per doubling of the length, least squares over all lengths."""
    curves = Curves(found)
    x = np.log2(curves.lengths) - np.log2(curves.lengths).mean()
    return curves.estimate(lambda times: curves.best(times) @ x / (x @ x))


def best_fixed(found: pd.DataFrame) -> float:
    """The one measured rate that is best in the mean over all lengths but the longest."""
    curves = Curves(found)
    return curves.rates[curves.measured()[curves.short].mean(0).argmax()]


def _at(found: pd.DataFrame, wanted: float, length: int) -> pd.DataFrame:
    """Rows after `length` tokens, `correct` interpolated between the measured rates."""
    part = found.xs(length, level="context_length")
    correct = [np.interp(wanted, part.columns.to_numpy(float), line) for line in part.to_numpy()]
    return part.index.to_frame(index=False).assign(correct=correct)


def use(found: pd.DataFrame) -> pd.DataFrame:
    """What a law is worth on images, and at the longest length, that it was not fitted to.

    The law and the best fixed rate are those of the first half of the images and all lengths but
    the longest. Two lines for each length and choice with its `rate`: the mean accuracy of both
    targets on the other half, and the law's minus that, paired over images (`measure` ACCURACY and
    GAIN). The oracle's rate is the measured one that is best at that length on these very images,
    which makes it optimistic.
    """
    images = found.index.unique("image_id")
    seen = found.index.isin(images[:len(images) // 2], level="image_id")
    judged, fixed = found[~seen], best_fixed(found[seen])
    curves, law = Curves(judged), next(laws(found[seen]).itertuples())
    oracle, lines = curves.rates[curves.measured().argmax(1)], []
    for length, ours, best in zip(curves.lengths, predicted(law, curves.lengths), oracle):
        choices = {"law": ours, "best fixed rate": fixed, "oracle": best, "no pruning": 0.0}
        with_law = both(_at(judged, ours, length))
        for choice, wanted in choices.items():
            line = dict(context_length=length, choice=choice, rate=wanted)
            there = _at(judged, wanted, length)
            pairs = zip(with_law, both(there, -1))  # pair by pair: equal ones give 0
            for measure, parts in ((ACCURACY, both(there)), (GAIN, sum(pairs, ()))):
                contrast = stats.balanced_accuracy_contrast(*parts)
                lines.append(line | dict(measure=measure) | vars(contrast))
    return pd.DataFrame(lines)


def tests(found: pd.DataFrame) -> pd.DataFrame:
    """The rule's cell from `answers`: accuracy at the law's rate minus at the best fixed one."""
    fixed, slope = best_fixed(found), rise(found)
    law, ours = laws(found).loc[0, ["law", "value"]]
    end = found.index.unique("context_length").max()
    test = stats.accuracy_test(*both(_at(found, ours, end)), *both(_at(found, fixed, end), -1))
    return stats.family(pd.DataFrame([
        dict(law=law, rate=ours, fixed=fixed) | test.columns()
        | dict(rise=slope.value, holds=slope.low > 0)]))


def verdict(table: pd.DataFrame, found: pd.DataFrame) -> Verdict:
    """The verdict by RULE from `tests`."""
    return Verdict("F11", "The best pruning rate follows a law of the context's length",
                   stats.judge(table, SMALLEST),
                   "change of the best rate per doubling of the length", {KIND: rise(found)}, RULE)


def save(table: pd.DataFrame, folder: str | Path, lvlm) -> None:
    """Write the law of least AIC of `laws` beside its rows, where `load_lvlm` looks for it.

    It holds for the exact weights that it names. Rounded, so that every machine writes the same.
    """
    line = table.iloc[0]
    found = dict(model=lvlm.name, revision=lvlm.revision, law=line["law"])
    found |= {name: round(float(line[name]), 6) for name in ("shape", "first", "second")}
    pruning_law(folder, lvlm.name).write_text(json.dumps(found, indent=2) + "\n")
