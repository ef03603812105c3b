"""One function a figure, from rows and tables; `save` writes PNG and PDF, the same each time."""

from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from vdp_utils import scenes
from vdp_utils.prompts import Sample

WIDTH, WIDE = 3.25, 6.75  # inches: one and two columns
STYLE = {
    "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "legend.fontsize": 7,
    "xtick.labelsize": 7, "ytick.labelsize": 7, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3, "grid.linewidth": 0.5,
    "lines.linewidth": 1.3, "lines.markersize": 4, "figure.dpi": 150, "savefig.dpi": 200,
    "pdf.fonttype": 42, "svg.hashsalt": "vdp", "legend.frameon": False,
}
KINDS = {  # context kind -> (label, marker, line)
    "same": ("same: about this image", "o", "-"),
    "other": ("other: about other images", "s", "--"),
    "mentions": ("mentions: names absent objects", "^", "-."),
    "text_only": ("text only: scene in words", "D", ":"),
}
COLOURS = dict(zip(KINDS, sns.color_palette("colorblind", len(KINDS))))
matplotlib.rcParams.update(STYLE)


def save(figure: Figure, folder: str | Path, name: str) -> Figure:
    """Write `folder/name.png` and `.pdf`, byte-identical for the same figure."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.png", metadata={"Software": None})
    figure.savefig(folder / f"{name}.pdf", metadata={"CreationDate": None, "Creator": None,
                                                     "Producer": None})
    return figure


def _length_axis(axes, lengths, trained: int | None) -> None:
    """Context lengths, doubling from left to right, and the longest one seen in training."""
    axes.set_xscale("symlog", base=2, linthresh=64, linscale=0.6)
    axes.set_xticks(lengths, [str(n) if n % 1024 or not n else f"{n // 1024}k" for n in lengths])
    axes.minorticks_off()
    axes.set_xlabel("context length (tokens)")
    if trained:
        axes.axvline(trained, color="0.4", linewidth=0.8, linestyle=(0, (1, 2)))


def decline(summary: pd.DataFrame, trained: int | None, model: str) -> Figure:
    """F1: accuracy, yes-rate and answer margin against context length, by context kind."""
    measures = list(summary["measure"].unique())
    figure, panels = plt.subplots(1, len(measures), figsize=(WIDE, 2.6), layout="constrained")
    lengths = sorted(summary["context_length"].unique())
    for axes, name in zip(panels, measures):
        for number, (kind, part) in enumerate(
                summary[summary["measure"] == name].groupby("context_kind", sort=False)):
            label, marker, line = KINDS[kind]
            shift = 1 + 0.05 * (number - 1)  # side by side, so that intervals stay readable
            axes.errorbar(part["context_length"] * shift, part["value"],
                          [part["value"] - part["low"], part["high"] - part["value"]],
                          label=label, marker=marker, linestyle=line, color=COLOURS[kind],
                          elinewidth=0.8, capsize=1.5)
        _length_axis(axes, lengths, trained)
        axes.set_title(name)
    for axes, name in zip(panels, measures):
        if name in ("balanced accuracy", "yes-rate"):
            axes.axhline(0.5, color="0.6", linewidth=0.8, zorder=0)
        if name == "balanced accuracy":
            axes.set_ylim(min(0.4, axes.get_ylim()[0]), 1.01)
            axes.annotate("chance", (lengths[0], 0.5), xytext=(2, 2), fontsize=6, color="0.4",
                          textcoords="offset points")
        if name == "yes-rate":
            axes.set_ylim(0, 1)
        if name == "balanced accuracy" and trained:
            axes.annotate("longest\ntrained", (trained, axes.get_ylim()[0]), xytext=(3, 3),
                          textcoords="offset points", fontsize=6, color="0.3")
    handles, labels = panels[0].get_legend_handles_labels()
    n = int(summary["n_images"].max())
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    figure.suptitle(f"{model}: presence questions behind a text context "
                    f"(n = {n} images, 95 % intervals over images)", fontsize=8)
    return figure


def _label_box(item: scenes.Item, taken: list) -> tuple[float, float, float, float]:
    """Room for an item's noun above, below or inside its box, clear of what is `taken`."""
    x0, y0, x1, y1 = item.box
    width, height = 4.2 * len(item.noun) + 2, 8  # pixels, at 5 points
    left = min(x0, scenes.SIZE - width)
    places = [(left, top, left + width, top + height) for top in (y0 - 9, y1 + 1, y0 + 1)]
    for place in places:
        if place[1] >= 0 and place[3] <= scenes.SIZE and not any(
                place[0] < box[2] and box[0] < place[2] and place[1] < box[3]
                and box[1] < place[3] for box in taken if box != item.box):
            return place
    return places[-1]


def gallery(samples: list[Sample], columns: int = 4) -> Figure:
    """Scenes with the boxes and nouns of their objects."""
    lines = -(-len(samples) // columns)
    figure, panels = plt.subplots(lines, columns, figsize=(WIDE, 1.85 * lines),
                                  layout="constrained", squeeze=False)
    for axes in panels.flat:
        axes.axis("off")
    for axes, sample in zip(panels.flat, samples):
        axes.imshow(sample.image(), extent=(0, scenes.SIZE, scenes.SIZE, 0))
        boxes = [item.box for item in sample.scene.items]
        for item in sample.scene.items:
            x0, y0, x1, y1 = item.box
            axes.add_patch(plt.Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, linewidth=0.7,
                                         edgecolor="black"))
            label = _label_box(item, boxes)
            boxes.append(label)
            axes.text(label[0] + 1, (label[1] + label[3]) / 2, item.noun, fontsize=5, va="center",
                      bbox=dict(facecolor="white", edgecolor="none", pad=0.3, alpha=0.8))
        axes.set_title(f"{sample.scene.theme}, {sample.scene.texture}", fontsize=7)
    return figure


