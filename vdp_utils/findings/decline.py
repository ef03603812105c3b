"""F1: accuracy on image questions falls as the text context grows."""

import pandas as pd

from vdp_utils import stats
from vdp_utils.findings import estimates
from vdp_utils.stats import Verdict

MEASURES = {
    "balanced accuracy": stats.balanced_accuracy,
    "yes-rate": stats.yes_rate,
    "answer margin (nats)": "margin",
}
SMALLEST = 0.05  # of balanced accuracy
RULE = (
    "Effect: balanced accuracy without a context minus that after the longest one, on the same "
    "questions. Cells: the context kinds. At floor: chance without a context (the interval holds "
    f"0.5), so that there is nothing to lose. Smallest effect of interest: {SMALLEST}. "
    + stats.SCHEME)


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Each measure with its interval by context kind and length, one line each."""
    return stats.by_group(rows, ["context_kind", "context_length"], MEASURES)


def ends(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows at the shortest and at the longest context."""
    length = rows["context_length"]
    return rows[length == length.min()], rows[length == length.max()]


def tests(rows: pd.DataFrame) -> pd.DataFrame:
    """By context kind: the drop of balanced accuracy from no context to the longest one."""
    lines = []
    for kind, part in rows.groupby("context_kind", sort=True):
        near, far = ends(part)
        at_floor = stats.limit(stats.balanced_accuracy(near)) == "floor"
        lines.append(dict(context_kind=kind, context_length=part["context_length"].max())
                     | stats.accuracy_test((1, near), (-1, far)).columns()
                     | dict(limit="floor" if at_floor else ""))
    return stats.family(pd.DataFrame(lines))


def beside(rows: pd.DataFrame, trained: int | None) -> pd.DataFrame:
    """What the rule does not ask for, by context kind, with intervals.

    The drop to the longest context within the trained length, where that is known and some are,
    and the change of accuracy per doubling of the length, over all lengths.
    """
    measures = {"change per doubling": lambda part: stats.trend(part).effect}
    known = rows["context_length"][rows["context_length"] <= (trained or 0)]
    if known.nunique() > 1:
        measures = {f"drop to {known.max()} tokens": lambda part: (
            stats.balanced_accuracy_difference(
                *ends(part[part["context_length"] <= trained])))} | measures
    return stats.by_group(rows, ["context_kind"], measures)


def verdict(table: pd.DataFrame) -> Verdict:
    """The verdict by RULE from `tests`; the estimates are its effects."""
    return Verdict(
        "F1", "Accuracy on image questions falls as the text context grows",
        stats.judge(table, SMALLEST),
        f"drop in balanced accuracy from 0 to {table['context_length'].max()} context tokens",
        estimates(table), RULE)
