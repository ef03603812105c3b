"""F2: the image beside the scene told in words."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from vdp_utils.figures import style
from vdp_utils.figures.style import KINDS, WIDE

TOLD = {  # image -> (label, marker, line)
    "own": ("scene as an image", "o", "-"),
    "text": ("scene in words, before the context", "s", "--"),
    "text_middle": ("in its middle", "D", "-."),
    "text_last": ("after it", "^", ":"),
}


def text_control(summary: pd.DataFrame, places: pd.DataFrame, trained: int | None, model: str
                 ) -> Figure:
    """F2: accuracy with the image and with the scene in words, by kind; where the words stand.

    The last panel is that of `places`; without any, there is none.
    """
    kinds = [kind for kind in KINDS if kind in set(summary["context_kind"])]
    figure, panels = plt.subplots(1, len(kinds) + (not places.empty), figsize=(WIDE, 2.7),
                                  sharey=True, squeeze=False)
    panels = panels[0]
    lengths = sorted(summary["context_length"].unique())
    for axes, kind in zip(panels, kinds):
        for image, part in summary[summary["context_kind"] == kind].groupby("image", sort=True):
            _told(axes, part, image)
        axes.set_title(KINDS[kind][0])
    if not places.empty:
        for image, part in places.groupby("image", sort=True):
            _told(panels[-1], part, image)
        panels[-1].set_title("where the words stand (other)")
    for axes in panels:
        style.length_axis(axes, lengths, trained)
        style.chance_line(axes, lengths)
    panels[0].set_ylabel("balanced accuracy")
    style.trained_note(panels[0], trained)
    style.shared_legend(figure, panels[0], panels[-1])
    figure.suptitle(f"{model}: the same questions about the same scenes "
                    f"(n = {summary['n_images'].max()} images, 95 % intervals over images)",
                    fontsize=8)
    return figure


def _told(axes, part: pd.DataFrame, image: str) -> None:
    label, marker, line = TOLD[image]
    style.curve(axes, part, list(TOLD).index(image), marker=marker, line=line, label=label)
