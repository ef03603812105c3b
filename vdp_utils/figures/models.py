"""F10: models side by side that differ in depth, or in what their training saw."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from vdp_utils.figures import style
from vdp_utils.figures.style import MARKERS, PALETTE, WIDE

SAW = {  # model -> how far from its question training saw what is asked about, in tokens
    "embedded-s-short": "text to 512, image to 512", "embedded-s": "text to 4096, image to 512",
    "embedded-s-seed1": "as embedded-s, another run",
    "embedded-m": "as embedded-s, twice the layers",
    "embedded-s-far": "text to 4096, image to 4096"}
BETWEEN = {"gap": "distance,\nno text", "near": "text,\nno distance",
           "same_image": "text about\nthis image", "other_images": "text about\nother images",
           "misleading": "text that\nmisleads"}
VERSIONS = {"own": "image", "text": "text description"}


def _ordered(found) -> list[str]:
    """Models by what their training saw, then others as they come."""
    return [*(name for name in SAW if name in set(found)), *dict.fromkeys(
        name for name in found if name not in SAW)]


def _grid(table: pd.DataFrame, height: float):
    """The figure, its panels, an axes and the lines of a table by (image or description, what
    stands between), and the lowest axes of each column."""
    columns = [name for name in BETWEEN if name in set(table["between"])]
    figure, panels = plt.subplots(2, len(columns), figsize=(WIDE, height), sharex=True, sharey=True,
                                  squeeze=False)
    cells = dict(iter(table.groupby(["image", "between"], sort=False)))
    found = {}
    for line, image in zip(panels, VERSIONS):
        for axes, between in zip(line, columns):
            if image == "own":
                axes.set_title(BETWEEN[between])
            if (image, between) in cells:
                found[image, between] = axes, cells[image, between]
            else:  # not asked: the description of this image after talk about it
                axes.axis("off")
                panels[0][columns.index(between)].tick_params(labelbottom=True)
    bottom = {between: axes for (_, between), (axes, _) in found.items()}  # of each column
    return figure, panels, found, bottom


def side_by_side(summary: pd.DataFrame) -> Figure:
    """F10: accuracy by length, a curve a model, for the image and its description."""
    names, lengths = _ordered(summary["model"]), sorted(summary["context_length"].unique())
    figure, panels, cells, bottom = _grid(summary, 4.2)
    for axes, part in cells.values():
        for number, name in enumerate(names):
            label = f"{name}: {SAW[name]}" if name in SAW else name
            style.curve(axes, style.select(part, model=name), number, label=label, spread=0.03)
        style.length_axis(axes, lengths, None)
        style.chance_line(axes, lengths)
        axes.set_xlabel("")
    for line, version in zip(panels, VERSIONS.values()):
        line[0].set_ylabel(f"{version}\nbalanced accuracy")
    for between, axes in bottom.items():
        axes.set_xlabel("positions" if between == "gap" else "context tokens")
    panels[0][0].set_ylim(min(0.4, summary["low"].min() - 0.03), 1.03)
    style.shared_legend(figure, panels[0][0], columns=2)
    figure.suptitle("Presence questions after distance, text, or both "
                    f"(n = {summary['n_images'].max()} images, 95 % intervals)\nBelow: how many "
                    "tokens off its question training saw the text, and the image")
    return figure


def depth_or_training(table: pd.DataFrame, longest: int) -> Figure:
    """F10: how much less each model loses than one, and than another run of its training."""
    runs = list(dict.fromkeys(table["reference"]))
    table = table[table["model"] != runs[0]]
    names = _ordered(table["model"])
    figure, panels, cells, bottom = _grid(table, 0.5 * len(names) + 1.8)
    for axes, part in cells.values():
        for number, run in enumerate(runs):
            some = style.select(part, reference=run)
            places = some["model"].map(names.index) + 0.22 * (number - (len(runs) - 1) / 2)
            style.points(axes, some, places, number, f"beside {run}", "effect")
        axes.axvline(0, color="0.5", linewidth=0.8)
    panels[0][0].set_yticks(range(len(names)), names)
    panels[0][0].set_ylim(len(names) - 0.4, -0.6)
    for line, version in zip(panels, VERSIONS.values()):
        line[0].set_ylabel(version)
    for axes in bottom.values():
        axes.set_xlabel("loses more | less")
    style.shared_legend(figure, panels[0][0])
    style.title(figure, f"Loss of balanced accuracy from 0 to {longest}: another model's minus "
                "each one's", table)
    return figure


def pruning_gain(table: pd.DataFrame, rate: float) -> Figure:
    """F10: what pruning wins back on each model, of what the context costs."""
    names, lengths = _ordered(table["model"]), sorted(table["context_length"].unique())
    kinds = style.kinds_of(table)
    figure, (panels,) = plt.subplots(1, len(kinds), figsize=(WIDE, 0.4 * len(names) + 1.5),
                                     sharex=True, sharey=True, squeeze=False)
    for axes, kind in zip(panels, kinds):
        for number, length in enumerate(lengths):
            part = style.select(table, context_kind=kind, context_length=length)
            places = part["model"].map(names.index) + 0.26 * (number - (len(lengths) - 1) / 2)
            style.points(axes, part, places, number, f"gain, {length} context tokens", "effect",
                         capsize=0)
            aside = part["limit"] != ""
            axes.plot(part["effect"][aside], places[aside], MARKERS[number], zorder=3,
                      color=PALETTE[number], markerfacecolor="white")
            axes.plot(part["cost"], places, "|", color="0.3", markersize=8, zorder=1,
                      label="what the context costs" if number == 0 else None)
        axes.axvline(0, color="0.5", linewidth=0.8)
        axes.set(title=f"{style.brief(kind)} context", xlabel="balanced accuracy won back")
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    style.shared_legend(figure, panels[0])
    style.title(figure, f"Pruning at rate {rate}, positions closed up", table,
                "95 % intervals; hollow: no significant cost")
    return figure
