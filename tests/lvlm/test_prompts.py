import copy
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from vdp_utils.attention.tokens import Kind
from vdp_utils.errors import VDPError
from vdp_utils.lvlm import prompts
from vdp_utils.sources import dialogues, scenes
from vdp_utils.sources.dialogues import CONTEXT_KINDS, Question
from vdp_utils.sources.samples import PICTURES, ask_presence, presence_samples

LENGTHS = [0, 1, *(2**n for n in range(6, 14))]  # 64 to 8192
repeatable = settings(derandomize=True, deadline=None, max_examples=40)


@pytest.fixture(scope="module")
def tokenizers(base_tokenizer, make_tokenizer):
    """Name -> tokenizer: the embedded LVLM's own, a small byte-level one, one token a word."""
    return {"base": base_tokenizer, "bytes": make_tokenizer(), "words": make_tokenizer(words=True)}


@pytest.fixture(scope="module")
def samples():
    return presence_samples("evaluation", 60)


def presence_sample(index, split="evaluation"):
    return ask_presence(scenes.compose(split, index))


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", ["base", "bytes", "words"])
def test_context_has_exactly_the_length_asked_for(tokenizers, samples, name, length):
    for kind in CONTEXT_KINDS:
        ids = prompts.context(tokenizers[name], kind, samples[0], length)
        assert ids.shape == (length,) and ids.dtype == np.int64


@repeatable
@given(st.data())
def test_longer_contexts_end_with_the_shorter_ones(tokenizers, data):
    tokenizer = tokenizers[data.draw(st.sampled_from(sorted(tokenizers)))]
    kind = data.draw(st.sampled_from(CONTEXT_KINDS))
    sample = presence_sample(data.draw(st.integers(0, 10**6)))
    seed = data.draw(st.integers(0, 3))
    lengths = st.one_of(st.integers(0, 2100), st.sampled_from(LENGTHS))
    short, long = sorted(data.draw(st.tuples(lengths, lengths)))
    shorter = prompts.context(tokenizer, kind, sample, short, seed)
    longer = prompts.context(tokenizer, kind, sample, long, seed)
    assert (len(shorter), len(longer)) == (short, long)
    assert longer[long - short:].tolist() == shorter.tolist()


@pytest.mark.parametrize("kind", CONTEXT_KINDS)
def test_contexts_differ_between_seeds_and_samples_only(tiny, samples, kind):
    one, again, other_seed, other_sample = (
        prompts.context(tiny.tokenizer, kind, sample, 400, seed).tolist()
        for sample, seed in ((samples[0], 0), (samples[0], 0), (samples[0], 1), (samples[1], 0)))
    assert one == again
    assert other_seed != one != other_sample


@pytest.mark.parametrize("kind, distinct, most", [
    ("same", 80, 0.10), ("other", 350, 0.05), ("mentions", 350, 0.05)])
def test_long_contexts_are_varied(base_tokenizer, samples, kind, distinct, most):
    """Distinct lines in 8192 tokens, and the share of the line said most often."""
    for sample in samples[:4]:
        ids = prompts.context(base_tokenizer, kind, sample, 8192)
        lines = base_tokenizer.decode(ids).splitlines()[1:]  # the first is cut
        said = Counter(lines)
        assert len(said) >= distinct
        assert said.most_common(1)[0][1] / len(lines) <= most, said.most_common(3)


@pytest.mark.parametrize("kind", ["same", "other"])
def test_8192_tokens_never_state_the_answer(base_tokenizer, samples, kind):
    for sample in samples[:4]:
        text = base_tokenizer.decode(prompts.context(base_tokenizer, kind, sample, 8192))
        words = set(re.findall("[a-z]+", text.lower()))
        assert words.isdisjoint({*sample.asked, *map(dialogues.plural, sample.asked)})


