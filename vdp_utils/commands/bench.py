"""`vdp bench`: what recording and pruning cost, side by side in one run.

Every table has medians of alternating repeats after a warm-up: `recording` (time and peak memory
against SDPA and eager), `pruning` (time to first token, time per output token, peak memory and
cache bytes of the three modes, on the embedded model and on a wider random one) and `sharing`
(questions after one cached prefix). A table is written after every length, and what it has is not
measured again. README.md beside the tables shows them all.
"""

import math
import os
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from statistics import median

import pandas as pd
import torch
from jinja2 import Template
from tqdm import tqdm
from transformers import DynamicCache

from vdp_utils import figures, paths
from vdp_utils.attention.kept import kept_count
from vdp_utils.attention.modes import MODES
from vdp_utils.attention.pruner import ContextPruner, default_layer
from vdp_utils.attention.recording import decoder_of, record
from vdp_utils.errors import VDPError
from vdp_utils.figures.bench import RATE, relative
from vdp_utils.lvlm import prompts
from vdp_utils.lvlm.load import LVLM, load_lvlm
from vdp_utils.measuring.measure import condition, measure_sample
from vdp_utils.measuring.scoring import prefill
from vdp_utils.measuring.timing import (DEVICE, alternate, eager_attention, expected, machine,
                                        peak_increase, prefill_and_decode, prompt, timed, wide_lvlm)
from vdp_utils.sources.samples import presence_samples

LENGTHS = {"quick": (1024, 2048), "full": (1024, 2048, 4096, 8192)}  # context tokens
RATES = (0.25, 0.5, 0.75, 0.9)
EAGER_MAPS = 6 * 2**30  # bytes of attention maps up to which eager is run


@torch.no_grad()
def recording_table(model, length: int, repeats: int) -> pd.DataFrame:
    """Seconds and peak memory of one prefill: SDPA, two recordings, and eager with its maps.

    A ratio is the median over rounds, as a slow minute slows all of a round; low and high are its
    quartiles. Eager alternates with SDPA in rounds of its own: its gigabytes slow down what comes
    next.
    """
    inputs, kinds = prompt(model, length)
    config = decoder_of(model).config

    def run(recorder=nullcontext, **options):
        with recorder():
            model(**inputs, use_cache=True, logits_to_keep=1, **options)

    def eager():
        with eager_attention(model):
            run(output_attentions=True)

    tasks = {"SDPA": run,
             "all queries": partial(run, partial(record, model, ("all",))),
             "question": partial(run, partial(record, model, ("question",), kinds=kinds))}
    maps = 4 * config.num_hidden_layers * config.num_attention_heads * kinds.shape[1]**2
    large = {"SDPA": run, "eager, all maps": eager} if maps <= EAGER_MAPS else {}
    run()
    memory = {name: peak_increase(task) for name, task in (tasks | large).items()}
    lines = []
    for some in filter(None, (tasks, large)):
        seconds = pd.DataFrame(alternate(repeats, **some))
        ratios = seconds.div(seconds["SDPA"], axis=0).quantile([0.25, 0.5, 0.75])
        lines += [dict(length=length, setting=name, repeats=repeats,
                       seconds=seconds[name].median(), peak_bytes=memory[name],
                       **dict(zip(("low", "ratio", "high"), ratios[name]))) for name in some]
    return pd.DataFrame(lines).drop_duplicates("setting", ignore_index=True)


@contextmanager
def only_layers(model, part: slice):
    """`model` has only the decoder layers of a slice inside the block."""
    decoder = decoder_of(model)
    layers, depth = decoder.layers, decoder.config.num_hidden_layers
    decoder.layers = layers[part]
    decoder.config.num_hidden_layers = len(decoder.layers)
    try:
        yield
    finally:
        decoder.layers, decoder.config.num_hidden_layers = layers, depth


def operations(config, tokens: int, layers: int) -> float:
    """Multiply-adds x 2 of `layers` decoder layers over `tokens`: maps, and causal attention."""
    width, heads, groups = config.head_dim, config.num_attention_heads, config.num_key_value_heads
    maps = config.hidden_size * (width * (2 * heads + 2 * groups) + 3 * config.intermediate_size)
    return layers * (2 * tokens * maps + 2 * tokens * (tokens + 1) * heads * width)


