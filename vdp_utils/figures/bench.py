"""The benchmark: what recording and pruning cost."""

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from vdp_utils.figures import style
from vdp_utils.figures.style import WIDE

SETTINGS = {"all queries": "o-", "question": "s--", "eager, all maps": "^-."}
MODE_STYLES = {"prefill": "o-", "compress": "s--", "evict": "^-."}
MEASURES = {"ttft_s": "ttft_s", "tpot_s": "tpot_s", "bound_s": "ttft_s",
            "peak_bytes": "peak_bytes", "cache_bytes": "cache_bytes"}  # and what each is a part of


def relative(table: pd.DataFrame, by: str = "mode") -> pd.DataFrame:
    """The lines with pruning, their seconds and bytes relative to no pruning at the same length.

    Lines without pruning have "none" in the column `by`; measures that `table` lacks stay out.
    """
    plain = table[table[by] == "none"].set_index("length")
    pruned = table[table[by] != "none"]
    plain = plain.loc[pruned["length"]]
    return pruned.assign(**{name: pruned[name].to_numpy() / plain[whole].to_numpy()
                            for name, whole in MEASURES.items() if name in table})


def _doubling(axes, lengths) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [f"{n // 1024}k" if n >= 1024 else str(n) for n in lengths])
    axes.minorticks_off()
    axes.set_xlabel("context length (tokens)")


def _where(table: pd.DataFrame) -> str:
    """The machine a table was measured on, and its repeats."""
    line = table.iloc[0]
    return (f"{line['device']}, {line['threads']} threads, medians of {table['repeats'].min()} "
            "alternating repeats")


def bench_recording(table: pd.DataFrame) -> Figure:
    """Time of a prefill relative to SDPA, and what it adds to peak memory, against length."""
    figure, (times, memory) = plt.subplots(1, 2, figsize=(WIDE, 2.6), layout="constrained")
    colours = sns.color_palette("colorblind", len(SETTINGS))
    lengths = sorted(table["length"].unique())
    for (setting, look), colour in zip(SETTINGS.items(), colours):
        part = table[table["setting"] == setting]
        label = f"recording, {setting}" if setting in ("all queries", "question") else setting
        style.curve(times, part.rename(columns=dict(ratio="value")), x="length", color=colour,
                    marker=look[0], line=look[1:], label=label, spread=0)
        memory.plot(part["length"], part["peak_bytes"] / 2**20, look, color=colour)
    part = table[table["setting"] == "SDPA"]
    times.axhline(1, color="0.4", linewidth=0.8)
    memory.plot(part["length"], part["peak_bytes"] / 2**20, "D:", color="0.3", label="SDPA, plain")
    times.set_yscale("log", base=2)
    times.set_yticks([1, 2, 4, 8], ["1", "2", "4", "8"])
    times.set_ylabel("time of a prefill / SDPA's")
    memory.set_yscale("log")
    memory.set_ylabel("peak memory it adds (MiB)")
    for axes in (times, memory):
        _doubling(axes, lengths)
    figure.legend(loc="outside lower center", ncols=4)
    figure.suptitle(f"Recording every layer of the embedded LVLM ({_where(table)}, bars: "
                    "quartiles)", fontsize=8)
    return figure


def bench_pruning(tables: dict[str, pd.DataFrame], rate: float = 0.75, length: int = 4096
                  ) -> Figure:
    """TTFT and TPOT relative to no pruning; one row of panels per model."""
    figure, panels = plt.subplots(len(tables), 3, figsize=(WIDE, 2.3 * len(tables)),
                                  layout="constrained", squeeze=False, sharey="col")
    colours = dict(zip(MODE_STYLES, sns.color_palette("colorblind", len(MODE_STYLES))))
    for (model, table), (first, token, rates) in zip(tables.items(), panels):
        table = relative(table)
        for mode, look in MODE_STYLES.items():
            options = dict(color=colours[mode], label=mode)
            part = table[(table["mode"] == mode) & (table["rate"] == rate)]
            first.plot(part["length"], part["ttft_s"], look, **options)
            token.plot(part["length"], part["tpot_s"], look, **options)
            if mode == "prefill":
                first.plot(part["length"], part["bound_s"], ":", color="0.2",
                           label="bound of prefill: its layers alone")
            part = table[(table["mode"] == mode) & (table["length"] == length)]
            rates.plot(part["rate"], part["ttft_s"], look, **options)
        for axes, title in ((first, f"TTFT, rate {rate}"), (token, f"TPOT, rate {rate}"),
                            (rates, f"TTFT, {length // 1024}k tokens")):
            axes.axhline(1, color="0.4", linewidth=0.8)
            axes.set_ylim(0, None)
            axes.set_title(title)
        for axes in (first, token):
            _doubling(axes, sorted(table["length"].unique()))
        rates.set_xlabel("pruning rate")
        first.set_ylabel(f"{model}\ntime / no pruning's")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    figure.suptitle(f"What pruning saves ({_where(next(iter(tables.values())))})", fontsize=8)
    return figure
