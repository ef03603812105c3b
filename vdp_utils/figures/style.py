"""The one look of the study's figures, and how they are saved: PNG and PDF, the same each time."""

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

WIDTH, WIDE = 3.25, 6.75  # inches: one and two columns
STYLE = Path(__file__).with_name("vdp.mplstyle")
KINDS = {  # context kind -> (label, marker, line): colour is never the only difference
    "same_image": ("same image", "o", "-"),
    "other_images": ("other images", "s", "--"),
    "misleading": ("misleading: affirms absent objects", "^", "-."),
    "prose": ("running prose", "D", ":"),
    "repeated": ("one sentence, repeated", "v", (0, (5, 1, 1, 1, 1, 1))),
}
PALETTE = sns.color_palette("colorblind")
COLOURS = dict(zip(KINDS, PALETTE))
MARKERS, LINES = "osD^vPX", ("-", "--", "-.", ":")
matplotlib.style.use(STYLE)


def save(figure: Figure, folder: str | Path, name: str) -> Figure:
    """Write `folder/name.png` and `.pdf`, byte-identical for the same figure."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.png", metadata={"Software": None})
    figure.savefig(folder / f"{name}.pdf", metadata={"CreationDate": None, "Creator": None,
                                                     "Producer": None})
    return figure


def curve(axes, part: pd.DataFrame, number: int = 0, x: str = "context_length", color=None,
          marker=None, line=None, label=None, spread: float = 0.05, chance=None) -> None:
    """A line of estimates with their intervals; `number` moves it aside, so that all stay readable.

    `part` has the columns `x`, value, low and high. Points at `chance`, whose interval holds that
    value, are hollow.
    """
    part = part.sort_values(x)
    places, marker = part[x] * (1 + spread * (number - 1)), marker or MARKERS[number]
    drawn = axes.errorbar(places, part["value"],
                          [(part["value"] - part["low"]).clip(lower=0),
                           (part["high"] - part["value"]).clip(lower=0)],
                          label=label, color=PALETTE[number] if color is None else color,
                          marker=marker, linestyle=line or LINES[number % len(LINES)],
                          elinewidth=0.8, capsize=1.5)
    if chance is not None:
        at_chance = (part["low"] <= chance) & (chance <= part["high"])
        axes.plot(places[at_chance], part["value"][at_chance], marker, markerfacecolor="white",
                  color=drawn.lines[0].get_color(), zorder=3)


def look(axes, picture, weights) -> float:
    """Draw where on a PIL picture the answer looks, and return the image's share of attention.

    `weights` are layers x 10 x 10 image tokens, flat, nan where the model's lie on no known grid;
    the map is scaled to its own largest value.
    """
    grid = np.reshape(np.asarray(weights, dtype=float), (-1, 10, 10)).mean(0)
    axes.imshow(picture.convert("L"), cmap="gray", alpha=0.6)
    axes.imshow(grid / grid.max(), extent=(0, picture.width, picture.height, 0), cmap="magma",
                alpha=0.65, vmin=0, vmax=1)
    return grid.sum()


def gains(axes, part: pd.DataFrame, places, number: int, label: str) -> None:
    """Estimates with their intervals lying at the heights `places`, in the look of a number.

    `part` has the columns gain, gain_low and gain_high.
    """
    axes.errorbar(part["gain"], places, linestyle="none", marker=MARKERS[number],
                  xerr=(part["gain"] - part["gain_low"], part["gain_high"] - part["gain"]),
                  color=PALETTE[number], label=label, elinewidth=0.8)


def kind_curve(axes, part: pd.DataFrame, kind: str, chance=None) -> None:
    """`curve` in the look of a context kind."""
    label, marker, line = KINDS[kind]
    curve(axes, part, list(KINDS).index(kind), color=COLOURS[kind], marker=marker, line=line,
          label=label, chance=chance)


def short(length: int) -> str:
    """A number of tokens as an axis says it: 2048 is 2k."""
    return f"{length // 1024}k" if length and length % 1024 == 0 else str(length)


def length_axis(axes, lengths, trained: int | None, narrow: bool = False) -> None:
    """Context lengths, doubling from left to right, and the longest one seen in training."""
    axes.set_xscale("symlog", base=2, linthresh=64, linscale=0.6)
    labels = [short(n) for n in lengths]
    if narrow and len(lengths) > 5:  # every second one, from the longest down
        labels = [label if n in (0, len(lengths) - 1) or (len(lengths) - n) % 2 else ""
                  for n, label in enumerate(labels)]
    axes.set_xticks(lengths, labels)
    axes.set_xlim(-16, 1.2 * max(lengths))
    axes.minorticks_off()
    axes.set_xlabel("context length (tokens)")
    if trained:
        axes.axvline(trained, color="0.4", linewidth=0.8, linestyle=(0, (1, 2)))


def trained_note(axes, trained: int | None) -> None:
    """Say at the bottom what the dotted line of `length_axis` is."""
    if trained:
        axes.annotate("longest trained\nwith images", (trained, axes.get_ylim()[0]), ha="right",
                      xytext=(-3, 3), textcoords="offset points", fontsize=6, color="0.3")


def chance_line(axes, lengths) -> None:
    """Accuracy's axis, with the line of answers at random."""
    axes.axhline(0.5, color="0.6", linewidth=0.8, zorder=0)
    axes.set_ylim(min(0.4, axes.get_ylim()[0]), 1.01)
    axes.annotate("chance", (min(lengths), 0.5), xytext=(2, 2), fontsize=6, color="0.4",
                  textcoords="offset points")


def left_out(axes, lengths) -> None:
    """Hatch the context lengths whose cells do not count."""
    for number, length in enumerate(lengths):
        axes.axvspan(length / 2**0.5, length * 2**0.5, facecolor="0.93", edgecolor="0.75",
                     hatch="////", linewidth=0, zorder=-1,
                     label=None if number else "does not count: floor or ceiling")


def shared_legend(figure: Figure, *panels, columns: int | None = None) -> None:
    """One legend below all panels, of the labels in some of them, each once."""
    found = {}
    for axes in panels:
        found |= dict(zip(*reversed(axes.get_legend_handles_labels())))
    figure.legend(found.values(), found, loc="outside lower center", ncols=columns or len(found))
