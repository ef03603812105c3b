"""F8: pruning concentrates attention and shifts it toward the image: theorem and measurement."""

import numpy as np
import pandas as pd

from vdp_utils import stats
from vdp_utils.stats import Verdict

MASSES = "F8_masses"  # the table of attention before and after pruning
RATES = (0.25, 0.5, 0.75, 0.9)
SMALLEST = 0.01  # of all attention, and of a nat
MOVES = {"attention on the image": ("gain", 1), "entropy": ("entropy_change", -1)}  # and its sign
RULE = (
    "Effect: the answer position's attention on the image (mean over heads) after pruning minus "
    "before, and its entropy before minus after, in nats. Cells: these two, context lengths, rates "
    "and every layer after the scoring one; the theorems say nothing of any but the first of them. "
    "A cell is for the claim only if the theorems (a), (b) and (c) have no exception in any "
    "recorded row of attention, up to rounding. Smallest effect of interest: "
    f"{SMALLEST} of either. " + stats.SCHEME)
LISTS = ("predicted", "after", "entropy_before", "entropy_frozen", "entropy_after", "mass_falls",
         "entropy_rises", "falls_measured", "premise", "exceptions")


def by_layer(rows: pd.DataFrame, rates) -> pd.DataFrame:
    """By row, rate and decoder layer; `later`: the layer comes after the scoring one."""
    lines = []
    depth = len(rows["before"].iloc[0])
    for row in rows.itertuples():
        values = {name: np.reshape(getattr(row, name), (len(rates), depth)) for name in LISTS}
        for number, rate in enumerate(rates):
            for at in range(depth):
                lines.append(dict(
                    image_id=row.image_id, question_id=row.question_id, rate=rate, layer=at,
                    context_length=row.context_length, later=at > row.layer,
                    before=float(row.before[at]),
                    **{name: float(table[number, at]) for name, table in values.items()}))
    found = pd.DataFrame(lines)
    return found.assign(gain=found["after"] - found["before"],
                        gain_predicted=found["predicted"] - found["before"],
                        entropy_change=found["entropy_after"] - found["entropy_before"])


def theorems(layers: pd.DataFrame) -> pd.DataFrame:
    """By length and rate: shares of (row, layer, head) in which each statement holds or fails."""
    return layers.groupby(["context_length", "rate"]).agg(
        rows=("exceptions", "size"), exceptions=("exceptions", "mean"),
        mass_falls=("mass_falls", "mean"), premise_of_b=("premise", "mean"),
        entropy_rises=("entropy_rises", "mean")).reset_index()


def tests(layers: pd.DataFrame) -> pd.DataFrame:
    """The rule's cells by measure, length, rate and later layer.

    `before` is the measure before pruning, `predicted` the effect with queries and keys held fixed.
    """
    sound, lines = bool((layers["exceptions"] == 0).all()), []
    layers = layers.assign(frozen=layers["entropy_frozen"] - layers["entropy_before"])
    of = {"gain": ("before", "gain_predicted"), "entropy_change": ("entropy_before", "frozen")}
    for (length, rate, at), part in layers[layers["later"]].groupby(
            ["context_length", "rate", "layer"], sort=True):
        for measure, (column, sign) in MOVES.items():
            before, predicted = of[column]
            lines.append(dict(measure=measure, context_length=length, rate=rate, layer=at,
                              before=part[before].mean(), predicted=sign * part[predicted].mean())
                         | stats.mean_test(part.assign(effect=sign * part[column]),
                                           "effect").columns() | dict(holds=sound))
    return stats.family(pd.DataFrame(lines))


def verdict(table: pd.DataFrame, layers: pd.DataFrame) -> Verdict:
    """The verdict by RULE from `tests`; the estimates are means over all later layers."""
    later = layers[layers["later"]]
    estimates = {measure: stats.mean_estimate(later.assign(effect=sign * later[column]), "effect")
                 for measure, (column, sign) in MOVES.items()}
    return Verdict(
        "F8", "Pruning concentrates attention and shifts it toward the image",
        stats.judge(table, SMALLEST), "rise of attention on the image and fall of entropy (nats), "
        "mean over later layers, rates and lengths", estimates, RULE)
