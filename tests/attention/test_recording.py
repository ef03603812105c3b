"""Recorded attention against eager attention maps, and what recording leaves behind."""

import warnings

import pytest
import torch
import transformers as t
from architectures import BUILDERS, LAYERS, TEXT, build, prompt
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from vdp_utils.attention import recording
from vdp_utils.attention.recording import LayerRecord, blocked_attention, decoder_of, record
from vdp_utils.attention.tokens import Kind
from vdp_utils.errors import VDPError

SETS = ("all", "question", "last", "window")
WINDOW = 5


def batched(prompts, side):
    """One batch of several prompts' (inputs, kinds), padded left or right; and their places."""
    longest = max(kinds.shape[1] for _, kinds in prompts)

    def pad(row):
        lacking = row.new_zeros(1, longest - row.shape[1])
        return torch.cat([lacking, row] if side == "left" else [row, lacking], 1)

    inputs = {}
    for key in prompts[0][0]:
        parts = [one[key] for one, _ in prompts]
        words = key in ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")
        inputs[key] = torch.cat([pad(p) for p in parts] if words else parts)
    kinds = torch.cat([pad(k) for _, k in prompts])
    return inputs, kinds, [row.nonzero()[:, 0] for row in inputs["attention_mask"]]


def two(name, images):
    """Two prompts unlike each other in context and question, the second shorter in both."""
    return [prompt(name, images), prompt(name, images, context=30, question=2, seed=1)]


def eager_maps(model, inputs, **kwargs):
    """Attention (B, heads, queries, keys) of every layer, from the model's own eager code."""
    decoder, maps = decoder_of(model), []
    before = decoder.config._attn_implementation_internal
    hooks = [layer.self_attn.register_forward_hook(lambda m, i, out: maps.append(out[1].float()))
             for layer in decoder.layers]
    decoder.config._attn_implementation_internal = "eager"
    try:
        with torch.no_grad():
            model(**inputs, **kwargs)
    finally:
        decoder.config._attn_implementation_internal = before
        for hook in hooks:
            hook.remove()
    return maps


def run(model, inputs, **kwargs):
    with torch.no_grad():
        return model(**inputs, **kwargs)


def cache_of(output):
    return getattr(output, "language_model_outputs", output).past_key_values


def rows_of(row_kinds, name):
    """The queries of one unpadded prompt that count."""
    at = torch.arange(len(row_kinds))
    return {"all": at, "question": at[row_kinds == Kind.QUESTION], "last": at[-1:],
            "window": at[-WINDOW:]}[name]


def difference(a, b):
    assert a.shape == b.shape
    return float((a.float() - b.float()).abs().max())


def left_as_it_was(model, implementation="sdpa"):
    modules = [layer.self_attn for layer in decoder_of(model).layers]
    return (decoder_of(model).config._attn_implementation_internal == implementation
            and not model._forward_pre_hooks
            and not any(recording._ACTIVE.get(module) for module in modules))


@pytest.fixture
def llava():
    model, images = build("llava")
    return model, *prompt("llava", images)


# ---- equal to eager attention maps


@pytest.mark.parametrize("name", BUILDERS)
def test_recorded_attention_equals_the_eager_maps(name):
    model, images = build(name)
    inputs, kinds = prompt(name, images)
    maps, plain = eager_maps(model, inputs), run(model, inputs, use_cache=True)
    with record(model, accumulated=SETS, mass="question", kinds=kinds, key_norms=True,
                window=WINDOW) as found:
        got = run(model, inputs)
    assert difference(plain.logits, got.logits) <= 1e-5
    assert torch.equal(plain.logits, run(model, inputs).logits)
    assert left_as_it_was(model)
    assert list(found) == list(range(LAYERS))
    for one, attention, cached in zip(found.values(), maps, cache_of(plain).layers):
        for query_set in SETS:
            wanted = attention[:, :, rows_of(kinds[0], query_set)].sum(2)
            assert difference(one.accumulated[query_set], wanted) <= 1e-5
        asks = attention[:, :, rows_of(kinds[0], "question")]
        wanted = torch.stack([asks[..., kinds[0] == kind].sum(-1) for kind in Kind], -1)
        assert difference(one.mass, wanted) <= 1e-5
        assert difference(one.key_norms, cached.keys.norm(dim=-1)) <= 1e-5


