"""Prompts of a known make-up: every token's kind and the exact number of context tokens."""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import pad

from vdp_utils.attention import tokens
from vdp_utils.attention.tokens import SLOT, Kind, pieces, token_kinds, written
from vdp_utils.errors import Lacking, VDPError
from vdp_utils.lvlm.load import LVLM
from vdp_utils.sources import dialogues
from vdp_utils.sources.dialogues import LEAD_AT_START, LEAD_ELSEWHERE, Question
from vdp_utils.sources.mmdu import MARK
from vdp_utils.sources.samples import PICTURES, Sample

# where in the context the text description stands
PLACES = {"text": 0.0, "text_middle": 0.5, "text_last": 1.0}
BESIDE = "blank_and_text"  # a blank picture, and the description amid the context, as part of it
IMAGES = (*PICTURES, "none", *PLACES, BESIDE)
LOOKS = {  # kind -> style of its tokens in `show`: the line below tells them apart without colour
    Kind.IMAGE: "background:#cfe8f7;border-bottom:3px double #0072b2",
    Kind.CONTEXT: "background:#fdecc8;border-bottom:2px dashed #9a6b00",
    Kind.QUESTION: "background:#d3f0e3;border-bottom:2px solid #00734f",
    Kind.TEMPLATE: "background:#ececec;border-bottom:2px dotted #555555",
}
QUESTION_ROOM = 64  # tokens kept free for a question and its answer
ANSWER_ROOM = 8  # tokens of an answer that is not an option, unless told otherwise


def check_image(which: str) -> None:
    """VDPError for an image, or a stand-in for one, that there is not."""
    if which not in IMAGES:
        raise VDPError(f"unknown image {which!r}: choose one of {', '.join(IMAGES)}")


@dataclass
class Prompt:
    """Tokens of a prompt or a part of one: ids and kinds (length,), and the image's inputs."""

    input_ids: np.ndarray
    kinds: np.ndarray
    images: dict = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.input_ids)

    def split(self, at: int) -> tuple["Prompt", "Prompt"]:
        """The tokens up to `at`, with the images, which stand there, and those from it on."""
        return (Prompt(self.input_ids[:at], self.kinds[:at], self.images),
                Prompt(self.input_ids[at:], self.kinds[at:]))


def _part(ids, kind: Kind) -> Prompt:
    ids = np.asarray(ids, dtype=np.int64)
    return Prompt(ids, np.full(len(ids), kind, dtype=np.int8))


def join(*parts: Prompt) -> Prompt:
    """One prompt from its parts in order."""
    return Prompt(np.concatenate([p.input_ids for p in parts]),
                  np.concatenate([p.kinds for p in parts]),
                  {k: v for p in parts for k, v in p.images.items()})


@lru_cache(maxsize=None)
def frame(processor, with_image: bool) -> tuple[str, str]:
    """The chat template before and after the user's words."""
    content = [{"type": "image"}] * with_image + [{"type": "text", "text": SLOT}]
    text = written(processor, [{"role": "user", "content": content}])
    before, found, after = text.partition(SLOT)
    if not found:
        raise VDPError("the processor's chat template drops the user's text: give a processor "
                       "whose chat template takes image and text parts")
    return before, after


def opening(lvlm: LVLM, image: Image.Image | None) -> Prompt:
    """Template and image tokens up to where the user's words begin."""
    before, _ = frame(lvlm.processor, image is not None)
    return _read(lvlm, before, [image] if image is not None else [])


def _read(lvlm: LVLM, text: str, images: list[Image.Image]) -> Prompt:
    """Tokens of a text from the prompt's start on, of kind IMAGE or else TEMPLATE."""
    bos = lvlm.tokenizer.bos_token
    special = not (bos and text.startswith(bos))
    if not images:
        return _part(lvlm.tokenizer(text, add_special_tokens=special).input_ids, Kind.TEMPLATE)
    no_tokens = VDPError(f"model {lvlm.name!r} puts no image tokens into its prompt: give a model "
                         "whose processor expands the image into tokens")
    try:
        inputs = lvlm.processor(text=text, images=images, return_tensors="pt",
                                add_special_tokens=special)
    except ValueError as error:  # images without a placeholder in the text
        raise no_tokens from error
    ids = inputs.pop("input_ids")[0].numpy()
    inputs.pop("attention_mask", None)
    if not (ids == lvlm.image_token_id).any():
        raise no_tokens
    kinds = np.where(ids == lvlm.image_token_id, Kind.IMAGE, Kind.TEMPLATE).astype(np.int8)
    return Prompt(ids, kinds, dict(inputs))


