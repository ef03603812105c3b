"""F6: pruning the context wins accuracy back, and costs answers that stand in the context."""

from functools import partial

import numpy as np
import pandas as pd

from vdp_utils import findings, stats
from vdp_utils.attention.tokens import Kind
from vdp_utils.errors import VDPError
from vdp_utils.findings import NEAR, OTHER_AND_MISLEADING
from vdp_utils.findings.priors import moved, with_log_chances
from vdp_utils.measuring import pruned
from vdp_utils.stats import Estimate, Verdict

PRUNED = "F6_F9_pruned"  # the table of answers under pruning
LENGTHS = (0, 512, 1024, 2048, 4096)
RATES = tuple(n / 10 for n in range(1, 10))
FEW_RATES = (0.5, 0.7, 0.9)  # beyond NEAR, and with the image swapped: each costs a pass
RATE = 0.5  # which the rule looks at
EXAMPLES, SHOWN = "F6_examples", 2  # the table of what is kept, and how many samples are drawn
TOLD = "text_middle"  # the scene in words amid the context, and pruned with it: text-target
RULE = (
    "The paper's rule at rate 0.5, fixed beforehand, at every context kind and length where the "
    "context costs accuracy (no context minus all of it, paired over images, 95 % BCa interval "
    "above 0). Reproduced if balanced accuracy with pruning minus without has an interval above 0 "
    "at each of them; partly if at some kind, length and rate it does and the exact McNemar test "
    "has p < 0.05 after Holm over all kinds, lengths and rates; else not reproduced.")
as_text = partial(findings.as_text, column=["context_kind", "context_length"], index="rate")
KEYS = ["image_id", "question_id", "context_kind", "context_length", "rate"]


def conditions(lvlm, lengths, rates=RATES, few_rates=FEW_RATES, told_length=512) -> list:
    """Own images at every length, swapped ones up to NEAR, text-target questions at one length.

    Every rate up to NEAR, few beyond it; length 0 is the anchor without context.
    """
    swapped = [pruned.answer_condition(lvlm, kind, length, few_rates, image="swapped")
               for kind in OTHER_AND_MISLEADING for length in lengths if 0 < length <= NEAR]
    return [*own_conditions(lvlm, lengths, rates, few_rates), *swapped,
            pruned.answer_condition(lvlm, "other_images", told_length, rates, image=TOLD)]


def own_conditions(lvlm, lengths, rates=RATES, few_rates=FEW_RATES) -> list:
    """Those of `conditions` with the sample's own image, which F9 asks for too."""
    return [pruned.answer_condition(lvlm, kind, length,
                                    () if not length else rates if length <= NEAR else few_rates)
            for kind in OTHER_AND_MISLEADING for length in lengths]


def example_conditions(lvlm, length: int = 256) -> list:
    """What the examples are drawn of: one rate, behind a context that lures."""
    return [pruned.answer_condition(lvlm, "misleading", length, (RATE,))]


