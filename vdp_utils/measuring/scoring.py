"""What a model answers: its options' log-likelihoods, and greedy text.

Prompts that are alike, of one length and with images of one shape, go through it together.
"""

import copy
from collections.abc import Hashable, Sequence

import torch
from transformers.cache_utils import DynamicLayer

from vdp_utils.attention.tokens import Kind
from vdp_utils.lvlm import prompts
from vdp_utils.lvlm.load import LVLM
from vdp_utils.lvlm.prompts import Prompt
from vdp_utils.sources import dialogues
from vdp_utils.sources.pictures import open_image


def opening(prompt: Prompt) -> int:
    """How many tokens stand before the first of the context."""
    return int((prompt.kinds == Kind.CONTEXT).argmax()) or len(prompt)


def prefill(lvlm: LVLM, *prefixes: Prompt, key: Hashable = None, kept: dict | None = None):
    """The KV cache of alike prompts' shared prefixes.

    `kept`, where given, keeps by `key` the cache of what stands before the context, for other
    prefixes of the same images, and of the same key where they begin with the same tokens.
    """
    ahead = "token_type_ids" in prefixes[0].images  # PaliGemma's images see what is said after them
    at = 0 if kept is None or ahead else opening(prefixes[0])
    if not at:
        return _read(lvlm, prefixes)
    key = (key, *(one.input_ids[:at].tobytes() for one in prefixes))
    if key not in kept:
        kept[key] = _read(lvlm, [one.split(at)[0] for one in prefixes]), _turned(lvlm)
    (cache, turned), rest = kept[key], [one.split(at)[1] for one in prefixes]
    cache = taken(cache, slice(None))
    if turned is not None:
        lvlm.model.model.rope_deltas = turned
    return _read(lvlm, rest, past_key_values=cache) if len(rest[0]) else cache


def _read(lvlm: LVLM, some: Sequence[Prompt], **more):
    inputs = prompts.batch(some, lvlm.device) | more
    cache = lvlm.model(**inputs, use_cache=True, logits_to_keep=1).past_key_values
    if _turned(lvlm) is not None:  # of prompts that are alike it is one, and rows will be chosen
        lvlm.model.model.rope_deltas = _turned(lvlm)[:1]
    return cache


def _turned(lvlm: LVLM) -> torch.Tensor | None:
    """What Qwen-VL adds to the positions of what it reads next: its model's, not its cache's."""
    return getattr(getattr(lvlm.model, "model", None), "rope_deltas", None)


def start(lvlm: LVLM, prefixes: Sequence[Prompt], cache, askings: Sequence[Prompt]):
    """Logits (rows, vocabulary) where the answers begin, and the cache that goes on from there.

    The prefixes are those in `cache`, or read first, where that is None.
    """
    if cache is None:
        whole = [prompts.join(*parts) for parts in zip(prefixes, askings)]
        inputs = prompts.batch(whole, lvlm.device)
    else:
        cache = _fork(cache, len(prefixes[0]))
        inputs = prompts.batch(askings, lvlm.device) | {"past_key_values": cache}
    outputs = lvlm.model(**inputs, use_cache=True, logits_to_keep=1)
    return outputs.logits[:, -1].float(), outputs.past_key_values


def cuttable(cache) -> bool:
    """Whether a cache can be cut back and its rows chosen: not sliding windows and the like."""
    return all(type(layer) is DynamicLayer for layer in cache.layers)


def taken(cache, rows):
    """A cache of some rows of another, which it leaves as it is."""
    cache = copy.copy(cache)
    cache.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys[rows], layer.values[rows]
    return cache


def _fork(cache, length: int):
    """A cache that may be continued without spoiling `cache`, cut back to `length` tokens."""
    if not cuttable(cache):
        return copy.deepcopy(cache)
    cache.crop(length - cache.get_seq_length())  # a count <= 0: how many tokens to take off
    return cache


