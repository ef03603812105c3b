"""D1: text or distance."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from vdp_utils.figures import style
from vdp_utils.figures.style import KINDS, LINES, MARKERS, PALETTE, WIDE

FOUR = {  # (text, setting) -> label: the prompts that part text and distance
    "as it is": "text and distance: as it is", "gap": "distance, no text",
    "near": "text, no distance: image moved up to the question",
    "squeezed": "text, its positions squeezed into 512"}
VERSIONS = {"own": "image", "text": "text description in its place"}
PARTS = {"distance": "distance alone", "text": "text alone", "left over": "both, beyond the sum",
         "both": "all of it"}


def text_or_distance(summary: pd.DataFrame, trained: int | None, model: str) -> Figure:
    """D1: accuracy against length by what stands between, for image and text description."""
    table = summary[summary["measure"] == "balanced accuracy"]
    versions = _versions(table)
    kinds = [kind for kind in KINDS if kind in set(
        table.loc[table["image"] == list(versions)[-1], "text"])]
    lengths = sorted(table["length"].unique())
    figure, panels = plt.subplots(len(versions), len(kinds), figsize=(WIDE, 4.4), sharex=True,
                                  sharey=True, squeeze=False)
    for line, (image, version) in zip(panels, versions.items()):
        own = table[table["image"] == image]
        bare = own[own["length"] == 0]
        for axes, kind in zip(line, kinds):
            for number, (setting, label) in enumerate(FOUR.items()):
                text = "no text" if setting == "gap" else kind
                part = own[(own["text"] == text) & (own["length"] > 0) & (
                    own["setting"] == ("as it is" if setting == "gap" else setting))]
                if len(part):
                    style.curve(axes, pd.concat([bare, part]), number, "length", label=label)
            style.length_axis(axes, lengths, trained)
            style.chance_line(axes, lengths)
            if image == "own":
                axes.set(title=f"{KINDS[kind][0].split(':')[0]} context", xlabel="")
        line[0].set_ylabel(f"{version}\nbalanced accuracy")
    panels[-1][0].set_ylim(min(panels[-1][0].get_ylim()[0], table["low"].min() - 0.03), 1.01)
    style.shared_legend(figure, panels[0][0], columns=2)
    figure.suptitle(f"{model}: is it the text, or where the image stands? "
                    f"(n = {table['n_images'].max()} images, 95 % intervals)", fontsize=8)
    return figure


def parts(table: pd.DataFrame, model: str) -> Figure:
    """D1: what distance and text each take from accuracy at the longest length, by kind of text."""
    table = table[table["length"] == table["length"].max()]
    kinds = [kind for kind in KINDS if kind in set(table["text"])]
    versions = _versions(table)
    figure, panels = plt.subplots(1, len(versions), figsize=(WIDE, 2.8), sharey=True,
                                  squeeze=False)
    panels = panels[0]
    for axes, (image, version) in zip(panels, versions.items()):
        mine = table[table["image"] == image]
        for number, (part, label) in enumerate(PARTS.items()):
            some = mine[mine["part"] == part]
            places = some["text"].map(kinds.index) + 0.18 * (number - 1.5)
            _points(axes, some.rename(columns=dict(effect="value")), places, number, label)
        axes.axvline(0, color="0.5", linewidth=0.8)
        axes.set(title=version, xlabel="change of balanced accuracy")
    panels[0].set_yticks(range(len(kinds)), [KINDS[kind][0].split(":")[0] for kind in kinds])
    panels[0].invert_yaxis()
    style.shared_legend(figure, panels[0])
    figure.suptitle(f"{model}: what {table['length'].max()} tokens take, in parts "
                    f"(n = {table['n_images'].max()} images, 95 % intervals)", fontsize=8)
    return figure


def cures(table: pd.DataFrame, times: pd.DataFrame, model: str) -> Figure:
    """D1: gains of each setting, for answers in the image and in the text, and what it costs."""
    table = table[table["length"] == table["length"].max()]
    settings = sorted(set(table["setting"]))
    kinds = [kind for kind in KINDS if kind in set(table["text"])]
    figure, panels = plt.subplots(1, len(kinds) + 1, figsize=(WIDE, 0.32 * len(settings) + 1.4),
                                  sharey=True)
    for axes, kind in zip(panels, kinds):
        for number, (target, some) in enumerate(table[table["text"] == kind].groupby("target")):
            places = some["setting"].map(settings.index) + 0.24 * (number - 0.5)
            _points(axes, some.rename(columns=dict(effect="value")), places, number,
                    f"answer in the {target}")
        axes.axvline(0, color="0.5", linewidth=0.8)
        axes.set(title=f"{KINDS[kind][0].split(':')[0]} context",
                 xlabel="gain of balanced accuracy")
    timed = times[times["setting"].isin(settings)]
    _points(panels[-1], timed, timed["setting"].map(settings.index), 2, None)
    panels[-1].axvline(1, color="0.5", linewidth=0.8)
    panels[-1].set(title="cost", xlabel="time to first token,\nratio to the prompt as it is")
    panels[0].set_yticks(range(len(settings)), settings)
    panels[0].invert_yaxis()
    style.shared_legend(figure, panels[0])
    figure.suptitle(f"{model}: what helps after {table['length'].max()} tokens "
                    f"(n = {table['n_images'].max()} images, 95 % intervals)", fontsize=8)
    return figure


def looking(table: pd.DataFrame, summary: pd.DataFrame, model: str) -> Figure:
    """D1: what the image's attention scores lose with distance, by layer, beside the loss."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDE, 2.7))
    lengths = sorted(table["length"].unique())
    colours = plt.get_cmap("viridis")(
        [number / max(1, table["layer"].nunique() - 1) for number in range(
            table["layer"].nunique())])
    for number, (layer, part) in enumerate(table.groupby("layer", sort=True)):
        style.curve(left, part, number, "length", color=colours[number],
                    marker=MARKERS[number % len(MARKERS)], line=LINES[number % len(LINES)],
                    label=f"layer {layer}", spread=0.02)
    left.axhline(0, color="0.6", linewidth=0.8)
    left.set_ylabel("change of the log-odds of the\nimage's share of attention (nats)")
    bare = summary[(summary["measure"] == "balanced accuracy") & (summary["text"] == "no text")]
    for number, (image, version) in enumerate(_versions(bare).items()):
        style.curve(right, bare[bare["image"] == image], number, "length", color=PALETTE[number],
                    label=version)
    right.set_ylabel("balanced accuracy")
    for axes in (left, right):
        style.length_axis(axes, lengths, None)
        axes.set_xlabel("distance without text (positions)")
        axes.legend(fontsize=6)
    style.chance_line(right, lengths)
    figure.suptitle(f"{model}: attention on the image, and answers, by distance alone "
                    f"(n = {table['n_images'].max()} images, 95 % intervals)", fontsize=8)
    return figure


def _versions(table: pd.DataFrame) -> dict[str, str]:
    """Those of VERSIONS that were measured: not every source has text descriptions."""
    return {image: version for image, version in VERSIONS.items() if image in set(table["image"])}


def _points(axes, part: pd.DataFrame, places, number: int, label: str | None) -> None:
    axes.errorbar(part["value"], places, linestyle="none", marker=MARKERS[number],
                  xerr=((part["value"] - part["low"]).clip(lower=0),
                        (part["high"] - part["value"]).clip(lower=0)),
                  color=PALETTE[number], label=label, elinewidth=0.8, capsize=1.5)