def image_target(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows about the sample's own image, with `mass`: its share of attention, mean over layers.

    The answer without any context stands at each length as rate 1.
    """
    own = rows[rows["image"] == "own"]
    bare, own = own[own["context_length"] == 0], own[own["context_length"] > 0]
    if bare.empty or own.empty:
        raise VDPError("rows lack the length 0 or any other: measure both, with "
                       "recovery.conditions")
    behind = own[["context_kind", "context_length"]].drop_duplicates().itertuples(index=False)
    own = pd.concat([own, *(bare[bare["context_kind"] == kind].assign(
        context_length=length, rate=1.0) for kind, length in behind)])
    maps = np.stack(own["attention"].to_numpy()).astype(float).reshape(len(own), -1, len(Kind))
    return own.assign(mass=maps[:, :, Kind.IMAGE].mean(1)).reset_index(drop=True)


def dependency(rows: pd.DataFrame) -> pd.DataFrame:
    """One line a question, kind, length and rate: KL(P_own || P_swapped) in nats, and `flip`."""
    rows = with_log_chances(rows)
    own, swapped = (rows[rows["image"] == image].set_index(KEYS) for image in ("own", "swapped"))
    own = own.loc[own.index.intersection(swapped.index)]
    swapped = swapped.loc[own.index]
    return moved(own, swapped).reset_index()


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Each measure with its interval by context kind, length and rate, one line each."""
    by = ["context_kind", "context_length", "rate"]
    return pd.concat([
        stats.by_group(image_target(rows), by, {
            "balanced accuracy": stats.balanced_accuracy, "yes-rate": stats.yes_rate,
            "attention on image": "mass"}),
        stats.by_group(dependency(rows), by, {"KL, swapped": "kl", "flip rate, swapped": "flip"}),
    ], ignore_index=True)


def targets(rows: pd.DataFrame) -> pd.DataFrame:
    """Accuracy by rate where the answer is in the image and where it stands in the context."""
    told = rows[rows["image"] == TOLD]
    length = told["context_length"].iloc[0]
    seen = rows[(rows["image"] == "own") & (rows["context_kind"] == "other_images")
                & (rows["context_length"] == length)]
    both = pd.concat([seen.assign(target="image"), told.assign(target="text")])
    return stats.by_group(both, ["target", "context_length", "rate"], stats.balanced_accuracy)


def tests(rows: pd.DataFrame) -> pd.DataFrame:
    """By context kind, length and rate: what pruning wins and what the context costs, paired.

    `gain` is balanced accuracy with pruning minus without, `cost` that of no context minus all of
    it; p is McNemar's, and Holm's over all lines.
    """
    lines = []
    for (kind, length), part in image_target(rows).groupby(["context_kind", "context_length"],
                                                           sort=True):
        by_rate = dict(iter(part.sort_values(["image_id", "question_id"]).groupby("rate")))
        cost = stats.balanced_accuracy_difference(by_rate[1.0], by_rate[0.0])
        for rate in sorted(set(by_rate) - {0.0, 1.0}):
            gain = stats.balanced_accuracy_difference(by_rate[rate], by_rate[0.0])
            exact = stats.mcnemar(by_rate[rate]["correct"], by_rate[0.0]["correct"])
            lines.append(dict(context_kind=kind, context_length=length, rate=rate,
                              gain=gain.value, low=gain.low, high=gain.high, cost=cost.value,
                              cost_low=cost.low, p=exact.p))
    table = pd.DataFrame(lines)
    return table.assign(p_holm=stats.holm(table["p"]))


def verdict(table: pd.DataFrame, rows: pd.DataFrame) -> Verdict:
    """The verdict by RULE from `tests`; the estimate pools kinds and lengths where context costs.

    Where it costs nowhere, there is nothing to win back: all kinds and lengths are pooled.
    """
    costly = table[table["cost_low"] > 0]
    wins = costly["low"] > 0
    at_rule = wins[costly["rate"] == RATE]
    chosen = set(zip(costly["context_kind"], costly["context_length"]))
    own = image_target(rows)
    behind = list(zip(own["context_kind"], own["context_length"]))
    own["question_id"] = [f"{kind} {length}/{number}"
                          for (kind, length), number in zip(behind, own["question_id"])]
    pooled = own[[not chosen or one in chosen for one in behind]]
    gain: Estimate = stats.balanced_accuracy_difference(
        *(pooled[pooled["rate"] == rate] for rate in (RATE, 0.0)))
    return Verdict(
        "F6", "Pruning the context wins accuracy back",
        stats.judge(len(at_rule) > 0 and bool(at_rule.all()),
                    bool((wins & (costly["p_holm"] < 0.05)).any())),
        f"balanced accuracy at rate {RATE} minus without pruning, where the context costs accuracy",
        gain, gain.n_images, RULE)
