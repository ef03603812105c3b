"""Samples x conditions -> tidy rows: one row per question, one stored table per condition."""

import copy
import time
from collections import Counter
from dataclasses import dataclass
from typing import Iterable

import numpy as np
import pandas as pd
import torch
from transformers.cache_utils import DynamicLayer

from vdp_utils.attention.recording import record
from vdp_utils.attention.tokens import Kind
from vdp_utils.errors import Lacking, VDPError
from vdp_utils.lvlm import prompts
from vdp_utils.lvlm.grid import on_picture
from vdp_utils.lvlm.load import LVLM
from vdp_utils.lvlm.prompts import Prompt
from vdp_utils.measuring.store import ResultStore
from vdp_utils.sources import dialogues
from vdp_utils.sources.pictures import open_image
from vdp_utils.sources.samples import Sample

CODE_VERSION = 3  # raise it when a change here, or in prompts or dialogues, changes a row


@dataclass(frozen=True)
class Condition:
    """Everything that decides a row beside the sample. Equal conditions share stored rows."""

    model: str
    revision: str
    dtype: str
    attention: str
    context_kind: str
    context_length: int
    image: str = "own"  # or what stands in its place: see prompts.shared_prefix
    seed: int = 0
    greedy: int = 0  # of each sample's questions, how many are also answered greedily
    misleading: int = 1  # sentences a dialogue of the context, where its kind has them
    code: int = CODE_VERSION

    def keys(self, sample: Sample) -> list[str]:
        """The row keys of a sample."""
        return [key(sample, number) for number in range(len(sample.questions))]


def condition(lvlm: LVLM, context_kind: str, context_length: int, image: str = "own",
              seed: int = 0, greedy: int = 0, misleading: int = 1) -> Condition:
    """A condition under a model. Raises VDPError for one that the model cannot be put under."""
    dialogues.check_context_kind(context_kind)
    prompts.check_image(image)
    prompts.check_length(lvlm, context_length)
    attention = lvlm.model.config.get_text_config()._attn_implementation
    return Condition(lvlm.name, lvlm.revision, str(lvlm.dtype).removeprefix("torch."),
                     attention, context_kind, context_length, image, seed, greedy, misleading)


def presence_conditions(lvlm: LVLM, kinds, lengths, images=("own",)) -> list[Condition]:
    """The conditions that the findings about presence questions share, so that each is measured
    once; with the sample's own image one question a sample is also answered greedily."""
    return [condition(lvlm, kind, length, image, greedy=int(image == "own"))
            for image in images for kind in kinds for length in lengths]


def measure(lvlm: LVLM, samples: list[Sample], conditions: Iterable[Condition],
            store: ResultStore, finding: str, recompute: bool = False,
            each=None) -> pd.DataFrame:
    """Rows of every sample under every condition, measured where the store lacks them.

    What is not `usable` is left out, and said.

    `recompute` measures all of them again. `each(lvlm, sample, condition)` makes a sample's rows:
    `measure_sample`, or `map_sample`.

    Columns: image_id, question_id, kind, nouns, context_kind, context_length, image; the token
    counts template_tokens, image_tokens (or of the text description in its place),
    context_tokens, question_tokens; options and their log_likelihoods
    (nats), answer, predicted, correct; margin (log-likelihood of the answer minus that of the
    best other option), greedy (text, "" where not asked), named (how many of the context's lines
    name the asked noun: two a misleading sentence, its question and its answer), target_share
    (share of the image that the asked noun fills, nan where not known), seconds (the sample's wall
    time, divided among its questions), and what the answer position attends to: attention, layers
    x 4 (`Kind`, heads' mean), and head_image, layers x heads (on the image), both flattened
    float16.
    """
    conditions = list(conditions)
    if not conditions or not samples:
        raise VDPError("nothing to measure: give at least one sample and one condition")
    samples, conditions = usable(samples, conditions)
    for one in conditions:
        mine = condition(lvlm, one.context_kind, one.context_length)
        for field in ("model", "revision", "dtype", "attention"):
            if getattr(one, field) != getattr(mine, field):
                raise VDPError(f"condition of {field} {getattr(one, field)} given with "
                               f"{getattr(mine, field)}: make conditions with condition(lvlm, ...)")
    tables = []
    for one in conditions:
        tasks = [(one.keys(sample),
                  lambda sample=sample, one=one: (each or measure_sample)(lvlm, sample, one))
                 for sample in samples]
        if recompute:
            store.clear(finding, one)
        label = f"{finding} {one.context_kind} {one.context_length}"
        tables.append(store.collect(finding, one, tasks, progress=label))
    return pd.concat(tables, ignore_index=True)


