"""F2: the image beside a text description of the scene."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from vdp_utils.figures import style
from vdp_utils.figures.style import KINDS, WIDE

VERSIONS = {  # image -> (label, marker, line)
    "own": ("image", "o", "-"),
    "text": ("text description, before the context", "s", "--"),
    "text_middle": ("in its middle", "D", "-."),
    "text_last": ("after it", "^", ":"),
}


def text_control(summary: pd.DataFrame, places: pd.DataFrame, cells: pd.DataFrame,
                 trained: int | None, model: str) -> Figure:
    """F2: accuracy with image and with text description, by kind; where the description stands.

    Of `cells`, those that do not count are hatched. The last panel is that of `places`; without
    any, there is none.
    """
    kinds = [kind for kind in KINDS if kind in set(summary["context_kind"])]
    figure, panels = plt.subplots(1, len(kinds) + (not places.empty), figsize=(WIDE, 2.7),
                                  sharey=True, squeeze=False)
    panels = panels[0]
    lengths = sorted(summary["context_length"].unique())
    for axes, kind in zip(panels, kinds):
        for image, part in summary[summary["context_kind"] == kind].groupby("image", sort=True):
            _curve(axes, part, image)
        limited = cells[(cells["context_kind"] == kind) & (cells["limit"] != "")]
        style.left_out(axes, limited["context_length"])
        axes.set_title(KINDS[kind][0])
    if not places.empty:
        for image, part in places.groupby("image", sort=True):
            _curve(panels[-1], part, image)
        panels[-1].set_title("where the description stands")
    for axes in panels:
        style.length_axis(axes, lengths, trained)
        style.chance_line(axes, lengths)
    panels[0].set_ylabel("balanced accuracy")
    style.trained_note(panels[0], trained)
    style.shared_legend(figure, *panels, columns=3)
    figure.suptitle(f"{model}: the same questions about the same scenes "
                    f"(n = {summary['n_images'].max()} images, 95 % intervals over images)",
                    fontsize=8)
    return figure


def _curve(axes, part: pd.DataFrame, image: str) -> None:
    label, marker, line = VERSIONS[image]
    style.curve(axes, part, list(VERSIONS).index(image), marker=marker, line=line, label=label)
