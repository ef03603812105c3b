"""The benchmark's bookkeeping: what is timed is what is said, and nothing is measured twice."""

import math

import pandas as pd
import pytest
import torch

from vdp_utils.attention.recording import decoder_of
from vdp_utils.attention.tokens import Kind
from vdp_utils.commands import bench
from vdp_utils.errors import VDPError
from vdp_utils.figures.bench import relative
from vdp_utils.measuring import timing
from vdp_utils.paths import bench as bench_folder


@pytest.fixture(scope="module")
def model():
    return timing.wide_lvlm(hidden=64, layers=4)


@pytest.fixture(scope="module")
def pruned(model):
    return bench.pruning_table(model, 100, repeats=1, rates=(0.5,))


def test_a_prompt_has_as_many_tokens_of_each_kind_as_it_says(model):
    inputs, kinds = timing.prompt(model, 300)
    counts = [int((kinds == kind).sum()) for kind in Kind]
    assert counts == [4, timing.IMAGE_TOKENS, 300, timing.QUESTION_TOKENS]
    assert ((inputs["input_ids"] == model.config.image_token_id) == (kinds == Kind.IMAGE)).all()


def test_recording_is_compared_with_plain_and_eager_attention(model):
    table = bench.recording_table(model, 80, repeats=2).set_index("setting")
    assert list(table.index) == ["SDPA", "all queries", "question", "eager, all maps"]
    assert table.loc["SDPA", "ratio"] == 1 and (table["seconds"] > 0).all()
    assert decoder_of(model).config._attn_implementation == "sdpa"


def test_a_ratio_is_the_median_over_rounds_beside_its_quartiles(model, monkeypatch):
    rounds = {"SDPA": [1.0, 2.0, 4.0], "all queries": [3.0, 2.0, 4.4], "question": [1.0, 3.0, 8.0]}
    monkeypatch.setattr(bench, "EAGER_MAPS", 0)
    monkeypatch.setattr(bench, "alternate", lambda repeats, **tasks: rounds)
    table = bench.recording_table(model, 80, repeats=3).set_index("setting")
    assert table.loc["all queries", ["low", "ratio", "high"]].tolist() == pytest.approx(
        [1.05, 1.1, 2.05])  # medians would give 3 / 2
    assert table["seconds"].tolist() == [2, 3, 3]


def test_eager_is_left_out_where_its_maps_would_not_fit(model, monkeypatch):
    monkeypatch.setattr(bench, "EAGER_MAPS", 1000)
    assert "eager, all maps" not in set(bench.recording_table(model, 80, repeats=1)["setting"])


def test_cache_bytes_equal_their_formula_for_every_way(pruned):
    assert list(pruned["mode"]) == ["none", "prefill", "compress", "evict"]
    assert (pruned["cache_bytes"] == pruned["cache_formula"]).all()
    whole, half = pruned["cache_bytes"].iloc[0], pruned["cache_bytes"].iloc[1]
    assert whole / half == pytest.approx((104 + 100 + 16) / (104 + 50 + 16))


def test_only_prefill_has_a_bound_and_evict_saves_no_operations(pruned):
    table = pruned.set_index("mode")
    assert table["bound_s"].notna().to_dict() == dict(none=False, prefill=True, compress=False,
                                                      evict=False)
    work = table["operations"]
    assert work["none"] == work["evict"] == 1 and work["prefill"] < work["compress"]


def test_an_early_layer_leaves_more_to_the_shorter_prompt(model, monkeypatch):
    """Of 16 layers two see everything, the last one of which scores."""
    deep, made = timing.wide_lvlm(hidden=64, layers=16), []
    original = bench.ContextPruner
    monkeypatch.setattr(bench, "ContextPruner",
                        lambda *args, **kwargs: made.append(kwargs) or original(*args, **kwargs))
    table = bench.early_table(deep, 100, repeats=1)
    assert list(table["mode"]) == ["none", "prefill"] and {one["layer"] for one in made} == {1}
    config, kept = decoder_of(deep).config, 104 + 25 + 16
    expected = bench.operations(config, 220, 2) + bench.operations(config, kept, 14)
    assert table["operations"].iloc[1] == expected / bench.operations(config, 220, 16)
    assert table["cache_bytes"].iloc[1] == table["cache_formula"].iloc[1]


def test_operations_are_those_of_the_maps_and_of_causal_attention(model):
    config = decoder_of(model).config
    layer = decoder_of(model).layers[0]
    maps = sum(p.numel() for p in layer.parameters() if p.dim() == 2)
    pairs = sum(range(1, 8))  # 7 queries see 1, 2 ... 7 keys
    attention = 2 * 2 * pairs * config.num_attention_heads * config.head_dim
    assert bench.operations(config, 7, 3) == 3 * (2 * 7 * maps + attention)


def test_layers_alone_leave_the_model_as_it_was(model):
    inputs, _ = timing.prompt(model, 20)
    with torch.no_grad():
        before = model(**inputs).logits
        with bench.only_layers(model, slice(1)):
            short = model(**inputs).logits
        after = model(**inputs).logits
    assert not torch.equal(before, short) and torch.equal(before, after)