@lru_cache(maxsize=8)
def _marks(tokenizer) -> re.Pattern:
    """Marks of the chat and of images that would be read as such wherever they stand in a text."""
    marks = [one.content for one in tokenizer.added_tokens_decoder.values()
             if one.special or re.search("image|img|video|vision|audio", one.content, re.I)]
    marks = {mark for mark in marks if mark.strip() and mark != tokenizer.unk_token}
    return re.compile("|".join(map(re.escape, sorted(marks))) or "(?!)")


def unmarked(tokenizer, text: str) -> str:
    """A text without the tokenizer's own marks, such as <image>."""
    return _marks(tokenizer).sub("", text)


def _check_words(tokenizer, text: str) -> None:
    """VDPError for a text with a mark in it."""
    if found := _marks(tokenizer).search(text):
        near = text[max(0, found.start() - 30):found.end() + 30]
        raise VDPError(f"{found[0]!r} in the text {near!r} is a mark of the model's own, not a "
                       "word: leave it out (images are given apart)")


def _follow(tokenizer, text: str, before: str = "\n") -> list[int]:
    """Token ids of a text as it goes on after `before`.

    By itself some tokenizers would put a blank before its first word. Where its first token would
    hold some of `before`, it is taken after a line end; where also that, by itself.
    """
    for start in (before, "\n"):
        ids, both = (tokenizer(one, add_special_tokens=False).input_ids
                     for one in (start, start + text))
        if both[:len(ids)] == ids:
            return both[len(ids):]
    return tokenizer(text, add_special_tokens=False).input_ids


def _said(tokenizer, text: str) -> list[int]:
    """Token ids of somebody's words amid a prompt. VDPError for a mark in them."""
    _check_words(tokenizer, text)
    return _follow(tokenizer, text)


def chat(processor, turns) -> str:
    """Turns, the user's and the assistant's in turn, as the chat template writes them.

    A MARK in a user's turn is the next image. VDPError for another mark of the tokenizer's.
    """
    messages = []
    for number, turn in enumerate(turns):
        _check_words(processor.tokenizer, turn.replace(MARK, ""))
        first, *rest = turn.split(MARK) if number % 2 == 0 else [turn]
        content = [{"type": "text", "text": first}] if first or not rest else []
        for words in rest:
            content += [{"type": "image"}, *[{"type": "text", "text": words}] * bool(words)]
        messages.append({"role": ("user", "assistant")[number % 2], "content": content})
    return written(processor, messages)


def conversation(lvlm: LVLM, turns, images: list[Image.Image], whole: bool = False) -> Prompt:
    """A chat about several images up to where the answer to its last turn begins.

    `turns` as in `chat`; `images`, in order, are as many as its MARKs. The last line of the last
    turn is the question, or `whole`, all of it; what was said before is context.
    """
    prompt = _read(lvlm, chat(lvlm.processor, turns), images)
    kinds = token_kinds(torch.from_numpy(prompt.input_ids)[None], lvlm.processor,
                        lvlm.image_token_id, question="turn" if whole else "line")
    return Prompt(prompt.input_ids, kinds[0].numpy().astype(np.int8), prompt.images)


def context(tokenizer, kind: str, sample: Sample, length: int, seed: int = 0,
            **options) -> np.ndarray:
    """Exactly `length` context token ids, int64; longer contexts end with the shorter ones.

    `options` are those of `dialogues.context_blocks`. A context that the source holds is cut, not
    made: VDPError where it is shorter, and for another seed or other options than the default.
    """
    if length < 0:
        raise VDPError(f"context length {length}: give 0 or more tokens")
    dialogues.check_context_kind(kind)
    if ready := sample.picture.ready_context(kind):
        return _cut(tokenizer, sample, kind, *ready, length, seed, **options)
    # The last number is never 0: numpy takes seeds that differ by trailing zeros as the same.
    key = (*sample.picture.seed, seed, 11 + dialogues.CONTEXT_KINDS.index(kind))
    blocks = dialogues.context_blocks(kind, sample.picture, sample.asked, key, **options)
    ids: list[int] = []
    while len(ids) < length:
        ids = _said(tokenizer, next(blocks)) + ids
    return np.array(ids[len(ids) - length:], dtype=np.int64)


