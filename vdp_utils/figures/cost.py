"""F9: what pruning saves, and accuracy against time."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from vdp_utils.figures import style
from vdp_utils.figures.bench import MODE_STYLES, _where, relative
from vdp_utils.figures.ranking import GROUP_LOOKS
from vdp_utils.figures.style import MARKERS, PALETTE, WIDE

COMMITTED = "\nthe committed benchmark, not this run"  # said on its figures in another profile
FAST = 1.5  # times of no pruning up to which operating points share a panel


def cost(table: pd.DataFrame, model: str) -> Figure:
    """F9: TTFT, TPOT and cache by mode and rate, relative to no pruning.

    `table` is `findings.cost.summary` of the modes.
    """
    measures = list(dict.fromkeys(table["measure"]))
    figure, panels = plt.subplots(1, len(measures), figsize=(WIDE, 2.5), sharey=True)
    for axes, measure in zip(panels, measures):
        for number, mode in enumerate(dict.fromkeys(table["mode"])):
            style.curve(axes, style.select(table, measure=measure, mode=mode), number, "rate",
                        label=mode.replace(" compact", ", positions closed up"),
                        shift=0.01 * (number - 1))
        axes.axhline(1, color="0.4", linewidth=0.8)
        axes.set(ylim=(0, None), xticks=sorted(table["rate"].unique()), xlabel="pruning rate",
                 title=measure)
    panels[0].set_ylabel("relative to no pruning")
    style.shared_legend(figure, panels[0])
    style.title(figure, f"{model}, {table['context_length'].iloc[0]} context tokens", table)
    return figure


def break_even(tables: dict[str, pd.DataFrame], committed: bool = False) -> Figure:
    """F9: generated tokens from which each mode and rate is faster than no pruning.

    `tables` are those of `bench.break_even` by model. With `committed` the figure says that they
    are the committed benchmark's, not of the run that shows it.
    """
    figure, panels = plt.subplots(1, len(tables), figsize=(WIDE, 2.9), sharey=True)
    for axes, (model, table) in zip(np.atleast_1d(panels), tables.items()):
        table = table.assign(order=table["mode"].map(list(MODE_STYLES).index))
        counts = table.pivot(index=["order", "mode", "rate"], columns="length", values="tokens")
        values = np.ceil(counts.to_numpy())
        shade = np.where(np.isinf(values), 4, np.log10(np.maximum(values, 1)))
        axes.imshow(np.ma.masked_invalid(shade), cmap="cividis_r", vmin=0, vmax=4, aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            text = ("not\nmeasured" if np.isnan(value) else "never" if np.isinf(value)
                    else f"{value:.0f}")
            axes.text(column, row, text, ha="center", va="center", linespacing=0.8,
                      fontsize=4.5 if np.isnan(value) else 6,
                      color="white" if shade[row, column] > 2 else "black")
        axes.set_xticks(range(counts.shape[1]), [style.short(n) for n in counts.columns])
        axes.set_yticks(range(len(counts)), [f"{mode} {rate:g}" for _, mode, rate in counts.index])
        axes.grid(False)
        axes.set(xlabel="context length (tokens)", title=model)
    figure.suptitle("Break-even: generated tokens from which pruning is faster (0: from the first)"
                    f"{COMMITTED if committed else ''}")
    return figure


def pareto(table: pd.DataFrame, longer: pd.DataFrame, model: str) -> Figure:
    """F9: accuracy against time to the first token, over strategies and rates, and over lengths.

    `table` and `longer` are `findings.cost.pareto` and `by_length`.
    """
    figure, (left, slow, right) = plt.subplots(1, 3, figsize=(WIDE, 3.6),
                                               width_ratios=(1.9, 0.5, 1.4))
    front = table[table["pareto_front"]]
    near, late = table[table["time"] <= FAST], table[table["time"] > FAST]
    for axes, part in ((left, near), (slow, late)):
        axes.plot("time", "accuracy", data=front, color="0.4", linewidth=0.9, zorder=0, label="")
        for number, group in enumerate(GROUP_LOOKS):
            mine = style.select(part, group=group)
            axes.plot([], [], MARKERS[number], color=PALETTE[number], label=group)
            axes.scatter(mine["time"], mine["accuracy"], 10 + 22 * mine["rate"] ** 2,
                         color=PALETTE[number], marker=MARKERS[number], linewidth=0)
        axes.set_ylim(-0.03, 1.03)
    least, most = near["time"].min(), near["time"].max()
    left.set(xlim=(least - 0.04, most + 0.45), ylabel="mean balanced accuracy of both targets",
             xticks=[at for at in (0.25, 0.5, 0.75, 1, 1.25) if least <= at <= most],
             title=f"{table['context_length'].iloc[0]} context tokens, by strategy and rate\n"
             "(larger: higher rate; line: Pareto front)")
    slow.set(yticklabels=[], title="(perplexity)")
    _named(left, near)
    _named(slow, late)
    if len(late):
        slow.set_xlim(0.85 * late["time"].min(), 1.1 * late["time"].max())
    for number, (length, part) in enumerate(longer.groupby("context_length")):
        for kind in style.kinds_of(part):
            marker, line = style.KINDS[kind][1:]
            style.curve(right, style.select(part, context_kind=kind), number, "time", marker=marker,
                        line=line, shift=0,
                        label=f"{style.short(int(length))}, {kind.replace('_', ' ')}")
    right.set(ylim=(-0.03, 1.03), xlim=(0.9 * longer["time"].min(), 1.05), yticklabels=[],
              title="the paper's rule, longer contexts\n(right to left: rates 0, 0.5, 0.9)")
    for axes in (left, slow, right):
        axes.axhline(0.5, color="0.6", linewidth=0.8, zorder=0)
    for axes in (left, right):
        axes.set_xlabel("time to first token / no pruning's")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower left", ncols=3)
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower right", ncols=2)
    figure.suptitle(f"{model}: what accuracy costs in time (accuracy: n = "
                    f"{longer['n_images'].max()} images)")
    return figure


def _named(axes, table: pd.DataFrame) -> None:
    """Names of the Pareto front, the paper's rule and no pruning, in a column at the right, each
    with a line to its point; beyond FAST only their rates."""
    height = 0.88  # below the Pareto front
    table = table[table["pareto_front"] | table["group"].isin(["the paper's rule", "no pruning"])]
    for line in table.sort_values("accuracy", ascending=False).itertuples():
        height = min(height, line.accuracy)
        name = "no pruning" if not line.rate else f"{line.strategy} {line.rate:g}"
        if line.time > FAST:
            axes.annotate(f"{line.rate:g}", (line.time, line.accuracy), xytext=(0, -9),
                          textcoords="offset points", fontsize=5.5, ha="center")
            continue
        axes.annotate(name.replace("_", " "), (line.time, line.accuracy),
                      xytext=(axes.get_xlim()[1] - 0.41, height), fontsize=5.5, va="center",
                      arrowprops=dict(arrowstyle="-", color="0.6", linewidth=0.5))
        height -= 0.055


def baselines(times: pd.DataFrame, committed: bool = False) -> Figure:
    """F9: this study's modes and kvpress's presses, relative to no pruning in the same run.

    `committed` as in `break_even`.
    """
    lengths = sorted(times["length"].unique())
    figure, (panels,) = plt.subplots(1, len(lengths), figsize=(WIDE, 2.4), sharey=True,
                                     squeeze=False)
    for axes, length in zip(panels, lengths):
        part = relative(style.select(times, length=length), "setting").set_index("setting")
        places = np.arange(len(part))[::-1]
        for number, (name, label) in enumerate((("ttft_s", "time to first token"),
                                                ("tpot_s", "time per output token"))):
            axes.barh(places + 0.2 - 0.4 * number, part[name], 0.38, color=PALETTE[number],
                      hatch=("", "//")[number], edgecolor="white", label=label)
        axes.axvline(1, color="0.4", linewidth=0.8)
        axes.set_yticks(places, part.index)
        axes.set(title=f"{length} context tokens", xlabel="relative to no pruning")
    style.shared_legend(figure, panels[0])
    figure.suptitle(f"Beside kvpress, rate {times['rate'].iloc[0]:g}, wide random model "
                    f"({_where(times)}){COMMITTED if committed else ''}")
    return figure