def check_batch(name, prompts, side, sets):
    """Every row of a padded batch records what its prompt alone gives."""
    model, _ = build(name)
    inputs, kinds, places = batched(prompts, side)
    with record(model, accumulated=sets, mass=sets[-1], kinds=kinds, window=WINDOW,
                valid=inputs["attention_mask"].bool()) as found:
        run(model, inputs)
    for row, (place, (alone, row_kinds)) in enumerate(zip(places, prompts)):
        for one, attention in zip(found.values(), eager_maps(model, alone)):
            for query_set in sets:
                wanted = attention[0][:, rows_of(row_kinds[0], query_set)].sum(1)
                got = one.accumulated[query_set][row]
                assert difference(got[:, place], wanted) <= 1e-5
                assert difference(got.sum(1), wanted.sum(1)) <= 1e-4
            asks = attention[0][:, rows_of(row_kinds[0], sets[-1])]
            wanted = asks[..., row_kinds[0] == Kind.CONTEXT].sum((1, 2))
            assert difference(one.mass[row, ..., Kind.CONTEXT].sum(1), wanted) <= 1e-5


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "gemma3"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_in_a_padded_batch_only_real_queries_count(name, side):
    check_batch(name, two(name, build(name)[1]), side, ("all", "last", "window"))


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_of_a_batch_may_have_questions_of_unlike_length(side):
    check_batch("llava", two("llava", build("llava")[1]), side, ("question",))


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_window_longer_than_a_prompt_is_the_whole_prompt(side):
    model, images = build("llava")
    prompts = [prompt("llava", images), prompt("llava", images, context=2, question=2)]
    inputs, _, _ = batched(prompts, side)
    with record(model, accumulated=["all", "window"], window=30,
                valid=inputs["attention_mask"].bool()) as found:
        run(model, inputs)
    for one in found.values():
        assert difference(one.accumulated["window"][1], one.accumulated["all"][1]) <= 1e-5


@pytest.mark.parametrize("block", [1, 2**22])
def test_queries_after_a_cache_see_what_is_cached(llava, block, monkeypatch):
    monkeypatch.setitem(recording.BLOCK_BYTES, "cpu", block)
    model, inputs, kinds = llava
    maps, ids = eager_maps(model, inputs), inputs["input_ids"]
    first = run(model, inputs | dict(input_ids=ids[:, :17], attention_mask=None), use_cache=True)
    with record(model, accumulated=SETS, mass="last", kinds=kinds, window=WINDOW) as found:
        run(model, dict(input_ids=ids[:, 17:]), past_key_values=first.past_key_values)
    for one, attention in zip(found.values(), maps):
        after = attention[:, :, 17:]
        for query_set in SETS:
            rows = rows_of(kinds[0], query_set) - 17
            wanted = after[:, :, rows[rows >= 0]].sum(2)
            assert difference(one.accumulated[query_set], wanted) <= 1e-5
        assert float(one.mass.sum(-1).min()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", ["llava", "paligemma"])
def test_many_blocks_make_the_same_sums(name, monkeypatch):
    model, images = build(name)
    prompts = two(name, images)
    for inputs, _, _ in (batched(prompts[:1], "left"), batched(prompts, "left")):
        valid = inputs["attention_mask"].bool()
        with record(model, accumulated=["all"], valid=valid) as whole:
            expected = run(model, inputs).logits
        with monkeypatch.context() as patch:
            patch.setitem(recording.BLOCK_BYTES, "cpu", 1)
            with record(model, accumulated=["all"], valid=valid) as blocks:
                got = run(model, inputs).logits
        assert difference(got[valid], expected[valid]) <= 1e-5
        for i in whole:
            assert difference(whole[i].accumulated["all"], blocks[i].accumulated["all"]) <= 1e-5


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("queries, keys", [(50, 50), (48, 48), (1, 1), (17, 40), (16, 40)])
def test_blocked_attention_is_softmax_attention(queries, keys, masked, monkeypatch):
    monkeypatch.setitem(recording.BLOCK_BYTES, "cpu", 1)
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, queries, 8, generator=generator)
    key, value = torch.randn(2, 2, 2, keys, 8, generator=generator)
    seen = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    seen = seen.expand(2, 1, -1, -1)
    if masked:
        seen = seen & (torch.rand(2, 1, queries, keys, generator=generator) < 0.7)
        seen |= torch.eye(queries, keys, dtype=torch.bool).roll(keys - queries, 1)
    valid = torch.rand(2, queries, generator=generator) < 0.8
    scores = query @ key.repeat_interleave(2, 1).transpose(2, 3) * 0.3
    chances = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    for counted in (None, valid):
        output, accumulated = blocked_attention(query, key, value, seen if masked else None, 0.3,
                                             counted)
        weight = torch.ones(2, queries) if counted is None else counted.float()
        assert difference(output, chances @ value.repeat_interleave(2, 1)) <= 1e-5
        assert difference(accumulated, (chances * weight[:, None, :, None]).sum(2)) <= 1e-5


