"""Pruned runs against an unpruned model whose attention masks hide the dropped tokens."""

import copy
import itertools
import math

import pytest
import torch
import transformers as t
from architectures import BUILDERS, HEADS, IMAGE, KV_HEADS, LAYERS, TEXT, WIDTH, build, prompt
from hypothesis import given, settings
from hypothesis import strategies as st
from test_recording import (WRAPPERS, batched, cache_of, checkpointed, difference, eager_maps,
                            left_as_it_was, run, two, unfit, wrapped)

from vdp_utils.attention.kept import Kept, droppable, staying
from vdp_utils.attention.positions import Placement
from vdp_utils.attention.pruner import ContextPruner
from vdp_utils.attention.recording import decoder_of, record
from vdp_utils.attention.strategies import Evidence
from vdp_utils.attention.tokens import Kind, token_kinds
from vdp_utils.attention.modes import MODES
from vdp_utils.errors import VDPError

STEPS, LAYER = 10, 1


# the last layer in which the prompt sees all
DECIDES = dict(prefill=LAYER, compress=-1, evict=LAYERS)



class hidden:
    """Context manager: dropped tokens are masked out, for the prompt in the layers after `layer`
    and for all later tokens in every layer. Needs a model that runs without a cache."""

    def __init__(self, model, dropped, length, layer):
        self.layers = decoder_of(model).layers
        self.dropped, self.length, self.layer = dropped, length, layer

    def __enter__(self):
        self.hooks = [layer.register_forward_pre_hook(self.hide(i), with_kwargs=True)
                      for i, layer in enumerate(self.layers)]

    def __exit__(self, *exception):
        for hook in self.hooks:
            hook.remove()

    def hide(self, i):
        def hook(module, args, kwargs):
            count = (args[0] if args else kwargs["hidden_states"]).shape[1]
            mask = kwargs.get("attention_mask")
            if mask is None:
                mask = torch.ones(1, 1, count, count, dtype=torch.bool).tril()
            gone = torch.zeros(count, count, dtype=torch.bool)
            gone[0 if i > self.layer else self.length:, self.dropped] = True
            gone &= ~torch.eye(count, dtype=torch.bool)
            return args, dict(kwargs, attention_mask=mask & ~gone)
        return hook


def extended(name, inputs, ids):
    """The prompt with the tokens `ids` after it."""
    inputs, more = dict(inputs), ids.shape[1]
    for key in ("attention_mask", "mm_token_type_ids", "token_type_ids"):
        if key in inputs:
            of = int(key == "attention_mask" or key == "token_type_ids" and name == "paligemma")
            inputs[key] = torch.cat([inputs[key], inputs[key].new_full((len(ids), more), of)], 1)
    return inputs | dict(input_ids=torch.cat([inputs["input_ids"], ids], 1))


def split(model, inputs, kinds, rate=0.5):
    """Positions to keep and to drop, from the eager maps."""
    scores = eager_maps(model, inputs)[LAYER][0].sum(1).amax(0)
    context = (kinds[0] == Kind.CONTEXT).nonzero()[:, 0]
    wanted = math.ceil((1 - rate) * len(context))
    best = context[scores[context].argsort(descending=True)[:wanted]].tolist()
    kept = [i for i, kind in enumerate(kinds[0]) if kind != Kind.CONTEXT or i in best]
    return kept, [i for i in range(kinds.shape[1]) if i not in kept]


def steps(model, inputs, ids):
    """Logits of each of the tokens `ids` (B, n), given one by one after the prompt."""
    output = run(model, inputs, use_cache=True)
    cache, logits = cache_of(output), []
    for i in range(ids.shape[1]):
        logits.append(run(model, dict(input_ids=ids[:, i:i + 1]), past_key_values=cache).logits)
    return output.logits, torch.cat(logits, 1), cache


def generated(model, inputs, count=4, **kwargs):
    torch.manual_seed(0)
    result = model.generate(**inputs, **dict(
        max_new_tokens=count, min_new_tokens=count, do_sample=False, output_logits=True,
        return_dict_in_generate=True) | kwargs)
    return result.sequences[:, -count:], torch.stack(result.logits, 1)


def untouched(model):
    decoder = decoder_of(model)
    return left_as_it_was(model) and "forward" not in vars(decoder) and not any(
        module._forward_hooks or module._forward_pre_hooks for module in decoder.modules())


def halved(kinds, mode="prefill", **kwargs):
    return ContextPruner(**dict(rate=0.5, mode=mode, layer=LAYER, kinds=kinds) | kwargs)


@pytest.fixture
def llava():
    model, images = build("llava")
    return model, *prompt("llava", images)


# ---- exact


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", BUILDERS)
def test_pruned_logits_and_ten_generated_tokens_equal_the_masked_reference(name, mode):
    model, images = build(name)
    inputs, kinds = prompt(name, images)
    length, plain = kinds.shape[1], run(model, inputs).logits
    kept, dropped = split(model, inputs, kinds)
    with halved(kinds, mode)(model) as pruner:
        output = run(model, inputs, use_cache=True)
        assert pruner.kept.index[0].tolist() == kept and bool(pruner.kept.real.all())
        ids, logits = generated(model, inputs, STEPS)
    with hidden(model, dropped, length, DECIDES[mode]):
        full = run(model, extended(name, inputs, ids[:, :-1]), use_cache=False).logits
    assert difference(logits, full[:, length - 1:]) <= 1e-5
    rows = kept if mode != "evict" else slice(None)
    assert difference(output.logits, full[:, :length][:, rows]) <= 1e-5
    for layer in cache_of(output).layers:
        assert layer.keys.shape == layer.values.shape == (1, KV_HEADS, len(kept), WIDTH // HEADS)
    size = sum(x.untyped_storage().nbytes() for layer in cache_of(output).layers
               for x in (layer.keys, layer.values))
    assert size == 2 * LAYERS * KV_HEADS * len(kept) * (WIDTH // HEADS) * 4
    assert float((full[:, kept] - plain[:, kept]).abs().max()) > 1e-2 or mode == "evict"
    assert untouched(model) and torch.equal(run(model, inputs).logits, plain)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", [n for n in BUILDERS if n != "instructblip"])
def test_tokens_given_one_by_one_equal_the_masked_reference(name, mode):
    model, images = build(name)
    inputs, kinds = prompt(name, images)
    kept, dropped = split(model, inputs, kinds)
    ids = torch.tensor([[7, 30, 12]])
    with halved(kinds, mode)(model):
        _, logits, cache = steps(model, inputs, ids)
    with hidden(model, dropped, kinds.shape[1], DECIDES[mode]):
        full = run(model, extended(name, inputs, ids), use_cache=False).logits
    assert difference(logits, full[:, kinds.shape[1]:]) <= 1e-5
    assert {layer.keys.shape[2] for layer in cache.layers} == {len(kept) + 3}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", BUILDERS)
def test_rate_zero_is_bit_identical(name, mode):
    model, images = build(name)
    inputs, kinds = prompt(name, images)
    plain = run(model, inputs).logits
    with halved(kinds, mode, rate=0)(model) as pruner:
        assert torch.equal(run(model, inputs).logits, plain)
    assert pruner.kept.index[0].tolist() == list(range(kinds.shape[1]))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "gemma3"])
