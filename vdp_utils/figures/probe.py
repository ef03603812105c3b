"""The probe: one model's accuracy by distance, by text, and by what is done about it."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from vdp_utils.figures import style
from vdp_utils.figures.style import WIDE

TITLES = {"other_images": "after text about other images", "misleading": "after misleading text"}


def probe(summary: pd.DataFrame, model: str) -> Figure:
    """Balanced accuracy behind each text: as it is, and by what is done about it.

    `summary` is that of `findings.probe`; the distance without text is the first line of each
    panel, nothing before the question a band over all.
    """
    settings = list(dict.fromkeys(summary.loc[summary["text"] != "no text", "setting"]))
    rows = ["no text, same distance", *(f"text, {setting}" for setting in settings)]
    lengths = sorted(set(summary["length"]) - {0})
    figure, panels = plt.subplots(1, 2, figsize=(WIDE, 0.27 * len(rows) + 1.3), sharex=True,
                                  sharey=True)
    bare = summary[summary["length"] == 0].iloc[0]
    gaps = style.select(summary, text="no text")
    for axes, (kind, title) in zip(panels, TITLES.items()):
        axes.axvspan(bare["low"], bare["high"], color="0.88", zorder=0, linewidth=0)
        axes.axvline(bare["value"], color="0.5", linewidth=0.8, label="nothing before the question")
        axes.axvline(0.5, color="0.5", linewidth=0.8, linestyle=":", label="chance")
        for number, length in enumerate(lengths):
            part = pd.concat([style.select(gaps, length=length).assign(setting="gap"),
                              style.select(summary, text=kind, length=length)])
            places = part["setting"].map(["gap", *settings].index)
            aside = 0.22 * (number - (len(lengths) - 1) / 2)
            style.points(axes, part, places + aside, number, f"{length} tokens")
        axes.set(title=title, xlabel="balanced accuracy")
    panels[0].set_yticks(range(len(rows)), rows)
    panels[0].set(xlim=(-0.02, 1.02), ylim=(len(rows) - 0.5, -0.5))
    style.shared_legend(figure, panels[0])
    style.title(figure, f"{model}: is it the text, or where the image stands?", summary)
    return figure