@pytest.mark.parametrize("image", ["own", "blank", "swapped"])
def test_prefix_is_template_image_context_and_kinds_say_which(tiny, samples, image):
    prefix = prompts.shared_prefix(tiny, samples[0], "other", 257, image=image)
    kinds = Counter(prefix.kinds.tolist())
    assert (kinds[Kind.IMAGE], kinds[Kind.CONTEXT], kinds[Kind.QUESTION]) == (100, 257, 0)
    assert kinds[Kind.TEMPLATE] == len(prefix) - 357 > 0
    np.testing.assert_array_equal(prefix.kinds == Kind.IMAGE,
                                  prefix.input_ids == tiny.image_token_id)
    context = prompts.context(tiny.tokenizer, "other", samples[0], 257)
    assert (prefix.kinds[-257:] == Kind.CONTEXT).all()
    assert prefix.input_ids[-257:].tolist() == context.tolist()
    assert prefix.images["pixel_values"].shape == (1, 3, scenes.SIZE, scenes.SIZE)


def test_whole_prompt_reads_as_the_chat_template_says(tiny, samples):
    sample = samples[0]
    question = sample.questions[0]
    prefix = prompts.shared_prefix(tiny, sample, "other", 300)
    asking = prompts.asking(tiny, question)
    whole = prompts.join(prefix, asking)
    said = tiny.tokenizer.decode(prompts.context(tiny.tokenizer, "other", sample, 300))
    assert tiny.tokenizer.decode(whole.input_ids) == (
        "<|im_start|>user\n" + 100 * "<image>" + "\n" + said + "About the image: " + question.text
        + "<|im_end|>\n<|im_start|>assistant\n")
    by_kind = {kind: tiny.tokenizer.decode(whole.input_ids[whole.kinds == kind]) for kind in Kind}
    assert by_kind[Kind.TEMPLATE] == (
        "<|im_start|>user\n\n<|im_end|>\n<|im_start|>assistant\n")
    assert by_kind[Kind.QUESTION] == "About the image: " + question.text
    assert by_kind[Kind.CONTEXT] == said
    assert len(whole) == len(prefix) + len(asking) == len(whole.kinds)
    assert "pixel_values" in whole.images


@pytest.mark.parametrize("kind", CONTEXT_KINDS)
def test_every_token_of_every_prompt_has_the_right_kind(tiny, samples, kind):
    for sample in samples[:5]:
        for length in (220, 1024):
            prefix = prompts.shared_prefix(tiny, sample, kind, length)
            for question in sample.questions:
                whole = prompts.join(prefix, prompts.asking(tiny, question))
                found = np.bincount(whole.kinds, minlength=4)
                words = tiny.tokenizer("About the image: " + question.text).input_ids
                assert found[Kind.IMAGE] == (whole.input_ids == tiny.image_token_id).sum()
                assert (found[Kind.IMAGE], found[Kind.CONTEXT]) == (100, length)
                assert found[Kind.QUESTION] == len(words)
                context = np.flatnonzero(whole.kinds == Kind.CONTEXT)
                start = len(prefix) - length
                assert context.tolist() == list(range(start, start + length))


def test_the_scene_in_words_takes_the_image_s_place(tiny, samples):
    for sample in samples[:10]:
        prefix = prompts.shared_prefix(tiny, sample, "other", 300, image="words")
        assert tiny.image_token_id not in prefix.input_ids and prefix.images == {}
        said = tiny.tokenizer.decode(prefix.input_ids[prefix.kinds == Kind.IMAGE])
        told = re.fullmatch(r"User: .+\nAssistant: The image shows the following\. (.+)\n", said)
        for noun, count in sample.picture.counts.items():
            form = noun if count == 1 else dialogues.plural(noun)
            assert re.search(rf"\b{form}\b", told[1])