def test_rate_zero_generates_what_the_model_generates(name, mode):
    model, images = build(name)
    inputs, kinds = prompt(name, images)
    ids, logits = generated(model, inputs)
    _, one_by_one, _ = steps(model, inputs, ids)
    with halved(kinds, mode, rate=0)(model):
        pruned_ids, pruned = generated(model, inputs)
        _, again, _ = steps(model, inputs, ids)
    assert torch.equal(ids, pruned_ids) and torch.equal(logits, pruned)
    assert torch.equal(one_by_one, again)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", [Kind.QUESTION, Kind.TEMPLATE, Kind.IMAGE])
def test_a_prompt_without_context_is_left_alone(llava, mode, kind):
    model, inputs, kinds = llava
    kinds = torch.where(kinds == Kind.CONTEXT, int(kind), kinds)
    plain = run(model, inputs).logits
    with halved(kinds, mode)(model):
        assert torch.equal(run(model, inputs).logits, plain)


@pytest.mark.parametrize("mode", MODES)
def test_after_a_prompt_that_loses_nothing_the_model_goes_on(mode):
    model, images = build("qwen2_vl")
    pruned, _ = prompt("qwen2_vl", images)
    inputs, _ = prompt("qwen2_vl", images, context=1)
    ids = torch.tensor([[7, 30, 12]])
    _, expected, _ = steps(model, inputs, ids)
    with ContextPruner(0.5, mode=mode, layer=LAYER, context=(7, -8))(model):
        run(model, pruned, use_cache=True)
        assert torch.equal(steps(model, inputs, ids)[1], expected)


@pytest.mark.parametrize("mode", MODES)
def test_a_prompt_of_images_only_is_left_alone(mode):
    model, images = build("llava")
    ids = torch.tensor([[IMAGE] * 4])
    inputs = dict(images, input_ids=ids, attention_mask=torch.ones_like(ids))
    plain = run(model, inputs).logits
    with halved(torch.full_like(ids, int(Kind.IMAGE)), mode, rate=0.9)(model):
        assert torch.equal(run(model, inputs).logits, plain)


@pytest.mark.parametrize("mode, layer", [*itertools.product(MODES, range(LAYERS))])
def test_any_layer_may_score(llava, mode, layer):
    model, inputs, kinds = llava
    scores = eager_maps(model, inputs)[layer][0].sum(1).amax(0)
    scores[kinds[0] != Kind.CONTEXT] = torch.inf
    kept = scores.argsort(descending=True)[:kinds.shape[1] - 20].sort().values
    dropped = [i for i in range(kinds.shape[1]) if i not in kept]
    ids = torch.tensor([[7, 30, 12]])
    with halved(kinds, mode, layer=layer)(model) as pruner:
        _, logits, _ = steps(model, inputs, ids)
    assert torch.equal(pruner.kept.index[0], kept)
    with hidden(model, dropped, kinds.shape[1], dict(DECIDES, prefill=layer)[mode]):
        full = run(model, extended("llava", inputs, ids), use_cache=False).logits
    assert difference(logits, full[:, kinds.shape[1]:]) <= 1e-5


def test_an_eighth_of_the_depth_scores_where_no_layer_is_given(llava):
    model, inputs, kinds = llava
    with ContextPruner(0.5, kinds=kinds)(model) as pruner:
        assert pruner.at == LAYERS // 8


@pytest.mark.parametrize("heads, query_set", [("max", "question"), ("mean", "all"),
                                              ("mean", "question"), ("max", "last")])
def test_heads_and_queries_are_reduced_as_asked(llava, heads, query_set):
    model, inputs, kinds = llava
    maps, length = eager_maps(model, inputs)[LAYER][0], kinds.shape[1]
    rows = dict(all=torch.arange(length), last=torch.tensor([length - 1]),
                question=(kinds[0] == Kind.QUESTION).nonzero()[:, 0])[query_set]
    scores = maps[:, rows].sum(1)
    scores = scores.amax(0) if heads == "max" else scores.mean(0)
    scores[kinds[0] != Kind.CONTEXT] = torch.inf
    with halved(kinds, heads=heads, query_set=query_set)(model) as pruner:
        run(model, inputs)
    assert torch.equal(pruner.kept.index[0],
                       scores.argsort(descending=True)[:length - 20].sort().values)


@pytest.mark.parametrize("mode", ["prefill", "compress"])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "internvl", "mistral3"])
def test_without_a_cache_gaps_in_the_positions_do_not_split_the_prompt(name, mode, masked):
    model, images = build(name)
    inputs, kinds = prompt(name, images)
    if not masked:
        del inputs["attention_mask"]
    kept, dropped = split(model, inputs, kinds)
    with halved(kinds, mode)(model):
        logits = run(model, inputs, use_cache=False).logits
    with hidden(model, dropped, kinds.shape[1], DECIDES[mode]):
        full = run(model, inputs, use_cache=False).logits
    assert difference(logits, full[:, kept]) <= 1e-5


