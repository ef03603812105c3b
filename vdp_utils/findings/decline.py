"""F1: accuracy on image questions falls as the text context grows."""

import pandas as pd

from vdp_utils import stats
from vdp_utils.stats import Estimate, Verdict

MEASURES = {
    "balanced accuracy": stats.balanced_accuracy,
    "yes-rate": stats.yes_rate,
    "answer margin (nats)": "margin",
}
RULE = (
    "For each context kind: the drop in balanced accuracy from the shortest to the longest "
    "context has a 95 % BCa interval above 0, and accuracy has a falling trend over all lengths "
    "(sign-flip test over images, p < 0.05 after Holm over the kinds). Reproduced if this holds "
    "for every kind, partly if for at least one, else not reproduced.")


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Each measure with its interval by context kind and length, one line each."""
    return stats.by_group(rows, ["context_kind", "context_length"], MEASURES)


def ends(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows at the shortest and at the longest context; kinds kept apart as questions."""
    rows = rows.assign(question_id=rows["context_kind"] + "/" + rows["question_id"])
    length = rows["context_length"]
    return rows[length == length.min()], rows[length == length.max()]


def tests(rows: pd.DataFrame) -> pd.DataFrame:
    """By context kind, the paired drop from shortest to longest context and the trend."""
    lines = []
    for kind, part in rows.groupby("context_kind", sort=True):
        drop, trend = stats.balanced_accuracy_difference(*ends(part)), stats.trend(part)
        lines.append(dict(context_kind=kind, drop=drop.value, low=drop.low, high=drop.high,
                          slope_per_doubling=trend.slope.value, p=trend.p))
    table = pd.DataFrame(lines)
    return table.assign(p_holm=stats.holm(table["p"]))


def verdict(rows: pd.DataFrame) -> Verdict:
    """The verdict by RULE; the estimate is the paired drop over all kinds together."""
    table = tests(rows)
    falls = (table["low"] > 0) & (table["slope_per_doubling"] < 0) & (table["p_holm"] < 0.05)
    drop: Estimate = stats.balanced_accuracy_difference(*ends(rows))
    shortest, longest = rows["context_length"].min(), rows["context_length"].max()
    return Verdict(
        "F1", "Accuracy on image questions falls as the text context grows",
        stats.judge(bool(falls.all()), bool(falls.any())),
        f"drop in balanced accuracy from {shortest} to {longest} context tokens",
        drop, drop.n_images, RULE)
