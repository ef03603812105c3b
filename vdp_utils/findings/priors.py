"""F3: answers with and without the image agree more and more; what the image still decides.

Visual dependency is causal here: how far the answer moves when the image is taken away, blanked,
or replaced by another scene's (in which none of the asked nouns is).
"""

import numpy as np
import pandas as pd

from vdp_utils import stats
from vdp_utils.errors import VDPError
from vdp_utils.findings import NEAR, NEUTRAL_AND_LURING
from vdp_utils.measuring.measure import presence_conditions
from vdp_utils.stats import Estimate, Verdict

IMAGES = ("own", "none", "blank", "swapped")
RULE = (
    "For each context kind: from the shortest to the longest context, the agreement of the answers "
    "with and without the image rises (paired difference over images, 95 % BCa interval above 0), "
    "and the KL divergence from the answer distribution without the image to that with it falls "
    "over all lengths (sign-flip test over images, p < 0.05 after Holm over the kinds). "
    "Reproduced if this holds for every kind and Cohen's kappa rises too (interval above 0), so "
    "that the agreement is more than both answers turning to the same word; partly if agreement "
    "and KL hold for at least one kind; else not reproduced.")
KEYS = ["image_id", "question_id", "context_kind", "context_length"]


def conditions(lvlm, lengths) -> list:
    """With the image, without it, and with it blanked and swapped: these two, where the text
    lures, up to NEAR only."""
    near = [length for length in lengths if length <= NEAR]
    return (presence_conditions(lvlm, NEUTRAL_AND_LURING, lengths, IMAGES[:2])
            + presence_conditions(lvlm, ["other"], lengths, IMAGES[2:])
            + presence_conditions(lvlm, ["mentions"], near, IMAGES[2:]))


def pairs(rows: pd.DataFrame) -> pd.DataFrame:
    """One line a question, kind and length: the answers under each image, and how they differ.

    `own`, `none`, `blank`, `swapped` are the predictions, `kl_X` (nats) the divergence
    KL(P_own || P_X) of the distributions over the options, `flip_X` whether the answer differs
    and `agree_X` whether it does not (1 or 0; missing where X, blank or swapped, was not measured
    behind that context), and `prior_right` whether the answer without an image is right. VDPError
    where the answers with the image or those without it were not measured at all.
    """
    missing = set(IMAGES[:2]) - set(rows["image"])
    if missing:
        raise VDPError(f"rows lack the images {sorted(missing)}: measure them with "
                       "priors.conditions")
    rows = with_log_chances(rows)
    parts = {image: rows[rows["image"] == image].set_index(KEYS) for image in IMAGES}
    found = parts["own"][["answer", "correct", "margin"]].join(
        parts["none"][["predicted"]], how="inner").rename(columns=dict(predicted="none"))
    alone = set(parts["own"].index.get_level_values("context_kind")) ^ set(
        parts["none"].index.get_level_values("context_kind"))
    if alone:
        raise VDPError(f"behind {sorted(alone)} rows with or without the image are missing: "
                       "measure both with priors.conditions")
    mine = parts["own"].loc[found.index]
    found["own"] = mine["predicted"]
    for image in IMAGES[1:]:
        other = parts[image].reindex(found.index)
        found[image] = other["predicted"]
        found[f"kl_{image}"] = divergence(mine, other)
        same = (mine["predicted"] == other["predicted"]).astype(float)
        found[f"agree_{image}"] = same.where(other["predicted"].notna())
        found[f"flip_{image}"] = 1 - found[f"agree_{image}"]
    found["prior_right"] = found["none"] == found["answer"]
    return found.reset_index()


def with_log_chances(rows: pd.DataFrame) -> pd.DataFrame:
    """`rows` with `first` and `second`: log-probabilities of the two options, of the two alone."""
    logs = np.stack(rows["log_likelihoods"].to_numpy())
    logs = logs - np.logaddexp.reduce(logs, axis=1, keepdims=True)
    return rows.assign(first=logs[:, 0], second=logs[:, 1])


