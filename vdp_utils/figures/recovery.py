"""F6: pruning against rate, and examples of what is kept."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from vdp_utils.figures import style
from vdp_utils.figures.style import PALETTE, TARGETS, WIDE

MODES = {"compress compact": "compressed, positions closed up (the paper's reading)",
         "compress": "compressed, old positions", "prefill": "during prefill"}
LETTERS = 92  # a line of an example's text


def recovery(summary: pd.DataFrame, model: str) -> Figure:
    """F6: accuracy against the pruning rate, by context kind (lines) and length, a curve a mode."""
    part = style.select(summary, measure="balanced accuracy").sort_values("rate")
    kinds = style.kinds_of(part)
    lengths = sorted(part["context_length"].unique())
    figure, panels = plt.subplots(len(kinds), len(lengths), sharex=True, sharey=True, squeeze=False,
                                  figsize=(WIDE, 1.9 * len(kinds) + 0.8))
    for line, kind in zip(panels, kinds):
        for axes, length in zip(line, lengths):
            by_mode = {mode: style.select(part, context_kind=kind, context_length=length, mode=mode)
                       for mode in MODES}
            for number, (mode, label) in enumerate(MODES.items()):
                style.curve(axes, by_mode[mode], number, "rate", label=label,
                            shift=0.012 * (number - 1))
            compact, kept = by_mode["compress compact"], by_mode["compress"]
            axes.fill_between(compact["rate"], kept["value"], compact["value"], color="0.85",
                              linewidth=0, zorder=0, label="what distance costs")
            axes.axhline(0.5, color="0.6", linewidth=0.8, zorder=0)
            axes.set_ylim(min(0.4, part["low"].min() - 0.03), 1.03)
            if kind == kinds[0]:
                axes.set_title(f"{length} context tokens")
        line[0].set_ylabel(f"{style.brief(kind)} context\nbalanced accuracy")
    _rates(panels[-1])
    style.shared_legend(figure, panels[0][0], columns=2)
    style.title(figure, f"{model}: answers after a pruned context, the paper's rule", part)
    return figure


def returning(summary: pd.DataFrame, model: str) -> Figure:
    """F6: attention on the image and the causal dependency against the rate, paper's reading."""
    summary = summary[(summary["mode"] == "compress compact") & (summary["context_length"] > 0)]
    kinds = style.kinds_of(summary)
    titles = {"attention on image": "attention on the image",
              "KL, swapped": "KL, image swapped (nats)"}
    figure, panels = plt.subplots(len(titles), len(kinds), figsize=(WIDE, 4.2), squeeze=False,
                                  sharex=True, sharey="row")
    lengths = sorted(summary["context_length"].unique())
    for line, (measure, title) in zip(panels, titles.items()):
        for axes, kind in zip(line, kinds):
            part = style.select(summary, context_kind=kind, measure=measure)
            for number, length in enumerate(lengths):
                some = style.select(part, context_length=length)
                if len(some):
                    style.curve(axes, some, number, "rate", label=f"{length} context tokens",
                                shift=0.008 * (number - 1.5))
            if measure == "attention on image":
                axes.set_title(f"{style.brief(kind)} context")
        line[0].set_ylabel(title)
        line[0].set_ylim(0, 1.06 * summary.loc[summary["measure"] == measure, "high"].max())
    _rates(panels[-1])
    style.shared_legend(figure, *panels[:, 0])
    style.title(figure, f"{model}: what the answer takes from the image after a pruned context",
                summary)
    return figure


def _rates(panels) -> None:
    for axes in panels:
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "no\ncontext"])
        axes.set_xlabel("pruning rate")


def targets(table: pd.DataFrame, model: str) -> Figure:
    """F6: accuracy against the rate where the answer is in the image and where in the text."""
    figure, axes = plt.subplots(figsize=(style.WIDTH, 2.6))
    for number, (target, part) in enumerate(table.groupby("target", sort=True)):
        style.curve(axes, part, number, "rate", label=TARGETS[target], shift=0.006 * number)
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
    samples = [sample for sample in samples if sample.image_id in set(rows["image_id"])]
    figure, panels = plt.subplots(len(samples), 3, figsize=(WIDE, 2.5 * len(samples) + 0.3),
                                  width_ratios=(1, 1, 3.4), squeeze=False)
    for line, sample in zip(panels, samples):
        mine = rows[(rows["image_id"] == sample.image_id) & (rows["answer"] == "no")]
        for axes, (_, row) in zip(line, mine.sort_values("rate").iterrows()):
            share = style.look(axes, sample.image(), row["map_image"])
            when = f"rate {row['rate']:g}" if row["rate"] else "before"
            axes.set_title(f"{when}: “{row['predicted']}”, {100 * share:.1f} %", fontsize=5.5)
        row = mine.sort_values("rate").iloc[-1]
        _kept_text(line[2], row["texts"], row["stays"])
        line[2].set_title(f"{row['question']} (answer: {row['answer']})", fontsize=5.5)
    for axes in panels.flat:
        axes.axis("off")
    figure.suptitle(f"{model}: black context tokens stay at this rate, orange ones go; the answer, "
                    "and the image's share of attention")
    return figure


def _kept_text(axes, texts, stays) -> None:
    """Tokens set one after the other in lines of LETTERS, the dropped ones in orange."""
    line, column, places = 0, 0, []
    for text, stay in zip(texts, stays):
        for number, part in enumerate(text.split("\n")):
            if number or column + len(part) > LETTERS:
                line, column = line + 1, 0
            places.append((column, line, part, stay))
            column += len(part)
    for column, row, part, stay in places:
        axes.text(column / LETTERS, 1 - row / (line + 1), part, va="top", family="monospace",
                  fontsize=5.2, transform=axes.transAxes, color="black" if stay else PALETTE[1])