def _cut(tokenizer, sample: Sample, kind: str, text: str, ids, length: int, seed: int,
         misleading: int = 1) -> np.ndarray:
    """The end of a context that there is: as it was tokenized if that was by this tokenizer."""
    _check_words(tokenizer, text)
    if tokenizer.decode(ids) != text:
        ids = _said(tokenizer, text)
    if length > len(ids) or seed or misleading != 1:
        raise Lacking(f"{sample.image_id} has one {kind} context, of {len(ids)} tokens: ask for "
                      f"at most these, and with seed 0 (asked: {length}, {seed})")
    return np.array(ids[len(ids) - length:], dtype=np.int64)


def text_description(tokenizer, sample: Sample, seed: int = 0) -> np.ndarray:
    """Token ids, int64, of the picture's text description, the image's stand-in."""
    text = dialogues.text_description(sample.picture, (*sample.picture.seed, seed, 14))
    return np.array(_said(tokenizer, text), dtype=np.int64)


def asking(lvlm: LVLM, question: Question, image: str = "own", lead: str | None = None) -> Prompt:
    """The question's tokens and the template's end, up to where the answer begins.

    `lead` says which image is meant: by default the one at the start, or the only one where
    `image`, as in `shared_prefix`, is a text description amid or after the context.
    """
    if lead is None:
        lead = LEAD_ELSEWHERE if _place(image) else LEAD_AT_START
    ids = _said(lvlm.tokenizer, lead + question.text)
    return join(_part(ids, Kind.QUESTION), _closing(lvlm, _picture(image) is not None))


def _picture(image: str) -> str | None:
    """The picture at the prompt's start, if any."""
    return "blank" if image == BESIDE else image if image in PICTURES else None


def _place(image: str) -> float | None:
    """After which share of the context the text description stands, if there is one."""
    return PLACES["text_middle"] if image == BESIDE else PLACES.get(image)


@lru_cache(maxsize=8)
def _closing(lvlm: LVLM, with_image: bool) -> Prompt:
    _, after = frame(lvlm.processor, with_image)
    return _part(_follow(lvlm.tokenizer, after), Kind.TEMPLATE)


def words(lvlm: LVLM, text: str) -> Prompt:
    """Any text as context."""
    return _part(_said(lvlm.tokenizer, text) if text else [], Kind.CONTEXT)


def option_ids(lvlm: LVLM, option: str) -> list[int]:
    """Token ids of an answer option as it goes on after the chat template.

    Between them stands what the template puts between its end and an answer, or, where it does not
    tell, a blank after a word.
    """
    _, after = frame(lvlm.processor, True)
    _check_words(lvlm.tokenizer, option)
    return _follow(lvlm.tokenizer, _lead(lvlm.processor, after) + option, after)


@lru_cache(maxsize=8)
def _lead(processor, after: str) -> str:
    try:
        told = tokens.frame(processor)[1]
    except VDPError:  # it takes no turn of the assistant's
        told = ""
    if told.startswith(after):
        return told[len(after):]
    return "" if after[-1:].isspace() or not after else " "


def stop_ids(lvlm: LVLM) -> set[int]:
    """Token ids that end an answer."""
    ids = lvlm.model.generation_config.eos_token_id
    return {lvlm.tokenizer.eos_token_id, *(ids if isinstance(ids, list) else [ids])} - {None}


@lru_cache(maxsize=8)
def least_opening(lvlm: LVLM) -> int:
    """Tokens of template and image before the user's words, for a small image."""
    return len(opening(lvlm, Image.new("RGB", (160, 160))))


def check_length(lvlm: LVLM, length: int, start: int | None = None, asked: int = 0) -> None:
    """VDPError where `length` context tokens, the image and a question pass the positions.

    `start` counts the tokens of template and image. Without it they are those of a small image:
    processors may give a larger one more. `asked` counts those of question and answer, for which
    QUESTION_ROOM is kept free at least.
    """
    start, asked = start or least_opening(lvlm), max(asked, QUESTION_ROOM)
    room = lvlm.max_positions - start - asked
    if room < 0:
        raise VDPError(f"an image of {start} tokens with its question and answer of {asked} does "
                       f"not fit the {lvlm.max_positions} positions of {lvlm.name!r}: give a "
                       "smaller image or a shorter question")
    if not 0 <= length <= room:
        raise VDPError(f"context length {length} does not fit {lvlm.name!r}: its "
                       f"{lvlm.max_positions} positions leave 0 to {room} for the context")


