"""Which token is image, context, question or template."""

import re
from enum import IntEnum

import torch

from vdp_utils.errors import VDPError

SLOT = "\ue000"  # private-use character: marks where words go in the chat template
SPACES = {"▁": " ", "Ġ": " ", "Ċ": "\n", "ĉ": "\t", "<0x0A>": "\n"}  # as vocabularies write them


class Kind(IntEnum):
    """The kind of one prompt token. Only context tokens may ever be pruned."""

    TEMPLATE = 0
    IMAGE = 1
    CONTEXT = 2
    QUESTION = 3


def image_token_id(config) -> int | None:
    """The id of the image placeholder, or None for a model without image tokens."""
    return getattr(config, "image_token_id", None) or getattr(config, "image_token_index", None)


def visual_token_ids(config) -> tuple[int, ...]:
    """The ids of the placeholders of images and of videos."""
    found = image_token_id(config), getattr(config, "video_token_id", None), getattr(
        config, "video_token_index", None)
    return tuple(one for one in dict.fromkeys(found) if isinstance(one, int))


def pieces(tokenizer, ids) -> list[str]:
    """The text of each token, with its spaces and line ends."""
    texts = tokenizer.convert_ids_to_tokens([int(i) for i in ids])
    for written, meant in SPACES.items():
        texts = [text.replace(written, meant) for text in texts]
    return texts


def sentences(texts: list[str], places) -> list[list[int]]:
    """Some `places` in a prompt sentence by sentence; one ends with . ! ? or a new line."""
    found, ended = [], True
    for place in places:
        if ended:
            found.append([])
        found[-1].append(place)
        ended = re.search(r"[.!?\n]\s*$", texts[place])
    return found


def frame(processor) -> tuple[str, str, str, str]:
    """The chat template around SLOTs: before the first user turn, user to assistant, assistant to
    user, and after the last user turn."""
    def turn(role):
        return {"role": role, "content": [{"type": "text", "text": SLOT}]}

    text = processor.apply_chat_template([turn("user"), turn("assistant"), turn("user")],
                                         add_generation_prompt=True, tokenize=False)
    parts = text.split(SLOT)
    if len(parts) != 4:
        raise VDPError("the chat template drops or repeats a turn's text: say which tokens are "
                       "context with context=(start, stop)")
    return tuple(parts)


def token_kinds(input_ids: torch.Tensor, processor=None,
                image_id: int | tuple[int, ...] | None = None,
                context: tuple[int, int] | None = None) -> torch.Tensor:
    """The kind of every token, int64 (B, L) as `input_ids`.

    With a processor, its chat template says where turns begin and end: the last line of the last
    user turn is the question, all other words are context, and special tokens, the template's own
    words and the blanks that follow them are template. With `context`, tokens [start, stop) are
    context, later ones question, earlier ones template (negative numbers count from the end).
    Image tokens, `image_id` (one id or several: see `visual_token_ids`), stay image tokens.
    """
    visual = {image_id} if isinstance(image_id, int) else {*(image_id or ())}
    if (processor is None) == (context is None):
        raise VDPError("say which tokens are context: give the processor, whose chat template "
                       "tells, or a span context=(start, stop)")
    batch, length = input_ids.shape
    kinds = torch.full((batch, length), int(Kind.TEMPLATE), device=input_ids.device)
    if context is not None:
        start, stop = (n + length if n < 0 else n for n in context)
        if not 0 <= start <= stop <= length:
            raise VDPError(f"context {context} does not fit a prompt of {length} tokens")
        kinds[:, start:stop], kinds[:, stop:] = Kind.CONTEXT, Kind.QUESTION
    else:
        tokenizer = getattr(processor, "tokenizer", processor)
        parts, special = frame(processor), set(tokenizer.all_special_ids)
        for row, ids in zip(kinds, input_ids.tolist()):
            texts = pieces(tokenizer, ids)
            found = _by_template(texts, parts)
            for n, (i, text) in enumerate(zip(ids, texts)):
                after_frame = n == 0 or found[n - 1] == Kind.TEMPLATE
                if i in special or i in visual or text.isspace() and after_frame:
                    found[n] = int(Kind.TEMPLATE)
            row.copy_(torch.tensor(found))
    for one in visual:
        kinds[input_ids == one] = Kind.IMAGE
    return kinds


def _by_template(texts: list[str], parts) -> list[int]:
    """Kinds of one prompt's tokens from their texts and the chat template's parts."""
    whole = "".join(texts)
    # Marks are sought without blanks: vocabularies differ in where they write them.
    at = [i for i, letter in enumerate(whole) if not letter.isspace()]
    dense = "".join(whole[i] for i in at)
    _, to_assistant, to_user, after = ("".join(part.split()) for part in parts)
    end = dense.rfind(after)
    if end < 0:
        raise VDPError("the prompt does not end as the chat template ends: make it with "
                       "apply_chat_template(..., add_generation_prompt=True), or say which tokens "
                       "are context with context=(start, stop)")
    opening = "".join(parts[0].strip().split("\n")[-1].split())
    start = dense.find(opening) + len(opening) if opening in dense else 0
    framed = [(0, start), (end, len(dense))]
    last = start
    for mark in {to_assistant, to_user} - {""}:
        for found in re.compile(re.escape(mark)).finditer(dense, start, end):
            framed.append(found.span())
            last = max(last, found.end()) if mark == to_user else last
    stop = at[end] if end < len(at) else len(whole)
    begin = at[last - 1] + 1 if last else 0
    question = begin + whole[begin:stop].rstrip().rfind("\n") + 1
    letters = [int(Kind.QUESTION if i >= question else Kind.CONTEXT) for i in range(len(whole))]
    for first, past in framed:
        if past > first:
            span = at[first], at[past - 1] + 1 if past < len(dense) else len(whole)
            letters[slice(*span)] = [int(Kind.TEMPLATE)] * (span[1] - span[0])
    kinds, place = [], 0
    for text in texts:
        own = letters[place:place + len(text)] or [int(Kind.TEMPLATE)]
        kinds.append(int(Kind.TEMPLATE) if int(Kind.TEMPLATE) in own else max(own))
        place += len(text)
    return kinds