def usable(samples: list[Sample], conditions: list[Condition], say=print):
    """The samples and the conditions of which each sample has each condition's prompt.

    A context kind and image that more than half of the samples lack is left out, and then the
    samples that lack one of the others; `say` is told each time. Lacking where nothing is left.
    """
    for kind, image in dict.fromkeys((one.context_kind, one.image) for one in conditions):
        reasons = Counter(filter(None, (sample.lacks(kind, image) for sample in samples)))
        if not reasons:
            continue
        what = f"{kind} contexts" + f", image {image}" * (image != "own")
        why = f"{reasons.total()} of {len(samples)} images have none ({next(iter(reasons))})"
        if 2 * reasons.total() <= len(samples):
            samples = [sample for sample in samples if not sample.lacks(kind, image)]
            say(f"Left out: images without {what}; {why}")
            continue
        conditions = [one for one in conditions if (one.context_kind, one.image) != (kind, image)]
        say(f"Left out: {what}; {why}")
        if not conditions:
            raise Lacking(f"{what}: {why}")
    return samples, conditions


def key(sample: Sample, number: int) -> str:
    """The row key of a sample's question."""
    return f"{sample.image_id}/{number}"


def place(sample: Sample, number: int, one: Condition) -> dict:
    """Which question under which condition a row is about: the columns that every row has."""
    return dict(key=key(sample, number), image_id=sample.image_id, question_id=str(number),
                context_kind=one.context_kind, context_length=one.context_length)


def prefix_of(lvlm: LVLM, sample: Sample, one: Condition) -> Prompt:
    """What all questions of a sample share under a condition."""
    return prompts.shared_prefix(lvlm, sample, one.context_kind, one.context_length, one.seed,
                                 one.image, one.misleading)


def last_rows(recording) -> list[torch.Tensor]:
    """Attention of the last token, where `record` took it, by layer: (heads, keys) each."""
    return [recording[layer].accumulated["last"][0] for layer in sorted(recording)]


@torch.no_grad()
def measure_sample(lvlm: LVLM, sample: Sample, one: Condition, share: bool = True) -> list[dict]:
    """Rows of one sample. With `share`, its questions continue one cached prefix."""
    started = time.perf_counter()
    prefix = prefix_of(lvlm, sample, one)
    said = lvlm.tokenizer.decode(prefix.input_ids[prefix.kinds == Kind.CONTEXT])
    cache = prefill(lvlm, prefix) if share else None
    rows = []
    for number, question in enumerate(sample.questions):
        target = question.nouns[0] if question.nouns else None  # a table need not name one
        asking = prompts.asking(lvlm, question, one.image)
        with record(lvlm.model, mass="last", kinds=kinds_of(lvlm, prefix, asking)) as recording:
            scores = score(lvlm, prefix, cache, asking, question.options)
        counts = torch.bincount(kinds_of(lvlm, prefix, asking)[0].long(), minlength=len(Kind))
        mass = torch.stack([recording[n].mass[0, :, 0] for n in sorted(recording)])
        greedy = generate(lvlm, prefix, cache, asking) if number < one.greedy else ""
        rows.append(dict(
            **place(sample, number, one), kind=question.kind, nouns="/".join(question.nouns),
            image=one.image, **{f"{kind.name.lower()}_tokens": int(counts[kind]) for kind in Kind},
            **judged(question, scores), greedy=greedy,
            named=sum(target in line for line in said.splitlines()) if target else 0,
            target_share=sample.picture.share(target) if target else float("nan"), seconds=0.0,
            attention=halves(mass.mean(1)), head_image=halves(mass[..., Kind.IMAGE])))
    for row in rows:
        row["seconds"] = (time.perf_counter() - started) / len(rows)
    return rows


def judged(question: dialogues.Question, scores: list[float]) -> dict:
    """What the options' log-likelihoods say: a row's columns from `options` to `margin`."""
    best = max(range(len(scores)), key=scores.__getitem__)
    right = question.options.index(question.answer)
    return dict(options="/".join(question.options), log_likelihoods=scores,
                answer=question.answer.lower(), predicted=question.options[best].lower(),
                correct=best == right,
                margin=scores[right] - max(s for n, s in enumerate(scores) if n != right))


@torch.no_grad()
def map_sample(lvlm: LVLM, sample: Sample, one: Condition) -> list[dict]:
    """Where on the image the answer position looks, for each question of one sample.

    Columns: image_id, question_id, context_kind, context_length, question, answer, predicted, and
    map_image: attention on the image's cells, layers x `on_picture`'s, flattened float16, heads'
    mean.
    """
    prefix, size = prefix_of(lvlm, sample, one), sample.picture.image().size
    cache, rows = prefill(lvlm, prefix), []
    image = torch.from_numpy(prefix.kinds == Kind.IMAGE).to(lvlm.device).nonzero()[:, 0]
    for number, question in enumerate(sample.questions):
        asking = prompts.asking(lvlm, question)
        with record(lvlm.model, accumulated=("last",)) as recording:
            scores = score(lvlm, prefix, cache, asking, question.options)
        maps = on_picture(lvlm, prefix, size, torch.stack(
            [row[:, image].mean(0) for row in last_rows(recording)]))
        rows.append(dict(
            **place(sample, number, one), question=question.text, answer=question.answer.lower(),
            predicted=question.options[int(np.argmax(scores))].lower(), map_image=halves(maps)))
    return rows