def shortened(inputs, kept):
    """A prompt's inputs with some of its tokens only."""
    length = inputs["input_ids"].shape[1]
    return {key: x[:, kept] if x.shape[:2] == (1, length) else x for key, x in inputs.items()}


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "qwen3_vl", "gemma3", "paligemma"])
def test_compact_equals_the_shortened_prompt(name, cached):
    model, images = build(name)
    inputs, kinds = prompt(name, images)
    kept, _ = split(model, inputs, kinds)
    short = shortened(inputs, kept)
    plain = run(model, short, use_cache=cached).logits
    with halved(kinds, "compress", positions="compact")(model):
        assert difference(run(model, inputs, use_cache=cached).logits, plain) <= 1e-5
    if cached:
        ids = torch.tensor([[7, 30, 12]])
        _, expected, _ = steps(model, short, ids)
        with halved(kinds, "compress", positions="compact")(model):
            _, logits, _ = steps(model, inputs, ids)
        assert difference(logits, expected) <= 1e-5


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_compact_generates_what_the_shortened_prompt_generates(name):
    model, images = build(name)
    inputs, kinds = prompt(name, images)
    kept, _ = split(model, inputs, kinds)
    ids, expected = generated(model, shortened(inputs, kept))
    with halved(kinds, "compress", positions="compact")(model):
        pruned_ids, logits = generated(model, inputs)
    assert difference(logits, expected) <= 1e-5
    assert torch.equal(ids, pruned_ids)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_in_a_padded_batch_each_prompt_closes_up(name, side):
    model, images = build(name)
    prompts = two(name, images)
    inputs, kinds, _ = batched(prompts, side)
    ids = torch.tensor([[7, 30, 12], [40, 9, 21]])
    with halved(kinds, "compress", positions="compact")(model) as pruner:
        logits, behind, _ = steps(model, inputs, ids)
    for row, (expected, _, expected_behind) in enumerate(
            alone(name, prompts, "compress", ids, positions="compact")):
        assert difference(logits[row][pruner.kept.real[row]], expected) <= 1e-5
        assert difference(behind[row], expected_behind) <= 1e-5


# ---- batches


def alone(name, prompts, mode, ids=None, **kwargs):
    """Each prompt on its own: pruned logits, kept positions, logits of `ids` after it."""
    model, _ = build(name)
    for row, (inputs, kinds) in enumerate(prompts):
        with halved(kinds, mode, **kwargs)(model) as pruner:
            logits, after, _ = steps(model, inputs, ids[row:row + 1])
        yield logits[0], pruner.kept.index[0], after[0]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["llava", "llava_next", "qwen2_vl", "qwen3_vl", "gemma3",
                                  "paligemma"])
def test_a_padded_batch_equals_each_prompt_alone(name, side, mode):
    model, images = build(name)
    prompts = two(name, images)
    inputs, kinds, places = batched(prompts, side)
    ids = torch.tensor([[7, 30, 12], [40, 9, 21]])
    with halved(kinds, mode)(model) as pruner:
        logits, after, cache = steps(model, inputs, ids)
    rows = zip(places, logits, after, pruner.kept.index, pruner.kept.real,
               alone(name, prompts, mode, ids))
    for place, row, next_row, index, real, (expected, kept, expected_after) in rows:
        assert torch.equal(index[real], place[kept])
        assert difference(row[place if mode == "evict" else real], expected) <= 1e-5
        assert difference(next_row, expected_after) <= 1e-5
    assert {layer.keys.shape[2] for layer in cache.layers} == {len(pruner.kept.index[0]) + 3}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "gemma3", "paligemma", pytest.param(
    "instructblip")])
def test_generating_for_a_left_padded_batch_equals_each_prompt_alone(name, mode):
    model, images = build(name)
    prompts = two(name, images)
    inputs, kinds, _ = batched(prompts, "left")
    with halved(kinds, mode)(model):
        ids, logits = generated(model, inputs)
    for row, (one, row_kinds) in enumerate(prompts):
        with halved(row_kinds, mode)(model):
            alone_ids, expected = generated(model, one)
        assert difference(logits[row], expected[0]) <= 1e-5
        assert torch.equal(ids[row], alone_ids[0])


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_of_a_batch_may_have_questions_of_unlike_length(side):
    model, images = build("llava")
    prompts = two("llava", images)
    inputs, kinds, places = batched(prompts, side)
    with halved(kinds, query_set="question")(model) as pruner:
        run(model, inputs)
    ids = torch.zeros(2, 1, dtype=torch.long)
    for place, index, real, (_, kept, _) in zip(
            places, pruner.kept.index, pruner.kept.real,
            alone("llava", prompts, "prefill", ids, query_set="question")):
        assert torch.equal(index[real], place[kept])


@pytest.mark.parametrize("strategy, mode", [("accumulated", mode) for mode in MODES] + [
    ("perplexity", "prefill"), ("perplexity", "compress"),
    ("perplexity", "evict"), ("contrastive_perplexity", "prefill"),
    ("contrastive_perplexity", "compress"),
    ("contrastive_perplexity", "evict")])
def test_a_row_without_context_is_left_alone_in_a_batch(strategy, mode):
    model, images = build("llava")
    prompts = [prompt("llava", images), prompt("llava", images, context=0, question=20)]
    inputs, kinds, places = batched(prompts, "left")
    plain = run(model, prompts[1][0]).logits[0]
    with halved(kinds, mode, strategy=strategy)(model) as pruner:
        logits = run(model, inputs).logits
    real = pruner.kept.real[1]
    assert torch.equal(pruner.kept.index[1][real], places[1])
    assert difference(logits[1][places[1] if mode == "evict" else real], plain) <= 1e-5


def test_a_law_gives_each_prompt_of_a_batch_its_own_rate():
    model, images = build("llava")
    prompts = [prompt("llava", images, context=60), prompt("llava", images, context=24)]
    inputs, kinds, _ = batched(prompts, "left")
    with pytest.raises(VDPError, match="'auto' needs a law, and none is known for this model"):
        with ContextPruner("auto", kinds=kinds)(model):
            pass
    # 20 tokens are kept, however many there are
    model.config.vdp_pruning_law = dict(law="constant number kept", shape=0, first=20 / 128,
                                        second=0)
    try:
        with ContextPruner("auto", kinds=kinds)(model) as pruner:
            run(model, inputs)
    finally:
        del model.config.vdp_pruning_law
    for row, index, real in zip(kinds, pruner.kept.index, pruner.kept.real):
        assert int((row[index[real]] == Kind.CONTEXT).sum()) == 20


@pytest.mark.parametrize("mode", MODES)
def test_one_row_of_kinds_serves_every_row(llava, mode):
    model, inputs, kinds = llava
    with halved(kinds, mode)(model) as pruner:
        expected = run(model, inputs).logits
        doubled = run(model, {key: torch.cat([x, x]) for key, x in inputs.items()}).logits
    assert difference(doubled, torch.cat([expected, expected])) <= 1e-5
    assert torch.equal(*pruner.kept.index)


