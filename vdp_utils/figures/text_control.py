"""F2: the image beside a text description of the scene."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from vdp_utils.figures import style
from vdp_utils.figures.style import KINDS, WIDE

VERSIONS = {"own": "image", "text": "text description, before the context",
            "text_middle": "in its middle", "text_last": "after it"}


def text_control(summary: pd.DataFrame, places: pd.DataFrame, cells: pd.DataFrame,
                 trained: int | None, model: str) -> Figure:
    """F2: accuracy with image and with text description, by kind; where the description stands.

    Of `cells`, those that do not count are hatched. The last panel is that of `places`; without
    any, there is none.
    """
    kinds = style.kinds_of(summary)
    figure, (panels,) = plt.subplots(1, len(kinds) + (not places.empty), figsize=(WIDE, 2.7),
                                     sharey=True, squeeze=False)
    lengths = sorted(summary["context_length"].unique())
    for axes, kind in zip(panels, kinds):
        _curves(axes, style.select(summary, context_kind=kind))
        limited = cells[(cells["context_kind"] == kind) & (cells["limit"] != "")]
        for number, length in enumerate(limited["context_length"]):
            axes.axvspan(length / 2**0.5, length * 2**0.5, facecolor="0.93", edgecolor="0.75",
                         hatch="////", linewidth=0, zorder=-1,
                         label=None if number else "does not count: floor or ceiling")
        axes.set_title(KINDS[kind][0])
    if not places.empty:
        _curves(panels[-1], places)
        panels[-1].set_title("where the description stands")
    for axes in panels:
        style.length_axis(axes, lengths, trained)
        style.chance_line(axes, lengths)
    panels[0].set_ylabel("balanced accuracy")
    style.trained_note(panels[0], trained)
    style.shared_legend(figure, *panels, columns=3)
    style.title(figure, f"{model}: the same questions about the same scenes", summary,
                "95 % intervals over images")
    return figure


def _curves(axes, table: pd.DataFrame) -> None:
    for image, part in table.groupby("image"):
        style.curve(axes, part, list(VERSIONS).index(image), label=VERSIONS[image])
