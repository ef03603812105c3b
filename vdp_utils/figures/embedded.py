"""The embedded LVLM: what its images look like, and how it learned."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from vdp_utils.figures.style import PALETTE, WIDE, shared_legend
from vdp_utils.sources.pictures import Item
from vdp_utils.sources.samples import Sample


def _label_box(item: Item, taken: list, size) -> tuple[float, float, float, float]:
    """Room for an item's noun above, below or inside its box, clear of what is `taken`.

    All in pixels of a picture of `size` (width, height).
    """
    (x0, y0, _, y1), dot = item.box, size[0] / 160  # letters of 5 points are 4.2 dots wide
    width, height = (4.2 * len(item.noun) + 2) * dot, 8 * dot
    left = min(x0, size[0] - width)
    places = [(left, top, left + width, top + height)
              for top in (y0 - 9 * dot, y1 + dot, y0 + dot)]
    for place in places:
        if place[1] >= 0 and place[3] <= size[1] and not any(
                place[0] < box[2] and box[0] < place[2] and place[1] < box[3]
                and box[1] < place[3] for box in taken if box != item.box):
            return place
    return places[-1]


def gallery(samples: list[Sample], columns: int = 4) -> Figure:
    """Pictures with the boxes and nouns of their objects."""
    lines = -(-len(samples) // columns)
    figure, panels = plt.subplots(lines, columns, figsize=(WIDE, 1.85 * lines), squeeze=False)
    for axes in panels.flat:
        axes.axis("off")
    for axes, sample in zip(panels.flat, samples):
        image, picture = sample.image(), sample.picture
        axes.imshow(image, extent=(0, image.width, image.height, 0))
        boxes = [item.box for item in picture.items]
        for item in picture.items:
            x0, y0, x1, y1 = item.box
            axes.add_patch(plt.Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, linewidth=0.7,
                                         edgecolor="black"))
            label = _label_box(item, boxes, image.size)
            boxes.append(label)
            axes.text(label[0] + 1, (label[1] + label[3]) / 2, item.noun, fontsize=5, va="center",
                      bbox=dict(facecolor="white", edgecolor="none", pad=0.3, alpha=0.8))
        axes.set_title(picture.caption, fontsize=7)
    return figure


def training_curves(log: pd.DataFrame) -> Figure:
    """Held-out metrics against the images trained on, one panel a stage."""
    labels = {"tower": "tower", "projector": "projector", "oracle": "on true nouns",
              "naming": "naming", "joint": "joint", "further": "joint again",
              "distances": "distances"}
    shown = {"object_patch_accuracy": "object patches", "image_presence": "presence, image",
             "text_presence": "presence, text", "image_position": "position, image",
             "blank_presence": "presence, blank image", "image_naming": "naming, tokens right",
             "image_gap_2048": "presence, image, gap 2048",
             "text_gap_2048": "presence, text, gap 2048"}
    stages = list(log["stage"].unique())
    figure, (panels,) = plt.subplots(1, len(stages), figsize=(WIDE, 2.7), sharey=True,
                                     squeeze=False)
    looks = {metric: dict(label=label, color=colour, marker=marker, markersize=2.5)
             for (metric, label), colour, marker in zip(shown.items(), PALETTE, "osD^vPX*")}
    for axes, stage in zip(panels, stages):
        part = log[(log["stage"] == stage) & log["metric"].isin(shown)]
        for metric, curve in part.groupby("metric"):
            axes.plot(curve["samples"] / 1000, curve["value"], **looks[metric])
        axes.set(title=labels[stage], ylim=(0, 1.02))
    panels[0].set_ylabel("held-out accuracy")
    panels[len(stages) // 2].set_xlabel("images trained on (thousands)")
    shared_legend(figure, *panels, columns=3)
    return figure
