"""F12: dialogues of many turns and images."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from vdp_utils.figures import style
from vdp_utils.figures.style import MARKERS, PALETTE, WIDE

LOOKED_AT = ("whole dialogue", "pruned", "near, all images", "all images, no words")


def dialogues(summary: pd.DataFrame, model: str) -> Figure:
    """F12: accuracy of presence turns, a panel a context kind, a line a setting."""
    settings = sorted(summary["setting"].unique(), reverse=True)
    figure, panels = _panels(summary, 1, 0.25 * len(settings) + 1)
    for axes, kind in zip(panels[0], _kinds(summary)):
        for number, which in enumerate(("latest", "earlier")):
            some = summary[(summary["context_kind"] == kind) & (summary["which"] == which)]
            places = some["setting"].map(settings.index) + 0.12 * (1 - 2 * number)
            axes.errorbar(some["value"], places, linestyle="none", marker=MARKERS[number],
                          xerr=(some["value"] - some["low"], some["high"] - some["value"]),
                          color=PALETTE[number], elinewidth=0.8,
                          label=f"about {('the', 'an')[number]} {which} image")
        axes.axvline(0.5, color="0.6", linewidth=0.8, zorder=0)
        axes.set_yticks(range(len(settings)), settings)
        axes.set_xlabel("balanced accuracy")
    return _finished(figure, panels, summary, f"{model}: presence questions in dialogues")


def dialogue_course(distances: pd.DataFrame, by_turn: pd.DataFrame, model: str) -> Figure:
    """F12: accuracy by distance to the image asked about, and ROUGE-L by turn; by context kind."""
    figure, panels = _panels(distances, 2, 4.4)
    rouge = by_turn[by_turn["measure"] == "ROUGE-L"]
    for line, table, x in zip(panels, (distances, rouge), ("distance", "turn")):
        for axes, kind in zip(line, _kinds(distances)):
            for number, setting in enumerate(LOOKED_AT):
                part = table[(table["context_kind"] == kind) & (table["setting"] == setting)]
                if len(part):
                    style.curve(axes, part, number, x, label=setting, spread=0.02)
    for upper, lower in panels.T:
        upper.axhline(0.5, color="0.6", linewidth=0.8, zorder=0)
        upper.set_xscale("log", base=2)
        upper.xaxis.set_major_formatter("{x:g}")
        upper.set_xlabel("tokens from the image asked about to the question")
        lower.locator_params("x", integer=True)
        lower.set_xlabel("turn")
    panels[0][0].set_ylabel("accuracy of presence turns")
    panels[1][0].set_ylabel("ROUGE-L of the reply")
    return _finished(figure, panels, distances, f"{model}: in the course of dialogues")


def _kinds(table: pd.DataFrame) -> list[str]:
    return [kind for kind in style.KINDS if kind in set(table["context_kind"])]


def _panels(table: pd.DataFrame, lines: int, height: float):
    kinds = _kinds(table)
    figure, panels = plt.subplots(lines, len(kinds), sharey="row", squeeze=False,
                                  figsize=(WIDE, height))
    for axes, kind in zip(panels[0], kinds):
        axes.set_title(f"told before each question: {style.KINDS[kind][0].split(':')[0]}")
    return figure, panels


def _finished(figure: Figure, panels, table: pd.DataFrame, title: str) -> Figure:
    style.shared_legend(figure, panels[0][0])
    figure.suptitle(f"{title} about several images (n = {table['n_images'].max()} dialogues at "
                    "most, 95 % intervals)", fontsize=8)
    return figure