# ---- generating


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("how", [dict(num_beams=3), dict(do_sample=True),
                                 dict(do_sample=True, num_return_sequences=2),
                                 dict(do_sample=True, num_beams=2)])
@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_beams_and_samples_equal_those_of_the_masked_reference(name, how, mode):
    model, images = build(name)
    inputs, kinds = prompt(name, images)
    _, dropped = split(model, inputs, kinds)
    with halved(kinds, mode)(model):
        ids, _ = generated(model, inputs, **how)
    with hidden(model, dropped, kinds.shape[1], DECIDES[mode]):
        expected, _ = generated(model, inputs, use_cache=False, **how)
    assert torch.equal(ids, expected)


@pytest.mark.parametrize("mode", MODES)
def test_beams_over_a_batch_equal_beams_over_each_prompt(mode):
    model, images = build("llava")
    prompts = two("llava", images)
    inputs, kinds, _ = batched(prompts, "left")
    with halved(kinds, mode)(model):
        ids, _ = generated(model, inputs, num_beams=2)
    for row, (one, row_kinds) in enumerate(prompts):
        with halved(row_kinds, mode)(model):
            assert torch.equal(generated(model, one, num_beams=2)[0][0], ids[row])


def test_beams_over_a_batch_use_each_prompts_own_evidence():
    model, images = build("llava")
    inputs, kinds = prompt("llava", images)
    inputs = {key: torch.cat([x, x]) for key, x in inputs.items()}
    kinds, marked = torch.cat([kinds, kinds]), torch.zeros(2, kinds.shape[1], dtype=torch.bool)
    marked[0, 7:17] = marked[1, 20:30] = True
    with halved(kinds, strategy="oracle", evidence=marked)(model) as pruner:
        generated(model, inputs, num_beams=2)
    for row, index in enumerate(pruner.kept.index):
        assert bool(torch.isin(marked[row // 2].nonzero()[:, 0], index).all())


@pytest.mark.parametrize("mode", MODES)
def test_a_pruner_serves_one_prompt_after_another(mode):
    model, images = build("llava")
    prompts = [prompt("llava", images, seed=seed) for seed in range(2)]
    kinds = prompts[0][1]
    expected = []
    for inputs, _ in prompts:
        with halved(kinds, mode)(model):
            expected.append(generated(model, inputs)[1])
    pruner = halved(kinds, mode)
    for _ in range(2):
        with pruner(model):
            for (inputs, _), logits in zip(prompts, expected):
                assert torch.equal(generated(model, inputs)[1], logits)
    assert untouched(model)


@pytest.mark.parametrize("mode", MODES)
def test_bfloat16_prunes_as_many_tokens(llava, mode):
    model, inputs, kinds = llava
    inputs = inputs | dict(pixel_values=inputs["pixel_values"].bfloat16())
    with halved(kinds, mode)(model.bfloat16()) as pruner:
        output = run(model, inputs, use_cache=True)
        ids, logits = generated(model, inputs)
    assert output.logits.dtype == torch.bfloat16 and bool(logits.isfinite().all())
    assert pruner.kept.index.shape == (1, kinds.shape[1] - 20)
    for layer in output.past_key_values.layers:
        assert layer.keys.dtype == torch.bfloat16 and layer.keys.shape[2] == kinds.shape[1] - 20


def test_the_padding_mask_may_come_without_its_name():
    model, images = build("llava")
    inputs, kinds, _ = batched(two("llava", images), "left")
    with halved(kinds)(model) as pruner, torch.no_grad():
        named = model(**inputs).logits
        index = pruner.kept.index
        unnamed = model(inputs["input_ids"], inputs["pixel_values"], inputs["attention_mask"])
    assert torch.equal(index, pruner.kept.index) and torch.equal(named, unnamed.logits)


def test_the_processor_tells_context_from_question(tiny):
    from vdp_utils.sources.samples import presence_samples

    (sample,) = presence_samples("evaluation", 1)
    words = "There was rain. The bus came late. Nobody minded at all.\nIs there a dog?"
    text = tiny.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": words}]}],
        add_generation_prompt=True, tokenize=False)
    inputs = dict(tiny.processor(images=sample.image("own"), text=text, return_tensors="pt"))
    with ContextPruner(0.5, processor=tiny.processor)(tiny.model) as pruner:
        run(tiny.model, inputs)
    left = tiny.tokenizer.decode(inputs["input_ids"][0, pruner.kept.index[0]])
    assert "Is there a dog?" in left and left.endswith("<|im_start|>assistant\n")
    assert "Nobody minded at all." not in left
    with ContextPruner(0.5, processor=tiny.processor, question="turn")(tiny.model) as pruner:
        run(tiny.model, inputs)
    assert pruner.kept.index.shape == inputs["input_ids"].shape


# ---- the model is as before


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("where", [0, LAYER, 3])
def test_an_exception_restores_the_model(llava, mode, where):
    model, inputs, kinds = llava
    plain = run(model, inputs).logits
    broken = decoder_of(model).layers[where].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), halved(kinds, mode)(model):
        run(model, inputs)
    broken.remove()
    assert untouched(model) and not model._forward_pre_hooks
    assert torch.equal(run(model, inputs).logits, plain)


def test_two_pruners_at_once_are_refused(llava):
    model, inputs, kinds = llava
    with halved(kinds)(model) as outer:
        expected = run(model, inputs).logits
        with pytest.raises(VDPError, match="being pruned already"), halved(kinds, "evict")(model):
            pass
        assert torch.equal(run(model, inputs).logits, expected)
        assert outer.kept.index.shape[1] < kinds.shape[1]
    assert untouched(model)


@pytest.mark.parametrize("mode", MODES)
def test_a_pruner_may_work_inside_a_recorder(llava, mode):
    model, inputs, kinds = llava
    with halved(kinds, mode)(model) as pruner:
        expected, kept = run(model, inputs).logits, pruner.kept.index
    with record(model, accumulated=["last"], layers=[0]) as found:
        with halved(kinds, mode)(model) as pruner:
            assert difference(run(model, inputs).logits, expected) <= 1e-5
        assert torch.equal(kept, pruner.kept.index)
    assert 0 in found and untouched(model)


# ---- refused


BAD = [(dict(rate=rate), "give a share of the context in") for rate in (
    -0.1, 1, 1.0, 2, float("nan"), float("inf"))] + [
    (dict(strategy="acumulated"), "unknown strategy 'acumulated': did you mean accumulated"),
    (dict(strategy="zzz"), "unknown strategy 'zzz': did you mean accumulated"),
    (dict(mode="some"), "unknown mode 'some': choose one of prefill, compress, evict"),
    (dict(heads="some"), "unknown heads 'some'"),
    (dict(query_set="window"), "unknown query_set 'window'"),
    (dict(positions="some"), "unknown positions 'some'"),
    (dict(question="some"), "unknown question 'some': choose one of found, turn, line"),
    (dict(positions="compact"), "positions='compact' needs mode='compress'"),
    (dict(kinds=None), "say which tokens are context"),
    (dict(strategy="oracle"), "needs evidence="),
    (dict(strategy="bm25"), "strategy 'bm25' reads the words: give processor="),
    (dict(kinds=None, context=(9, 9)), "context")]


@pytest.mark.parametrize("asked, message", BAD)
def test_a_bad_argument_is_refused_before_there_is_a_pruner(llava, asked, message):
    model, inputs, kinds = llava
    with pytest.raises(VDPError, match=message):
        halved(**dict(kinds=kinds) | asked)


@pytest.mark.parametrize("layer", [-1, LAYERS, 99])
def test_a_layer_out_of_range_is_refused(llava, layer):
    model, inputs, kinds = llava
    with pytest.raises(VDPError, match=f"layer {layer} does not exist: .* layers 0 to 3"):
        with halved(kinds, layer=layer)(model):
            pass
    assert untouched(model)


class Idle(Exception):
    """Raised where work begins that should not have begun."""


def refused(model, inputs, pruner, message, **kwargs):
    """The prompt is refused before any decoder layer runs, and the model works as before."""
    def work(*_):
        raise Idle

    plain = run(model, inputs).logits
    layer = decoder_of(model).layers[0]
    watch = layer.register_forward_pre_hook(work)
    try:
        with pytest.raises(VDPError, match=message), pruner(model):
            run(model, inputs, **kwargs)
    finally:
        watch.remove()
    assert untouched(model) and torch.equal(run(model, inputs).logits, plain)


@pytest.mark.parametrize("span", [(5, 100), (60, 70), (-100, 5), (20, 10)])
def test_a_span_outside_the_prompt_is_refused(llava, span):
    model, inputs, _ = llava
    refused(model, inputs, halved(None, context=span), "does not fit a prompt of 55 tokens")


@pytest.mark.parametrize("shape", [(1, 54), (1, 56), (2, 55), (3, 55), (55,)])
def test_kinds_of_another_shape_are_refused(llava, shape):
    model, inputs, kinds = llava
    wrong = torch.full(shape, int(Kind.CONTEXT))
    refused(model, inputs, halved(wrong), "kinds")


def test_evidence_of_another_shape_is_refused(llava):
    model, inputs, kinds = llava
    marked = torch.ones(1, 20, dtype=torch.bool)
    refused(model, inputs, halved(kinds, strategy="oracle", evidence=marked), "evidence")


@pytest.mark.parametrize("mode", MODES)
def test_a_cache_that_holds_tokens_is_refused(llava, mode):
    model, inputs, kinds = llava
    held = run(model, dict(input_ids=torch.tensor([[5, 6]])), use_cache=True).past_key_values
    refused(model, inputs, halved(kinds, mode), "already holds tokens", past_key_values=held)
    assert held.get_seq_length() == 2


@pytest.mark.parametrize("mode", MODES)
def test_a_cache_of_fixed_length_is_refused(llava, mode):
    model, inputs, kinds = llava
    cache = t.StaticCache(config=decoder_of(model).config, max_cache_len=100)
    refused(model, inputs, halved(kinds, mode), "StaticCache has a fixed length",
            past_key_values=cache)


def test_dropping_from_a_cache_that_is_not_there_is_refused(llava):
    model, inputs, kinds = llava
    refused(model, inputs, halved(kinds, "evict"), "mode='evict' drops tokens from the cache",
            use_cache=False)


@pytest.mark.parametrize("mode", MODES)
def test_a_sliding_window_shorter_than_the_prompt_is_refused_where_it_must(mode):
    model, images = build("gemma3")
    inputs, kinds = prompt("gemma3", images)
    decoder_of(model).config.sliding_window = 20
    if mode == "compress":
        with halved(kinds, mode)(model) as pruner:
            run(model, inputs)
        assert pruner.kept.index.shape[1] == kinds.shape[1] - 20
    else:
        refused(model, inputs, halved(kinds, mode), "sliding-window layers of 20 tokens")


def test_deep_image_features_are_not_lost_unseen():
    model, images = build("qwen3_vl")
    inputs, kinds = prompt("qwen3_vl", images)
    refused(model, inputs, halved(kinds, layer=0), "adds image features after layers 0 to 1")


def test_a_grid_of_positions_that_loses_tokens_is_not_closed_up():
    for name in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"):
        model, images = build(name)
        inputs, kinds = prompt(name, images)
        with pytest.raises(VDPError, match="'fastv_visual' drops image tokens, whose positions"):
            with halved(kinds, "compress", positions="compact", strategy="fastv_visual")(model):
                run(model, inputs)
        assert untouched(model)


@pytest.mark.parametrize("asked", [dict(), dict(output_attentions=True)])
def test_attention_maps_are_refused(llava, asked):
    model, inputs, kinds = llava
    if not asked:
        model.config._output_attentions = True
    with pytest.raises(VDPError, match="output_attentions=True returns nothing"):
        with halved(kinds)(model):
            run(model, inputs, **asked)
    assert untouched(model)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name, side", [("llava", None), ("llava", "left"), ("gemma3", None),
                                        ("paligemma", None)])