@torch.no_grad()
def pruning_table(model, length: int, repeats: int, rates=RATES, modes=MODES,
                  layer: int | None = None) -> pd.DataFrame:
    """One row per mode and rate: TTFT, TPOT, memory, cache, and the bound.

    Context is scored at decoder layer `layer`, by default a sixth of the way down.

    The bound of `prefill` is the same layers alone at the lengths they see, timed in the same
    rounds: those up to the scoring layer over the whole prompt, the others over what is kept.
    """
    inputs, kinds = prompt(model, length)
    decoder, tokens = decoder_of(model), inputs["input_ids"].shape[1]
    config, depth = decoder.config, len(decoder.layers)
    scored = 1 + (default_layer(depth) if layer is None else layer)
    settings = [("none", 0.0)] + [(mode, rate) for mode in modes for rate in rates]
    left = {rate: tokens - length + kept_count(length, rate) for _, rate in settings}

    def around(mode, rate):
        return (nullcontext() if mode == "none"
                else ContextPruner(rate, mode=mode, layer=layer, kinds=kinds)(model))

    def first(mode, rate):
        with around(mode, rate):
            model(**inputs, use_cache=True, logits_to_keep=1)

    def bound(short):
        with only_layers(model, slice(scored)):
            model(**inputs, use_cache=True, logits_to_keep=1)
        with only_layers(model, slice(scored, None)):
            decoder(inputs_embeds=short, past_key_values=DynamicCache(), use_cache=True)

    first("none", 0.0)
    memory = {setting: peak_increase(partial(first, *setting)) for setting in settings}  # warms up
    rounds = []
    for _ in range(repeats):
        for mode, rate in settings:
            with around(mode, rate):
                rounds.append(dict(mode=mode, rate=rate) | prefill_and_decode(model, inputs))
            if mode == "prefill":
                short = torch.randn(1, left[rate], config.hidden_size, device=model.device)
                rounds[-1]["bound_s"] = timed(partial(bound, short))
    medians = pd.DataFrame(rounds).groupby(["mode", "rate"]).median()
    start, whole = operations(config, tokens, scored), operations(config, tokens, depth)
    lines = []
    for mode, rate in settings:
        work = {"none": whole, "evict": whole,
                "prefill": start + operations(config, left[rate], depth - scored),
                "compress": start + operations(config, left[rate], depth)}[mode]
        found = medians.loc[mode, rate]
        lines.append(dict(
            length=length, mode=mode, rate=rate, repeats=repeats,
            **found[["ttft_s", "tpot_s", "bound_s"]], operations=work / whole,
            peak_bytes=memory[mode, rate], cache_bytes=int(found["cache_bytes"]),
            cache_formula=expected(config, left[rate], size=4)["cache"]))
    return pd.DataFrame(lines)


