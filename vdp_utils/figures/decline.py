"""F1: accuracy against context length."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from vdp_utils import stats
from vdp_utils.figures import style
from vdp_utils.figures.style import KINDS, WIDE


def decline(summary: pd.DataFrame, trained: int | None, model: str) -> Figure:
    """F1: accuracy, yes-rate and answer margin against context length, by context kind.

    Accuracies at chance are hollow.
    """
    measures = list(summary["measure"].unique())
    figure, panels = plt.subplots(1, len(measures), figsize=(WIDE, 2.6))
    lengths = sorted(summary["context_length"].unique())
    for axes, name in zip(panels, measures):
        chance = stats.CHANCE if name == "balanced accuracy" else None
        for kind, part in style.select(summary, measure=name).groupby("context_kind", sort=False):
            label, marker, line = KINDS[kind]
            style.curve(axes, part, list(KINDS).index(kind), marker=marker, line=line, label=label,
                        chance=chance)
        style.length_axis(axes, lengths, trained)
        axes.set_title(name)
        if chance:
            style.chance_line(axes, lengths)
            style.trained_note(axes, trained)
        if name == "yes-rate":
            axes.axhline(0.5, color="0.6", linewidth=0.8, zorder=0)
            axes.set_ylim(0, 1)
    style.shared_legend(figure, panels[0])
    style.title(figure, f"{model}: presence questions after a text context", summary,
                "95 % intervals over images; hollow: at chance")
    return figure
