"""`vdp baselines`: kvpress beside this study's strategies and modes, in an environment of its own.

kvpress (Devoto et al., arXiv 2510.00636) needs an older transformers than the study; this module
runs under that one (`make baselines`, requirements-baselines.lock). It compares scores on the same
tensors, and times prefill and decoding in alternating repeats, on the wide random model of
`timing`.
"""

import contextlib
from importlib.metadata import PackageNotFoundError, version

import pandas as pd
import torch
from tqdm import tqdm

from vdp_utils import paths
from vdp_utils.attention import MODES, STRATEGIES, ContextPruner, Kind, record
from vdp_utils.attention.recording import decoder_of
from vdp_utils.attention.strategies import Evidence
from vdp_utils.errors import VDPError
from vdp_utils.measuring import timing

WINDOW = 16


def presses(rate: float) -> dict:
    """The baselines, set to score what this study's strategies score: no sinks, the same window."""
    from kvpress import ExpectedAttentionPress, ObservedAttentionPress, SnapKVPress

    return {"SnapKV": SnapKVPress(rate, window_size=WINDOW),
            "ObservedAttention": ObservedAttentionPress(rate),
            "ExpectedAttention": ExpectedAttentionPress(rate, n_sink=0)}


OURS = {"SnapKV": "snapkv", "ObservedAttention": "accumulated_normalised",
        "ExpectedAttention": "expected_attention"}


def given_statistics(press, states):
    """Let ExpectedAttention take its mean and covariance from the queries that we record."""
    queries = states[0].float()
    mean = queries.mean(2)
    centred = queries - mean[:, :, None]
    covariance = centred.transpose(2, 3) @ centred / queries.shape[2]
    press.get_query_statistics = lambda module, hidden: (mean, covariance)


@torch.no_grad()
def scores_table(model, length: int = 512, layer: int = 2) -> pd.DataFrame:
    """Their score of every context token against ours, from the same pass over the same prompt.

    `difference` is the largest over tokens, relative to the largest score; `ranks` the rank
    correlation. ExpectedAttention stands twice: with its own query statistics, which average the
    rotations of the next 512 positions, and with the prompt's own, which ours takes.
    """
    inputs, kinds = timing.prompt(model, length)
    decoder = decoder_of(model)
    module, seen = decoder.layers[layer].self_attn, {}

    def keep(module, args, kwargs, output):
        seen.update(hidden=kwargs["hidden_states"], turns=kwargs["position_embeddings"])

    hook = module.register_forward_hook(keep, with_kwargs=True)
    with record(model, ("all", "window"), states=True, layers=[layer], window=WINDOW) as found:
        model(**inputs, use_cache=True)
    hook.remove()
    states, tokens = found[layer].states, kinds.shape[1]
    module.rotary_emb = decoder.rotary_emb
    groups = module.config.num_attention_heads // module.config.num_key_value_heads
    maps = (states[0] * module.scaling) @ states[1].repeat_interleave(groups, 1).transpose(2, 3)
    maps = (maps + torch.full((tokens, tokens), -torch.inf).triu(1)).softmax(-1)
    real = torch.ones(tokens, dtype=torch.bool)
    evidence = Evidence(kinds[0], real, (kinds[0] == Kind.CONTEXT).nonzero()[:, 0], heads="mean",
                        window=WINDOW)
    evidence.recorded(found[layer], 0)
    lines = []

    def compare(baseline, note, press):
        theirs = press.score(module, seen["hidden"], states[1], states[2],
                             maps if baseline != "ExpectedAttention" else None,
                             {"position_embeddings": seen["turns"]})
        theirs = theirs[0].mean(0)[evidence.candidates]
        ours = STRATEGIES[OURS[baseline]].score(evidence)
        scale = ours.abs().max()
        if baseline == "SnapKV":  # they average over the window's queries, ours adds up
            theirs = theirs * WINDOW
        ranks = pd.Series(theirs.numpy()).rank().corr(pd.Series(ours.numpy()).rank())
        lines.append(dict(baseline=baseline, ours=OURS[baseline], note=note, tokens=len(ours),
                          ranks=ranks, difference=float((theirs - ours).abs().max() / scale)))

    for baseline, press in presses(0.5).items():
        compare(baseline, "", press)
        if baseline == "ExpectedAttention":
            lines[-1]["note"] = "own query statistics"
            given_statistics(press, states)
            compare(baseline, "the same query statistics", press)
    return pd.DataFrame(lines)


@torch.no_grad()
def times_table(model, length: int, repeats: int, rate: float = 0.75) -> pd.DataFrame:
    """Seconds to first token and per output token: no pruning, our modes, and the baselines."""
    inputs, kinds = timing.prompt(model, length)
    around = {"none": contextlib.nullcontext}
    around |= {f"{mode}, accumulated": lambda mode=mode: ContextPruner(
        rate, mode=mode, kinds=kinds)(model) for mode in MODES}
    around |= {f"kvpress {name}": lambda press=press: press(model)
               for name, press in presses(rate).items()}
    rows = []
    for number in range(repeats + 1):
        for name, make in around.items():
            # it reads the maps, which only eager attention returns
            maps = timing.eager_attention if "Observed" in name else contextlib.nullcontext
            with maps(model), make():
                values = timing.prefill_and_decode(model, inputs)
            if number:  # the first round warms up
                rows.append(dict(length=length, rate=rate, setting=name, repeats=repeats) | values)
    medians = pd.DataFrame(rows).groupby(["length", "rate", "setting", "repeats"], sort=False)
    return medians.median().astype({"cache_bytes": int}).reset_index()


def baselines(profile="quick", lengths=(1024, 2048), repeats=5):
    """Write baselines_scores and baselines_times beside the benchmark's tables. Needs kvpress."""
    try:
        about = timing.machine() | dict(kvpress=version("kvpress"))
    except PackageNotFoundError as error:
        raise VDPError("kvpress is not installed here: run make baselines, which gives it an "
                       "environment of its own") from error
    folder, model = paths.bench(profile), timing.wide_lvlm()
    folder.mkdir(parents=True, exist_ok=True)
    tables = {"baselines_scores": scores_table(model),
              "baselines_times": pd.concat([times_table(model, length, repeats)
                                            for length in tqdm(lengths, desc="baselines")])}
    for name, table in tables.items():
        table.assign(**about).to_csv(folder / f"{name}.csv", index=False, float_format="%.5g")
