"""D1: text or distance."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from vdp_utils.figures import style
from vdp_utils.figures.style import MARKERS, WIDE

FOUR = {  # (text, setting) -> label: the prompts that part text and distance
    "as it is": "text and distance: as it is", "gap": "distance, no text",
    "near": "text, no distance: image moved up to the question",
    "squeezed": "text, its positions squeezed into 512"}
VERSIONS = {"own": "image", "text": "text description in its place"}
PARTS = {"distance": "distance alone", "text": "text alone", "left over": "both, beyond the sum",
         "both": "all of it"}


def text_or_distance(summary: pd.DataFrame, trained: int | None, model: str) -> Figure:
    """D1: accuracy against length by what stands between, for image and text description."""
    table = style.select(summary, measure="balanced accuracy")
    versions = _versions(table)
    kinds = style.kinds_of(style.select(table, image=list(versions)[-1]), "text")
    lengths = sorted(table["length"].unique())
    figure, panels = plt.subplots(len(versions), len(kinds), figsize=(WIDE, 4.4), sharex=True,
                                  sharey=True, squeeze=False)
    for line, (image, version) in zip(panels, versions.items()):
        own = style.select(table, image=image)
        bare, longer = own[own["length"] == 0], own[own["length"] > 0]
        for axes, kind in zip(line, kinds):
            for number, (setting, label) in enumerate(FOUR.items()):
                text, setting = ("no text", "as it is") if setting == "gap" else (kind, setting)
                part = style.select(longer, text=text, setting=setting)
                if len(part):
                    style.curve(axes, pd.concat([bare, part]), number, "length", label=label)
            style.length_axis(axes, lengths, trained)
            style.chance_line(axes, lengths)
            if image == "own":
                axes.set(title=f"{style.brief(kind)} context", xlabel="")
        line[0].set_ylabel(f"{version}\nbalanced accuracy")
    panels[-1][0].set_ylim(min(panels[-1][0].get_ylim()[0], table["low"].min() - 0.03), 1.01)
    style.shared_legend(figure, panels[0][0], columns=2)
    style.title(figure, f"{model}: is it the text, or where the image stands?", table)
    return figure


def parts(table: pd.DataFrame, model: str) -> Figure:
    """D1: what distance and text each take from accuracy at the longest length, by kind of text."""
    table = table[table["length"] == table["length"].max()]
    kinds, versions = style.kinds_of(table, "text"), _versions(table)
    figure, (panels,) = plt.subplots(1, len(versions), figsize=(WIDE, 2.8), sharey=True,
                                     squeeze=False)
    for axes, (image, version) in zip(panels, versions.items()):
        for number, (part, label) in enumerate(PARTS.items()):
            some = style.select(table, image=image, part=part)
            places = some["text"].map(kinds.index) + 0.18 * (number - 1.5)
            style.points(axes, some, places, number, label, "effect")
        axes.axvline(0, color="0.5", linewidth=0.8)
        axes.set(title=version, xlabel="change of balanced accuracy")
    panels[0].set_yticks(range(len(kinds)), [style.brief(kind) for kind in kinds])
    panels[0].invert_yaxis()
    style.shared_legend(figure, panels[0])
    style.title(figure, f"{model}: what {table['length'].max()} tokens take, in parts", table)
    return figure


def cures(table: pd.DataFrame, times: pd.DataFrame, model: str) -> Figure:
    """D1: gains of each setting, for answers in the image and in the text, and what it costs."""
    table = table[table["length"] == table["length"].max()]
    settings = sorted(set(table["setting"]))
    kinds = style.kinds_of(table, "text")
    figure, panels = plt.subplots(1, len(kinds) + 1, figsize=(WIDE, 0.32 * len(settings) + 1.4),
                                  sharey=True)
    for axes, kind in zip(panels, kinds):
        for number, (target, some) in enumerate(style.select(table, text=kind).groupby("target")):
            places = some["setting"].map(settings.index) + 0.24 * (number - 0.5)
            style.points(axes, some, places, number, f"answer in the {target}", "effect")
        axes.axvline(0, color="0.5", linewidth=0.8)
        axes.set(title=f"{style.brief(kind)} context", xlabel="gain of balanced accuracy")
    timed = times[times["setting"].isin(settings)]
    style.points(panels[-1], timed, timed["setting"].map(settings.index), 2)
    panels[-1].axvline(1, color="0.5", linewidth=0.8)
    panels[-1].set(title="cost", xlabel="time to first token,\nratio to the prompt as it is")
    panels[0].set_yticks(range(len(settings)), settings)
    panels[0].invert_yaxis()
    style.shared_legend(figure, panels[0])
    style.title(figure, f"{model}: what helps after {table['length'].max()} tokens", table)
    return figure


def looking(table: pd.DataFrame, summary: pd.DataFrame, model: str) -> Figure:
    """D1: what the image's attention scores lose with distance, by layer, beside the loss."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDE, 2.7))
    lengths = sorted(table["length"].unique())
    colours = plt.get_cmap("viridis")(np.linspace(0, 1, table["layer"].nunique()))
    for number, (layer, part) in enumerate(table.groupby("layer", sort=True)):
        style.curve(left, part, number, "length", color=colours[number],
                    marker=MARKERS[number % len(MARKERS)], label=f"layer {layer}", spread=0.02)
    left.axhline(0, color="0.6", linewidth=0.8)
    left.set_ylabel("change of the log-odds of the\nimage's share of attention (nats)")
    bare = style.select(summary, measure="balanced accuracy", text="no text")
    for number, (image, version) in enumerate(_versions(bare).items()):
        style.curve(right, style.select(bare, image=image), number, "length", label=version)
    right.set_ylabel("balanced accuracy")
    for axes in (left, right):
        style.length_axis(axes, lengths, None)
        axes.set_xlabel("distance without text (positions)")
        axes.legend(fontsize=6)
    style.chance_line(right, lengths)
    style.title(figure, f"{model}: attention on the image, and answers, by distance alone", table)
    return figure


def _versions(table: pd.DataFrame) -> dict[str, str]:
    """Those of VERSIONS that were measured: not every source has text descriptions."""
    return {image: version for image, version in VERSIONS.items() if image in set(table["image"])}
