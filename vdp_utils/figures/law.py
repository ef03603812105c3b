"""F11: the best pruning rate against the context's length."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from vdp_utils.figures import style
from vdp_utils.figures.style import MARKERS, PALETTE, WIDE

CHOICES = ("law", "best fixed rate", "no pruning", "oracle")
PANELS = {"image": "answer in the image", "text": "answer in a description\namid the context",
          "both": "mean of both"}


def law(curves: pd.DataFrame, best: pd.DataFrame, laws: pd.DataFrame, use: pd.DataFrame, predicted,
        model: str) -> Figure:
    """F11: accuracy against the rate by target and length; the best rate by variant, and what laws
    say; and what the law's rates are worth on other images.

    `predicted(line, lengths)` gives the rates of a line of `laws`, of which the first two are
    drawn: beyond the shaded lengths, which they were fitted to, they predict.
    """
    figure, axes = plt.subplot_mosaic([[*np.repeat([*PANELS], 2)], ["best"] * 3 + ["use"] * 3],
                                      figsize=(WIDE, 5.4))
    lengths = sorted(curves["context_length"].unique())
    for target, title in PANELS.items():
        for number, length in enumerate(lengths):
            style.curve(axes[target], style.select(curves, context_length=length, target=target),
                        number, "rate", label=f"{length} tokens", shift=0.006 * (number - 2))
        axes[target].set(xlabel="pruning rate", title=title)
        axes[target].set_ylim(curves["low"].min() - 0.02, 1.02)
        axes[target].axhline(0.5, color="0.5", linewidth=0.8, zorder=0)
    axes["image"].set_ylabel("balanced accuracy, the paper's rule")
    axes["image"].annotate("chance", (0.95, 0.5), xytext=(0, 2), textcoords="offset points",
                           fontsize=6, color="0.4", ha="right")
    axes["text"].legend(fontsize=6, title="context length", title_fontsize=6)
    _lengths(axes["best"], lengths)
    for number, (variant, part) in enumerate(best.groupby("variant", sort=False)):
        style.curve(axes["best"], part, number, label=variant, line="none")
        axes["best"].plot(part["context_length"] * (1 + 0.05 * (number - 1)), part["measured"],
                          MARKERS[number], color=PALETTE[number], markerfacecolor="white",
                          markersize=6, zorder=1)
    fine = np.geomspace(lengths[0], lengths[-1], 200)
    for line, look in zip(laws.itertuples(), ("-", "--")):
        axes["best"].plot(fine, predicted(line, fine), look, color="0.3", label=f"law: {line.law}")
    axes["best"].set(ylabel="best pruning rate", ylim=(-0.03, 1.12),
                     title="where the mean's parabola is highest\n(hollow: the best measured rate)")
    _lengths(axes["use"], lengths)
    for number, choice in enumerate(CHOICES):
        style.curve(axes["use"], style.select(use, measure="accuracy", choice=choice), number,
                    label=choice)
    axes["use"].set(ylabel="balanced accuracy, mean of both",
                    title="the paper's rule at rates chosen on\nhalf of the images, judged on the "
                    f"other {use['n_images'].max()}")
    for name in ("best", "use"):
        axes[name].legend(fontsize=6)
    style.title(figure, f"{model}: how much of a misleading context to prune", curves)
    return figure


def _lengths(axes, lengths) -> None:
    """The axis of context lengths, those that laws are fitted to shaded: all but the longest."""
    style.doubling(axes, lengths, "context length (tokens; shaded: the laws' fit)")
    axes.axvspan(lengths[0] / 1.2, lengths[-2] * 1.2, color="0.94", zorder=-1, linewidth=0)
