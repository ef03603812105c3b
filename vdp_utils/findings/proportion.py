"""F4: questions about objects that fill less of the image suffer more.

Whether they do can hang on the scale: a loss of recall is not a loss of log-odds. The scale of the
rule, named beforehand, is recall itself; `fit` says what log-odds would say.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import optimize, special

from vdp_utils import stats
from vdp_utils.errors import Lacking
from vdp_utils.findings import estimates
from vdp_utils.stats import Estimate, Verdict

SMALLEST = 0.02  # of recall per halving: 0.1 between objects that fill 32 % and 1 % of the image
RULE = (
    "Yes-questions only. Effect: the loss of recall from no context to a long one, per halving of "
    "the share of the image that the asked object fills (least-squares slope over questions): "
    "above 0, small objects lose more. Cells: the context kinds, each at its longest context at "
    "which balanced accuracy is not at chance (its interval does not hold 0.5); at floor where "
    "there is none, and at ceiling where recall stays at "
    f"{stats.CEILING} or more, so that nothing is lost. A cell speaks for the claim only where the "
    "slope is above 0 (95 % BCa interval) also beside the number of objects and the noun's "
    f"frequency. Smallest effect of interest: {SMALLEST}. " + stats.SCHEME)
CONTROLS = ["objects", "frequency"]
SHOWN = (0, 512, 2048)  # context lengths whose curves are drawn
RESAMPLES = 299  # of the psychometric function: each is a fit


def yes_questions(rows: pd.DataFrame, samples) -> pd.DataFrame:
    """The yes-questions, with `halvings`, -log2 of the object's share, and `doublings`, log2 of
    1 + context length.

    `objects` is how many the image has, `frequency` how many pictures show the noun, of a fixed
    set of the samples' kind. Those are left out of whose object no box is known; Lacking where that
    is so of all.
    """
    counts = {sample.image_id: len(sample.picture.items) for sample in samples}
    yes = rows[(rows["answer"] == "yes") & rows["target_share"].notna()]
    if yes.empty:
        raise Lacking("of no object that is asked about a box is known: give a source with boxes")
    return yes.assign(
        halvings=-np.log2(yes["target_share"]), doublings=np.log2(1 + yes["context_length"]),
        objects=yes["image_id"].map(counts),
        frequency=yes["nouns"].map(samples[0].picture.frequency))


def losses(yes: pd.DataFrame, length: int) -> pd.DataFrame:
    """One line a question of one kind: what `length` tokens cost of being right and of margin."""
    keys = ["image_id", "question_id"]
    near, far = (yes[yes["context_length"] == n].set_index(keys) for n in (0, length))
    lost = {f"lost_{name}": near[name].astype(float) - far[name].astype(float)
            for name in ("correct", "margin")}
    return far.assign(**lost).reset_index()


def tests(rows: pd.DataFrame, yes: pd.DataFrame) -> pd.DataFrame:
    """By context kind: how much more recall is lost with each halving of the share.

    `rows` are those of `yes` and of the no-questions; `controlled` is the slope beside CONTROLS.
    """
    lines = []
    for kind, part in rows.groupby("context_kind", sort=True):
        accuracy = {length: stats.balanced_accuracy(some)
                    for length, some in part.groupby("context_length") if length}
        seen = [length for length, one in accuracy.items() if stats.limit(one) != "floor"]
        length = max(seen or accuracy)
        mine = yes[yes["context_kind"] == kind]
        recall = mine[mine["context_length"].isin([0, length])].groupby("context_length")["correct"]
        ceiling = "ceiling" if (recall.mean() >= stats.CEILING).all() else ""
        lost = losses(mine, length)
        controlled = stats.slope(lost, "lost_correct", "halvings", CONTROLS).effect
        lines.append(dict(context_kind=kind, context_length=length)
                     | stats.slope(lost, "lost_correct", "halvings").columns()
                     | dict(limit=ceiling if seen else "floor", controlled=controlled.value,
                            holds=controlled.low > 0))
    return stats.family(pd.DataFrame(lines))


def verdict(table: pd.DataFrame) -> Verdict:
    """The verdict by RULE from `tests`; the estimates are its effects."""
    named = [f"{line.context_kind} at {line.context_length}{f' ({line.limit})' * bool(line.limit)}"
             for line in table.itertuples()]
    return Verdict(
        "F4", "Questions about objects that fill less of the image suffer more",
        stats.judge(table, SMALLEST),
        "loss of recall per halving of the object's share, from no context to the longest at which "
        "accuracy is not at chance",
        estimates(table.assign(context_kind=named)), RULE)


# ---- beside the rule: other scales


@dataclass(frozen=True)
class Psychometric:
    """Recall = guess + (1 - guess - lapse) / (1 + exp(-odds)), after Wichmann and Hill (2001).

    `odds` has the coefficients of halvings, doublings, their product, and 1.
    """

    odds: np.ndarray
    guess: float
    lapse: float

    def __call__(self, halvings, doublings) -> np.ndarray:
        x = np.stack(np.broadcast_arrays(halvings, doublings, halvings * doublings, 1.0), -1)
        return self.guess + (1 - self.guess - self.lapse) * special.expit(x @ self.odds)


def fit(yes: pd.DataFrame, times=None) -> Psychometric:
    """The likeliest `Psychometric` of one kind's answers, each counted `times`.

    Guess and lapse rate lie between 0 and 0.5; a faint pull of the coefficients towards 0 (1e-3 of
    their squares) keeps those finite that answers at floor or ceiling do not decide.
    """
    correct = yes["correct"].to_numpy(float)
    times = np.ones(len(yes)) if times is None else times
    scaled = yes[["halvings", "doublings"]].to_numpy(float)
    centre, scale = scaled.mean(0), scaled.std(0)
    a, b = ((scaled - centre) / scale).T
    x = np.column_stack([a, b, a * b, np.ones(len(yes))])

    def unlikely(found):
        odds, (guess, lapse) = found[:4], found[4:]
        seen = special.expit(x @ odds)
        chance = np.clip(guess + (1 - guess - lapse) * seen, 1e-9, 1 - 1e-9)
        pull = times * (correct / chance - (1 - correct) / (1 - chance))
        slope = (pull * (1 - guess - lapse) * seen * (1 - seen)) @ x - 2e-3 * odds
        value = times @ np.where(correct > 0.5, np.log(chance), np.log1p(-chance))
        return 1e-3 * odds @ odds - value, -np.array([*slope, pull @ (1 - seen), -pull @ seen])

    start = [-0.5, -0.5, 0, 0.5, 0.05, 0.05]
    *odds, guess, lapse = optimize.minimize(unlikely, start, jac=True, method="L-BFGS-B", bounds=(
        [(None, None)] * 4 + [(0, 0.5)] * 2)).x
    by_a, by_b, by_both, rest = odds  # of the scaled columns: back to halvings and doublings
    both, (at_a, at_b) = by_both / scale.prod(), centre
    by_a, by_b = by_a / scale[0] - both * at_b, by_b / scale[1] - both * at_a
    rest -= by_a * at_a + by_b * at_b + both * at_a * at_b
    return Psychometric(np.array([by_a, by_b, both, rest]), guess, lapse)


def fits(yes: pd.DataFrame) -> dict[str, Psychometric]:
    """`fit` by context kind."""
    return {kind: fit(part) for kind, part in yes.groupby("context_kind")}


def other_scales(yes: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """What other scales say, by context kind, with intervals: above 0, small objects lose more.

    The loss of answer margin per halving, from no context to the length of `tests`; and the loss of
    log-odds per halving and doubling of the `Psychometric`, over all lengths.
    """
    lines = []
    for line in table.itertuples():
        part = yes[yes["context_kind"] == line.context_kind]
        margin = stats.slope(losses(part, line.context_length), "lost_margin", "halvings").effect
        for scale, found in (("margin (nats)", margin), ("log-odds", _product(part))):
            lines.append(dict(context_kind=line.context_kind, scale=scale) | vars(found))
    return pd.DataFrame(lines)


def _product(yes: pd.DataFrame) -> Estimate:
    images, image = np.unique(yes["image_id"].to_numpy(str), return_inverse=True)

    def product(times):
        return np.array([-fit(yes, line[image]).odds[2] for line in times])

    return stats.over_images(product, len(images), len(yes), RESAMPLES)


def summary(yes: pd.DataFrame, found: dict[str, Psychometric], bins: int = 4) -> pd.DataFrame:
    """Recall by context kind, length and bin of equally many questions by share.

    `expected` is what the `fits` say of the same questions; `n_images` counts the bin's images,
    `images` all.
    """
    edges = yes.drop_duplicates(["image_id", "question_id"])["target_share"].quantile(
        np.linspace(0, 1, bins + 1)).to_numpy()
    yes = yes.assign(bin=np.clip(np.searchsorted(edges, yes["target_share"], "right") - 1,
                                 0, bins - 1))
    lines = []
    for (kind, length, number), part in yes.groupby(["context_kind", "context_length", "bin"]):
        chances = part.assign(expected=found[kind](part["halvings"], part["doublings"]))
        lines.append(dict(context_kind=kind, context_length=length, bin=number,
                          share=float(2 ** -part["halvings"].mean()),
                          expected=stats.image_means(chances, "expected")["expected"].mean(),
                          images=yes["image_id"].nunique(),
                          **vars(stats.mean_estimate(part, "correct"))))
    return pd.DataFrame(lines)


def curves(yes: pd.DataFrame, found: dict[str, Psychometric], points: int = 40) -> pd.DataFrame:
    """Recall that the `fits` expect, by context kind, length and share."""
    halvings = np.linspace(yes["halvings"].min(), yes["halvings"].max(), points)
    return pd.concat([
        pd.DataFrame(dict(context_kind=kind, context_length=length, share=2.0 ** -halvings,
                          recall=psychometric(halvings, np.log2(1 + length))))
        for kind, psychometric in found.items()
        for length in sorted(yes["context_length"].unique())], ignore_index=True)
