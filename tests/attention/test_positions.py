"""Placed prompts against explicit position ids, laid out by hand."""

import copy

import pytest
import torch
import transformers as t
from architectures import BUILDERS, IMAGE_TOKENS, build, prompt
from test_pruning import LAYER, extended, generated, halved, hidden, shortened, steps, untouched
from test_recording import WRAPPERS, batched, difference, eager_maps, run, two, unfit, wrapped

from vdp_utils.attention.positions import PLACEMENTS, Placement, Places
from vdp_utils.attention.recording import decoder_of, record
from vdp_utils.attention.tokens import Kind
from vdp_utils.errors import VDPError

STEPS, DISTANCE, ROOM = 10, 30, 8
LENGTHS = dict(gap=DISTANCE, squeezed=ROOM)
MOVING = [kind for kind in PLACEMENTS if kind != "plain"]
FEW = ["llava", "qwen2_vl", "gemma3", "paligemma"]


def placed(kind, kinds, **options):
    return Placement(kind, LENGTHS.get(kind), kinds=kinds, **options)


def by_hand(name, kind, context=40, question=6, after=0):
    """Positions of `architectures.prompt`, and of `after` more tokens, block by block: (1, L), or
    (3, 1, L) where an image is a grid of 2 x 2."""
    grid, start = name.startswith("qwen"), int(name == "paligemma")
    visual = IMAGE_TOKENS.get(name, 4)
    width = 2 if grid else visual
    room = min(ROOM, context) if kind == "squeezed" else context
    words = start + 2 if kind == "near" else start + 3 + width
    image = start + 2 + context if kind == "near" else start + 2
    asked = start + 3 + width + room + DISTANCE * (kind == "gap")
    places = [start, start + 1]
    places += [(image, image + i // 2, image + i % 2) if grid else image + i for i in range(visual)]
    places += [image + width, *(words + i * room // context for i in range(context))]
    places += range(asked, asked + question + 2 + after)
    rows = torch.tensor([place if isinstance(place, tuple) else (place,) * 3 for place in places])
    return rows.T[:, None] if grid else rows.T[:1]


class standing:
    """Context manager: the decoder is given `positions(L)` and, where it has none, a mask of ones.
    Needs a model that runs without a cache."""

    def __init__(self, model, positions):
        self.decoder, self.positions = decoder_of(model), positions

    def __enter__(self):
        self.hook = self.decoder.register_forward_pre_hook(self.give, with_kwargs=True)

    def __exit__(self, *exception):
        self.hook.remove()

    def give(self, decoder, args, kwargs):
        ids = kwargs.get("input_ids")
        batch, count = (kwargs["inputs_embeds"] if ids is None else ids).shape[:2]
        positions = self.positions(count)
        kwargs["position_ids"] = positions.expand(*positions.shape[:-2], batch, -1)
        if kwargs.get("attention_mask") is None:
            kwargs["attention_mask"] = torch.ones(batch, count, dtype=torch.long)
        return args, kwargs


def reference(model, name, kind, inputs, ids=None, **make):
    """Logits of a prompt with `ids` behind it, at positions laid out by hand, without a cache."""
    if ids is not None:
        inputs = extended(name, inputs, ids)
    own = by_hand(name, kind, **make).shape[-1]
    with standing(model, lambda count: by_hand(name, kind, after=count - own, **make)):
        return run(model, inputs, use_cache=False).logits


def at_rest(model):
    hooks = (model._forward_pre_hooks, decoder_of(model)._forward_pre_hooks,
             decoder_of(model)._forward_hooks)
    return untouched(model) and not any(hooks)


@pytest.fixture
def llava():
    model, images = build("llava")
    return model, *prompt("llava", images)


# ---- exact


@pytest.mark.parametrize("name", BUILDERS)
def test_plain_is_the_model_bit_for_bit(name):
    model, images = build(name)
    inputs, kinds = prompt(name, images)
    plain, (ids, logits) = run(model, inputs).logits, generated(model, inputs)
    with Placement("plain")(model):
        again, (placed_ids, placed_logits) = run(model, inputs).logits, generated(model, inputs)
    assert torch.equal(plain, again)
    assert torch.equal(ids, placed_ids) and torch.equal(logits, placed_logits)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("name", BUILDERS)
def test_near_without_context_is_the_model(name, masked):
    model, images = build(name)
    inputs, kinds = prompt(name, images, context=0)
    if not masked:
        del inputs["attention_mask"]
    plain, (ids, logits) = run(model, inputs).logits, generated(model, inputs)
    with placed("near", kinds)(model):
        assert torch.equal(run(model, inputs).logits, plain)
        near_ids, near_logits = generated(model, inputs)
    assert torch.equal(ids, near_ids) and torch.equal(logits, near_logits)


@pytest.mark.parametrize("kind", MOVING)
@pytest.mark.parametrize("name", BUILDERS)
def test_ten_generated_tokens_equal_those_of_explicit_positions(name, kind):
    model, images = build(name)
    inputs, kinds = prompt(name, images)
    length, plain = kinds.shape[1], run(model, inputs).logits
    with placed(kind, kinds)(model):
        prefill = run(model, inputs, use_cache=True).logits
        ids, logits = generated(model, inputs, STEPS)
    full = reference(model, name, kind, inputs, ids[:, :-1])
    assert difference(prefill, full[:, :length]) <= 1e-5
    assert difference(logits, full[:, length - 1:]) <= 1e-5
    assert float((prefill - plain).abs().max()) > 1e-2
    assert at_rest(model) and torch.equal(run(model, inputs).logits, plain)


@pytest.mark.parametrize("kind", MOVING)
@pytest.mark.parametrize("name", FEW)
def test_tokens_given_one_by_one_go_on_from_the_highest_position(name, kind):
    model, images = build(name)
    inputs, kinds = prompt(name, images)
    ids = torch.tensor([[7, 30, 12]])
    with placed(kind, kinds)(model):
        _, logits, _ = steps(model, inputs, ids)
    full = reference(model, name, kind, inputs, ids)
    assert difference(logits, full[:, kinds.shape[1]:]) <= 1e-5


@pytest.mark.parametrize("kind", MOVING)
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "internvl", "mistral3"])
def test_gaps_are_not_read_as_packed_sequences(name, masked, kind):
    model, images = build(name)
    inputs, kinds = prompt(name, images)
    expected = reference(model, name, kind, inputs)
    if not masked:
        del inputs["attention_mask"]
    with placed(kind, kinds)(model):
        assert difference(run(model, inputs, use_cache=False).logits, expected) <= 1e-5


@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_beams_equal_those_of_explicit_positions(name):
    model, images = build(name)
    inputs, kinds = prompt(name, images)
    with placed("near", kinds)(model):
        ids, _ = generated(model, inputs, num_beams=3)
    own = kinds.shape[1]
    with standing(model, lambda count: by_hand(name, "near", after=count - own)):
        expected, _ = generated(model, inputs, use_cache=False, num_beams=3)
    assert torch.equal(ids, expected)


# ---- batches


@pytest.mark.parametrize("kind", ["near", "gap"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", FEW)
def test_a_padded_batch_equals_each_prompt_alone(name, side, kind):
    model, images = build(name)
    prompts = two(name, images)
    inputs, kinds, places = batched(prompts, side)
    ids = torch.tensor([[7, 30, 12], [40, 9, 21]])
    with placed(kind, kinds)(model):
        read = run(model, inputs, use_cache=True)
        cache, behind, mask = read.past_key_values, [], inputs["attention_mask"]
        for i in range(3):
            mask = torch.cat([mask, mask.new_ones(2, 1)], 1)
            behind.append(run(model, dict(input_ids=ids[:, i:i + 1], attention_mask=mask),
                              past_key_values=cache).logits)
        behind = torch.cat(behind, 1)
        if side == "left":
            generated_ids, _ = generated(model, inputs)
    for row, (one, row_kinds) in enumerate(prompts):
        with placed(kind, row_kinds)(model):
            expected, expected_behind, _ = steps(model, one, ids[row:row + 1])
            alone, _ = generated(model, one)
        # padding moves all positions on, where float32 knows a rotation less exactly
        assert difference(read.logits[row][places[row]], expected[0]) <= 3e-5
        assert difference(behind[row], expected_behind[0]) <= 3e-5
        assert side == "right" or torch.equal(alone[0], generated_ids[row])


# ---- several images

LETTERS = dict(T=Kind.TEMPLATE, I=Kind.IMAGE, C=Kind.CONTEXT, Q=Kind.QUESTION)


def places_of(text, kind, length=None, images="all"):
    """Where the tokens of a prompt written in letters, and the next one, stand."""
    kinds = torch.tensor([int(LETTERS[letter]) for letter in text] + [int(Kind.QUESTION)])
    at = torch.arange(len(kinds))
    return (at + PLACEMENTS[kind](Places(kinds, at, length, images))).tolist()


@pytest.mark.parametrize("text, images, expected", [
    ("TITCCQT", "all", [0, 3, 4, 1, 2, 5, 6, 7]),
    ("TIICQ", "all", [0, 2, 3, 1, 4, 5]),
    ("ICICQ", "all", [2, 0, 3, 1, 4, 5]),  # in order
    ("ICICQ", "last", [0, 1, 3, 2, 4, 5]),
    ("ICCITCTQ", "last", [0, 1, 2, 5, 6, 3, 4, 7, 8]),
    ("ITITCQ", "last", [1, 2, 3, 4, 0, 5, 6]),  # side by side: one group
    ("CITQ", "all", [0, 1, 2, 3, 4]),  # near already
    ("CQI", "all", [0, 1, 2, 3]),  # behind the question
    ("TIC", "all", [0, 2, 1, 3]),  # a prefix: the question comes next
    ("TCCQ", "all", [0, 1, 2, 3, 4]), ("Q", "last", [0, 1])])
def test_near_moves_images_in_order_or_the_last_ones(text, images, expected):
    assert places_of(text, "near", images=images) == expected


@pytest.mark.parametrize("text, kind, length, expected", [
    ("TICCQT", "gap", 9, [0, 1, 2, 3, 13, 14, 15]), ("TIC", "gap", 9, [0, 1, 2, 12]),
    ("TICCCCQ", "squeezed", 2, [0, 1, 2, 2, 3, 3, 4, 5]),
    ("CCICCTQ", "squeezed", 2, [0, 0, 1, 2, 2, 3, 4, 5]),
    ("TICCQ", "squeezed", 5, [0, 1, 2, 3, 4, 5]), ("TIQ", "squeezed", 5, [0, 1, 2, 3])])
def test_gap_and_squeezed_move_what_they_say(text, kind, length, expected):
    assert places_of(text, kind, length) == expected


def test_the_grids_of_several_images_move_as_blocks():
    """Two images of 2 x 2, each two positions wide, a context token behind each."""
    model, images = build("qwen2_vl")
    ids = torch.tensor([[1, 91, 90, 90, 90, 90, 92, 5, 91, 90, 90, 90, 90, 92, 6, 7, 8]])
    kinds = torch.tensor([[0, 0, 1, 1, 1, 1, 0, 2, 0, 1, 1, 1, 1, 0, 2, 3, 0]])
    inputs = dict(input_ids=ids, attention_mask=torch.ones_like(ids),
                  mm_token_type_ids=(ids == 90).int(),
                  **{key: torch.cat([x, x]) for key, x in images.items()})

    def grid(first):
        return [(first, first + i // 2, first + i % 2) for i in range(4)]

    line = [0, 1, *grid(5), 7, 2, 3, *grid(8), 10, 4, 11, 12]
    places = torch.tensor([x if isinstance(x, tuple) else (x,) * 3 for x in line]).T[:, None]
    with standing(model, lambda count: places):
        expected = run(model, inputs, use_cache=False).logits
    with placed("near", kinds)(model):
        assert difference(run(model, inputs).logits, expected) <= 1e-5


# ---- prefixes


@pytest.mark.parametrize("kind", MOVING)
@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_a_question_behind_a_prefix_stands_where_it_would_in_one_prompt(name, kind):
    model, images = build(name)
    inputs, kinds = prompt(name, images)
    words = ("input_ids", "attention_mask", "mm_token_type_ids")
    prefix = {key: x[:, :-8] if key in words else x for key, x in inputs.items()}
    expected = reference(model, name, kind, inputs)[:, -8:]
    with placed(kind, kinds[:, :-8])(model):
        cache = run(model, prefix, use_cache=True).past_key_values
        for _ in range(2):  # a second question on the same prefix
            behind = run(model, dict(input_ids=inputs["input_ids"][:, -8:]), past_key_values=cache)
            assert difference(behind.logits, expected) <= 1e-5
            cache.crop(-8)


def test_of_several_caches_and_their_copies_each_goes_on_from_its_own_end(llava):
    model, inputs, kinds = llava
    other, _ = prompt("llava", inputs, context=44, question=2, seed=1)
    more = torch.tensor([[7]])
    with placed("gap", kinds)(model):
        caches = [run(model, one, use_cache=True).past_key_values for one in (inputs, other)]
        copied = copy.deepcopy(caches[0])
        found = [run(model, dict(input_ids=more), past_key_values=cache).logits
                 for cache in (*caches, copied)]
    assert torch.equal(found[0], found[2]) and not torch.equal(found[0], found[1])
    for logits, one in zip(found, (inputs, other)):
        expected = reference(model, "llava", "gap", one, more)[:, -1:]
        assert difference(logits, expected) <= 1e-5


@pytest.mark.parametrize("kind", MOVING)
def test_a_cache_filled_elsewhere_is_refused(llava, kind):
    model, inputs, kinds = llava
    elsewhere = run(model, inputs, use_cache=True).past_key_values
    more = dict(input_ids=torch.tensor([[7]]))
    with placed(kind, kinds)(model):
        inside = run(model, inputs, use_cache=True).past_key_values
        with pytest.raises(VDPError, match="filled outside this block"):
            run(model, more, past_key_values=elsewhere)
        run(model, more, past_key_values=inside)
    with placed(kind, kinds)(model), pytest.raises(VDPError, match="filled outside this block"):
        run(model, more, past_key_values=inside)
    with Placement("plain")(model):
        run(model, more, past_key_values=elsewhere)


# ---- positions that are given


@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_a_prompt_s_own_positions_are_taken_for_the_model_s(name):
    model, images = build(name)
    inputs, kinds = prompt(name, images)
    inputs["position_ids"] = by_hand(name, "plain") + 5
    own = kinds.shape[1]
    with placed("near", kinds)(model):
        ids, logits = generated(model, inputs)
    del inputs["position_ids"]
    with standing(model, lambda count: by_hand(name, "near", after=count - own) + 5):
        full = run(model, extended(name, inputs, ids[:, :-1]), use_cache=False).logits
    assert difference(logits, full[:, own - 1:]) <= 1e-5


def test_other_positions_behind_a_prompt_are_refused(llava):
    model, inputs, kinds = llava
    length = kinds.shape[1]
    with placed("gap", kinds)(model):
        cache = run(model, inputs, use_cache=True).past_key_values
        more = dict(input_ids=torch.tensor([[7]]), past_key_values=cache)
        with pytest.raises(VDPError, match="leave out position_ids, or give them to the prompt"):
            run(model, more, position_ids=torch.tensor([[length + DISTANCE]]))
        run(model, more, position_ids=torch.tensor([[length]]))  # the model's own


# ---- with pruning and recording


@pytest.mark.parametrize("first", ["placement", "pruner"])
@pytest.mark.parametrize("mode, decides", [("prefill", LAYER), ("compress", -1)])
@pytest.mark.parametrize("name", FEW + ["instructblip"])
def test_pruned_tokens_keep_their_places(name, mode, decides, first):
    model, images = build(name)
    inputs, kinds = prompt(name, images)
    length, around = kinds.shape[1], [placed("near", kinds)(model), halved(kinds, mode)(model)]
    with around[first == "pruner"], around[first != "pruner"]:
        ids, logits = generated(model, inputs, STEPS)
    pruner = halved(kinds, mode)
    with placed("near", kinds)(model), pruner(model):
        run(model, inputs)
    kept = pruner.kept.index[0].tolist()
    dropped = [i for i in range(length) if i not in kept]
    assert len(dropped) == 20 and all(kinds[0, i] == Kind.CONTEXT for i in dropped)
    with hidden(model, dropped, length, decides):
        full = reference(model, name, "near", inputs, ids[:, :-1])
    assert difference(logits, full[:, length - 1:]) <= 1e-5
    assert at_rest(model)


@pytest.mark.parametrize("kind", ["near", "gap"])
@pytest.mark.parametrize("name", FEW)
def test_a_compact_prompt_is_placed_as_if_it_had_been_short(name, kind):
    model, images = build(name)
    inputs, kinds = prompt(name, images)
    more = torch.tensor([[7, 30, 12]])
    pruning = halved(kinds, "compress", positions="compact")
    with pruning(model) as pruner, placed(kind, kinds)(model):
        ids, logits = generated(model, inputs, STEPS)
        _, behind, _ = steps(model, inputs, more)
    short = shortened(inputs, pruner.kept.index[0].tolist())
    length = short["input_ids"].shape[1]
    full = reference(model, name, kind, short, ids[:, :-1], context=20)
    assert difference(logits, full[:, length - 1:]) <= 1e-5
    full = reference(model, name, kind, short, more, context=20)
    assert difference(behind, full[:, length:]) <= 1e-5


def test_shared_positions_cannot_close_up(llava):
    model, inputs, kinds = llava
    with placed("squeezed", kinds)(model), halved(kinds, "compress", positions="compact")(model):
        with pytest.raises(VDPError, match="share positions.*use positions='kept'"):
            run(model, inputs)
    assert at_rest(model)


@pytest.mark.parametrize("first", ["placement", "recorder"])
@pytest.mark.parametrize("name", FEW)
def test_what_is_recorded_is_the_attention_of_placed_tokens(name, first):
    model, images = build(name)
    inputs, kinds = prompt(name, images)
    with standing(model, lambda count: by_hand(name, "near")):
        maps = eager_maps(model, inputs, use_cache=False)
    around = [placed("near", kinds)(model), record(model, accumulated=("all",), kinds=kinds)]
    with around[first == "recorder"] as one, around[first != "recorder"] as two_:
        run(model, inputs)
    found = one if first == "recorder" else two_
    for layer, attention in enumerate(maps):
        assert difference(found[layer].accumulated["all"], attention.sum(2)) <= 1e-5
    assert at_rest(model)


# ---- the model is as before; what is refused


def test_the_processor_tells_image_context_and_question(tiny):
    from vdp_utils.sources.samples import presence_samples

    (sample,) = presence_samples("evaluation", 1)
    words = "There was rain. The bus came late.\nIs there a dog?"
    text = tiny.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": words}]}],
        add_generation_prompt=True, tokenize=False)
    inputs = dict(tiny.processor(images=sample.image("own"), text=text, return_tensors="pt"))
    seen = []
    watch = decoder_of(tiny.model).layers[0].register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["position_ids"][0]), with_kwargs=True)
    try:
        for rule in ("found", "turn"):
            with Placement("near", processor=tiny.processor, question=rule)(tiny.model):
                run(tiny.model, inputs)
    finally:
        watch.remove()
    assert bool((seen[1].diff() == 1).all())  # no context, and so nothing is moved
    line = tiny.tokenizer.decode(inputs["input_ids"][0, seen[0].argsort()])
    assert line.index("The bus came late.") < line.index("<image>") < line.index("Is there a dog?")


@pytest.mark.parametrize("kind", MOVING)
def test_an_exception_restores_the_model(llava, kind):
    model, inputs, kinds = llava
    plain, placement = run(model, inputs).logits, placed(kind, kinds)
    broken = decoder_of(model).layers[LAYER].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), placement(model):
        run(model, inputs)
    broken.remove()
    assert at_rest(model) and torch.equal(run(model, inputs).logits, plain)
    with placement(model):  # and may be used again
        assert not torch.equal(run(model, inputs).logits, plain)


@pytest.mark.parametrize("asked, message", [
    (dict(kind="nearer"), "unknown placement 'nearer': choose one of plain, gap, squeezed, near"),
    (dict(images="first"), "unknown images 'first': choose one of all, last"),
    (dict(kind="gap"), "length=None does not go with placement 'gap'"),
    (dict(kind="squeezed", length=0), "length=0 does not go with placement 'squeezed'"),
    (dict(length=5), "length=5 does not go with placement 'near'"),
    (dict(kinds=None), "say which tokens are context")])
def test_a_bad_argument_is_refused_before_there_is_a_placement(llava, asked, message):
    with pytest.raises(VDPError, match=message):
        Placement(**dict(kind="near", kinds=llava[2]) | asked)


def test_placements_do_not_nest(llava):
    model, inputs, kinds = llava
    for inner in ("plain", "near"):
        with placed("gap", kinds)(model) as outer:
            with pytest.raises(VDPError, match="placements do not nest"):
                with placed(inner, kinds)(model):
                    pass
            with pytest.raises(VDPError, match="placements do not nest"):
                with outer(build("llava")[0]):
                    pass
    assert at_rest(model)


def test_kinds_of_another_length_are_refused(llava):
    model, inputs, kinds = llava
    with placed("near", kinds[:, 1:])(model), pytest.raises(VDPError, match="kinds of shape"):
        run(model, inputs)


SMALL = dict(vocab_size=100, hidden_size=32, num_attention_heads=4)


@pytest.mark.parametrize("make, message", [
    (lambda: t.OPTForCausalLM(t.OPTConfig(**SMALL, num_hidden_layers=1, ffn_dim=32,
                                          word_embed_proj_dim=32)), "has learned positions"),
    (lambda: unfit()["gpt2"], "has learned positions"),
    (lambda: t.BloomForCausalLM(t.BloomConfig(**SMALL, n_layer=1)), "BloomForCausalLM has ALiBi"),
    (lambda: t.MptForCausalLM(t.MptConfig(vocab_size=100, d_model=32, n_heads=4, n_layers=1)),
     "MptForCausalLM has ALiBi"),
    (lambda: t.FalconForCausalLM(t.FalconConfig(**SMALL, num_hidden_layers=1, alibi=True)),
     "FalconForCausalLM has ALiBi"),
    (lambda: unfit()["t5"], "decoder-only language model"),
    (lambda: unfit()["linear"], "decoder-only language model")],
    ids=["opt", "gpt2", "bloom", "mpt", "falcon", "t5", "linear"])
def test_positions_that_are_not_rotary_are_refused_by_name(make, message):
    with pytest.raises(VDPError, match=message), Placement("near", context=(0, 2))(make()):
        pass


def test_flash_attention_is_refused(llava):
    model, inputs, kinds = llava
    decoder_of(model).config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(VDPError, match="reads gaps in the positions as packed sequences"):
        with placed("near", kinds)(model):
            pass


@pytest.mark.parametrize("how", WRAPPERS)
def test_the_tokens_of_a_wrapped_model_are_placed_as_the_bare_one_s(llava, how):
    model, inputs, kinds = llava
    with placed("near", kinds)(model):
        expected, (ids, _) = run(model, inputs).logits, generated(model, inputs)
    held, called = wrapped(model, how)
    plain = run(called, inputs).logits  # compiled before there is a placement
    with Placement("near", context=(7, 47))(held):
        assert difference(run(called, inputs).logits, expected) <= 1e-6
        assert torch.equal(generated(called, inputs)[0], ids)
    assert torch.equal(run(called, inputs).logits, plain)


@pytest.mark.parametrize("name", FEW)
def test_padding_is_known_where_a_cache_of_fixed_length_has_masks_prepared(name):
    model, images = build(name)
    inputs, kinds, _ = batched(two(name, images), "left")
    with placed("near", kinds)(model):
        expected, logits = generated(model, inputs)
        ids, static = generated(model, inputs, cache_implementation="static",
                                disable_compile=True)
    assert torch.equal(ids, expected) and difference(logits, static) <= 1e-5


@pytest.mark.parametrize("kind", ["gap", "squeezed"])
def test_a_cache_with_moved_ends_does_not_go_on_outside_its_block(llava, kind):
    model, inputs, kinds = llava
    said = extended("llava", inputs, torch.tensor([[7, 30, 12]]))
    del said["pixel_values"]
    with placed(kind, kinds)(model):
        cache = run(model, inputs, use_cache=True).past_key_values
        ids, logits = generated(model, said, past_key_values=copy.deepcopy(cache))
        with halved(kinds)(model):
            pruned = run(model, inputs, use_cache=True).past_key_values
        with pytest.raises(VDPError, match="go on inside it"):
            run(model, dict(input_ids=said["input_ids"][:, -3:]), past_key_values=pruned)
    with pytest.raises(VDPError, match="go on inside it"):
        generated(model, said, past_key_values=cache)
    more = extended("llava", inputs, torch.cat([said["input_ids"][:, -3:], ids[:, :-1]], 1))
    full = reference(model, "llava", kind, inputs, more["input_ids"][:, kinds.shape[1]:])
    assert difference(logits, full[:, -4:]) <= 1e-5
