"""F3: answers with and without the image."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from vdp_utils.figures import style
from vdp_utils.figures.style import WIDE

TAKEN = {"none": "image left out", "blank": "image blanked", "swapped": "image swapped"}


def priors(summary: pd.DataFrame, by_prior: pd.DataFrame, trained: int | None, model: str
           ) -> Figure:
    """F3: agreement and kappa with the answer without an image, KL, flips, accuracy by prior.

    An image that was not measured after any context has no curves.
    """
    kinds = style.kinds_of(summary)
    figure, panels = plt.subplots(len(kinds), 4, figsize=(WIDE, 2.1 * len(kinds) + 0.6),
                                  sharex=True, squeeze=False)
    lengths = sorted(summary["context_length"].unique())
    taken = [image for image in TAKEN if f"KL, {image}" in set(summary["measure"])]
    for line, kind in zip(panels, kinds):
        part = style.select(summary, context_kind=kind)
        for number, (measure, label) in enumerate({
                "agreement": "agreement with the answer without image",
                "Cohen's kappa": "the same beyond chance (kappa)"}.items(), 3):
            style.curve(line[0], style.select(part, measure=measure), number, label=label, shift=0)
        for image in taken:
            for axes, measure in ((line[1], "KL"), (line[2], "flip rate")):
                style.curve(axes, style.select(part, measure=f"{measure}, {image}"),
                            list(TAKEN).index(image), label=TAKEN[image])
        for number, right in enumerate((True, False), 5):
            style.curve(line[3], style.select(by_prior, context_kind=kind, prior_right=right),
                        number, shift=0,
                        label=f"answer without image is {'right' if right else 'wrong'}")
        line[0].set_ylabel(f"context: {kind}")
        for axes in line if trained else ():
            axes.axvline(trained, color="0.4", linewidth=0.8, linestyle=(0, (1, 2)))
        for axes in (line[0], line[2], line[3]):
            axes.set_ylim(min(-0.03, axes.get_ylim()[0]), 1.03)
        line[1].set_ylim(0, None)
    for axes, title in zip(panels[0], ("agreement, kappa", "KL divergence (nats)",
                                       "flip rate", "accuracy with the image")):
        axes.set_title(title)
    for axes in panels[-1]:
        style.length_axis(axes, lengths, trained, narrow=True)
        axes.set_xlabel("context (tokens)")
    style.shared_legend(figure, *panels[0], columns=3)
    style.title(figure, f"{model}: how far the answer moves when the image is taken away", summary,
                "95 % intervals over images")
    return figure
