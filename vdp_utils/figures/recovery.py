"""F6: pruning against rate, and examples of what is kept."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from vdp_utils.figures import style
from vdp_utils.figures.style import PALETTE, WIDE


def recovery(summary: pd.DataFrame, model: str) -> Figure:
    """F6: accuracy, attention on the image and causal dependency against the pruning rate."""
    kinds = [kind for kind in style.KINDS if kind in set(summary["context_kind"])]
    measures = ("balanced accuracy", "attention on image", "KL, swapped")
    figure, panels = plt.subplots(len(kinds), 3, figsize=(WIDE, 2.1 * len(kinds) + 0.6),
                                  squeeze=False, sharex=True, sharey="col")
    lengths = sorted(summary["context_length"].unique())
    for line, kind in zip(panels, kinds):
        for axes, measure in zip(line, measures):
            part = summary[(summary["context_kind"] == kind) & (summary["measure"] == measure)]
            for number, length in enumerate(lengths):
                some = part[part["context_length"] == length]
                if len(some):
                    style.curve(axes, some.assign(rate=some["rate"] + 0.008 * (number - 1.5)),
                                number, "rate", label=f"{length} context tokens", spread=0)
        line[0].axhline(0.5, color="0.6", linewidth=0.8, zorder=0)
        line[0].set_ylabel(f"context: {kind}")
    for axes, title in zip(panels[0], ("balanced accuracy", "attention on the image",
                                       "KL, image swapped (nats)")):
        axes.set_title(title)
    panels[0][1].set_yscale("log")
    panels[0][2].set_ylim(0, None)
    for axes in panels[-1]:
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "no\ncontext"])
        axes.set_xlabel("pruning rate")
    style.shared_legend(figure, *panels[:, 0])
    figure.suptitle(f"{model}: answers behind a pruned context, the paper's rule "
                    f"(n = {summary['n_images'].max()} images, 95 % intervals)", fontsize=8)
    return figure


def targets(table: pd.DataFrame, model: str) -> Figure:
    """F6: accuracy against the rate where the answer is in the image and where in the text."""
    figure, axes = plt.subplots(figsize=(style.WIDTH, 2.6), layout="constrained")
    for number, (target, part) in enumerate(table.groupby("target", sort=True)):
        label = {"image": "answer in the image", "text": "answer in the context"}[target]
        style.curve(axes, part.assign(rate=part["rate"] + 0.006 * number), number, "rate",
                    label=label, spread=0)
    axes.axhline(0.5, color="0.6", linewidth=0.8, zorder=0)
    axes.set(xlabel="pruning rate", ylabel="balanced accuracy")
    axes.legend()
    axes.set_title(f"{model}, {table['context_length'].iloc[0]} context tokens "
                   f"(n = {table['n_images'].max()} images)", fontsize=7)
    return figure


def pruned_examples(rows: pd.DataFrame, samples, model: str) -> Figure:
    """F6: what is kept of a context, and where on the image the answer looks before and after.

    `rows` are those of `pruned.example_sample`; of each sample its no-question is drawn.
    """
    size, columns = 5.2, 92  # points, letters a line
    figure, panels = plt.subplots(len(samples), 3, figsize=(WIDE, 2.5 * len(samples) + 0.3),
                                  width_ratios=(1, 1, 3.4), squeeze=False)
    for line, sample in zip(panels, samples):
        mine = rows[(rows["image_id"] == sample.image_id) & (rows["answer"] == "no")]
        for axes, (_, row) in zip(line, mine.sort_values("rate").iterrows()):
            share = style.look(axes, sample.image(), row["map_image"])
            when = f"rate {row['rate']:g}" if row["rate"] else "before"
            axes.set_title(f"{when}: “{row['predicted']}”, {100 * share:.1f} %", fontsize=5.5)
        row = mine.sort_values("rate").iloc[-1]
        _kept_text(line[2], row["texts"], row["stays"], size, columns)
        line[2].set_title(f"{row['question']} (answer: {row['answer']})", fontsize=5.5)
    for axes in panels.flat:
        axes.axis("off")
    figure.suptitle(f"{model}: black context tokens stay at this rate, orange ones go; the answer, "
                    "and the image's share of attention", fontsize=8)
    return figure


def _kept_text(axes, texts, stays, size: float, columns: int) -> None:
    """Tokens set one after the other in lines of equal letters, the dropped ones in orange."""
    line, column, places = 0, 0, []
    for text, stay in zip(texts, stays):
        for number, part in enumerate(text.split("\n")):
            if number or column + len(part) > columns:
                line, column = line + 1, 0
            places.append((column, line, part, stay))
            column += len(part)
    for column, row, part, stay in places:
        axes.text(column / columns, 1 - row / (line + 1), part, va="top", family="monospace",
                  fontsize=size, transform=axes.transAxes, color="black" if stay else PALETTE[1])
