"""F8: pruning concentrates attention and shifts it toward the image: theorem and measurement."""

import numpy as np
import pandas as pd

from vdp_utils import stats
from vdp_utils.stats import Verdict

MASSES = "F8_masses"  # the table of attention before and after pruning
RATES = (0.25, 0.5, 0.75, 0.9)
RULE = (
    "The theorems (a), (b) and (c) have no exception in any recorded row of attention, up to "
    "rounding; and, what they do not say, the measured attention on the image (mean over heads) is "
    "higher after pruning and the measured entropy lower, paired over images, with 95 % BCa "
    "intervals beyond 0, in every layer after the scoring layer, at every rate and context length. "
    "Reproduced if all of this holds; partly if the theorems hold and mass and entropy, mean over "
    "those layers, move that way at every length for at least one rate; else not reproduced.")
LISTS = ("predicted", "after", "entropy_before", "entropy_frozen", "entropy_after", "mass_falls",
         "entropy_rises", "falls_measured", "premise", "exceptions")


def by_layer(rows: pd.DataFrame, rates, layer: int = 0) -> pd.DataFrame:
    """One line a row, rate and decoder layer; `later`: it comes after the scoring layer."""
    lines = []
    depth = len(rows["before"].iloc[0])
    for row in rows.itertuples():
        values = {name: np.reshape(getattr(row, name), (len(rates), depth)) for name in LISTS}
        for number, rate in enumerate(rates):
            for at in range(depth):
                lines.append(dict(
                    image_id=row.image_id, question_id=row.question_id, rate=rate, layer=at,
                    context_length=row.context_length, later=at > layer,
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
    """By length, rate and later layer: predicted and measured gain in mass; entropy's change."""
    lines = []
    for (length, rate, at), part in layers[layers["later"]].groupby(
            ["context_length", "rate", "layer"], sort=True):
        gain = stats.mean_estimate(part, "gain")
        change = stats.mean_estimate(part, "entropy_change")
        lines.append(dict(
            context_length=length, rate=rate, layer=at, before=part["before"].mean(),
            predicted_gain=part["gain_predicted"].mean(), gain=gain.value, low=gain.low,
            high=gain.high, entropy_change=change.value, entropy_low=change.low,
            entropy_high=change.high, heads_falling=part["falls_measured"].mean(),
            n_images=gain.n_images))
    return pd.DataFrame(lines)


def verdict(table: pd.DataFrame, layers: pd.DataFrame) -> Verdict:
    """The verdict by RULE from `tests`; the estimate is the gain in mass over all later layers."""
    sound = bool((layers["exceptions"] == 0).all())
    every = bool(((table["low"] > 0) & (table["entropy_high"] < 0)).all())
    later = layers[layers["later"]]
    moves = {}
    for (_, rate), part in later.groupby(["context_length", "rate"]):
        up, down = (stats.mean_estimate(part, name) for name in ("gain", "entropy_change"))
        moves.setdefault(rate, []).append(up.low > 0 and down.high < 0)
    gain = stats.mean_estimate(later, "gain")
    return Verdict(
        "F8", "Pruning concentrates attention and shifts it toward the image",
        stats.judge(sound and every, sound and any(all(found) for found in moves.values())),
        "gain of the answer position's attention on the image, mean over later layers, rates and "
        "lengths", gain, gain.n_images, RULE)