def kinds_of(lvlm: LVLM, *parts: Prompt) -> torch.Tensor:
    """The kind of every token of a prompt's parts: (1, L)."""
    return torch.from_numpy(np.concatenate([part.kinds for part in parts]))[None].to(lvlm.device)


def halves(values: torch.Tensor) -> np.ndarray:
    """Flat and float16: three digits are more than a mean over samples needs."""
    return values.flatten().cpu().numpy().astype(np.float16)


def prefill(lvlm: LVLM, prefix: Prompt):
    """The KV cache of a prompt's shared prefix."""
    return lvlm.model(**prompts.tensors(prefix, lvlm.device), use_cache=True,
                      logits_to_keep=1).past_key_values


def _start(lvlm: LVLM, prefix: Prompt, cache, asking: Prompt):
    """Logits (vocabulary,) where the answer begins, and the cache that goes on from there."""
    if cache is None:
        inputs = prompts.tensors(prompts.join(prefix, asking), lvlm.device)
    else:
        cache = _fork(cache, len(prefix))
        inputs = prompts.tensors(asking, lvlm.device) | {"past_key_values": cache}
    outputs = lvlm.model(**inputs, use_cache=True, logits_to_keep=1)
    return outputs.logits[0, -1].float(), outputs.past_key_values


def _fork(cache, length: int):
    """A cache that may be continued without spoiling `cache`, cut back to `length` tokens."""
    if any(type(layer) is not DynamicLayer for layer in cache.layers):
        return copy.deepcopy(cache)  # sliding windows and the like cannot be cut back
    cache.crop(length - cache.get_seq_length())  # a count <= 0: how many tokens to take off
    return cache


def _go_on(lvlm: LVLM, cache, token: int):
    ids = torch.tensor([[token]], device=lvlm.device)
    outputs = lvlm.model(input_ids=ids, past_key_values=cache, use_cache=True)
    return outputs.logits[0, -1].float(), outputs.past_key_values


def score(lvlm: LVLM, prefix: Prompt, cache, asking: Prompt, options) -> list[float]:
    """Log-likelihood of each option as the answer: the sum over its tokens, natural log."""
    if not options:
        raise VDPError("a question without options cannot be scored: use answer() for free text")
    return _scores(lvlm, *_start(lvlm, prefix, cache, asking), options)


def _scores(lvlm: LVLM, start: torch.Tensor, after, options) -> list[float]:
    first, length = start.log_softmax(-1), after.get_seq_length()  # less than asked, if pruned
    scores = []
    for option in options:
        ids = prompts.option_ids(lvlm, option)
        total, logits, state = first[ids[0]].item(), None, after
        for previous, token in zip(ids, ids[1:]):
            state = _fork(state, length) if logits is None else state
            logits, state = _go_on(lvlm, state, previous)
            total += logits.log_softmax(-1)[token].item()
        scores.append(total)
    return scores


def generate(lvlm: LVLM, prefix: Prompt, cache, asking: Prompt,
             max_new_tokens: int = prompts.ANSWER_ROOM) -> str:
    """The greedy answer as text."""
    return _greedy(lvlm, *_start(lvlm, prefix, cache, asking), max_new_tokens)


def respond(lvlm: LVLM, prompt: Prompt, options, max_new_tokens: int) -> tuple[list[float], str]:
    """Of one pass: each option's log-likelihood, as `score`, and the greedy answer as text."""
    logits, state = _start(lvlm, prompt, None, prompts.words(lvlm, ""))
    length = state.get_seq_length()
    scores = _scores(lvlm, logits, state, options)
    return scores, _greedy(lvlm, logits, _fork(state, length), max_new_tokens)


def _greedy(lvlm: LVLM, logits: torch.Tensor, state, max_new_tokens: int) -> str:
    stop, found = prompts.stop_ids(lvlm), []
    while (token := int(logits.argmax())) not in stop and len(found) < max_new_tokens:
        found.append(token)
        logits, state = _go_on(lvlm, state, token)
    return lvlm.tokenizer.decode(found, skip_special_tokens=True).strip()


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


def greedy_agreement(rows: pd.DataFrame) -> tuple[float, int]:
    """Share of greedy answers that begin with the option scored best, and their number."""
    asked = rows[rows["greedy"] != ""]
    same = [g.lower().startswith(p.lower()) for g, p in zip(asked["greedy"], asked["predicted"])]
    return (sum(same) / len(same) if same else float("nan")), len(same)
