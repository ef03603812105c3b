"""F8: what theory says of pruned attention, and what was measured."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from vdp_utils.figures import style
from vdp_utils.figures.style import MARKERS, PALETTE, WIDE


def concentration(table: pd.DataFrame, layers: pd.DataFrame, model: str) -> Figure:
    """F8: gain in visual mass by layer, predicted and measured; entropy; how well (a) predicts.

    `table` is `findings.concentration.tests`, `layers` its `by_layer`.
    """
    gains, falls = (style.select(table, measure=name)
                    for name in ("attention on the image", "entropy"))
    lengths = sorted(table["context_length"].unique())
    figure, panels = plt.subplots(len(lengths), 3, figsize=(WIDE, 2.1 * len(lengths) + 0.7),
                                  squeeze=False, sharex="col")
    rates = sorted(table["rate"].unique())
    for line, length in zip(panels, lengths):
        for number, rate in enumerate(rates):
            for axes, part in zip(line, (gains, falls)):
                part = style.select(part, context_length=length, rate=rate)
                axes.plot(part["layer"], part["predicted"], ":", color=PALETTE[number],
                          linewidth=0.9)
                style.curve(axes, part.rename(columns=dict(effect="value")), number, "layer",
                            label=f"rate {rate}", shift=0.06 * (number - 1.5))
            some = style.select(layers, later=True, context_length=length, rate=rate)
            means = some.groupby("layer")[["predicted", "after"]].mean()
            line[2].plot(means["predicted"], means["after"], MARKERS[number], color=PALETTE[number],
                         markersize=3.5)
        for axes in line[:2]:
            axes.axhline(0, color="0.4", linewidth=0.8)
            axes.set_xticks(sorted(table["layer"].unique()))
        ends = (5e-4, 1)
        line[2].plot(ends, ends, color="0.4", linewidth=0.8)
        line[2].set(xscale="log", yscale="log", xlim=ends, ylim=ends)
        line[0].set_ylabel(f"{length} context tokens\ngain in attention on image")
        line[1].set_ylabel("fall of entropy (nats)")
        line[2].set_ylabel("measured")
    for axes, title in zip(panels[0], ("dotted: queries, keys held fixed",
                                       "higher: more concentrated",
                                       "attention on the image, by layer")):
        axes.set_title(title)
    for axes, label in zip(panels[-1], ("layer", "layer", "predicted by (a)")):
        axes.set_xlabel(label)
    style.shared_legend(figure, panels[0][0])
    style.title(figure, f"{model}: attention of the answer position, before and after pruning",
                table)
    return figure