def early_table(model, length: int, repeats: int) -> pd.DataFrame:
    """`pruning_table` of `prefill` scoring at the last layer of the first eighth of the depth."""
    return pruning_table(model, length, repeats, (0.75,), ("prefill",),
                         len(decoder_of(model).layers) // 8 - 1)


def break_even(table: pd.DataFrame) -> pd.DataFrame:
    """Generated tokens from which a mode and rate is faster than no pruning; inf where it never is.

    The least n with TTFT + n x TPOT below the same sum without pruning.
    """
    plain = table[table["mode"] == "none"].set_index("length")
    lines = []
    for line in table[table["mode"] != "none"].itertuples():
        late = line.ttft_s - plain.loc[line.length, "ttft_s"]
        gain = plain.loc[line.length, "tpot_s"] - line.tpot_s
        tokens = 0.0 if late < 0 else late / gain if gain > 0 else float("inf")
        lines.append(dict(length=line.length, mode=line.mode, rate=line.rate, tokens=tokens))
    return pd.DataFrame(lines)


@torch.no_grad()
def sharing_table(lvlm: LVLM, length: int, repeats: int) -> pd.DataFrame:
    """Seconds for one prefill, and for six questions after it: each alone, and sharing a cache."""
    sample = next(s for s in presence_samples("evaluation", 20) if len(s.questions) == 6)
    one = condition(lvlm, "other_images", length)
    prefix = prompts.shared_prefix(lvlm, sample, "other_images", length)
    times = alternate(repeats, prefill=lambda: prefill(lvlm, prefix),
                      alone=lambda: measure_sample(lvlm, sample, one, share=False),
                      shared=lambda: measure_sample(lvlm, sample, one))
    return pd.DataFrame([dict(length=length, setting=name, repeats=repeats, seconds=median(values))
                         for name, values in times.items()])


def run(folder: Path, lengths, repeats: int, parts=None) -> None:
    """Measure every part that `folder` lacks: `<table>_<model>.csv`, a length at a time.

    A length is written once all of its settings are timed, as they take turns: a setting timed by
    itself would be compared with plain passes of another hour. So a run that stops within a length
    loses it, about an hour for the wide model at 8192 tokens.
    """
    embedded = partial(load_lvlm, "embedded-s", DEVICE)
    makers = {"sharing_embedded-s": (embedded, sharing_table, (1024,)),
              "recording_embedded-s": (lambda: embedded().model, recording_table, lengths),
              "pruning_embedded-s": (lambda: embedded().model, pruning_table, lengths),
              "pruning_wide": (wide_lvlm, pruning_table, lengths),
              "pruning_wide_early": (wide_lvlm, early_table, lengths)}
    unknown = [part for part in parts or () if part not in makers]
    if unknown:
        raise VDPError(f"unknown part {unknown[0]!r}: choose from {', '.join(makers)}")
    folder.mkdir(parents=True, exist_ok=True)
    for name, (load, make, wanted) in makers.items():
        if parts and name not in parts:
            continue
        path = folder / f"{name}.csv"
        done = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=["length"])
        missing = [n for n in wanted if n not in set(done["length"])]
        model = load() if missing else None
        for length in tqdm(missing, desc=name):
            found = make(model, length, repeats=repeats).assign(**machine())
            done = pd.concat([done, found]) if len(done) else found
            done.to_csv(path, index=False, float_format="%.5g")


MODELS = {"embedded S": "pruning_embedded-s", "1024 wide, 16 layers": "pruning_wide"}
EARLY = {"1024 wide, 16 layers, scored a layer earlier": "pruning_wide_early"}


def tables_of(folder: Path) -> dict[str, pd.DataFrame]:
    """The tables that `folder` has, by name."""
    return {path.stem: pd.read_csv(path) for path in sorted(folder.glob("*.csv"))}


def draw(tables: dict[str, pd.DataFrame], folder: Path) -> None:
    """The figures of the tables that are there."""
    if "recording_embedded-s" in tables:
        figures.save(figures.bench_recording(tables["recording_embedded-s"]), folder,
                     "bench_recording")
    pruned = {model: tables[name] for model, name in MODELS.items() if name in tables}
    if pruned:
        figures.save(figures.bench_pruning(pruned), folder, "bench_pruning")


PAGE = Path(__file__).with_name("bench.md.j2")  # the words around the tables


def costs(tables: dict[str, pd.DataFrame]) -> str:
    """What pruning costs in Markdown, one table per model; times are ratios within one run."""
    ratios = {"TTFT": "ttft_s", "its bound": "bound_s", "operations": "operations",
              "TPOT": "tpot_s", "peak memory": "peak_bytes", "cache": "cache_bytes"}
    parts = []
    for model, name in (MODELS | EARLY).items():
        if name not in tables:
            continue
        table = relative(tables[name])
        table = table.merge(break_even(tables[name]), on=["length", "mode", "rate"])
        table = table[table["rate"] == RATE].set_index("length")
        shown = {name: table[column].map(_ratio) for name, column in ratios.items()}
        parts.append(f"{model}, rate {RATE}:\n\n" + _markdown(pd.DataFrame(
            {"mode": table["mode"]} | shown | {"break-even": table["tokens"].map(_tokens)}),
            "context tokens"))
    return "\n".join(parts)