def test_bfloat16_is_recorded_in_float32(llava):
    model, inputs, kinds = llava
    model = model.bfloat16()
    inputs = inputs | dict(pixel_values=inputs["pixel_values"].bfloat16())
    maps, plain = eager_maps(model, inputs), run(model, inputs).logits
    with record(model, accumulated=SETS, mass="last", kinds=kinds, key_norms=True,
                window=WINDOW) as found:
        got = run(model, inputs).logits
    assert got.dtype == torch.bfloat16 and difference(plain, got) <= 0.25
    for one, attention in zip(found.values(), maps):
        taken = one.accumulated["all"], one.mass, one.key_norms
        assert {tensor.dtype for tensor in taken} == {torch.float32}
        assert one.accumulated["all"].sum(-1).numpy() == pytest.approx(kinds.shape[1], abs=1e-3)
        for query_set in SETS:
            wanted = attention[:, :, rows_of(kinds[0], query_set)].sum(2)
            assert difference(one.accumulated[query_set], wanted) <= 0.05


# ---- only what is asked for


def test_only_what_is_asked_for_is_recorded(llava):
    model, inputs, kinds = llava
    with record(model, layers=[2]) as found:
        run(model, inputs)
    assert found == {2: LayerRecord()}
    with record(model, accumulated=["last"], layers=[3, 0, 3]) as found:
        run(model, inputs)
    assert list(found) == [0, 3]
    assert list(found[0].accumulated) == ["last"] and found[0].states is None
    assert found[0].mass is None and found[0].key_norms is None


@pytest.mark.parametrize("asked", [dict(key_norms=True), dict(accumulated=["last", "question"]),
                                   dict(states=True), dict(mass="window")])
def test_without_the_set_all_the_logits_are_bit_identical(llava, asked):
    model, inputs, kinds = llava
    plain = run(model, inputs).logits
    with record(model, kinds=kinds, **asked):
        assert torch.equal(run(model, inputs).logits, plain)


def test_states_are_the_queries_keys_and_values_that_attention_sees(llava):
    model, inputs, kinds = llava
    maps, cache = eager_maps(model, inputs), run(model, inputs, use_cache=True).past_key_values
    with record(model, states=True) as found:
        run(model, inputs)
    for one, attention, cached in zip(found.values(), maps, cache.layers):
        queries, keys, values = one.states
        assert torch.equal(keys, cached.keys) and torch.equal(values, cached.values)
        scores = queries @ keys.repeat_interleave(2, 1).transpose(2, 3) * queries.shape[-1] ** -0.5
        seen = torch.ones_like(scores, dtype=torch.bool).tril()
        assert difference(scores.masked_fill(~seen, -torch.inf).softmax(-1), attention) <= 1e-5


def test_single_queries_after_a_cache_are_recorded_on_request_only(llava):
    model, inputs, _ = llava
    with record(model, accumulated=["all"]) as found:
        out = run(model, inputs, use_cache=True)
        prompted = found[1].accumulated["all"]
        run(model, dict(input_ids=torch.tensor([[5]])), past_key_values=out.past_key_values)
    assert found[1].accumulated["all"] is prompted
    with record(model, accumulated=["all", "last"], decoding=True) as found:
        out = run(model, inputs, use_cache=True)
        run(model, dict(input_ids=torch.tensor([[5]])), past_key_values=out.past_key_values)
    longer = torch.cat([inputs["input_ids"], torch.tensor([[5]])], 1)
    maps = eager_maps(model, inputs | dict(input_ids=longer, attention_mask=None))
    for one, attention in zip(found.values(), maps):
        assert difference(one.accumulated["all"], attention[:, :, -1]) <= 1e-5
        assert difference(one.accumulated["last"], attention[:, :, -1]) <= 1e-5


