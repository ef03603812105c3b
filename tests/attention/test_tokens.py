"""Which token is image, context, question or template: by a chat template, or by a span."""

import re
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vdp_utils.attention.tokens import (Kind, frame, image_token_id, pieces, question_start,
                                        token_kinds, visual_token_ids)
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


def test_after_earlier_turns_the_whole_last_one_is_the_question(tokenizer):
    ids = prompt(tokenizer, turn("user", "Is there a fox?"), turn("assistant", "Yes"),
                 turn("user", "Look.\nWhich bird?\nA. duck\n\nB. owl"))
    kinds = token_kinds(ids, tokenizer)
    assert said(tokenizer, ids, kinds, Kind.CONTEXT) == tight("Is there a fox? Yes")
    assert said(tokenizer, ids, kinds, Kind.QUESTION) == tight("Look. Which bird? A. duck B. owl")
    for rule, question in (("line", "B.owl"), ("turn", "Look.Whichbird?A.duckB.owl")):
        found = token_kinds(ids, tokenizer, question=rule)
        assert said(tokenizer, ids, found, Kind.QUESTION) == question
    with pytest.raises(VDPError, match="unknown question 'all': choose one of found, turn, line"):
        token_kinds(ids, tokenizer, question="all")


LONG = "It rains in the town, and nobody came by. " * 30
CHOICES = "A. a dog\nB. a cat\nC. an owl\n"


@pytest.mark.parametrize("question", [
    "Is there a dog?", "Is there a dog?\nAnswer the question using a single word or phrase.",
    "Is there a dog?\nPlease answer yes or no.\n", "Is there a dog?\nOne word is enough.",
    "Which one is it?\n" + CHOICES + "Answer with the option's letter from the given choices.",
    "It is\n" + CHOICES + "Please choose.", "Which one is it?\n(A) a dog\n(B) a cat",
    "Ist da ein Hund?\nMit einem Wort.", "有狗吗？\n用一个词。", "Question: Is it day?\nAnswer:",
    "Say what you see."])
@pytest.mark.parametrize(
    "end", ["\n", "\r\n", "\r", "\x85", "\u2028", "\n\n", "\r\n\r\n", "\n \u200b\n"])
def test_how_to_answer_and_what_to_choose_from_belong_to_the_question(tokenizer, end, question):
    """Whatever ends the lines, and whatever blanks come last."""
    for context in ("A cat sat.", "Is there a cat?\nNo. Nobody came.", LONG):
        asked = question.replace("\n", end[:2] if end[:2] == "\r\n" else end[0])
        if "?" in context and "?" not in question:
            continue  # an earlier line might be what it asks
        for last in ("", "\r\n\r\n", "\u00a0\n\u3000", "\u200b\n"):
            ids = prompt(tokenizer, turn("user", context + end + asked + last, image=True))
            kinds = token_kinds(ids, tokenizer, tokenizer.convert_tokens_to_ids("<image>"))
            text = said(tokenizer, ids, kinds, Kind.QUESTION).replace("\u200b", "")
            assert text == tight(question)
            text = said(tokenizer, ids, kinds, Kind.CONTEXT).replace("\u200b", "")
            assert text == tight(context)


def test_a_short_last_paragraph_is_the_question_a_long_one_is_not():
    assert question_start("A cat.\n\nLook closely.\nIs there a dog?") == 8
    assert question_start("\n\nLook closely.\nIs there a dog?") == 16
    text = f"A cat.\n\n{LONG}\nIs there a dog?"
    assert text[question_start(text):] == "Is there a dog?"
    assert question_start(f"Why?\n{LONG}\nSo be it.") == len(LONG) + 6  # too far before
    listed = "".join(f"{n}. It rains.\n" for n in range(10_000))
    assert len(listed) - question_start(listed + "99. Name them.") < 1_000  # and soon found
    assert question_start(" \n\t") == question_start("") == 0


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
    assert said(tokenizer, ids, kinds, Kind.QUESTION) == tight(TEXT)
    assert said(tokenizer, ids, kinds, Kind.CONTEXT) == tight("Is there a fox? Yes")
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
    kinds = token_kinds(ids, tiny.processor, tiny.image_token_id, question="line")[0].tolist()
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
    for text in ("Ein Füchslein\u00a0schläft…\r\n\t有狗吗？ 🦊", "\u2028Ġ▁Ċ<0x41>"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        texts = pieces(tokenizer, [*ids, tokenizer.eos_token_id, *ids[-1:]])
        assert "".join(texts[:len(ids)]) == text
        assert texts[len(ids)] == tokenizer.eos_token


def test_pieces_of_a_vocabulary_that_marks_blanks_and_falls_back_on_bytes(spaced):
    words = ["▁a", "<0x0A>", "<0xC3>", "<0xA4>", "Ġb", "c", "<0xE2>", "d"]
    spaced.add_tokens(words)
    ids = spaced.convert_tokens_to_ids(words)
    assert pieces(spaced, ids) == [" a", "\n", "", "ä", "Ġb", "c", "", "\ufffdd"]
    assert pieces(spaced, [len(spaced) + 9]) == [""]  # a row of the embeddings without a token


def test_a_letter_of_several_tokens_is_of_one_kind(tokenizer):
    ids = prompt(tokenizer, turn("user", "Füchse 🦊🦊.\nSind da Füchse 🦊?"))
    kinds = token_kinds(ids, tokenizer)
    texts = pieces(tokenizer, ids[0])
    assert "" in texts
    between = kinds[0, kinds[0].argmax() - 1:]  # argmax: the first token of the question
    assert said(tokenizer, ids, kinds, Kind.CONTEXT) == "Füchse🦊🦊."
    assert said(tokenizer, ids, kinds, Kind.QUESTION) == "SinddaFüchse🦊?"
    assert (between.diff() != 0).sum() == 2  # context, question, template: nothing in between


def test_a_processor_without_a_chat_template_is_refused(make_tokenizer):
    bare = make_tokenizer()
    for template in (None, "{{ raise_exception('roles must alternate') }}", "{% if %}"):
        bare.chat_template = template
        with pytest.raises(VDPError, match="no chat template that takes turns .*set its chat_temp"):
            token_kinds(torch.zeros(1, 3, dtype=torch.long), bare)
