"""F4: recall against the asked object's share of the image."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from vdp_utils.figures import style
from vdp_utils.figures.style import KINDS, LINES, PALETTE, WIDE


def proportion(summary: pd.DataFrame, curves: pd.DataFrame, lengths, model: str) -> Figure:
    """F4: recall against the asked object's share, by context kind and length, with the
    psychometric functions fitted to it; below, what these miss of each bin."""
    kinds = style.kinds_of(summary)
    figure, panels = plt.subplots(2, len(kinds), figsize=(WIDE, 4), sharex=True, sharey="row",
                                  height_ratios=(2, 1), squeeze=False)
    for (axes, missed), kind in zip(panels.T, kinds):
        for number, length in enumerate(lengths):
            part, curve = (style.select(rows, context_kind=kind, context_length=length)
                           for rows in (summary, curves))
            axes.plot(100 * curve["share"], curve["recall"], LINES[number % 4],
                      color=PALETTE[number], linewidth=1)
            points = part.assign(percent=100 * part["share"])
            style.curve(axes, points, number, "percent", line="none",
                        label=f"{length} context tokens")
            for name in ("value", "low", "high"):
                points[name] -= points["expected"]
            style.curve(missed, points, number, "percent", line="none")
        missed.axhline(0, color="0.4", linewidth=0.8)
        axes.set(ylim=(-0.02, 1.02), title=KINDS[kind][0])
        missed.set_xlabel("share of the image (%)")
    panels[0][0].set_xscale("log")
    panels[0][0].set_xticks([1, 2, 5, 10, 20, 40], ["1", "2", "5", "10", "20", "40"])
    for axes in panels.flat:
        axes.minorticks_off()
    panels[0][0].set_ylabel("recall: 'yes' where it is there")
    panels[1][0].set_ylabel("recall - curve")
    style.shared_legend(figure, panels[0][0])
    figure.suptitle(f"{model}: points are bins of the questions by share (95 % intervals), curves "
                    f"psychometric functions (n = {summary['images'].max()} images)")
    return figure