def report(tables: dict[str, pd.DataFrame], pictures: str = "../../figures") -> str:
    """README.md of a folder of tables: those that are there, and what their columns mean.

    `pictures` is where the figures lie, as seen from that folder.
    """
    made = {"recording": ("recording_embedded-s", _recording),
            "sharing": ("sharing_embedded-s", _sharing),
            "scores": ("baselines_scores", _scores), "baselines": ("baselines_times", _baselines)}
    shown = {part: make(tables[name]) for part, (name, make) in made.items() if name in tables}
    return Template(PAGE.read_text()).render(
        shown, measured_on=_measured_on(tables), costs=costs(tables), pictures=pictures,
        pruned=not tables.keys().isdisjoint(MODELS.values()))


def write(tables: dict[str, pd.DataFrame], folder: Path, pictures: Path) -> str:
    """Draw the figures into `pictures`, put `report` into `folder`/README.md and return it."""
    draw(tables, pictures)
    text = report(tables, Path(os.path.relpath(pictures, folder)).as_posix())
    (folder / "README.md").write_text(text, encoding="utf-8")
    return text


def _measured_on(tables: dict[str, pd.DataFrame]) -> str:
    """One row per table: its machine, its versions, and how often each call was timed."""
    lines = {name: table.iloc[0].reindex(["device", "threads", "torch", "transformers", "repeats"])
             for name, table in tables.items()}
    return _markdown(pd.DataFrame(lines).T, "table")


def _recording(table: pd.DataFrame) -> str:
    """Recording against plain and eager attention: one row per context length."""
    cells = [f"{line.ratio:.2f} ({line.peak_bytes / 2**20:.0f} MiB)" if line.setting != "SDPA"
             else f"{line.seconds:.2f} s ({line.peak_bytes / 2**20:.0f} MiB)"
             for line in table.itertuples()]
    return _markdown(table.assign(cell=cells).pivot(
        index="length", columns="setting", values="cell"), "context tokens",
        ["SDPA", "all queries", "question", "eager, all maps"])


def _sharing(table: pd.DataFrame) -> str:
    """Six questions, each alone and after one cache: one row per context length."""
    seconds = table.pivot(index="length", columns="setting", values="seconds")
    seconds["alone / shared"] = seconds["alone"] / seconds["shared"]
    return _markdown(seconds.map("{:.2f}".format), "context tokens",
                     ["prefill", "alone", "shared", "alone / shared"])


def _scores(table: pd.DataFrame) -> str:
    """kvpress's scores against ours: one row per press."""
    shown = {"ours": table["ours"], "note": table["note"], "rank correlation":
             table["ranks"].map(_ratio),
             "largest difference": table["difference"].map("{:.0e}".format)}
    return _markdown(pd.DataFrame(shown).set_index(table["baseline"]), "press")


def _baselines(times: pd.DataFrame) -> str:
    """The baselines' times: one row per mode or press, two columns per context length."""
    cells = {}
    for line in relative(times, "setting").itertuples():
        for name, label in (("ttft_s", "TTFT"), ("tpot_s", "TPOT")):
            cells.setdefault(f"{line.length}: {label}", {})[line.setting] = _ratio(
                getattr(line, name))
    return f"Rate {times['rate'].iloc[0]}:\n\n" + _markdown(pd.DataFrame(cells), "mode or press")


def _ratio(value: float) -> str:
    """Two digits; nothing where nothing was measured."""
    return "" if pd.isna(value) else f"{value:.2f}"


def _tokens(count: float) -> str:
    """A break-even count in words."""
    return ("never" if count == float("inf") else "the first token" if not count
            else f"{math.ceil(count)} tokens")


def _markdown(table: pd.DataFrame, index: str, columns=None) -> str:
    columns = [c for c in columns or table.columns if c in table]
    lines = [f"| {index} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for label, line in table[columns].fillna("").iterrows():
        lines.append(f"| {label} | {' | '.join(map(str, line))} |")
    return "\n".join(lines) + "\n"


def bench(profile="quick", lengths=(), parts=(), repeats=5):
    """Measure what the profile's tables lack, draw them, and write and print README.md beside them.

    `lengths` are context tokens, those of `LENGTHS` by default; `parts` names tables, all by
    default. VDPError for a part that is not there.
    """
    folder = paths.bench(profile)
    run(folder, lengths or LENGTHS[profile], repeats, parts)
    print(write(tables_of(folder), folder, paths.figures(profile)))
