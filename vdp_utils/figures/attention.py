"""F5: attention by kind of token, layer and head; and what it causes."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm, TwoSlopeNorm
from matplotlib.figure import Figure

from vdp_utils.figures import style
from vdp_utils.figures.style import KINDS, LINES, MARKERS, PALETTE, WIDE

TOKENS = ("image", "context", "question", "template")


def attention(summary: pd.DataFrame, heat: pd.DataFrame, preference: pd.DataFrame,
              heads: pd.DataFrame, trained: int | None, model: str) -> Figure:
    """F5: the answer position's attention by kind of token, layer and head, against length.

    `heat` and `preference` are layers x lengths: the image's share, and its log2 ratio to uniform
    attention. `heads` has layer, head, context_length and mass.
    """
    figure, grid = plt.subplots(2, 3, figsize=(WIDE, 4.6))
    (shares, prefers, where), (layers, ratios, single) = grid
    lengths = sorted(summary["context_length"].unique())
    for number, name in enumerate(TOKENS):
        part = style.select(summary, measure=f"attention on {name}")
        style.curve(shares, part[part["value"] > 0], number, label=name)
    shares.set(yscale="log", ylim=(None, 3), title="share of attention")  # room for the legend
    for number, name in enumerate(("image", "context")):
        style.curve(prefers, style.select(summary, measure=f"preference for {name}"), number,
                    label=name)
    prefers.axhline(0, color="0.4", linewidth=0.8)
    prefers.set_title("share / uniform share (log2)")
    for axes in (shares, prefers):
        style.length_axis(axes, lengths, trained, narrow=True)
    prefers.legend(fontsize=6)
    _by_layer(figure, layers, heat, "image's share, by layer",
              norm=LogNorm(max(heat.to_numpy().min(), 1e-4), heat.to_numpy().max()))
    extreme = max(1e-3, np.abs(preference.to_numpy()).max())
    _by_layer(figure, ratios, preference, "the same / uniform (log2)", cmap="PuOr",
              norm=TwoSlopeNorm(0, -extreme, extreme))
    ends = [lengths[0], lengths[-1]]
    wide = heads.pivot(index=["layer", "head"], columns="context_length", values="mass")
    depth = wide.index.get_level_values("layer")
    points = where.scatter(wide[ends[0]].clip(lower=1e-5), wide[ends[1]].clip(lower=1e-5), c=depth,
                           s=9, cmap="viridis")
    where.plot([1e-5, 1], [1e-5, 1], color="0.4", linewidth=0.8)
    where.set(xscale="log", yscale="log", xlabel=f"at {ends[0]} context tokens",
              ylabel=f"at {ends[1]}", title="each head's attention on the image")
    named = sorted(set(depth))
    figure.colorbar(points, ax=where, label="layer", ticks=named[::max(1, len(named) // 6)])
    middle = lengths[len(lengths) // 2]
    strongest = wide[middle].sort_values(ascending=False).index[:6]
    for number, (layer, head) in enumerate(strongest):
        line = wide.loc[(layer, head), lengths]
        single.plot(lengths, line, marker=MARKERS[number], linestyle=LINES[number % 4],
                    color=PALETTE[number], label=f"layer {layer}, head {head}")
    style.length_axis(single, lengths, trained, narrow=True)
    single.set(ylim=(0, 1.4), yticks=[0, 0.2, 0.4, 0.6, 0.8, 1],  # room for the legend
               title=f"the most visual heads at {middle} tokens")
    compact = dict(ncols=2, loc="upper center", columnspacing=0.8, handlelength=1.6,
                   handletextpad=0.5)
    single.legend(fontsize=5, **compact)
    shares.legend(fontsize=6, **compact)
    style.title(figure, f"{model}: attention of the answer position", summary,
                "95 % intervals over images")
    return figure


def _by_layer(figure, axes, table: pd.DataFrame, title: str, **options) -> None:
    """A heat map of layers (up) against context lengths, with its colour bar."""
    drawn = axes.imshow(table.to_numpy(), aspect="auto", origin="lower", **options)
    axes.set_xticks(range(table.shape[1]), [style.short(n) for n in table.columns], fontsize=6)
    axes.set_yticks(range(0, len(table), max(1, len(table) // 6)))
    axes.set(xlabel="context length (tokens)", ylabel="layer", title=title)
    axes.grid(False)
    figure.colorbar(drawn, ax=axes)


def attention_and_cause(table: pd.DataFrame, model: str) -> Figure:
    """F5: rank correlation of attention on the image with the answer's move when it is swapped."""
    kinds = style.kinds_of(table)
    figure, panels = plt.subplots(1, len(kinds), figsize=(WIDE, 2.7), sharey=True, squeeze=False)
    lengths = sorted(table["context_length"].unique())
    longest = table.groupby("context_kind")["context_length"].max()  # not of every kind the same
    chosen = sorted({lengths[0], lengths[len(lengths) // 2], *longest})
    names = sorted(table["layer"].unique(), key=lambda name: (name == "mean", name.rjust(3)))
    for axes, kind in zip(panels[0], kinds):
        for number, length in enumerate(chosen):
            part = style.select(table, context_kind=kind, context_length=length)
            if len(part):  # some lengths were measured after one kind alone
                style.curve(axes, part.assign(place=part["layer"].map(names.index)), number,
                            "place", line="none", label=f"{length} context tokens",
                            shift=0.15 * (number - (len(chosen) - 1) / 2))
        axes.axhline(0, color="0.4", linewidth=0.8)
        axes.set_xticks(range(len(names)), names)
        axes.set(xlabel="layer", title=KINDS[kind][0])
    panels[0][0].set_ylabel("Spearman's rank correlation")
    style.shared_legend(figure, *panels[0])
    figure.suptitle(f"{model}: does more attention on the image mean that the image decides more? "
                    f"(n = {table['n_images'].max()} images)")
    return figure


def attention_maps(maps: pd.DataFrame, samples, lengths, model: str) -> Figure:
    """F5: where the answer position looks, mean over layers and heads, on each picture.

    One line a sample, one column a context length; each map is scaled to its own largest value,
    whose share of all attention stands above it.
    """
    samples = [sample for sample in samples if sample.image_id in set(maps["image_id"])]
    figure, panels = plt.subplots(len(samples), len(lengths) + 1, squeeze=False,
                                  figsize=(WIDE, WIDE / (len(lengths) + 1) * len(samples) + 0.4))
    for line, sample in zip(panels, samples):
        mine = maps[maps["image_id"] == sample.image_id].set_index("context_length")
        picture = sample.image()
        line[0].imshow(picture)
        line[0].set_title(mine["question"].iloc[0], fontsize=5.5)
        for axes, length in zip(line[1:], lengths):
            share = style.look(axes, picture, mine.loc[length, "map_image"])
            axes.set_title(f"{style.short(length)} tokens: “{mine.loc[length, 'predicted']}”, "
                           f"{100 * share:.1f} %", fontsize=5.5)
    for axes in panels.flat:
        axes.axis("off")
    figure.suptitle(f"{model}: attention on the image (above: the answer, and the image's share of "
                    "all attention)")
    return figure
