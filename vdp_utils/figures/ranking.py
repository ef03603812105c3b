"""F7: strategies beside each other, and the paper's rule taken apart."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from vdp_utils.figures import style
from vdp_utils.figures.style import MARKERS, PALETTE, WIDE

GROUP_LOOKS = ("the paper's rule", "chance", "published method", "other rule", "control",
               "drops the image")  # in the palette's order


def strategies(tests: pd.DataFrame, cells: pd.DataFrame, difference: float, model: str) -> Figure:
    """F7: every strategy's gain, its accuracy by length and rate, and its mean rank.

    `tests` and `cells` are those of `findings.ranking`, `difference` the critical difference.
    """
    places = np.arange(len(tests))[::-1]
    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(WIDE, 0.19 * len(tests) + 1.4), width_ratios=(1.2, 1.5, 1), sharey=True)
    for number, group in enumerate(GROUP_LOOKS):
        mine = (tests["group"] == group).to_numpy()
        part = tests[mine]
        style.gains(left, part, places[mine], number, group)
        right.plot(part["mean_rank"], places[mine], MARKERS[number], color=PALETTE[number])
    left.axvline(0, color="0.4", linewidth=0.8)
    chance = tests.loc[tests["strategy"] == "random", "gain"]
    left.axvline(chance.item(), color="0.4", linewidth=0.8, linestyle=":")
    left.set(xlabel="gain over no pruning", title="balanced accuracy won\n(dotted: random tokens)")
    left.set_yticks(places, tests["strategy"])
    values = cells.loc[tests["strategy"]].to_numpy()
    columns = cells.columns
    middle.grid(False)
    middle.imshow(values, vmin=0.25, vmax=1, aspect="auto",
                  extent=(-0.5, len(columns) - 0.5, -0.5, len(tests) - 0.5))
    for (row, column), value in np.ndenumerate(values):
        middle.text(column, places[row], f"{value:.2f}".removeprefix("0"), ha="center",
                    va="center", fontsize=5, color="white" if value < 0.7 else "black")
    middle.set_xticks(range(len(columns)), [f"{rate:g}" for _, rate in columns])
    lengths, each = columns.unique(0), len(columns) // len(columns.unique(0))
    for number in range(1, len(lengths)):
        middle.axvline(number * each - 0.5, color="white", linewidth=1.5)
    middle.set(xlabel="pruning rate", title="balanced accuracy\n" + ",   ".join(
        f"{n}" for n in lengths) + " tokens")
    for number, ends in enumerate(_cliques(tests["mean_rank"].to_numpy(), difference)):
        at = tests["mean_rank"].max() + 1 + 0.7 * (number % 4)
        right.plot([at, at], places[list(ends)], color="0.3", linewidth=1.5)
    right.set(xlabel="mean rank (1 is best)",
              title=f"bars: not told apart\n(critical difference {difference:.1f})")
    right.set_ylim(-0.7, len(tests) - 0.3)
    style.shared_legend(figure, left, columns=6)
    figure.suptitle(f"{model}, pruned at equal budget (n = {tests['n_images'].max()} images, "
                    "95 % intervals)", fontsize=8)
    return figure


def _cliques(ranks: np.ndarray, difference: float) -> list[tuple[int, int]]:
    """Longest runs (first, last) of ascending ranks whose ends differ less than `difference`."""
    runs, last = [], -1
    for start in range(len(ranks)):
        stop = int(np.searchsorted(ranks, ranks[start] + difference)) - 1
        if stop > max(last, start):
            runs.append((start, stop))
            last = stop
    return runs


def ablations(table: pd.DataFrame, model: str) -> Figure:
    """F7: the gain over no pruning with one choice of the paper's rule changed."""
    groups = list(dict.fromkeys(table["group"]))
    rows = table.groupby("group", sort=False).ngroup() * 0.6 + np.arange(len(table))
    figure, axes = plt.subplots(figsize=(WIDE, 0.17 * rows.max() + 0.9))
    for number, group in enumerate(groups):
        mine = table["group"] == group
        style.gains(axes, table[mine], -rows[mine], number, group)
    for line, row in zip(table.itertuples(), rows):
        if line.behind_p < 0.05:
            axes.annotate("*", (line.gain_high, -row), xytext=(4, -4), textcoords="offset points")
    axes.axvline(0, color="0.4", linewidth=0.8)
    axes.axvline(table["gain"].iloc[0], color="0.4", linewidth=0.8, linestyle=":")
    axes.set_yticks(-rows, table["setting"])
    axes.set(xlabel="balanced accuracy won over no pruning")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set_title(f"{model}, {table['context_length'].iloc[0]} context tokens, "
                   f"rate {table['rate'].iloc[0]:g} "
                   f"(n = {table['n_images'].max()} images, 95 % intervals; *: differs from the "
                   "dotted rule, Holm p < 0.05)", fontsize=7)
    return figure