def test_break_even_is_where_both_take_as_long():
    line = dict(length=64, rate=0.5, bound_s=math.nan)
    table = pd.DataFrame([line | dict(mode="none", ttft_s=10.0, tpot_s=2.0),
                          line | dict(mode="prefill", ttft_s=4.0, tpot_s=1.0),
                          line | dict(mode="evict", ttft_s=11.0, tpot_s=1.5),
                          line | dict(mode="compress", ttft_s=11.0, tpot_s=2.0)])
    found = bench.break_even(table).set_index("mode")["tokens"]
    assert found.to_dict() == dict(prefill=0.0, evict=2.0, compress=math.inf)


def test_peak_increase_sees_what_a_call_holds():
    def hold():
        return torch.ones(64, 2**20).sum()

    found = timing.peak_increase(hold)
    assert found is None or 250 * 2**20 < found < 400 * 2**20


def test_parts_that_are_there_are_not_measured_again(tmp_path, monkeypatch, model):
    calls = []

    def table(model, length, repeats):
        calls.append(length)
        return pd.DataFrame([dict(length=length, mode="none", rate=0.0, repeats=repeats)])

    monkeypatch.setattr(bench, "pruning_table", table)
    monkeypatch.setattr(bench, "wide_lvlm", lambda: model)
    bench.run(tmp_path, (64, 128), 2, ["pruning_wide"])
    bench.run(tmp_path, (64, 128, 256), 2, ["pruning_wide"])
    assert calls == [64, 128, 256]
    stored = pd.read_csv(tmp_path / "pruning_wide.csv")
    assert list(stored["length"]) == calls and {"device", "threads", "torch"} <= set(stored)


def test_an_unknown_part_is_refused(tmp_path):
    with pytest.raises(VDPError, match="unknown part 'speed'.*recording_embedded-s"):
        bench.run(tmp_path, (64,), 1, ["speed"])


def test_baselines_stand_beside_no_pruning_at_their_own_length():
    times = pd.DataFrame([
        dict(length=length, rate=0.75, setting=setting, ttft_s=first, tpot_s=token)
        for length, setting, first, token in (
            (1024, "none", 2, 0.1), (1024, "kvpress SnapKV", 3, 0.05),
            (2048, "none", 5, 0.2), (2048, "kvpress SnapKV", 6, 0.1))])
    text = bench.report(dict(baselines_times=times))
    assert "Rate 0.75:" in text and "| kvpress SnapKV | 1.50 | 0.50 | 1.20 | 0.50 |" in text


def test_what_is_relative_stands_beside_no_pruning_at_its_own_length():
    lines = [dict(length=length, mode=mode, ttft_s=first, bound_s=bound)
             for length, mode, first, bound in (
                 (64, "none", 2.0, math.nan), (64, "evict", 3.0, 1.0),
                 (128, "none", 8.0, math.nan), (128, "evict", 6.0, 4.0))]
    found = relative(pd.DataFrame(lines))
    assert list(found["mode"]) == ["evict", "evict"] and list(found["length"]) == [64, 128]
    assert list(found["ttft_s"]) == [1.5, 0.75] and list(found["bound_s"]) == [0.5, 0.5]


def test_the_committed_page_is_what_the_committed_tables_give():
    folder = bench_folder("full")
    assert (folder / "README.md").read_text() == bench.report(bench.tables_of(folder))


def test_the_page_shows_every_table_and_no_more_than_there_are():
    tables = bench.tables_of(bench_folder("full"))
    whole = bench.report(tables)
    assert whole.count("\n## ") == 4 and "| 1024 | 0.38 | 2.45 | 0.60 | 4.09 |" in whole
    for name in tables:
        less = bench.report({other: table for other, table in tables.items() if other != name})
        assert f"| {name} |" in whole and f"| {name} |" not in less
        assert whole.count("\n|") > less.count("\n|") + 1, name  # more than its machine is gone


def test_the_baselines_score_as_ours_do_once_they_have_the_same_statistics():
    scores = bench.tables_of(bench_folder("full"))["baselines_scores"]
    assert (scores.loc[scores["note"] != "own query statistics", "difference"] <= 2e-7).all()


def test_figures_are_drawn_from_the_stored_tables(tmp_path, pruned, model):
    pruned.assign(length=4096, rate=[0, .75, .75, .75], **timing.machine()).to_csv(
        tmp_path / "pruning_wide.csv", index=False)
    bench.recording_table(model, 80, 1).assign(**timing.machine()).to_csv(
        tmp_path / "recording_embedded-s.csv", index=False)
    tables = bench.tables_of(tmp_path)
    text = bench.write(tables, tmp_path, tmp_path / "figures")
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert names == {f"bench_{part}.{suffix}" for part in ("recording", "pruning")
                     for suffix in ("png", "pdf")}
    assert (tmp_path / "README.md").read_text() == text
    for name in ("recording", "pruning"):
        assert f"](figures/bench_{name}.png)" in text
    assert "| 80 | " in text and "1024 wide, 16 layers, rate 0.75:" in text
    (line,) = [line for line in text.splitlines() if "| evict |" in line]
    cells = [cell.strip() for cell in line.split("|")]
    assert cells[1:3] == ["4096", "evict"] and cells[5] == "1.00" and cells[8] == "0.77"