@pytest.mark.parametrize("length", [0, 1, 300, 1000])
def test_the_context_is_the_same_whatever_stands_for_the_image(tiny, samples, length):
    """So that what differs between the rows is due to the image, or to where it is told."""
    wanted = prompts.context(tiny.tokenizer, "mentions", samples[0], length).tolist()
    for image in prompts.IMAGES:
        prefix = prompts.shared_prefix(tiny, samples[0], "mentions", length, image=image)
        assert prefix.input_ids[prefix.kinds == Kind.CONTEXT].tolist() == wanted
        assert (prefix.kinds == Kind.IMAGE).any() == (image != "none")
        assert (tiny.image_token_id in prefix.input_ids) == (image in PICTURES)


def test_words_stand_before_between_and_after_the_context_s_turns(tiny, samples):
    for sample in samples[:10]:
        for image, share in prompts.PLACES.items():
            kinds = prompts.shared_prefix(tiny, sample, "other", 600, image=image).kinds
            told = np.flatnonzero(kinds == Kind.IMAGE)
            before = (kinds[:told[0]] == Kind.CONTEXT).sum()
            assert np.diff(told).max() == 1 and abs(before - share * 600) < 100
            whole = prompts.shared_prefix(tiny, sample, "other", 600, image=image)
            after = tiny.tokenizer.decode(whole.input_ids[told[-1] + 1:])
            assert image != "words_middle" or after.startswith("User")


def test_embedded_prompts_leave_room_for_every_question(base_tokenizer):
    """The room kept free holds the longest question and answer under the embedded tokenizer."""
    longest = sorted(scenes.GLYPHS, key=lambda n: len(base_tokenizer(n).input_ids))[-1]
    for known, held_out in dialogues.TEMPLATES.values():
        for template in known + held_out:
            text = dialogues.QUESTION_LEAD + template.format(
                a=dialogues.a(longest), n=longest, m=longest, ns=dialogues.plural(longest))
            text += "<|im_end|>\n<|im_start|>assistant\nbottom right"
            assert len(base_tokenizer(text).input_ids) + 8 <= prompts.QUESTION_ROOM


@pytest.mark.parametrize("length", [-1, -8192])
def test_negative_length(tiny, samples, length):
    with pytest.raises(VDPError, match=f"context length {length}: give 0 or more"):
        prompts.context(tiny.tokenizer, "same", samples[0], length)
    with pytest.raises(VDPError, match=f"context length {length} does not fit 'tiny'"):
        prompts.check_length(tiny, length)


def test_context_longer_than_the_positions(tiny, samples):
    room = 9_000 - len(prompts.opening(tiny, samples[0].image())) - prompts.QUESTION_ROOM
    prompts.check_length(tiny, 0)
    prompts.check_length(tiny, room)
    says = f"context length {room + 1} does not fit 'tiny': its 9000 positions leave 0 to {room} "
    for call in (lambda: prompts.check_length(tiny, room + 1),
                 lambda: prompts.shared_prefix(tiny, samples[0], "same", room + 1)):
        with pytest.raises(VDPError, match=says):
            call()


@pytest.mark.parametrize("length", [64, 0])
def test_unknown_context_kind(tiny, samples, length):
    with pytest.raises(VDPError, match="unknown context kind 'poem'.*mentions"):
        prompts.context(tiny.tokenizer, "poem", samples[0], length)


def test_unknown_image():
    with pytest.raises(VDPError, match="unknown image 'mirrored'.*swapped, none, words"):
        prompts.check_image("mirrored")


@pytest.mark.parametrize("kind", CONTEXT_KINDS)
def test_contexts_draw_from_a_stream_of_their_own(tiny, samples, monkeypatch, kind):
    keys = []
    blocks = dialogues.context_blocks
    monkeypatch.setattr(dialogues, "context_blocks",
                        lambda *given: keys.append(given[-1]) or blocks(*given))
    scene = samples[3].picture
    prompts.context(tiny.tokenizer, kind, samples[3], 400)
    used = [scene.seed, *((*scene.seed, n) for n in (1, 2, 3))]  # compose, render, questions
    states = [np.random.default_rng(key).random() for key in (*keys, *used)]
    assert len(set(states)) == len(states) == 5


