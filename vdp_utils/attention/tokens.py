"""Which token is image, context, question or template."""

import codecs
import re
from enum import IntEnum

import torch
from transformers.convert_slow_tokenizer import bytes_to_unicode

from vdp_utils.errors import VDPError

SLOT = "\ue000"  # private-use character: marks where words go in the chat template
BYTES = {sign: byte for byte, sign in bytes_to_unicode().items()}  # of byte-level vocabularies
LINE_END = re.compile("\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")
ASKS = re.compile(r"[?？؟]\W*\Z")  # a line that does so
GOES_ON = re.compile(  # a line that belongs to the one before: an option, or how to answer
    r"\W*(answer|please|respond|reply|choose|select|options?|choices?|hint)\b|\(?\w{1,2}[.):](?!\S)",
    re.IGNORECASE)
QUESTIONS = ("found", "turn", "line")  # rules for where the question begins
SHORT, NEAR = 1_000, 6  # letters of a question, and lines before it in which it may begin


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
    """The text of each token, with its spaces and line ends.

    A letter of several tokens stands at the last of them, the others have no text.
    """
    ids = [int(i) for i in ids]
    tokens, added = tokenizer.convert_ids_to_tokens(ids), tokenizer.added_tokens_decoder
    by_bytes = _knows(tokenizer, "Ġ") and not _knows(tokenizer, "▁")
    reader = codecs.getincrementaldecoder("utf-8")("replace")
    return [reader.decode(_bytes(token or "", by_bytes, i in added))
            for i, token in zip(ids, tokens)]


def _knows(tokenizer, token: str) -> bool:
    found = tokenizer.convert_tokens_to_ids(token)
    return found is not None and tokenizer.convert_ids_to_tokens(found) == token


def _bytes(token: str, by_bytes: bool, added: bool) -> bytes:
    """A token as its vocabulary writes it -> its text's bytes."""
    if by_bytes:
        plain = added or not BYTES.keys() >= {*token}
        return token.encode() if plain else bytes(BYTES[letter] for letter in token)
    byte = re.fullmatch("<0x([0-9A-F]{2})>", token)
    return bytes.fromhex(byte[1]) if byte else token.replace("▁", " ").encode()


def written(processor, turns) -> str:
    """Turns as the chat template writes them, up to where an answer begins.

    VDPError for a processor without a chat template, or with one that cannot take them.
    """
    try:
        return processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    except Exception as error:  # jinja2's own among them
        raise VDPError(f"{type(processor).__name__} has no chat template that takes turns of text "
                       f"and image parts ({error}): set its chat_template to the model's own"
                       ) from error


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

    parts = written(processor, [turn("user"), turn("assistant"), turn("user")]).split(SLOT)
    if len(parts) != 4:
        raise VDPError("the chat template drops or repeats a turn's text: say which tokens are "
                       "context with context=(start, stop)")
    return tuple(parts)


def token_kinds(input_ids: torch.Tensor, processor=None,
                image_id: int | tuple[int, ...] | None = None,
                context: tuple[int, int] | None = None, question: str = "found") -> torch.Tensor:
    """The kind of every token, int64 (B, L) as `input_ids`.

    With a processor, its chat template says where turns begin and end; special tokens, the
    template's own words and the blanks that follow them are template. The question is the last
    user turn after earlier turns, of a single turn what `question_start` finds; or, with `question`
    `turn` or `line`, always all of the last user turn, or its last line. All other words are
    context. With `context`, tokens [start, stop) are context, later ones question, earlier ones
    template (negative numbers count from the end). Image tokens, `image_id` (one id or several: see
    `visual_token_ids`), stay image tokens.
    """
    if question not in QUESTIONS:
        raise VDPError(f"unknown question {question!r}: choose one of {', '.join(QUESTIONS)}")
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
        parts, marked = frame(processor), {*tokenizer.all_special_ids, *visual}
        for row, ids in zip(kinds, input_ids.tolist()):
            texts, marks = pieces(tokenizer, ids), [i in marked for i in ids]
            found = _by_template(texts, marks, parts, question)
            for n, text in enumerate(texts):
                after_frame = n == 0 or found[n - 1] == Kind.TEMPLATE
                if marks[n] or text.isspace() and after_frame:
                    found[n] = int(Kind.TEMPLATE)
            row.copy_(torch.tensor(found))
    for one in visual:
        kinds[input_ids == one] = Kind.IMAGE
    return kinds


def question_start(text: str, rule: str = "found") -> int:
    """At which letter of a user's turn the question begins, where no earlier turn tells.

    At its last paragraph, if that is SHORT, or else at its last line; before that where it only
    lists options or says how to answer, and, if nothing asks, where one of the NEAR lines before
    does, all of it SHORT. By the rule `line` at its last line, by `turn` at 0.
    """
    starts = [0, *(end.end() for end in LINE_END.finditer(text))]
    lines = [(start, text[start:end]) for start, end in zip(starts, [*starts[1:], len(text)])]
    while lines and _blank(lines[-1][1]):
        lines.pop()
    if rule == "turn" or not lines:
        return 0
    near = [line for line in lines if len(text) - line[0] <= SHORT and rule != "line"] or lines[-1:]
    places, said = zip(*near)
    gaps = [n for n, line in enumerate(said) if _blank(line) and not _blank(text[:places[n]])]
    first = gaps[-1] + 1 if gaps else len(said) - 1
    while first and (_blank(said[first]) or GOES_ON.match(said[first])
                     and not ASKS.search(said[first])):
        first -= 1
    if not any(map(ASKS.search, said[first:])):
        first = max((n for n in range(max(0, first - NEAR), first) if ASKS.search(said[n])),
                    default=first)
    return places[first]


def _blank(text: str) -> bool:
    """Whether nothing of it is seen: Unicode's spaces, line ends and marks without width."""
    return not any(letter.isprintable() and not letter.isspace() for letter in text)


def _by_template(texts: list[str], marks: list[bool], parts, question: str) -> list[int]:
    """Kinds of one prompt's tokens from their texts and the chat template's parts.

    `marks` are the special tokens and images, no words of a turn.
    """
    whole = "".join(texts)
    words = "".join(" " * len(text) if mark else text for text, mark in zip(texts, marks))
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
    rule = "turn" if question == "found" and last > start else question
    asked = begin + question_start(words[begin:stop], rule)
    letters = [int(Kind.QUESTION if i >= asked else Kind.CONTEXT) for i in range(len(whole))]
    for first, past in framed:
        if past > first:
            span = at[first], at[past - 1] + 1 if past < len(dense) else len(whole)
            letters[slice(*span)] = [int(Kind.TEMPLATE)] * (span[1] - span[0])
    kinds, place = [], 0
    for text in texts:
        own = letters[place:place + max(1, len(text))] or [int(Kind.TEMPLATE)]
        kinds.append(int(Kind.TEMPLATE) if int(Kind.TEMPLATE) in own else max(own))
        place += len(text)
    return kinds