def divergence(mine: pd.DataFrame, other: pd.DataFrame) -> pd.Series:
    """KL(P_mine || P_other) in nats, line by line of `with_log_chances`."""
    return sum(np.exp(mine[option]) * (mine[option] - other[option])
               for option in ("first", "second"))


def summary(found: pd.DataFrame) -> pd.DataFrame:
    """Agreement, kappa, KL and flip rates by context kind and length, one line each."""
    lines = []
    for (kind, length), part in found.groupby(["context_kind", "context_length"], sort=True):
        named = part.rename(columns=dict(own="a", none="b"))
        measures = {"agreement": stats.mean_estimate(part, "agree_none"),
                    "Cohen's kappa": stats.kappa(named)}
        for image in IMAGES[1:]:
            if part[f"kl_{image}"].isna().any():
                continue
            measures[f"KL, {image}"] = stats.mean_estimate(part, f"kl_{image}")
            measures[f"flip rate, {image}"] = stats.mean_estimate(part, f"flip_{image}")
        lines += [dict(context_kind=kind, context_length=length, measure=name, **vars(estimate))
                  for name, estimate in measures.items()]
    return pd.DataFrame(lines)


def by_prior(found: pd.DataFrame) -> pd.DataFrame:
    """Accuracy with the image, by kind, length, and whether the answer without it is right."""
    lines = []
    for (kind, length, right), part in found.groupby(
            ["context_kind", "context_length", "prior_right"], sort=True):
        if part["image_id"].nunique() > 1:
            lines.append(dict(context_kind=kind, context_length=length, prior_right=right,
                              **vars(stats.mean_estimate(part, "correct"))))
    return pd.DataFrame(lines)


def _rise(near: pd.DataFrame, far: pd.DataFrame, column: str) -> Estimate:
    """Mean of `column` in `far` minus that in `near`, paired over images."""
    means = [stats.image_means(part, column).set_index("image_id")[column] for part in (near, far)]
    change = (means[1] - means[0]).rename("change").reset_index()
    return stats.mean_estimate(change, "change")


def tests(found: pd.DataFrame) -> pd.DataFrame:
    """By context kind: the rise of agreement and of kappa, and the trend of KL."""
    lines, lengths = [], found["context_length"]
    for kind, part in found.groupby("context_kind", sort=True):
        near, far = (part[part["context_length"] == n] for n in (lengths.min(), lengths.max()))
        agree = _rise(near, far, "agree_none")
        beyond = stats.kappa(*(x.rename(columns=dict(own="a", none="b")) for x in (near, far)))
        trend = stats.trend(part, value="kl_none")
        lines.append(dict(context_kind=kind, agreement_rise=agree.value, low=agree.low,
                          high=agree.high, kappa_rise=beyond.value, kappa_low=beyond.low,
                          kappa_high=beyond.high, kl_slope_per_doubling=trend.slope.value,
                          p=trend.p))
    table = pd.DataFrame(lines)
    return table.assign(p_holm=stats.holm(table["p"]))


def verdict(table: pd.DataFrame, found: pd.DataFrame) -> Verdict:
    """The verdict by RULE from `tests`; the estimate is the rise of agreement over all kinds."""
    falls = (table["kl_slope_per_doubling"] < 0) & (table["p_holm"] < 0.05)
    agree, beyond = (table["low"] > 0) & falls, table["kappa_low"] > 0
    lengths = found["context_length"]
    rise = _rise(*(found[lengths == n] for n in (lengths.min(), lengths.max())), "agree_none")
    return Verdict(
        "F3", "Answers with and without the image agree more and more",
        stats.judge(bool((agree & beyond).all()), bool(agree.any())),
        f"rise of the agreement from {lengths.min()} to {lengths.max()} context tokens",
        rise, rise.n_images, RULE)
