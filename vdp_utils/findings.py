"""What each notebook asks of its rows: a summary table, and a verdict by a rule set beforehand."""

import json
from pathlib import Path

import pandas as pd

from vdp_utils import stats
from vdp_utils.stats import Estimate, Verdict

KINDS = ("same", "other", "mentions")
MEASURES = {
    "balanced accuracy": stats.balanced_accuracy,
    "yes-rate": stats.yes_rate,
    "answer margin (nats)": lambda rows: stats.mean_estimate(rows, "margin"),
}
DECLINE_RULE = (
    "For each context kind: the drop in balanced accuracy from the shortest to the longest "
    "context has a 95 % BCa interval above 0, and accuracy has a falling trend over all lengths "
    "(sign-flip test over images, p < 0.05 after Holm over the kinds). Reproduced if this holds "
    "for every kind, partly if for at least one, else not reproduced.")


def decline_summary(rows: pd.DataFrame) -> pd.DataFrame:
    """F1: each measure with its interval by context kind and length, one line each."""
    lines = []
    for (kind, length), part in rows.groupby(["context_kind", "context_length"], sort=True):
        for name, estimate in MEASURES.items():
            lines.append(dict(context_kind=kind, context_length=length, measure=name,
                              **vars(estimate(part))))
    return pd.DataFrame(lines)


def _ends(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows at the shortest and at the longest context; kinds kept apart as questions."""
    rows = rows.assign(question_id=rows["context_kind"] + "/" + rows["question_id"])
    length = rows["context_length"]
    return rows[length == length.min()], rows[length == length.max()]


def decline_tests(rows: pd.DataFrame) -> pd.DataFrame:
    """F1: by context kind, the paired drop from shortest to longest context and the trend."""
    lines = []
    for kind, part in rows.groupby("context_kind", sort=True):
        drop, trend = stats.balanced_accuracy_difference(*_ends(part)), stats.trend(part)
        lines.append(dict(context_kind=kind, drop=drop.value, low=drop.low, high=drop.high,
                          slope_per_doubling=trend.slope.value, p=trend.p))
    table = pd.DataFrame(lines)
    return table.assign(p_holm=stats.holm(table["p"]))


def decline_verdict(rows: pd.DataFrame) -> Verdict:
    """F1 by DECLINE_RULE; the estimate is the paired drop over all kinds together."""
    tests = decline_tests(rows)
    falls = (tests["low"] > 0) & (tests["slope_per_doubling"] < 0) & (tests["p_holm"] < 0.05)
    drop: Estimate = stats.balanced_accuracy_difference(*_ends(rows))
    shortest, longest = rows["context_length"].min(), rows["context_length"].max()
    return Verdict(
        "F1", "Accuracy on image questions falls as the text context grows",
        stats.judge(bool(falls.all()), bool(falls.any())),
        f"drop in balanced accuracy from {shortest} to {longest} context tokens",
        drop, drop.n_images, DECLINE_RULE)


def table(summary: pd.DataFrame, measure: str) -> pd.DataFrame:
    """A summary's measure as text with intervals: one line a length, one column a kind."""
    part = summary[summary["measure"] == measure]
    texts = [str(Estimate(*line)) for line in part[list(Estimate.__match_args__)].to_numpy()]
    return part.assign(text=texts).pivot(index="context_length", columns="context_kind",
                                         values="text")


def save_verdict(verdict: Verdict, folder: str | Path) -> None:
    """Write the verdict to `folder/<finding>_verdict.json`, from which the README's table comes."""
    path = Path(folder) / f"{verdict.finding}_verdict.json"
    path.write_text(json.dumps(verdict.to_row(), indent=2) + "\n")