def test_attention_that_is_not_a_number_is_refused(name, side, mode):
    model, images = build(name)
    prompts = two(name, images)
    inputs, kinds, _ = batched(prompts if side else prompts[:1], side or "left")
    with torch.no_grad():
        decoder_of(model).layers[LAYER].self_attn.k_proj.weight[0] = torch.nan
    with pytest.raises(VDPError, match="importance scores hold NaN"):
        with halved(kinds, mode)(model):
            run(model, inputs)
    assert untouched(model)


def test_embeddings_without_token_kinds_are_refused(llava, tiny):
    model, inputs, kinds = llava
    embeds = model.get_input_embeddings()(inputs["input_ids"]).detach()
    with pytest.raises(VDPError, match="embeddings whose tokens are not known: give kinds="):
        with halved(None, processor=tiny.processor)(model):
            run(model, dict(inputs_embeds=embeds))
    with halved(kinds)(model) as pruner:
        run(model, dict(inputs_embeds=embeds))
    assert pruner.kept.index.shape[1] == kinds.shape[1] - 20
    assert untouched(model)


def test_embeddings_have_no_perplexity(llava):
    model, inputs, kinds = llava
    embeds = model.get_input_embeddings()(inputs["input_ids"]).detach()
    with pytest.raises(VDPError), halved(kinds, "evict", strategy="perplexity")(model):
        run(model, dict(inputs_embeds=embeds))
    assert untouched(model)


