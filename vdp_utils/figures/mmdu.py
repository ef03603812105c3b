"""F12: dialogues of many turns and images."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from vdp_utils.figures import style
from vdp_utils.figures.style import WIDE

LOOKED_AT = ("whole dialogue", "pruned", "near, all images", "all images, no words")


def dialogues(summary: pd.DataFrame, distances: pd.DataFrame, model: str) -> Figure:
    """F12: accuracy of presence turns by setting, and by distance to the image asked about."""
    kinds = style.kinds_of(summary)
    settings = sorted(summary["setting"].unique(), reverse=True)
    figure, panels = plt.subplots(2, len(kinds), sharey="row", squeeze=False, figsize=(WIDE, 5))
    for (upper, lower), kind in zip(panels.T, kinds):
        for number, which in enumerate(("latest", "earlier")):
            part = style.select(summary, context_kind=kind, which=which)
            places = part["setting"].map(settings.index) + 0.12 - 0.24 * number
            style.points(upper, part, places, number + 4,
                         f"about {('the', 'an')[number]} {which} image", capsize=0)
        upper.axvline(0.5, color="0.6", linewidth=0.8, zorder=0)
        upper.set_yticks(range(len(settings)), settings)
        upper.set(xlabel="balanced accuracy",
                  title=f"told before each question: {style.brief(kind)}")
        for number, setting in enumerate(LOOKED_AT):
            part = style.select(distances, context_kind=kind, setting=setting)
            style.curve(lower, part, number, "distance", label=setting, spread=0.02)
        lower.axhline(0.5, color="0.6", linewidth=0.8, zorder=0)
        lower.set_xscale("log", base=2)
        lower.xaxis.set_major_formatter("{x:g}")
        lower.set_xlabel("tokens back to the image asked about")
    panels[1][0].set_ylabel("accuracy")
    style.shared_legend(figure, *panels[:, 0], columns=3)
    figure.suptitle(f"{model}: presence questions in dialogues about several images "
                    f"(n = {summary['n_images'].max()} dialogues, 95 % intervals)")
    return figure