class Largest(TorchDispatchMode):
    """Remembers the largest number of entries in any tensor that an operation returns."""

    def __init__(self):
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for one in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(one, torch.Tensor):
                self.entries = max(self.entries, one.untyped_storage().nbytes()
                                   // one.element_size(), one.numel())
        return result


@pytest.mark.parametrize("asked", [dict(accumulated=SETS, mass="last", key_norms=True),
                                   dict(accumulated=["all"]), dict(accumulated=["question"])])
def test_no_tensor_of_length_by_length_is_allocated(asked, monkeypatch):
    monkeypatch.setitem(recording.BLOCK_BYTES, "cpu", 1)
    model, images = build("llava")
    inputs, kinds = prompt("llava", images, context=1_500)
    length = kinds.shape[1]
    largest = max(weight.numel() for weight in model.parameters())
    with Largest() as plain:
        run(model, inputs)
    with record(model, kinds=kinds, **asked), Largest() as seen:
        run(model, inputs)
    limit = length ** 2 / 8
    if asked == dict(accumulated=["question"]):  # SDPA's: an older torch holds maps itself
        limit = max(limit, plain.entries + 1)
    assert largest < seen.entries < limit
    with Largest() as seen:
        eager_maps(model, inputs)
    assert seen.entries >= length ** 2


# ---- the model is as before


def test_an_exception_restores_the_model(llava):
    model, inputs, kinds = llava
    plain = run(model, inputs).logits
    with pytest.raises(ZeroDivisionError), record(model, accumulated=["all"]):
        raise ZeroDivisionError
    assert left_as_it_was(model)
    broken = model.model.language_model.layers[2].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), record(model, accumulated=["all"]) as found:
        run(model, inputs)
    broken.remove()
    assert left_as_it_was(model)
    assert torch.equal(run(model, inputs).logits, plain)
    assert list(found) == [0, 1, 2]


def test_recorders_nest_on_the_same_layers(llava):
    model, inputs, kinds = llava
    with record(model, accumulated=["all"]) as expected:
        run(model, inputs)
    with record(model, accumulated=["last"], layers=[1]) as outer:
        with record(model, accumulated=["all"], layers=[1]) as inner:
            run(model, inputs)
        assert difference(inner[1].accumulated["all"], expected[1].accumulated["all"]) <= 1e-5
        assert list(outer[1].accumulated) == ["last"] and list(inner[1].accumulated) == ["all"]
        recorded = outer[1]
        run(model, inputs)
        assert outer[1] is not recorded
    assert left_as_it_was(model)


def test_recorders_nest_on_different_layers(llava):
    model, inputs, kinds = llava
    with record(model, accumulated=["last"], layers=[0, 1]) as outer:
        with record(model, accumulated=["all"], layers=[1, 2]) as inner:
            run(model, inputs)
        assert list(outer) == [0, 1] and list(inner) == [1, 2]
        outer.clear(), inner.clear()
        run(model, inputs)
        assert list(outer) == [0, 1] and not inner
    assert left_as_it_was(model)


def test_nested_recorders_count_each_their_own_queries(llava):
    model, inputs, kinds = llava
    valid = torch.ones_like(kinds, dtype=torch.bool)
    valid[:, :20] = False
    with record(model, accumulated=["all"]) as outer, \
            record(model, accumulated=["all"], valid=valid) as inner:
        run(model, inputs)
    length = kinds.shape[1]
    assert outer[0].accumulated["all"].sum(-1).numpy() == pytest.approx(length, abs=1e-3)
    assert inner[0].accumulated["all"].sum(-1).numpy() == pytest.approx(length - 20, abs=1e-3)


@pytest.mark.parametrize("layers", [([1], [1]), ([0], [3])])
def test_recorders_ended_in_the_wrong_order_restore_the_model(llava, layers):
    model, inputs, kinds = llava
    outer, inner = (record(model, accumulated=["last"], layers=some) for some in layers)
    outer.__enter__(), inner.__enter__()
    outer.__exit__(None, None, None)
    run(model, inputs)
    assert list(inner.recording) == layers[1] and not outer.recording
    inner.__exit__(None, None, None)
    assert left_as_it_was(model)


# ---- refused


def test_attention_maps_are_refused(llava):
    model, inputs, kinds = llava
    with record(model, accumulated=["last"]):
        with pytest.raises(VDPError, match="output_attentions=True returns nothing under SDPA"):
            run(model, inputs, output_attentions=True)
    assert left_as_it_was(model)
    model.config._output_attentions = True
    with record(model, accumulated=["last"]):
        with pytest.raises(VDPError, match="output_attentions=True returns nothing under SDPA"):
            run(model, inputs)
    assert left_as_it_was(model)