@pytest.mark.parametrize("name", ["gpt2", "t5", "linear", "stack"])
def test_a_model_without_instrumentable_attention_is_refused(name):
    model = unfit()[name]
    with pytest.raises(VDPError, match="decoder-only language model|cannot be instrumented"):
        with ContextPruner(0.5, context=(0, 2))(model):
            pass
    assert not model._forward_pre_hooks and "forward" not in vars(model)


def test_a_text_model_may_be_pruned_too():
    config = t.LlamaConfig(vocab_size=100, hidden_size=32, intermediate_size=64,
                           num_hidden_layers=2, num_attention_heads=4)
    model = t.LlamaForCausalLM(config).eval()
    with ContextPruner(0.5, context=(2, 12))(model) as pruner:
        run(model, dict(input_ids=torch.arange(20)[None]))
    assert pruner.kept.index.shape == (1, 15) and untouched(model)


# ---- image features and images


def check_visual(name, strategy, mode):
    """The half of the image's tokens that goes is dropped exactly."""
    model, images = build(name)
    inputs, kinds = prompt(name, images)
    ids = torch.tensor([[7, 30, 12]])
    with halved(kinds, mode, strategy=strategy)(model) as pruner:
        _, logits, _ = steps(model, inputs, ids)
    kept = set(pruner.kept.index[0].tolist())
    dropped = [i for i in range(kinds.shape[1]) if i not in kept]
    assert len(dropped) == int((kinds == Kind.IMAGE).sum()) // 2 > 0
    assert all(kinds[0, i] == Kind.IMAGE for i in dropped)
    with hidden(model, dropped, kinds.shape[1], DECIDES[mode]):
        full = run(model, extended(name, inputs, ids), use_cache=False).logits
    assert difference(logits, full[:, kinds.shape[1]:]) <= 1e-5


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("strategy", ["fastv_visual", "text_first"])
@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "gemma3", "paligemma"])
def test_image_tokens_are_dropped_exactly_too(name, strategy, mode):
    check_visual(name, strategy, mode)


