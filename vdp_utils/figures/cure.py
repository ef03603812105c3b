"""Findings about pruning drawn: one function a figure, from summaries."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from vdp_utils.figures import style
from vdp_utils.figures.style import MARKERS, PALETTE, WIDE


def concentration(table: pd.DataFrame, layers: pd.DataFrame, model: str) -> Figure:
    """F8: gain in visual mass by layer, predicted and measured; entropy; how well (a) predicts.

    `table` is `findings.concentration.tests`, `layers` its `by_layer`.
    """
    lengths = sorted(table["context_length"].unique())
    figure, panels = plt.subplots(len(lengths), 3, figsize=(WIDE, 2.1 * len(lengths) + 0.7),
                                  squeeze=False, sharex="col")
    rates = sorted(table["rate"].unique())
    for line, length in zip(panels, lengths):
        for number, rate in enumerate(rates):
            part = table[(table["context_length"] == length) & (table["rate"] == rate)]
            moved = part.assign(layer=part["layer"] + 0.06 * (number - 1.5))
            line[0].plot(part["layer"], part["predicted_gain"], ":", color=PALETTE[number],
                         linewidth=0.9)
            style.curve(line[0], moved.rename(columns=dict(gain="value")), number, "layer",
                        label=f"rate {rate}", spread=0)
            style.curve(line[1], moved[["layer"]].assign(
                value=part["entropy_change"], low=part["entropy_low"], high=part["entropy_high"]),
                number, "layer", spread=0)
            some = layers[layers["later"] & (layers["context_length"] == length)
                          & (layers["rate"] == rate)]
            means = some.groupby("layer")[["predicted", "after"]].mean()
            line[2].plot(means["predicted"], means["after"], MARKERS[number], color=PALETTE[number],
                         markersize=3.5)
        for axes in line[:2]:
            axes.axhline(0, color="0.4", linewidth=0.8)
            axes.set_xticks(sorted(table["layer"].unique()))
        ends = (5e-4, 1)
        line[2].plot(ends, ends, color="0.4", linewidth=0.8)
        line[2].set(xscale="log", yscale="log", xlim=ends, ylim=ends)
        line[0].set_ylabel(f"{length} context tokens\ngain in attention on image")
        line[1].set_ylabel("change of entropy (nats)")
        line[2].set_ylabel("measured")
    for axes, title in zip(panels[0], ("dotted: queries, keys held fixed",
                                       "lower: more concentrated",
                                       "attention on the image, by layer")):
        axes.set_title(title)
    for axes, label in zip(panels[-1], ("layer", "layer", "predicted by (a)")):
        axes.set_xlabel(label)
    style.shared_legend(figure, panels[0][0])
    figure.suptitle(f"{model}: attention of the answer position, before and after pruning "
                    f"(n = {table['n_images'].max()} images, 95 % intervals)", fontsize=8)
    return figure


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
        picture = sample.image()
        side = picture.size[0]
        for axes, (_, row) in zip(line, mine.sort_values("rate").iterrows()):
            flat = np.asarray(row["map_image"], dtype=float)
            grid = flat.reshape(-1, 100).mean(0).reshape(10, 10)
            axes.imshow(picture.convert("L"), cmap="gray", alpha=0.6)
            axes.imshow(grid / grid.max(), extent=(0, side, side, 0), cmap="magma", alpha=0.65,
                        vmin=0, vmax=1)
            when = f"rate {row['rate']:g}" if row["rate"] else "before"
            axes.set_title(f"{when}: “{row['predicted']}”, {100 * grid.sum():.1f} %", fontsize=5.5)
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


GROUP_LOOKS = ("the paper's rule", "chance", "published method", "other rule", "control",
               "drops the image")  # in the palette's order


def strategies(tests: pd.DataFrame, cells: pd.DataFrame, difference: float, model: str) -> Figure:
    """F7: every strategy's gain, its accuracy by length and rate, and its mean rank.

    `tests` and `cells` are those of `findings.ranking`, `difference` the critical difference.
    """
    places = np.arange(len(tests))[::-1]
    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(WIDE, 0.19 * len(tests) + 1.4), width_ratios=(1.2, 1.5, 1), sharey=True)
    for number, group in enumerate(GROUP_LOOKS):
        mine = (tests["group"] == group).to_numpy()
        part = tests[mine]
        style.gains(left, part, places[mine], number, group)
        right.plot(part["mean_rank"], places[mine], MARKERS[number], color=PALETTE[number])
    left.axvline(0, color="0.4", linewidth=0.8)
    chance = tests.loc[tests["strategy"] == "random", "gain"]
    left.axvline(chance.item(), color="0.4", linewidth=0.8, linestyle=":")
    left.set(xlabel="gain over no pruning", title="balanced accuracy won\n(dotted: random tokens)")
    left.set_yticks(places, tests["strategy"])
    values = cells.loc[tests["strategy"]].to_numpy()
    columns = cells.columns
    middle.grid(False)
    middle.imshow(values, vmin=0.25, vmax=1, aspect="auto",
                  extent=(-0.5, len(columns) - 0.5, -0.5, len(tests) - 0.5))
    for (row, column), value in np.ndenumerate(values):
        middle.text(column, places[row], f"{value:.2f}".removeprefix("0"), ha="center",
                    va="center", fontsize=5, color="white" if value < 0.7 else "black")
    middle.set_xticks(range(len(columns)), [f"{rate:g}" for _, rate in columns])
    lengths, each = columns.unique(0), len(columns) // len(columns.unique(0))
    for number in range(1, len(lengths)):
        middle.axvline(number * each - 0.5, color="white", linewidth=1.5)
    middle.set(xlabel="pruning rate", title="balanced accuracy\n" + ",   ".join(
        f"{n}" for n in lengths) + " tokens")
    for number, ends in enumerate(_cliques(tests["mean_rank"].to_numpy(), difference)):
        at = tests["mean_rank"].max() + 1 + 0.7 * (number % 4)
        right.plot([at, at], places[list(ends)], color="0.3", linewidth=1.5)
    right.set(xlabel="mean rank (1 is best)",
              title=f"bars: not told apart\n(critical difference {difference:.1f})")
    right.set_ylim(-0.7, len(tests) - 0.3)
    style.shared_legend(figure, left, columns=6)
    figure.suptitle(f"{model}, pruned at equal budget (n = {tests['n_images'].max()} images, "
                    "95 % intervals)", fontsize=8)
    return figure


def _cliques(ranks: np.ndarray, difference: float) -> list[tuple[int, int]]:
    """Longest runs (first, last) of ascending ranks whose ends differ less than `difference`."""
    runs, last = [], -1
    for start in range(len(ranks)):
        stop = int(np.searchsorted(ranks, ranks[start] + difference)) - 1
        if stop > max(last, start):
            runs.append((start, stop))
            last = stop
    return runs


def ablations(table: pd.DataFrame, model: str) -> Figure:
    """F7: the gain over no pruning with one choice of the paper's rule changed."""
    groups = list(dict.fromkeys(table["group"]))
    rows = table.groupby("group", sort=False).ngroup() * 0.6 + np.arange(len(table))
    figure, axes = plt.subplots(figsize=(WIDE, 0.17 * rows.max() + 0.9))
    for number, group in enumerate(groups):
        mine = table["group"] == group
        style.gains(axes, table[mine], -rows[mine], number, group)
    for line, row in zip(table.itertuples(), rows):
        if line.behind_p < 0.05:
            axes.annotate("*", (line.gain_high, -row), xytext=(4, -4), textcoords="offset points")
    axes.axvline(0, color="0.4", linewidth=0.8)
    axes.axvline(table["gain"].iloc[0], color="0.4", linewidth=0.8, linestyle=":")
    axes.set_yticks(-rows, table["setting"])
    axes.set(xlabel="balanced accuracy won over no pruning")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set_title(f"{model}, {table['context_length'].iloc[0]} context tokens, "
                   f"rate {table['rate'].iloc[0]:g} "
                   f"(n = {table['n_images'].max()} images, 95 % intervals; *: differs from the "
                   "dotted rule, Holm p < 0.05)", fontsize=7)
    return figure