def test_softcapped_attention_is_refused_by_name():
    config = t.Gemma2Config(**TEXT, attn_logit_softcapping=50.0)
    model = t.Gemma2ForCausalLM(config).eval()
    own = model.config._attn_implementation  # eager or SDPA, by the version of transformers
    with record(model, accumulated=["last"]), pytest.raises(VDPError, match="softcap"):
        run(model, dict(input_ids=torch.tensor([[3, 4, 5]])))
    assert left_as_it_was(model, own)


@pytest.mark.parametrize("asked, message", [
    (dict(accumulated=["some"]), "unknown query set 'some': choose all"),
    (dict(mass="some"), "unknown query set 'some'"),
    (dict(mass="all"), "mass='all' would hold a row for every query"),
    (dict(mass="last", kinds=None), "needs kinds="),
    (dict(accumulated=["question"], kinds=None), "needs kinds="),
    (dict(layers=[0, 4]), "layer 4 does not exist: .* has layers 0 to 3"),
    (dict(layers=[-1]), "layer -1 does not exist")])
def test_a_request_that_cannot_be_met_is_refused(llava, asked, message):
    model, inputs, kinds = llava
    with pytest.raises(VDPError, match=message):
        record(model, **dict(kinds=kinds) | asked)
    assert left_as_it_was(model)


def unfit():
    """Models whose attention cannot be instrumented."""
    stack = nn.Module()
    stack.layers = nn.ModuleList([nn.Linear(2, 2)])
    return dict(
        gpt2=t.GPT2LMHeadModel(t.GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=1)),
        t5=t.T5ForConditionalGeneration(t.T5Config(
            vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2,
            decoder_start_token_id=0)),
        linear=nn.Linear(2, 2), stack=stack)


@pytest.mark.parametrize("name", ["gpt2", "t5", "linear", "stack"])
def test_a_model_without_instrumentable_attention_is_refused(name):
    with pytest.raises(VDPError, match="decoder-only language model|cannot be instrumented"):
        record(unfit()[name], accumulated=["last"])


def test_kinds_of_another_length_are_refused_for_a_whole_prompt(llava):
    model, inputs, kinds = llava
    for wrong in (kinds[:, :-1], torch.cat([kinds, kinds], 1)):
        with pytest.raises(VDPError, match="kinds describe"), record(model, mass="last",
                                                                     kinds=wrong):
            run(model, inputs)
    assert left_as_it_was(model)


def test_decoding_is_recorded_with_the_kinds_of_the_prompt(llava):
    model, inputs, kinds = llava
    with record(model, mass="last", kinds=kinds, valid=torch.ones_like(kinds, dtype=torch.bool),
                accumulated=["all"], decoding=True) as recording:
        output = run(model, inputs, use_cache=True)
        for _ in range(2):
            output = run(model, dict(input_ids=inputs["input_ids"][:, -1:],
                                     past_key_values=output.past_key_values))
    length = kinds.shape[1] + 2
    for one in recording.values():
        assert one.accumulated["all"].shape[-1] == length and one.mass.shape[2] == 1
        assert one.mass.sum(-1).numpy() == pytest.approx(1, abs=1e-5)


# ---- caches that hold more, or less, than was read


def windowed(window):
    """A Gemma 3 whose sliding windows are as short as this."""
    model, images = build("gemma3")
    decoder_of(model).config.sliding_window = window
    for layer in decoder_of(model).layers:
        if layer.self_attn.is_sliding:
            layer.self_attn.sliding_window = window
    return model, images