@pytest.mark.parametrize("strategy", ["fastv_visual", "text_first"])
@pytest.mark.parametrize("mode", ["prefill", "evict", "compress"])
def test_image_tokens_with_deep_features_are_dropped_exactly_too(mode, strategy):
    check_visual("qwen3_vl", strategy, mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_tokens_of_a_video_are_visual(name, mode):
    """Never context, whatever the span; and what fastv_visual drops."""
    model, images = build(name)
    inputs, kinds = prompt(name, images)
    inputs["pixel_values_videos"] = inputs.pop("pixel_values")
    inputs["video_grid_thw"] = inputs.pop("image_grid_thw")
    model.config.video_token_id = model.model.config.video_token_id = VIDEO = 89
    video = kinds == Kind.IMAGE
    inputs["input_ids"] = inputs["input_ids"].masked_fill(video, VIDEO)
    inputs["mm_token_type_ids"] = 2 * video.int()
    with ContextPruner(0.9, mode=mode, layer=LAYER, context=(1, -8))(model) as pruner:
        run(model, inputs)
    at = video[0].nonzero()[:, 0]
    assert bool(torch.isin(at, pruner.kept.index[0]).all())
    with ContextPruner(0.5, "fastv_visual", mode, LAYER, context=(7, -8))(model) as pruner:
        run(model, inputs)
    assert int(torch.isin(at, pruner.kept.index[0]).sum()) == len(at) // 2


# ---- random spans, rates, ties and paddings


@st.composite
def batches(draw):
    """(kinds, real, accumulated, rate): rows of any make-up; few values, so that many are tied."""
    rows, length = draw(st.integers(1, 3)), draw(st.integers(1, 14))
    drawn = draw(st.binary(min_size=rows * length, max_size=rows * length))
    drawn = torch.tensor(list(drawn)).view(rows, length)
    side, lengths = draw(st.booleans()), draw(st.tuples(*[st.integers(1, length)] * rows))
    at = torch.arange(length)
    real = torch.stack([at >= length - n if side else at < n for n in lengths])
    kinds = (drawn % 4).masked_fill(~real, int(Kind.TEMPLATE))
    rate = draw(st.sampled_from([0, 0.1, 0.25, 0.3, 1 / 3, 0.5, 0.7, 0.9, 0.99]))
    return kinds, real, (drawn // 4 % 4)[:, None].float(), rate


@settings(max_examples=2_000, deadline=None)
@given(batches())
def test_exactly_the_lowest_context_tokens_go(batch):
    kinds, real, values, rate = batch
    pruner = ContextPruner(rate, kinds=kinds)
    candidates, dropped = zip(*(droppable(pruner.strategy, rate, *row)
                                for row in zip(kinds, real)))
    evidence = [Evidence(row, ok, ok.nonzero()[:, 0], accumulated={"all": seen})
                for row, ok, seen in zip(kinds, real, values)]
    kept = Kept.where(torch.stack([staying(pruner.strategy, *one)
                                   for one in zip(evidence, candidates, dropped)]))
    width = kept.index.shape[1]
    for row in range(len(kinds)):
        context = [i for i in range(kinds.shape[1]) if kinds[row, i] == Kind.CONTEXT]
        lost = math.floor(rate * len(context) + 1e-9)
        ranked = sorted(context, key=lambda i: (values[row, 0, i], -i))
        stay = [i for i in range(kinds.shape[1]) if real[row, i] and i not in ranked[:lost]]
        index, own = kept.index[row].tolist(), kept.real[row].tolist()
        assert index == sorted(set(index)) and len(index) == width
        assert [i for i, ok in zip(index, own) if ok] == stay
        assert kept.mask2d(2)[row].tolist() == [int(ok) for ok in own] + [1, 1]
    seen = kept.mask4d(None)
    if seen is None:
        assert bool(kept.real.all())
    else:
        for row in range(len(kinds)):
            for i in range(width):
                expected = [j for j in range(i + 1) if kept.real[row, j] or j == i]
                assert seen[row, 0, i].nonzero()[:, 0].tolist() == expected


def test_kept_rows_and_columns_of_a_mask_are_those_of_the_prompt():
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(2, 1, 6, 6, generator=generator) < 0.5
    index = torch.tensor([[0, 2, 5], [1, 3, 4]])
    whole = Kept(index, torch.ones(2, 3, dtype=torch.bool), 6)
    assert whole.mask4d(None) is None
    for row in range(2):
        assert torch.equal(whole.mask4d(mask)[row, 0], mask[row, 0][index[row]][:, index[row]])
        assert torch.equal(whole.mask4d(mask[:1])[row, 0], mask[0, 0][index[row]][:, index[row]])


# ---- one pruner, one model; windows and recorders around it


def test_one_pruner_prunes_one_model_at_a_time(llava):
    model, inputs, kinds = llava
    other, _ = build("mistral3")
    pruner = halved(kinds)
    with pruner(model):
        expected = run(model, inputs).logits
        with pytest.raises(VDPError, match="prunes a model already"), pruner(other):
            pass
        assert torch.equal(run(model, inputs).logits, expected)
    assert untouched(model) and untouched(other)
    with pruner(model):
        assert torch.equal(run(model, inputs).logits, expected)


@pytest.mark.parametrize("mode", MODES)
def test_generating_beyond_a_sliding_window_is_refused(mode):
    model, images = build("gemma3")
    model.config.text_config.sliding_window = 60
    inputs, kinds = prompt("gemma3", images)
    with halved(kinds, mode)(model):
        generated(model, inputs, max_new_tokens=5, min_new_tokens=5)
        with pytest.raises(VDPError, match="sliding windows of 60 tokens"):
            generated(model, inputs, max_new_tokens=15, min_new_tokens=15)
    assert untouched(model)


@pytest.mark.parametrize("mode", ["prefill", "compress"])
def test_a_recorder_of_kinds_around_a_pruner_is_refused(llava, mode):
    model, inputs, kinds = llava
    with record(model, mass="last", kinds=kinds), halved(kinds, mode)(model):
        with pytest.raises(VDPError, match="kinds describe 55 tokens"):
            run(model, inputs)
    assert untouched(model)


def test_kinds_of_a_prompt_do_not_fit_its_pruned_cache(llava):
    model, inputs, kinds = llava
    with halved(kinds, "evict")(model), record(model, mass="last", kinds=kinds) as found:
        generated(model, inputs)
        assert found[0].mass.sum(-1).numpy() == pytest.approx(1, abs=1e-5)
        with record(model, mass="last", kinds=kinds, decoding=True):
            with pytest.raises(VDPError, match="kinds describe 55 tokens"):
                generated(model, inputs)
        with record(model, ("last",), decoding=True) as found:
            generated(model, inputs)
        assert found[0].accumulated["last"].shape[-1] == kinds.shape[1] - 20 + 3


def test_a_forward_that_was_set_before_is_set_again(llava):
    model, inputs, kinds = llava
    decoder = decoder_of(model)
    plain = decoder.forward
    decoder.forward = lambda *args, **kwargs: plain(*args, **kwargs)
    wrapped = decoder.forward
    try:
        with halved(kinds)(model):
            run(model, inputs)
        assert decoder.forward is wrapped
    finally:
        del decoder.forward


# ---- wrapped, compiled and checkpointed models


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("how", WRAPPERS)
def test_a_wrapped_model_is_pruned_as_the_bare_one(how, mode):
    model, images = build("llava")
    inputs, _ = prompt("llava", images)
    pruner = ContextPruner(0.5, mode=mode, layer=LAYER, context=(7, 47))
    with pruner(model):
        expected, kept = run(model, inputs).logits, pruner.kept.index
        ids, _ = generated(model, inputs)
    held, called = wrapped(model, how)
    plain = run(called, inputs).logits  # compiled before there is a pruner
    with pruner(held):
        assert difference(run(called, inputs).logits, expected) <= 1e-6
        assert torch.equal(pruner.kept.index, kept)
        assert torch.equal(generated(called, inputs)[0], ids)
    assert torch.equal(run(called, inputs).logits, plain)


@pytest.fixture(params=["gemma3", "paligemma"])
def padded(request):
    """A model, a batch of two prompts of unlike length, and their kinds."""
    model, images = build(request.param)
    inputs, kinds, _ = batched(two(request.param, images), "left")
    return model, inputs, kinds


@pytest.mark.parametrize("mode", MODES)
def test_a_padded_batch_of_a_wrapped_model_is_pruned_as_the_bare_one_s(padded, mode):
    model, inputs, kinds = padded
    with halved(kinds, mode)(model) as pruner:
        expected, index = generated(model, inputs)[0], pruner.kept.index
    held, called = wrapped(model, "peft")
    with halved(kinds, mode)(held) as pruner:
        assert torch.equal(generated(called, inputs)[0], expected)
        assert torch.equal(pruner.kept.index, index)


@pytest.mark.parametrize("mode", MODES)
def test_padding_is_known_from_prepared_masks_too(padded, mode):
    """Who calls the model's inner part hands the language model masks, one for each sort."""
    model, inputs, kinds = padded
    with halved(kinds, mode)(model) as pruner:
        run(model, inputs)
        expected = pruner.kept
        run(model.model, inputs)
    assert torch.equal(pruner.kept.real, expected.real)
    assert torch.equal(pruner.kept.index[expected.real], expected.index[expected.real])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_is_refused(llava, mode, reentrant):
    model, inputs, kinds = llava
    checkpointed(model, reentrant)
    with halved(kinds, mode)(model):
        model.train()
        with pytest.raises(VDPError, match="gradient_checkpointing_disable"):
            model(**inputs)
        model.gradient_checkpointing_disable()
        model(**inputs).logits.sum().backward()
    assert left_as_it_was(model) and "forward" not in vars(decoder_of(model))


# ---- conversations, and what generate may read at once


def conversation(name, inputs, *turns):
    """A prompt and what was said after it, (B, n) each, without images: as `generate` takes it."""
    said = extended(name, inputs, torch.cat(turns, 1))
    return {key: x for key, x in said.items() if key in (
        "input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")}


class Fed:
    """Counts the tokens that a model's decoder is given, pass by pass."""

    def __init__(self, model):
        self.counts = []
        decoder_of(model).register_forward_pre_hook(self.count, with_kwargs=True)

    def count(self, decoder, args, kwargs):
        ids = kwargs.get("input_ids")
        self.counts.append((kwargs["inputs_embeds"] if ids is None else ids).shape[1])


MORE = torch.tensor([[7, 30, 12, 44, 9, 21]])


@pytest.mark.parametrize("mode, positions", [*((mode, "kept") for mode in MODES),
                                             ("compress", "compact")])
@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "qwen3_vl", "gemma3", "paligemma"])
def test_a_second_turn_goes_on_behind_a_pruned_first_one(name, mode, positions):
    model, images = build(name)
    inputs, kinds = prompt(name, images)
    with halved(kinds, mode, positions=positions)(model) as pruner:
        first = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False,
                               return_dict_in_generate=True)
        answer, cache, fed = first.sequences[:, -4:], first.past_key_values, Fed(model)
        said = conversation(name, inputs, answer, MORE)
        ids, logits = generated(model, said, past_key_values=cache)
    kept = pruner.kept.index[0].tolist()
    told = torch.cat([answer, MORE, ids[:, :-1]], 1)
    if positions == "compact":
        short = extended(name, shortened(inputs, kept), told)
        full = run(model, short, use_cache=False).logits
    else:
        dropped = [i for i in range(kinds.shape[1]) if i not in kept]
        with hidden(model, dropped, kinds.shape[1], DECIDES[mode]):
            full = run(model, extended(name, inputs, told), use_cache=False).logits
    assert difference(logits, full[:, -ids.shape[1]:]) <= 1e-5
    assert fed.counts[:4] == [7, 1, 1, 1]


