"""Prompts of a known make-up: every token's kind and the exact number of context tokens."""

import re
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from PIL import Image

from vdp_utils.attention.tokens import SLOT, Kind, pieces
from vdp_utils.errors import VDPError
from vdp_utils.lvlm.load import LVLM
from vdp_utils.sources import dialogues
from vdp_utils.sources.dialogues import Question
from vdp_utils.sources.samples import PICTURES, Sample

PLACES = {"words": 0.0, "words_middle": 0.5, "words_last": 1.0}  # where in the context it is told
IMAGES = (*PICTURES, "none", *PLACES)
QUESTION_ROOM = 64  # tokens kept free for a question and its answer


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
    text = processor.apply_chat_template([{"role": "user", "content": content}],
                                         add_generation_prompt=True, tokenize=False)
    before, found, after = text.partition(SLOT)
    if not found:
        raise VDPError("the processor's chat template drops the user's text: give a processor "
                       "whose chat template takes image and text parts")
    return before, after


def opening(lvlm: LVLM, image: Image.Image | None) -> Prompt:
    """Template and image tokens up to where the user's words begin."""
    before, _ = frame(lvlm.processor, image is not None)
    bos = lvlm.tokenizer.bos_token
    special = not (bos and before.startswith(bos))
    if image is None:
        ids = lvlm.tokenizer(before, add_special_tokens=special).input_ids
        return _part(ids, Kind.TEMPLATE)
    no_tokens = VDPError(f"model {lvlm.name!r} puts no image tokens into its prompt: give a model "
                         "whose processor expands the image into tokens")
    try:
        inputs = lvlm.processor(text=before, images=image, return_tensors="pt",
                                add_special_tokens=special)
    except ValueError as error:  # images without a placeholder in the text
        raise no_tokens from error
    ids = inputs.pop("input_ids")[0].numpy()
    inputs.pop("attention_mask", None)
    if not (ids == lvlm.image_token_id).any():
        raise no_tokens
    kinds = np.where(ids == lvlm.image_token_id, Kind.IMAGE, Kind.TEMPLATE).astype(np.int8)
    return Prompt(ids, kinds, dict(inputs))


def context(tokenizer, kind: str, sample: Sample, length: int, seed: int = 0,
            **options) -> np.ndarray:
    """Exactly `length` context token ids, int64; longer contexts end with the shorter ones.

    `options` are those of `dialogues.context_blocks`.
    """
    if length < 0:
        raise VDPError(f"context length {length}: give 0 or more tokens")
    dialogues.check_context_kind(kind)
    # The last number is never 0: numpy takes seeds that differ by trailing zeros as the same.
    key = (*sample.picture.seed, seed, 11 + dialogues.CONTEXT_KINDS.index(kind))
    blocks = dialogues.context_blocks(kind, sample.picture, sample.asked, key, **options)
    ids: list[int] = []
    while len(ids) < length:
        ids = tokenizer(next(blocks), add_special_tokens=False).input_ids + ids
    return np.array(ids[len(ids) - length:], dtype=np.int64)


def in_words(tokenizer, sample: Sample, seed: int = 0) -> np.ndarray:
    """Token ids, int64, of the picture told in words, the image's stand-in."""
    text = dialogues.in_words(sample.picture, (*sample.picture.seed, seed, 14))
    return np.array(tokenizer(text, add_special_tokens=False).input_ids, dtype=np.int64)


def asking(lvlm: LVLM, question: Question, with_image: bool = True,
           lead: str = dialogues.QUESTION_LEAD) -> Prompt:
    """The question's tokens and the template's end, up to where the answer begins."""
    ids = lvlm.tokenizer(lead + question.text, add_special_tokens=False).input_ids
    return join(_part(ids, Kind.QUESTION), _closing(lvlm, with_image))


@lru_cache(maxsize=8)
def _closing(lvlm: LVLM, with_image: bool) -> Prompt:
    _, after = frame(lvlm.processor, with_image)
    return _part(lvlm.tokenizer(after, add_special_tokens=False).input_ids, Kind.TEMPLATE)


def words(lvlm: LVLM, text: str) -> Prompt:
    """Any text as context."""
    ids = lvlm.tokenizer(text, add_special_tokens=False).input_ids if text else []
    return _part(ids, Kind.CONTEXT)


def option_ids(lvlm: LVLM, option: str) -> list[int]:
    """Token ids of an answer option as it follows the chat template."""
    _, after = frame(lvlm.processor, True)
    lead = "" if after[-1:].isspace() or not after else " "
    return lvlm.tokenizer(lead + option, add_special_tokens=False).input_ids


def stop_ids(lvlm: LVLM) -> set[int]:
    """Token ids that end an answer."""
    ids = lvlm.model.generation_config.eos_token_id
    return {lvlm.tokenizer.eos_token_id, *(ids if isinstance(ids, list) else [ids])} - {None}


@lru_cache(maxsize=8)
def _least_opening(lvlm: LVLM) -> int:
    return len(opening(lvlm, Image.new("RGB", (160, 160))))


def check_length(lvlm: LVLM, length: int, start: int | None = None) -> None:
    """VDPError where `length` context tokens, the image and a question pass the positions.

    `start` counts the tokens of template and image. Without it they are those of a small image:
    processors may give a larger one more.
    """
    room = lvlm.max_positions - (start or _least_opening(lvlm)) - QUESTION_ROOM
    if not 0 <= length <= room:
        raise VDPError(f"context length {length} does not fit {lvlm.name!r}: its "
                       f"{lvlm.max_positions} positions leave 0 to {room} for the context")


def shared_prefix(lvlm: LVLM, sample: Sample, kind: str, length: int, seed: int = 0,
                  image: str = "own") -> Prompt:
    """What all questions of a sample share: template, image, and `length` tokens of context.

    `image` is `own`, `blank` (mid-grey), `swapped` (a picture with none of the asked nouns), `none`
    (no image tokens), or the picture told in words: before the context (`words`), between turns in
    its middle (`words_middle`) or after it (`words_last`). These words are of kind IMAGE, whose
    place they take, and no part of the context's length.
    """
    check_image(image)
    start = opening(lvlm, sample.image(image) if image in PICTURES else None)
    told = in_words(lvlm.tokenizer, sample, seed) if image in PLACES else []
    check_length(lvlm, length, len(start) + len(told))
    text = context(lvlm.tokenizer, kind, sample, length, seed)
    at = turn_start(lvlm.tokenizer, text, PLACES.get(image, 0.0))
    return join(start, _part(text[:at], Kind.CONTEXT), _part(told, Kind.IMAGE),
                _part(text[at:], Kind.CONTEXT))


def turn_start(tokenizer, ids, share: float) -> int:
    """Where the first user turn starts after a share of the tokens; their end where none does."""
    at = round(share * len(ids))
    while 0 < at < len(ids) and not re.match("User", "".join(pieces(tokenizer, ids[at:at + 8]))):
        at += 1
    return at


def tensors(prompt: Prompt, device) -> dict:
    """Model inputs of batch size 1."""
    ids = torch.from_numpy(prompt.input_ids)[None].to(device)
    return {"input_ids": ids, **{k: v.to(device) for k, v in prompt.images.items()}}