@pytest.mark.parametrize("decoding", [False, True])
@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "internvl", "gemma3", "paligemma"])
def test_a_cache_of_fixed_length_is_recorded_as_one_that_grows(name, decoding):
    model, images = windowed(20) if name == "gemma3" else build(name)
    inputs, kinds = prompt(name, images)
    plain, both = model.generate(**inputs, max_new_tokens=4, do_sample=False), []
    for cache in ({}, dict(cache_implementation="static", disable_compile=True)):
        with record(model, accumulated=SETS[:3] if not decoding else ("all", "last"), mass="last",
                    kinds=kinds, key_norms=True, decoding=decoding) as found:
            ids = model.generate(**inputs, max_new_tokens=4, do_sample=False, **cache)
        assert torch.equal(ids, plain)
        both.append(found)
    for i, one in both[0].items():
        for query_set, sums in one.accumulated.items():
            assert difference(sums, both[1][i].accumulated[query_set]) <= 1e-5
        assert difference(one.mass, both[1][i].mass) <= 1e-5
        assert difference(one.key_norms.nan_to_num(-1), both[1][i].key_norms.nan_to_num(-1)) <= 1e-5


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("size", [1, 8, 15, 48])
@pytest.mark.parametrize("window", [6, 16, 64])
def test_behind_a_prefix_a_sliding_window_is_recorded_as_in_one_pass(window, size, static):
    model, images = windowed(window)
    inputs, kinds = prompt("gemma3", images)
    maps, length = eager_maps(model, inputs), kinds.shape[1]
    words = ("input_ids", "attention_mask", "token_type_ids")
    prefix = {key: x[:, :length - size] if key in words else x for key, x in inputs.items()}
    cache = (t.StaticCache(decoder_of(model).config, max_cache_len=80) if static
             else t.DynamicCache(config=decoder_of(model).config))
    run(model, prefix, past_key_values=cache)
    with record(model, accumulated=("all", "last", "question"), mass="last", kinds=kinds,
                key_norms=True, decoding=True) as found:
        run(model, dict(input_ids=inputs["input_ids"][:, -size:]), past_key_values=cache)
    for one, attention in zip(found.values(), maps):
        asking = torch.arange(length) >= length - size
        for name in ("all", "last", "question"):
            rows = [i for i in rows_of(kinds[0], name) if asking[i]]
            assert difference(one.accumulated[name], attention[:, :, rows].sum(2)) <= 1e-5
        wanted = torch.stack([attention[:, :, -1:][..., kinds[0] == k].sum(-1) for k in Kind], -1)
        assert difference(one.mass, wanted) <= 1e-5
        assert one.key_norms.shape[-1] == length


# ---- wrapped, compiled and checkpointed models


def wrapped(model, how):
    """A model inside others: what a user holds, and what the user calls."""
    if how == "peft":
        peft = pytest.importorskip("peft")
        return (peft.get_peft_model(model, peft.LoraConfig(
            target_modules=["q_proj"], task_type="CAUSAL_LM")),) * 2
    if how == "direct":  # as earlier versions of peft
        outer = nn.Module()
        outer.inner, outer.generate = model, model.generate
        outer.forward = lambda **inputs: model.forward(**inputs)
        return outer, outer
    if how == "parallel":
        return nn.DataParallel(model), model
    if how == "module":
        return (torch.compile(model, backend="eager"),) * 2
    if how == "method":
        model.compile(backend="eager")
    elif how == "forward":
        model.forward = torch.compile(model.forward, backend="eager")
    elif how == "decoder":
        model.model.language_model = torch.compile(model.model.language_model, backend="eager")
    elif how == "layers":
        for layer in decoder_of(model).layers:
            layer.compile(backend="eager")
    return model, model


WRAPPERS = ["peft", "direct", "parallel", "module", "method", "forward", "decoder", "layers"]


@pytest.mark.parametrize("how", WRAPPERS)
def test_a_wrapped_model_is_recorded_as_the_bare_one(llava, how):
    model, inputs, kinds = llava
    with record(model, accumulated=SETS, mass="question", kinds=kinds) as expected:
        run(model, inputs)
    held, called = wrapped(model, how)
    run(called, inputs)  # compiled before there is a recorder
    with record(held, accumulated=SETS, mass="question", kinds=kinds) as found:
        run(called, inputs)
        with pytest.raises(VDPError, match="output_attentions=True returns nothing"):
            run(called, inputs, output_attentions=True)
        with pytest.raises(VDPError, match="output_attentions=True returns nothing"):
            called.generate(**inputs, output_attentions=True, max_new_tokens=1)
    for i, one in expected.items():
        assert torch.equal(one.mass, found[i].mass)
        assert all(torch.equal(x, found[i].accumulated[k]) for k, x in one.accumulated.items())
    before, after = found[0], run(called, inputs)
    assert found[0] is before and after.logits.shape[1] == kinds.shape[1]


def checkpointed(model, reentrant):
    with warnings.catch_warnings():  # has another name in later versions
        warnings.simplefilter("ignore", FutureWarning)
        model.gradient_checkpointing_enable(dict(use_reentrant=reentrant))


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_is_refused(llava, reentrant):
    model, inputs, kinds = llava
    checkpointed(model, reentrant)
    with record(model, accumulated=["last"]):
        model.train()
        with pytest.raises(VDPError, match="gradient_checkpointing_disable"):
            model(**inputs)
        model.eval()
        model(**inputs)
    model.train()
    assert left_as_it_was(model)
