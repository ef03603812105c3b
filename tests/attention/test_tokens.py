"""Which token is image, context, question or template: by a chat template, or by a span."""

import re
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vdp_utils.attention.tokens import (Kind, frame, image_token_id, pieces, token_kinds,
                                        visual_token_ids)
from vdp_utils.errors import VDPError
from vdp_utils.lvlm.load import CHAT_TEMPLATE

LLAMA = ("{{ '<|im_start|>' }}{% for message in messages %}{% if message['role'] == 'user' %}"
         "{{ 'USER: ' + message['content'][0]['text'] + ' ' }}{% else %}"
         "{{ 'ASSISTANT: ' + message['content'][0]['text'] + '<|im_end|>' }}{% endif %}"
         "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}")
TEXT = "A red fox is on the left.\nThere are two birds. Nobody came.\nIs there a fox?"


def turn(role, text, image=False):
    content = [{"type": "image"}] if image else []
    return {"role": role, "content": [*content, {"type": "text", "text": text}]}


@pytest.fixture(scope="module")
def tokenizer(make_tokenizer):
    made = make_tokenizer()
    made.chat_template = CHAT_TEMPLATE
    return made


@pytest.fixture
def spaced():
    """A tokenizer in the manner of Llama's: a word's space is its first sign, and every text,
    also after a special token, starts with one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Metaspace(prepend_scheme="always")])
    made.decoder = decoders.Metaspace()
    made.train_from_iterator(
        [TEXT, "USER: ASSISTANT: Yes"], trainers.BpeTrainer(
            vocab_size=200, show_progress=False,
            special_tokens=["<unk>", "<|im_start|>", "<|im_end|>", "<image>"]))
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<|im_start|>", eos_token="<|im_end|>",
        unk_token="<unk>", additional_special_tokens=["<image>"], chat_template=LLAMA)


def prompt(tokenizer, *turns, **kwargs):
    text = tokenizer.apply_chat_template(list(turns), tokenize=False,
                                         **dict(add_generation_prompt=True) | kwargs)
    return torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])


def said(tokenizer, ids, kinds, kind):
    """The words and signs of the tokens of one kind, without spaces."""
    texts = pieces(tokenizer, ids[0][kinds[0] == kind])
    return tight("".join(texts))


def tight(text):
    return re.sub(r"\s+", "", text)


# ---- by the chat template


def test_the_last_line_is_the_question_and_the_words_before_it_the_context(tokenizer):
    ids = prompt(tokenizer, turn("user", TEXT, image=True))
    image = tokenizer.convert_tokens_to_ids("<image>")
    kinds = token_kinds(ids, tokenizer, image)
    context, _, question = TEXT.rpartition("\n")
    assert said(tokenizer, ids, kinds, Kind.QUESTION) == tight(question)
    assert kinds[0, ids[0] == image].tolist() == [Kind.IMAGE]
    special = torch.isin(ids[0], torch.tensor(tokenizer.all_special_ids)) & (ids[0] != image)
    assert said(tokenizer, ids, kinds, Kind.CONTEXT) == tight(context)
    assert (kinds[0, special] == Kind.TEMPLATE).all()
    assert said(tokenizer, ids, kinds, Kind.TEMPLATE) == (
        "<|im_start|>user<|im_end|><|im_start|>assistant")
    assert kinds.dtype == torch.int64 and kinds.shape == ids.shape


def test_a_single_line_is_all_question(tokenizer):
    ids = prompt(tokenizer, turn("user", "Is there a fox?"))
    kinds = token_kinds(ids, tokenizer)
    assert not (kinds == Kind.CONTEXT).any()
    assert said(tokenizer, ids, kinds, Kind.QUESTION) == tight("Is there a fox?")


def test_earlier_turns_are_context(tokenizer):
    ids = prompt(tokenizer, turn("user", "Is there a fox?"), turn("assistant", "Yes"),
                 turn("user", "There is a bird.\nIs there a fox?"))
    kinds = token_kinds(ids, tokenizer)
    assert said(tokenizer, ids, kinds, Kind.CONTEXT) == tight(
        "Is there a fox? Yes There is a bird.")
    assert said(tokenizer, ids, kinds, Kind.QUESTION) == tight("Is there a fox?")


def test_blank_lines_after_the_question_do_not_hide_it(tokenizer):
    ids = prompt(tokenizer, turn("user", "There is a bird.\nIs there a fox?\n\n  "))
    kinds = token_kinds(ids, tokenizer)
    assert said(tokenizer, ids, kinds, Kind.QUESTION) == "Isthereafox?"
    assert said(tokenizer, ids, kinds, Kind.CONTEXT) == "Thereisabird."


def test_a_system_turn_is_template(tokenizer):
    ids = prompt(tokenizer, turn("system", "There are two birds."), turn("user", TEXT))
    kinds = token_kinds(ids, tokenizer)
    assert said(tokenizer, ids, kinds, Kind.CONTEXT) == tight(TEXT.rpartition("\n")[0])


def test_another_template_is_read_as_well(make_tokenizer):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = LLAMA
    ids = prompt(tokenizer, turn("user", "Is there a fox?"), turn("assistant", "Yes"),
                 turn("user", TEXT))
    kinds = token_kinds(ids, tokenizer)
    context, _, question = TEXT.rpartition("\n")
    assert said(tokenizer, ids, kinds, Kind.QUESTION) == tight(question)
    assert said(tokenizer, ids, kinds, Kind.CONTEXT) == tight(
        "Is there a fox? Yes" + context)
    assert said(tokenizer, ids, kinds, Kind.TEMPLATE).count("USER:") == 2


def test_a_tokenizer_that_writes_spaces_as_signs_is_read_as_well(spaced):
    ids = prompt(spaced, turn("user", TEXT))
    kinds = token_kinds(ids, spaced)
    context, _, question = TEXT.rpartition("\n")
    assert said(spaced, ids, kinds, Kind.QUESTION) == tight(question)
    assert said(spaced, ids, kinds, Kind.CONTEXT) == tight(context)


def test_a_space_after_a_special_token_does_not_hide_a_turn(spaced):
    ids = prompt(spaced, turn("user", "Is there a fox?"), turn("assistant", "Yes"),
                 turn("user", "Is there a bird?"))
    kinds = token_kinds(ids, spaced)
    assert said(spaced, ids, kinds, Kind.QUESTION) == "Isthereabird?"
    assert said(spaced, ids, kinds, Kind.CONTEXT) == "Isthereafox?Yes"


def test_a_padded_batch_has_each_rows_own_kinds(tokenizer):
    rows = [prompt(tokenizer, turn("user", text)) for text in (TEXT, TEXT[20:])]
    lacking = rows[0].shape[1] - rows[1].shape[1]
    for at in (0, rows[1].shape[1]):
        padding = torch.full((1, lacking), tokenizer.pad_token_id)
        padded = torch.cat([rows[1][:, :at], padding, rows[1][:, at:]], 1)
        kinds = token_kinds(torch.cat([rows[0], padded]), tokenizer)
        alone = [token_kinds(row, tokenizer)[0] for row in rows]
        assert torch.equal(kinds[0], alone[0])
        assert torch.equal(torch.cat([kinds[1][:at], kinds[1][at + lacking:]]), alone[1])
        assert (kinds[1, at:at + lacking] == Kind.TEMPLATE).all()


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_question_template_and_image_are_never_taken_for_context(tiny, data):
    line = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]) | st.just(" "),
                   min_size=1, max_size=20).filter(
                       lambda text: text.strip() and "<" not in text and "\ue000" not in text)
    lines = data.draw(st.lists(line, min_size=1, max_size=3))
    before = prompt(tiny.tokenizer, turn("user", "", image=True), chat_template=CHAT_TEMPLATE)
    ids = prompt(tiny.tokenizer, turn("user", "\n".join(lines), image=True),
                 chat_template=CHAT_TEMPLATE)
    kinds = token_kinds(ids, tiny.processor, tiny.image_token_id)[0].tolist()
    closing = len(tiny.tokenizer("<|im_end|>\n<|im_start|>assistant\n",
                                 add_special_tokens=False)["input_ids"])
    opening = before.shape[1] - closing - 1
    question = len(tiny.tokenizer(lines[-1].rstrip(), add_special_tokens=False)["input_ids"])
    assert Kind.CONTEXT not in kinds[:opening] and Kind.CONTEXT not in kinds[-closing:]
    assert kinds.count(Kind.IMAGE) == 1
    assert kinds[-closing - 1] == Kind.QUESTION and kinds.count(Kind.QUESTION) >= question - 1
    if len(lines) > 1:
        assert Kind.CONTEXT in kinds


def test_the_template_is_cut_at_its_turns(tiny):
    assert frame(tiny.processor) == (
        "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>\n<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n")


# ---- by a span


@pytest.mark.parametrize("span", [(2, 5), (-8, 5), (2, -5), (-8, -5)])
def test_a_span_may_count_from_either_end(span):
    ids = torch.tensor([[7, 9, 9, 4, 5, 6, 7, 8, 9, 1], [3] * 10])
    c, q, i, t = Kind.CONTEXT, Kind.QUESTION, Kind.IMAGE, Kind.TEMPLATE
    assert token_kinds(ids, context=span, image_id=9).tolist() == [
        [t, i, i, c, c, q, q, q, i, q], [t, t, c, c, c, q, q, q, q, q]]


@pytest.mark.parametrize("span", [(0, 11), (6, 5), (-11, 5), (11, 12), (0, -11), (-1, -2)])
def test_a_span_outside_the_prompt_is_refused(span):
    with pytest.raises(VDPError, match=r"does not fit a prompt of 10 tokens"):
        token_kinds(torch.zeros(1, 10, dtype=torch.long), context=span)


# ---- refused, and small parts


def test_the_context_must_be_told_in_one_way(tiny):
    ids = torch.zeros(1, 10, dtype=torch.long)
    for kwargs in (dict(), dict(processor=tiny.processor, context=(0, 2))):
        with pytest.raises(VDPError, match="say which tokens are context"):
            token_kinds(ids, **kwargs)


def test_a_prompt_that_does_not_end_as_the_template_does_is_refused(tiny):
    ids = prompt(tiny.tokenizer, turn("user", TEXT), chat_template=CHAT_TEMPLATE,
                 add_generation_prompt=False)
    with pytest.raises(VDPError, match="does not end as the chat template ends"):
        token_kinds(ids, tiny.processor)


def test_a_template_that_drops_a_turn_is_refused(make_tokenizer):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'][0]['text'] }}"
    with pytest.raises(VDPError, match="the chat template drops or repeats a turn's text"):
        frame(tokenizer)


def test_the_image_token_has_either_name():
    assert image_token_id(SimpleNamespace(image_token_id=5)) == 5
    assert image_token_id(SimpleNamespace(image_token_index=6)) == 6
    assert image_token_id(SimpleNamespace()) is None
    assert visual_token_ids(SimpleNamespace(image_token_id=5, video_token_id=7)) == (5, 7)
    assert visual_token_ids(SimpleNamespace(image_token_index=6, video_token_index=6)) == (6,)
    assert visual_token_ids(SimpleNamespace(video_token_id=None)) == ()


def test_tokens_of_videos_are_visual_too(tokenizer):
    ids = prompt(tokenizer, turn("user", TEXT, image=True))
    image, word = tokenizer.convert_tokens_to_ids("<image>"), int(ids[0, -12])
    expected = token_kinds(ids, tokenizer, image)
    assert torch.equal(token_kinds(ids, tokenizer, (image,)), expected)
    kinds = token_kinds(ids, tokenizer, (image, word))
    visual = (ids == image) | (ids == word)
    assert bool((kinds[visual] == Kind.IMAGE).all())
    assert torch.equal(kinds[~visual], expected[~visual])
    spanned = token_kinds(ids, context=(2, -8), image_id=(image, word))
    assert bool((spanned[visual] == Kind.IMAGE).all())


def test_pieces_have_the_spaces_of_the_text(make_tokenizer):
    tokenizer = make_tokenizer()
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    assert "".join(pieces(tokenizer, ids)) == TEXT
    vocabulary = SimpleNamespace(convert_ids_to_tokens=lambda ids: ["▁a", "<0x0A>", "Ġb", "Ċ", "c"])
    assert pieces(vocabulary, range(5)) == [" a", "\n", " b", "\n", "c"]