@pytest.mark.parametrize("positions", ["kept", "compact"])
@pytest.mark.parametrize("name", ["llava", "paligemma"])
def test_second_turns_of_a_padded_batch_equal_each_alone(name, positions):
    """The second prompt's second turn is shorter, with padding before it."""
    model, images = build(name)
    prompts = two(name, images)
    inputs, kinds, _ = batched(prompts, "left")
    turns = [MORE, MORE[:, 3:]]

    def talk(inputs, kinds, more, mask):
        with halved(kinds, "compress", positions=positions)(model):
            first = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False,
                                   return_dict_in_generate=True)
            said = conversation(name, inputs, first.sequences[:, -4:], more)
            said["attention_mask"][:, -more.shape[1]:] = mask
            return generated(model, said, past_key_values=first.past_key_values)

    mask = torch.tensor([[1] * 6, [0] * 3 + [1] * 3])
    ids, logits = talk(inputs, kinds, torch.cat([MORE, MORE * mask[1:]]), mask)
    for row, ((one, row_kinds), more) in enumerate(zip(prompts, turns)):
        alone, expected = talk(one, row_kinds, more, torch.ones_like(more))
        assert difference(logits[row], expected[0]) <= 1e-5
        assert torch.equal(ids[row], alone[0])


@pytest.mark.parametrize("how", ["embeddings", "new", "peft"])
def test_a_second_turn_may_be_told_in_other_ways(llava, how):
    model, inputs, kinds = llava
    held, called = wrapped(model, "peft") if how == "peft" else (model, model)
    answer = torch.tensor([[11, 22, 33, 44]])
    said = conversation("llava", inputs, answer, MORE)
    with halved(kinds)(held):
        cache = steps(model, inputs, answer[:, :-1])[2]
        expected, _ = generated(model, said, past_key_values=cache)
    with halved(kinds)(held):
        cache, fed = steps(model, inputs, answer[:, :-1])[2], Fed(model)
        if how == "new":
            said["input_ids"] = said["input_ids"][:, -7:]
        if how == "embeddings":
            said["inputs_embeds"] = model.get_input_embeddings()(said["input_ids"]).detach()
        ids, _ = generated(called, said, past_key_values=cache)
    assert fed.counts[0] == 7 and torch.equal(ids, expected)


@pytest.mark.parametrize("mode", MODES)
def test_a_pruned_cache_does_not_go_on_outside_its_block(llava, mode):
    model, inputs, kinds = llava
    said = conversation("llava", inputs, MORE)
    with halved(kinds, mode)(model) as pruner:
        caches = [run(model, inputs, use_cache=True).past_key_values for _ in range(2)]
        caches.append(copy.deepcopy(caches[1]))
        with pytest.raises(VDPError, match="the input ends before what the cache has read"):
            generated(model, dict(input_ids=MORE), past_key_values=caches[1])
    for cache in caches:
        with pytest.raises(VDPError, match="go on inside it"):
            generated(model, said, past_key_values=cache)
        with pytest.raises(VDPError, match="go on inside it"):
            run(model, dict(input_ids=MORE), past_key_values=cache)
    with halved(kinds, mode, rate=0)(model):
        cache = run(model, inputs, use_cache=True).past_key_values
    assert generated(model, said, past_key_values=cache)[0].shape == (1, 4)
    assert pruner.kept.length == kinds.shape[1]


@pytest.mark.parametrize("around", ["pruner", "span", "placement", "recorder"])
@pytest.mark.parametrize("asked, message", [
    (dict(prompt_lookup_num_tokens=3), "leave out assistant_model= and prompt_lookup_num_tokens="),
    (dict(assistant_model=None), "leave out assistant_model= and prompt_lookup_num_tokens="),
    (dict(prefill_chunk_size=50), "leave out prefill_chunk_size=")])
def test_what_does_not_read_the_prompt_whole_and_alone_is_refused(around, asked, message):
    model = t.LlamaForCausalLM(t.LlamaConfig(**TEXT)).eval()
    ids = torch.randint(3, 80, (1, 55), generator=torch.Generator().manual_seed(0))
    kinds = token_kinds(ids, context=(7, -8))
    if "assistant_model" in asked:
        asked = dict(assistant_model=copy.deepcopy(model))
    made = dict(pruner=lambda: halved(kinds), span=lambda: halved(None, context=(-48, -8)),
                placement=lambda: Placement("near", kinds=kinds))
    with (record(model, ("all",)) if around == "recorder" else made[around]()(model)):
        with pytest.raises(VDPError, match=message):
            model.generate(ids, max_new_tokens=4, do_sample=False, **asked)
        model.generate(ids, max_new_tokens=4, do_sample=False)
    model.generate(ids, max_new_tokens=4, do_sample=False, **asked)
