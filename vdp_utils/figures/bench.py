"""The benchmark: what recording and pruning cost."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from vdp_utils.figures import style
from vdp_utils.figures.style import PALETTE, WIDE

RATE, LENGTH = 0.75, 4096  # shown where the other varies
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


def _where(table: pd.DataFrame) -> str:
    """The machine a table was measured on, and its repeats."""
    line = table.iloc[0]
    return (f"{line['device']}, {line['threads']} threads, medians of {table['repeats'].min()} "
            "alternating repeats")


def bench_recording(table: pd.DataFrame) -> Figure:
    """Time of a prefill relative to SDPA, and what it adds to peak memory, against length."""
    figure, (times, memory) = plt.subplots(1, 2, figsize=(WIDE, 2.6))
    lengths = sorted(table["length"].unique())
    for (setting, look), colour in zip(SETTINGS.items(), PALETTE):
        part = table[table["setting"] == setting]
        label = f"recording, {setting}" if setting in ("all queries", "question") else setting
        style.curve(times, part.rename(columns=dict(ratio="value")), x="length", color=colour,
                    marker=look[0], line=look[1:], label=label, shift=0)
        memory.plot(part["length"], part["peak_bytes"] / 2**20, look, color=colour)
    part = table[table["setting"] == "SDPA"]
    times.axhline(1, color="0.4", linewidth=0.8)
    memory.plot(part["length"], part["peak_bytes"] / 2**20, "D:", color="0.3", label="SDPA, plain")
    times.set_yscale("log", base=2)
    times.set_yticks([1, 2, 4, 8], ["1", "2", "4", "8"])
    times.set_ylabel("time of a prefill / SDPA's")
    memory.set(yscale="log", ylabel="peak memory it adds (MiB)")
    for axes in (times, memory):
        style.doubling(axes, lengths)
    style.shared_legend(figure, times, memory)
    figure.suptitle(f"Recording every layer of the embedded LVLM ({_where(table)}, bars: "
                    "quartiles)")
    return figure


def bench_pruning(tables: dict[str, pd.DataFrame]) -> Figure:
    """TTFT and TPOT relative to no pruning; one row of panels per model."""
    figure, panels = plt.subplots(len(tables), 3, figsize=(WIDE, 2.3 * len(tables)),
                                  squeeze=False, sharey="col")
    for (model, table), (first, token, rates) in zip(tables.items(), panels):
        table = relative(table)
        for (mode, look), colour in zip(MODE_STYLES.items(), PALETTE):
            options = dict(color=colour, label=mode)
            part = style.select(table, mode=mode, rate=RATE)
            first.plot(part["length"], part["ttft_s"], look, **options)
            token.plot(part["length"], part["tpot_s"], look, **options)
            if mode == "prefill":
                first.plot(part["length"], part["bound_s"], ":", color="0.2",
                           label="bound of prefill: its layers alone")
            part = style.select(table, mode=mode, length=LENGTH)
            rates.plot(part["rate"], part["ttft_s"], look, **options)
        for axes, title in ((first, f"TTFT, rate {RATE}"), (token, f"TPOT, rate {RATE}"),
                            (rates, f"TTFT, {style.short(LENGTH)} tokens")):
            axes.axhline(1, color="0.4", linewidth=0.8)
            axes.set(ylim=(0, None), title=title)
        for axes in (first, token):
            style.doubling(axes, sorted(table["length"].unique()))
        rates.set_xlabel("pruning rate")
        first.set_ylabel(f"{model}\ntime / no pruning's")
    style.shared_legend(figure, panels[0][0])
    figure.suptitle(f"What pruning saves ({_where(next(iter(tables.values())))})")
    return figure
