"""F4: recall against the asked object's share of the image."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from vdp_utils.figures import style
from vdp_utils.figures.style import KINDS, LINES, PALETTE, WIDE


def proportion(summary: pd.DataFrame, curves: pd.DataFrame, lengths, model: str) -> Figure:
    """F4: recall against the asked object's share of the image, by context kind and length."""
    kinds = [kind for kind in KINDS if kind in set(summary["context_kind"])]
    figure, panels = plt.subplots(1, len(kinds), figsize=(WIDE, 2.7), sharey=True,
                                  layout="constrained", squeeze=False)
    for axes, kind in zip(panels[0], kinds):
        for number, length in enumerate(lengths):
            part, curve = (rows[(rows["context_kind"] == kind) & (rows["context_length"] == length)]
                           for rows in (summary, curves))
            axes.plot(100 * curve["share"], curve["recall"], LINES[number % 4],
                      color=PALETTE[number], linewidth=1)
            style.curve(axes, part.assign(percent=100 * part["share"]), number, "percent",
                        line="none", label=f"{length} context tokens")
        axes.set_xscale("log")
        axes.set_xticks([1, 2, 5, 10, 20, 40], ["1", "2", "5", "10", "20", "40"])
        axes.minorticks_off()
        axes.set_ylim(-0.02, 1.02)
        axes.set_title(KINDS[kind][0])
        axes.set_xlabel("share of the image (%)")
    panels[0][0].set_ylabel("recall: 'yes' where it is there")
    style.shared_legend(figure, panels[0][0])
    figure.suptitle(f"{model}: points are bins of the questions by share (95 % intervals), "
                    f"curves the logistic regression (n = {summary['images'].max()} images)",
                    fontsize=8)
    return figure