def training_curves(log: pd.DataFrame) -> Figure:
    """Held-out metrics against the images trained on, one panel a stage."""
    labels = {"tower": "tower", "projector": "projector", "oracle": "on true nouns",
              "naming": "naming", "joint": "joint", "further": "joint, continued"}
    shown = {"object_patch_accuracy": "object patches", "image_presence": "presence, image",
             "words_presence": "presence, words", "image_position": "position, image",
             "blank_presence": "presence, blank image", "image_naming": "naming, tokens right"}
    stages = list(log["stage"].unique())
    figure, panels = plt.subplots(1, len(stages), figsize=(WIDE, 2.7), sharey=True,
                                  layout="constrained", squeeze=False)
    palette = dict(zip(shown, sns.color_palette("colorblind", len(shown))))
    markers = dict(zip(shown, "osD^vP"))
    for axes, stage in zip(panels[0], stages):
        part = log[(log["stage"] == stage) & log["metric"].isin(shown)]
        for metric, curve in part.groupby("metric"):
            axes.plot(curve["samples"] / 1000, curve["value"], label=shown[metric], markersize=2.5,
                      color=palette[metric], marker=markers[metric])
        axes.set_title(labels[stage])
        axes.set_xlabel("thousand images")
        axes.set_ylim(0, 1.02)
    panels[0][0].set_ylabel("held-out accuracy")
    found = {}
    for axes in panels[0]:
        found |= dict(zip(*reversed(axes.get_legend_handles_labels())))
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=3)
    return figure


def proportion(summary: pd.DataFrame, curves: pd.DataFrame, lengths, model: str) -> Figure:
    """F4: recall against the asked object's share of the image, by context kind and length."""
    kinds = [kind for kind in KINDS if kind in set(summary["context_kind"])]
    figure, panels = plt.subplots(1, len(kinds), figsize=(WIDE, 2.7), sharey=True,
                                  layout="constrained", squeeze=False)
    colours = sns.color_palette("colorblind", len(lengths))
    for axes, kind in zip(panels[0], kinds):
        for number, length in enumerate(lengths):
            part, curve = (rows[(rows["context_kind"] == kind) & (rows["context_length"] == length)]
                           for rows in (summary, curves))
            axes.plot(100 * curve["share"], curve["recall"], ("-", "--", "-.", ":")[number % 4],
                      color=colours[number], linewidth=1)
            axes.errorbar(100 * part["share"] * (1 + 0.06 * (number - 1)), part["value"],
                          [part["value"] - part["low"], part["high"] - part["value"]],
                          fmt="osD^"[number % 4], color=colours[number], elinewidth=0.8,
                          capsize=1.5, label=f"{length} context tokens")
        axes.set_xscale("log")
        axes.set_xticks([1, 2, 5, 10, 20, 40], ["1", "2", "5", "10", "20", "40"])
        axes.minorticks_off()
        axes.set_ylim(-0.02, 1.02)
        axes.set_title(KINDS[kind][0])
        axes.set_xlabel("share of the image (%)")
    panels[0][0].set_ylabel("recall: 'yes' where it is there")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(lengths))
    figure.suptitle(f"{model}: points are bins of the questions by share (95 % intervals), "
                    f"curves the logistic regression (n = {summary['images'].max()} images)",
                    fontsize=8)
    return figure


SETTINGS = {"all queries": "o-", "question": "s--", "eager, all maps": "^-."}
WAY_STYLES = {"inflight": "o-", "rerun": "s--", "kv": "^-."}


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
    for (setting, style), colour in zip(SETTINGS.items(), colours):
        part = table[table["setting"] == setting]
        label = f"recording, {setting}" if setting in ("all queries", "question") else setting
        times.plot(part["length"], part["ratio"], style, color=colour, label=label)
        memory.plot(part["length"], part["peak_bytes"] / 2**20, style, color=colour)
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
    figure.suptitle(f"Recording every layer of the embedded LVLM ({_where(table)})", fontsize=8)
    return figure


def bench_pruning(tables: dict[str, pd.DataFrame], rate: float = 0.75, length: int = 4096
                  ) -> Figure:
    """Time to first token and per token relative to no pruning; one line of panels a model."""
    figure, panels = plt.subplots(len(tables), 3, figsize=(WIDE, 2.3 * len(tables)),
                                  layout="constrained", squeeze=False, sharey="col")
    colours = dict(zip(WAY_STYLES, sns.color_palette("colorblind", len(WAY_STYLES))))
    for (model, table), (first, token, rates) in zip(tables.items(), panels):
        plain = table[table["way"] == "none"].set_index("length")
        table = table.assign(**{f"{name}_plain": table["length"].map(plain[name])
                                for name in ("first_token_s", "token_s")})
        for way, style in WAY_STYLES.items():
            options = dict(color=colours[way], label=way)
            part = table[(table["way"] == way) & (table["rate"] == rate)]
            first.plot(part["length"], part["first_token_s"] / part["first_token_s_plain"], style,
                       **options)
            token.plot(part["length"], part["token_s"] / part["token_s_plain"], style, **options)
            if way == "inflight":
                first.plot(part["length"], part["bound_s"] / part["first_token_s_plain"], ":",
                           color="0.2", label="bound of inflight: its layers alone")
            part = table[(table["way"] == way) & (table["length"] == length)]
            rates.plot(part["rate"], part["first_token_s"] / part["first_token_s_plain"], style,
                       **options)
        for axes, title in ((first, f"first token, rate {rate}"), (token, f"each further token, "
                            f"rate {rate}"), (rates, f"first token, {length // 1024}k tokens")):
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
