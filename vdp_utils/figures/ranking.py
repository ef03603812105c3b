"""F7: strategies beside each other, where the answer is in the image and where in the text."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from vdp_utils.figures import style
from vdp_utils.figures.style import MARKERS, PALETTE, TARGETS, WIDE

GROUP_LOOKS = ("the paper's rule", "chance", "published method", "other rule", "control",
               "no pruning")  # in the palette's order


def strategies(scores: pd.DataFrame, cells: pd.DataFrame, model: str) -> Figure:
    """F7: every strategy's mean accuracy over both targets, and its accuracies one by one.

    `scores` and `cells` are those of `findings.ranking`; below stand those that drop image tokens.
    """
    cells = pd.concat([cells.loc["default"].loc[scores["strategy"]],
                       cells.loc["image"].drop("none")])
    values, columns = cells.to_numpy(dtype=float), cells.columns
    places = np.arange(len(values))[::-1]
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDE, 0.18 * len(values) + 1.6),
                                         width_ratios=(1, 1.3), sharey=True)
    for number, group in enumerate(GROUP_LOOKS):
        mine = (scores["group"] == group).to_numpy()
        style.points(left, scores[mine], places[:len(scores)][mine], number, group, capsize=0)
    plain = scores.loc[scores["strategy"] == "none", "value"].item()
    left.axvline(plain, color="0.4", linewidth=0.8, linestyle=":")
    left.set(xlabel="balanced accuracy", title="mean of both targets, all\nlengths and rates "
             "(dotted: no pruning)")
    left.set_yticks(places, [name.replace("_", " ") for name in cells.index])
    right.grid(False)
    right.imshow(values, vmin=0.25, vmax=1, aspect="auto",
                 extent=(-0.5, len(columns) - 0.5, -0.5, len(values) - 0.5))
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            right.text(column, places[row], f"{value:.2f}".removeprefix("0"), ha="center",
                       va="center", fontsize=5, color="white" if value < 0.7 else "black")
    right.set_xticks(range(len(columns)), [f"{style.short(length)}\n{rate:g}"
                                           for _, length, rate in columns])
    each = len(columns) // 2
    right.axvline(each - 0.5, color="white", linewidth=1.5)
    for number, title in enumerate(TARGETS.values()):
        right.text((number + 0.5) / 2, 1.01, title, ha="center", va="bottom", fontsize=6,
                   transform=right.transAxes)
    right.axhline(places[len(scores)] + 0.5, color="white", linewidth=1.5)
    right.set(xlabel="context tokens, pruning rate\n(last lines: rate of the image's tokens)")
    right.set_ylim(-0.6, len(values) - 0.4)
    style.shared_legend(figure, left, columns=6)
    style.title(figure, f"{model}, pruned at equal budget", scores)
    return figure


def two_targets(tables: list[pd.DataFrame], model: str) -> Figure:
    """F7: accuracy in one target against the other, by scoring layer, with the Pareto front.

    `tables` are `findings.ranking.scores` by layer.
    """
    wide, high = (np.ptp(pd.concat(tables)[name]) + 1e-9 for name in ("text", "image"))
    figure, (panels,) = plt.subplots(1, len(tables), figsize=(WIDE, 3.9), sharex=True, sharey=True,
                                     squeeze=False)
    for axes, table in zip(panels, tables):
        front = table[table["pareto_front"]].sort_values("text")
        axes.plot("text", "image", data=front, color="0.4", linewidth=0.9, zorder=0, label="")
        for number, group in enumerate(GROUP_LOOKS):
            part = style.select(table, group=group)
            axes.plot(part["text"], part["image"], MARKERS[number], color=PALETTE[number],
                      markersize=4, label=group)
        axes.margins(0.14, 0.08)
        _named(axes, table, wide, high)
        layer = table["layer"].iloc[0]
        axes.set(xlabel=f"balanced accuracy, {TARGETS['text']}",
                 title="scored at the default layer" if layer == "default" else
                 f"scored at layer {layer}")
    panels[0].set_ylabel(f"balanced accuracy, {TARGETS['image']}")
    style.shared_legend(figure, panels[0], columns=6)
    figure.suptitle(f"{model}, pruned at equal budget, lengths and rates pooled (n = "
                    f"{tables[0]['n_images'].max()} images; line: the Pareto front)")
    return figure


def _named(axes, table: pd.DataFrame, wide: float, high: float) -> None:
    """Names of the Pareto front and of what it is to be compared with, each below those that stand
    where it would; `wide` and `high` are what all panels' points span."""
    placed: list[tuple[float, float, float]] = []
    table = table[table["pareto_front"] | ~table["group"].isin(["published method", "other rule"])]
    for line in table.sort_values(["image", "text"], ascending=False).itertuples():
        name = "no pruning" if line.strategy == "none" else line.strategy.replace("_", " ")
        x, y = line.text + 0.02 * wide, line.image
        end = x + 0.019 * wide * len(name)
        while any(x < b and a < end and abs(y - c) < 0.035 * high for a, b, c in placed):
            y -= 0.005 * high
        placed.append((x, end, y))
        axes.annotate(name, (line.text, line.image), (x, y), fontsize=5, va="center",
                      arrowprops=dict(arrowstyle="-", color="0.7", linewidth=0.4))
