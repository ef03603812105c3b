"""F3: answers with and without the image agree more and more; what the image still decides.

Visual dependency is causal here: how far the answer moves when the image is taken away, blanked,
or replaced by another scene's (in which none of the asked nouns is).
"""

import numpy as np
import pandas as pd

from vdp_utils import stats
from vdp_utils.errors import VDPError
from vdp_utils.findings import NEAR, OTHER_AND_MISLEADING, estimates
from vdp_utils.findings.decline import ends
from vdp_utils.measuring.measure import presence_conditions
from vdp_utils.stats import Estimate, Verdict

IMAGES = ("own", "none", "blank", "swapped")
SMALLEST = {"agreement": 0.05, "KL": 0.1}  # 0.1 nats move an even answer to 0.72 : 0.28
RULE = (
    "Effects, from no context to the longest one, on the same questions: how much the agreement of "
    "the answers with and without the image rises, and how much the KL divergence from the answer "
    "distribution without the image to that with it falls (nats). Cells: context kind x measure. "
    "Agreement speaks for the claim only where Cohen's kappa rises too (95 % BCa interval above "
    "0), so that it is more than both answers turning to the same word. At ceiling: agreement of "
    f"{stats.CEILING} or more without a context. At floor: a divergence below {SMALLEST['KL']} "
    "there, so that the image decides nothing from the start. Smallest effects of interest: "
    f"agreement {SMALLEST['agreement']}, KL {SMALLEST['KL']}. " + stats.SCHEME)
KEYS = ["image_id", "question_id", "context_kind", "context_length"]


def conditions(lvlm, lengths) -> list:
    """With the image, without it, and with it blanked and swapped: these two, where the text
    misleads, up to NEAR only."""
    near = [length for length in lengths if length <= NEAR]
    return (presence_conditions(lvlm, OTHER_AND_MISLEADING, lengths, IMAGES[:2])
            + presence_conditions(lvlm, ["other_images"], lengths, IMAGES[2:])
            + presence_conditions(lvlm, ["misleading"], near, IMAGES[2:]))


def pairs(rows: pd.DataFrame) -> pd.DataFrame:
    """One line a question, kind and length: the answers under each image, and how they differ.

    `own`, `none`, `blank`, `swapped` are the predictions, `kl_X` (nats) the divergence
    KL(P_own || P_X) of the distributions over the options, `flip_X` whether the answer differs
    and `agree_X` whether it does not (1 or 0; missing where X, blank or swapped, was not measured
    after that context), and `prior_right` whether the answer without an image is right. VDPError
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
        raise VDPError(f"after {sorted(alone)} contexts rows with or without the image are "
                       "missing: measure both with priors.conditions")
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
    """By context kind and measure: how far agreement rises, and the KL divergence falls."""
    lines = []
    for kind, part in found.groupby("context_kind", sort=True):
        near, far = ends(part)
        start = {name: stats.mean_estimate(near, column).value for name, column in
                 (("agreement", "agree_none"), ("KL", "kl_none"))}
        limits = {"agreement": "ceiling" if start["agreement"] >= stats.CEILING else "",
                  "KL": "floor" if start["KL"] < SMALLEST["KL"] else ""}
        effects = {"agreement": stats.rise(near, far, "agree_none"),
                   "KL": stats.rise(far, near, "kl_none")}
        kappa = _kappa(near, far)
        beyond = {"agreement": dict(kappa_rise=kappa.value, holds=kappa.low > 0),
                  "KL": dict(kappa_rise=np.nan, holds=True)}
        lines += [dict(context_kind=kind, measure=name)
                  | stats.mean_test(effect, "rise").columns()
                  | dict(limit=limits[name]) | beyond[name] for name, effect in effects.items()]
    return stats.family(pd.DataFrame(lines))


def trends(found: pd.DataFrame) -> pd.DataFrame:
    """Beside the rule: changes of agreement and divergence per doubling, over all lengths."""
    return stats.by_group(found, ["context_kind"], {
        name: lambda part, column=column: stats.trend(part, value=column).effect
        for name, column in (("agreement", "agree_none"), ("KL", "kl_none"))})


def verdict(table: pd.DataFrame, found: pd.DataFrame) -> Verdict:
    """The verdict by RULE from `tests`; the estimates are the rises of agreement."""
    lengths = found["context_length"]
    return Verdict(
        "F3", "Answers with and without the image agree more and more",
        stats.judge(table, table["measure"].map(SMALLEST)),
        f"rise of the agreement from {lengths.min()} to {lengths.max()} context tokens",
        estimates(table[table["measure"] == "agreement"]), RULE)
