"""The one look of the study's figures, and how they are saved: PNG and PDF, the same each time."""

import re
import textwrap
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
TARGETS = {"image": "answer in the image", "text": "answer in the context"}
PALETTE = sns.color_palette("colorblind")
MARKERS, LINES = "osD^vPX", ("-", "--", "-.", ":")
matplotlib.style.use(STYLE)


def save(figure: Figure, folder: str | Path, name: str) -> Figure:
    """Write `folder/name.png` and `.pdf`, byte-identical for the same figure."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _fit_title(figure)
    figure.savefig(folder / f"{name}.png", metadata={"Software": None})
    figure.savefig(folder / f"{name}.pdf", metadata={"CreationDate": None, "Creator": None,
                                                     "Producer": None})
    return figure


def _fit_title(figure: Figure) -> None:
    """A model's folder by its last name, and a title in as many lines as its length needs."""
    text = re.sub(r"(?<!\S)/\S*/", "", figure.get_suptitle())
    if text:
        wide = figure.suptitle(text).get_window_extent().width / figure.bbox.width
        if wide > 1.03:  # at the resolution of files text is that much narrower
            figure.suptitle(textwrap.fill(text, int(0.95 * len(text) / wide)))


def select(table: pd.DataFrame, **values) -> pd.DataFrame:
    """The lines of a table whose columns have these values."""
    for column, value in values.items():
        table = table[table[column] == value]
    return table


def kinds_of(table: pd.DataFrame, column: str = "context_kind") -> list[str]:
    """The context kinds in a table, in the order of KINDS."""
    return [kind for kind in KINDS if kind in set(table[column])]


def brief(kind: str) -> str:
    """A context kind's label, up to its colon."""
    return KINDS[kind][0].split(":")[0]


def title(figure: Figure, text: str, table: pd.DataFrame, more: str = "95 % intervals") -> None:
    """What a figure shows, and of how many images `table` is."""
    figure.suptitle(f"{text} (n = {table['n_images'].max()} images, {more})")


def curve(axes, part: pd.DataFrame, number: int = 0, x: str = "context_length", color=None,
          marker=None, line=None, label=None, spread: float = 0.05, shift: float | None = None,
          chance=None) -> None:
    """A line of estimates with their intervals, in the look of a number.

    `part` has the columns `x`, value, low and high. That all stay readable, each is moved aside:
    by `shift`, or else in proportion to x, by `spread` a number. Points at `chance`, whose
    interval holds that value, are hollow.
    """
    part = part.sort_values(x)
    places = part[x] * (1 + spread * (number - 1)) if shift is None else part[x] + shift
    marker = marker or MARKERS[number]
    drawn = axes.errorbar(places, part["value"], _interval(part, "value"), label=label,
                          color=PALETTE[number] if color is None else color,
                          marker=marker, linestyle=line or LINES[number % len(LINES)],
                          elinewidth=0.8, capsize=1.5)
    if chance is not None:
        at_chance = (part["low"] <= chance) & (chance <= part["high"])
        axes.plot(places[at_chance], part["value"][at_chance], marker, markerfacecolor="white",
                  color=drawn.lines[0].get_color(), zorder=3)


def points(axes, part: pd.DataFrame, places, number: int, label: str | None = None,
           value: str = "value", capsize: float = 1.5) -> None:
    """Estimates with their intervals lying at the heights `places`, in the look of a number.

    `part` has the columns `value`, low and high.
    """
    axes.errorbar(part[value], places, xerr=_interval(part, value), linestyle="none", label=label,
                  marker=MARKERS[number], color=PALETTE[number], elinewidth=0.8, capsize=capsize)


def _interval(part: pd.DataFrame, value: str) -> list[pd.Series]:
    return [(part[value] - part["low"]).clip(lower=0), (part["high"] - part[value]).clip(lower=0)]


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


def short(length: int) -> str:
    """A number of tokens as an axis says it: 2048 is 2k."""
    return f"{length // 1024}k" if length and length % 1024 == 0 else str(length)


def doubling(axes, lengths, label: str = "context length (tokens)") -> None:
    """Context lengths, doubling from left to right."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [short(n) for n in lengths])
    axes.minorticks_off()
    axes.set_xlabel(label)


def length_axis(axes, lengths, trained: int | None, narrow: bool = False) -> None:
    """As `doubling`, but from 0, with the longest context length seen in training."""
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


def shared_legend(figure: Figure, *panels, columns: int | None = None) -> None:
    """One legend below all panels, of the labels in some of them, each once."""
    found = {}
    for axes in panels:
        found |= dict(zip(*reversed(axes.get_legend_handles_labels())))
    figure.legend(found.values(), found, loc="outside lower center", ncols=columns or len(found))