def shared_prefix(lvlm: LVLM, sample: Sample, kind: str, length: int, seed: int = 0,
                  image: str = "own", misleading: int = 1) -> Prompt:
    """What all questions of a sample share: template, image, and `length` tokens of context.

    `image` is `own`, `blank` (mid-grey), `swapped` (a picture with none of the asked nouns), `none`
    (no image tokens), or the picture's text description: before the context (`text`), between turns
    in its middle (`text_middle`) or after it (`text_last`). Its tokens are of kind IMAGE, whose
    place they take, and no part of the context's length. `blank_and_text` is a blank picture and
    the description in the context's middle, of kind CONTEXT. `misleading`: see
    `dialogues.context_blocks`.
    """
    check_image(image)
    picture, place = _picture(image), _place(image)
    start = opening(lvlm, sample.image(picture) if picture else None)
    described = [] if place is None else text_description(lvlm.tokenizer, sample, seed)
    check_length(lvlm, length, len(start) + len(described), max(
        (_asked(lvlm, question, image) for question in sample.questions), default=0))
    text = context(lvlm.tokenizer, kind, sample, length, seed, misleading=misleading)
    at = turn_start(lvlm.tokenizer, text, place or 0.0)
    return join(start, _part(text[:at], Kind.CONTEXT),
                _part(described, Kind.CONTEXT if picture else Kind.IMAGE),
                _part(text[at:], Kind.CONTEXT))


def _asked(lvlm: LVLM, question: Question, image: str) -> int:
    """Tokens of a question, the template's end and its longest answer."""
    answers = [len(option_ids(lvlm, option)) for option in question.options]
    return len(asking(lvlm, question, image)) + max([ANSWER_ROOM, *answers])


def turn_start(tokenizer, ids, share: float) -> int:
    """Where the first user turn starts after a share of the tokens; their end where none does."""
    at = round(share * len(ids))
    while 0 < at < len(ids) and not re.match("User", "".join(pieces(tokenizer, ids[at:at + 8]))):
        at += 1
    return at


def tensors(prompt: Prompt, device) -> dict:
    """Model inputs of batch size 1."""
    ids, images = torch.from_numpy(prompt.input_ids)[None].to(device), dict(prompt.images)
    for name in images:
        if name.endswith("token_type_ids"):  # of the processor's tokens; those after them are text
            images[name] = pad(images[name], (0, len(prompt) - images[name].shape[1]))
    return {"input_ids": ids, **{k: v.to(device) for k, v in images.items()}}


def batch(some: Sequence[Prompt], device) -> dict:
    """Model inputs of prompts of one length, whose images' inputs are of the same shapes."""
    inputs = [tensors(prompt, device) for prompt in some]
    return {name: torch.cat([one[name] for one in inputs]) for name in inputs[0]}


def show(lvlm: LVLM, sample: Sample, kind: str, length: int, image: str = "own",
         number: int = 0):
    """The whole prompt of a sample's question `number`, its kinds of tokens marked, for a notebook.

    An IPython HTML object; image tokens are counted, all others stand as they are.
    """
    from IPython.display import HTML

    prefix = shared_prefix(lvlm, sample, kind, length, image=image)
    prompt = join(prefix, asking(lvlm, sample.questions[number], image))
    counts = np.bincount(prompt.kinds, minlength=len(Kind))
    legend = [_span(one, f"{one.name.lower()}: {counts[one]} tokens") for one in LOOKS]
    spans = ["  ".join(legend), "\n\n"]
    starts = [0, *np.flatnonzero(np.diff(prompt.kinds)) + 1]
    for start, ids in zip(starts, np.split(prompt.input_ids, starts[1:])):
        seen = bool((ids == lvlm.image_token_id).all())
        spans.append(_span(Kind(prompt.kinds[start]), f"[image x {len(ids)}]" if seen
                           else lvlm.tokenizer.decode(ids)))
    return HTML(f'<div style="white-space:pre-wrap;color:#111111">{"".join(spans)}</div>')


def _span(kind: Kind, text: str) -> str:
    return f'<span style="{LOOKS[kind]}">{html.escape(text)}</span>'