def _go_on(lvlm: LVLM, cache, tokens: Sequence[int]):
    ids = torch.tensor(tokens, device=lvlm.device)[:, None]
    outputs = lvlm.model(input_ids=ids, past_key_values=cache, use_cache=True)
    return outputs.logits[:, -1].float(), outputs.past_key_values


def likelihoods(lvlm: LVLM, logits: torch.Tensor, after, options) -> list[list[float]]:
    """Log-likelihood of each row's options as its answer: the sum over tokens, natural log."""
    first, length = logits.log_softmax(-1), after.get_seq_length()  # less than asked, if pruned
    ids = [[prompts.option_ids(lvlm, option) for option in row] for row in options]
    scores = [[first[row, one[0]].item() for one in some] for row, some in enumerate(ids)]
    for column in range(max(map(len, ids), default=0)):
        spelt = [some[column] if column < len(some) else [0] for some in ids]
        state = _fork(after, length) if max(map(len, spelt)) > 1 else None
        for step in range(1, max(map(len, spelt))):  # rows that have ended read on, unheard
            logits, state = _go_on(lvlm, state, [one[:step][-1] for one in spelt])
            chances = logits.log_softmax(-1)
            for row, one in enumerate(spelt):
                if step < len(one):
                    scores[row][column] += chances[row, one[step]].item()
    return scores


def greedy(lvlm: LVLM, logits: torch.Tensor, state, max_new_tokens: int) -> list[str]:
    """Each row's greedy answer as text."""
    stop, found = prompts.stop_ids(lvlm), [[] for _ in logits]
    going = set(range(len(found)))
    while True:
        tokens = logits.argmax(-1).tolist()
        going = {row for row in going
                 if tokens[row] not in stop and len(found[row]) < max_new_tokens}
        if not going:
            return [lvlm.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in found]
        for row in going:
            found[row].append(tokens[row])
        logits, state = _go_on(lvlm, state, tokens)


def score(lvlm: LVLM, prefix: Prompt, cache, asking: Prompt, options) -> list[float]:
    """The `likelihoods` of one prompt's options."""
    return likelihoods(lvlm, *start(lvlm, [prefix], cache, [asking]), [options])[0]


def generate(lvlm: LVLM, prefix: Prompt, cache, asking: Prompt,
             max_new_tokens: int = prompts.ANSWER_ROOM) -> str:
    """The greedy answer to one prompt as text."""
    return greedy(lvlm, *start(lvlm, [prefix], cache, [asking]), max_new_tokens)[0]


def respond(lvlm: LVLM, prefixes: Sequence[Prompt], cache, askings: Sequence[Prompt], options,
            max_new_tokens: int, rows: Sequence[int] = (0,)) -> tuple[list[list[float]], list[str]]:
    """Of one pass: each row's `likelihoods`, and some rows' `greedy` answers, "" for the others."""
    logits, state = start(lvlm, prefixes, cache, askings)
    length, said = state.get_seq_length(), [""] * len(logits)
    scores = likelihoods(lvlm, logits, state, options)
    if rows:
        state = _fork(state, length)
        some = state if len(rows) == len(logits) else taken(state, list(rows))
        for row, text in zip(rows, greedy(lvlm, logits[list(rows)], some, max_new_tokens)):
            said[row] = text
    return scores, said


@torch.no_grad()
def answer(lvlm: LVLM, image, question: str, context: str = "", max_new_tokens: int = 40) -> str:
    """Ask any question about any image (as `open_image` takes it, or None), after any context.

    VDPError for an image that cannot be read, marks of the model's own, such as <image>, in a text,
    and a prompt that with its answer passes the model's positions.
    """
    start = prompts.opening(lvlm, open_image(image) if image is not None else None)
    words = prompts.words(lvlm, context)
    asked = dialogues.Question("free", question, "", (), ())
    which, lead = ("own", None) if image is not None else ("none", "")
    asking = prompts.asking(lvlm, asked, which, lead)
    prompts.check_length(lvlm, len(words), len(start), len(asking) + max_new_tokens)
    return generate(lvlm, prompts.join(start, words), None, asking, max_new_tokens)
