"""F3: answers with and without the image agree more and more; what the image still decides.

Visual dependency is causal here: how far the answer moves when the image is taken away, blanked,
or replaced by another scene's (in which none of the asked nouns is).
"""

import numpy as np
import pandas as pd

from vdp_utils import stats
from vdp_utils.errors import VDPError
from vdp_utils.findings import NEAR, NEUTRAL_AND_MISLEADING
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
    return (presence_conditions(lvlm, NEUTRAL_AND_MISLEADING, lengths, IMAGES[:2])
            + presence_conditions(lvlm, ["other_images"], lengths, IMAGES[2:])
            + presence_conditions(lvlm, ["misleading"], near, IMAGES[2:]))


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
    mine = parts["own"][parts["own"].index.isin(parts["none"].index)]
    alone = set(parts["own"].index.get_level_values("context_kind")) ^ set(
        parts["none"].index.get_level_values("context_kind"))
    if alone:
        raise VDPError(f"behind {sorted(alone)} rows with or without the image are missing: "
                       "measure both with priors.conditions")
    found = mine[["answer", "correct", "margin"]].assign(own=mine["predicted"])
    for image in IMAGES[1:]:
        other = parts[image].reindex(found.index)
        found[image] = other["predicted"]
        found = found.join(moved(mine, other).add_suffix(f"_{image}"))
        found[f"agree_{image}"] = 1 - found[f"flip_{image}"]
    found["prior_right"] = found["none"] == found["answer"]
    return found.reset_index()


def with_log_chances(rows: pd.DataFrame) -> pd.DataFrame:
    """`rows` with `first` and `second`: log-probabilities of the two options, of the two alone."""
    logs = np.stack(rows["log_likelihoods"].to_numpy())
    logs = logs - np.logaddexp.reduce(logs, axis=1, keepdims=True)
    return rows.assign(first=logs[:, 0], second=logs[:, 1])


def moved(mine: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """`kl`, KL(P_mine || P_other) in nats, and `flip`, 1 where the answer differs, by line.

    Both are `with_log_chances`, of equal index; missing where `other` is.
    """
    flip = (mine["predicted"] != other["predicted"]).astype(float)
    return pd.DataFrame(dict(
        kl=sum(np.exp(mine[option]) * (mine[option] - other[option])
               for option in ("first", "second")),
        flip=flip.where(other["predicted"].notna())))


def summary(found: pd.DataFrame) -> pd.DataFrame:
    """Agreement, kappa, KL and flip rates by context kind and length, one line each."""
    measures = {"agreement": "agree_none", "Cohen's kappa": _kappa}
    for image in IMAGES[1:]:
        measures |= {f"KL, {image}": f"kl_{image}", f"flip rate, {image}": f"flip_{image}"}
    return stats.by_group(found, ["context_kind", "context_length"], measures)


def _kappa(*parts: pd.DataFrame) -> Estimate:
    """Cohen's kappa of the answers with and without the image, or its rise between two parts."""
    return stats.kappa(*(part.rename(columns=dict(own="a", none="b")) for part in parts))


def by_prior(found: pd.DataFrame) -> pd.DataFrame:
    """Accuracy with the image, by kind, length, and whether the answer without it is right."""
    by = ["context_kind", "context_length", "prior_right"]
    known = found[found.groupby(by)["image_id"].transform("nunique") > 1]
    return stats.by_group(known, by, "correct")


def tests(found: pd.DataFrame) -> pd.DataFrame:
    """By context kind: the rise of agreement and of kappa, and the trend of KL."""
    lines, lengths = [], found["context_length"]
    for kind, part in found.groupby("context_kind", sort=True):
        near, far = (part[part["context_length"] == n] for n in (lengths.min(), lengths.max()))
        agree = stats.mean_estimate(stats.rise(near, far, "agree_none"), "rise")
        beyond = _kappa(near, far)
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
    near, far = (found[lengths == n] for n in (lengths.min(), lengths.max()))
    rise = stats.mean_estimate(stats.rise(near, far, "agree_none"), "rise")
    return Verdict(
        "F3", "Answers with and without the image agree more and more",
        stats.judge(bool((agree & beyond).all()), bool(agree.any())),
        f"rise of the agreement from {lengths.min()} to {lengths.max()} context tokens",
        rise, rise.n_images, RULE)