def with_template(tiny, template):
    processor = copy.copy(tiny.processor)
    processor.chat_template = template
    return replace(tiny, name="other", processor=processor)


def test_template_that_drops_the_text(tiny, samples):
    deaf = with_template(tiny, "{% for message in messages %}{{ message['role'] }}{% endfor %}")
    with pytest.raises(VDPError, match="chat template drops the user's text: give a processor"):
        prompts.shared_prefix(deaf, samples[0], "same", 64)


def test_processor_that_makes_no_image_tokens(tiny, samples):
    class Blind:
        tokenizer = tiny.tokenizer
        apply_chat_template = tiny.processor.apply_chat_template

        def __call__(self, text, images, **options):
            return tiny.tokenizer(text.replace("<image>", ""), return_tensors="pt")

    with pytest.raises(VDPError, match="model 'other' puts no image tokens into its prompt"):
        prompts.shared_prefix(replace(tiny, name="other", processor=Blind()), samples[0],
                              "same", 64)


def test_template_that_drops_the_image(tiny, samples):
    blind = with_template(tiny, tiny.processor.chat_template.replace("'<image>\n'", "''"))
    with pytest.raises(VDPError, match="model 'other' puts no image tokens into its prompt"):
        prompts.shared_prefix(blind, samples[0], "same", 64)


@pytest.mark.parametrize("template, before", [
    (None, "<|im_start|>user\n"), ("{{ '<image>' }}{{ messages[0]['content'][-1]['text'] }}", "")])
def test_prompt_opens_with_the_first_token_once(tiny, samples, make_tokenizer, template, before):
    """A tokenizer that opens texts with a token of its own does so where the template does not."""
    tokenizer = make_tokenizer()
    first = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{first} $A", special_tokens=[(first, tokenizer.bos_token_id)])
    lvlm = with_template(tiny, template or tiny.processor.chat_template)
    lvlm.processor.tokenizer = tokenizer
    whole = prompts.join(prompts.shared_prefix(lvlm, samples[0], "other", 70),
                         prompts.asking(lvlm, samples[0].questions[0]))
    said = tokenizer.decode(whole.input_ids)
    assert said.startswith((before or first) + "<image>")
    assert said.count(first) == (2 if template is None else 1)  # the chat's answer opens with it


def test_options_follow_the_template_and_stops_are_known(tiny):
    for option in (*dialogues.POSITIONS, *dialogues.NUMBERS, "Yes", "No"):
        assert tiny.tokenizer.decode(prompts.option_ids(tiny, option)) == option
    tight = with_template(tiny, tiny.processor.chat_template.replace("assistant\n", "assistant:"))
    assert tight.tokenizer.decode(prompts.option_ids(tight, "Yes")) == " Yes"
    assert prompts.stop_ids(tiny) == {tiny.tokenizer.eos_token_id}


def test_words_and_free_questions(tiny):
    assert len(prompts.words(tiny, "")) == 0
    said = prompts.words(tiny, "User: Is it day?\n")
    assert tiny.tokenizer.decode(said.input_ids) == "User: Is it day?\n"
    assert set(said.kinds) == {Kind.CONTEXT}
    alone = prompts.join(prompts.opening(tiny, None), prompts.words(tiny, ""),
                         prompts.asking(tiny, Question("free", "Why?", "", (), ()), False))
    assert tiny.tokenizer.decode(alone.input_ids) == (
        "<|im_start|>user\nAbout the image: Why?<|im_end|>\n<|im_start|>assistant\n")


def test_tensors_run_through_the_model(tiny, samples):
    whole = prompts.join(prompts.shared_prefix(tiny, samples[0], "same", 40),
                         prompts.asking(tiny, samples[0].questions[0]))
    inputs = prompts.tensors(whole, tiny.device)
    assert inputs["input_ids"].shape == (1, len(whole))
    with torch.no_grad():
        assert tiny.model(**inputs).logits.shape == (1, len(whole), len(tiny.tokenizer))
