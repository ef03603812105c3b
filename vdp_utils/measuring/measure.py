"""Samples x conditions -> tidy rows: one row per question, one stored table per condition."""

import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Callable, Iterable

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm
from transformers.cache_utils import DynamicCache

from vdp_utils.attention.recording import record
from vdp_utils.attention.tokens import Kind
from vdp_utils.errors import Lacking, VDPError
from vdp_utils.lvlm import prompts
from vdp_utils.lvlm.grid import on_picture
from vdp_utils.lvlm.load import LVLM
from vdp_utils.lvlm.prompts import Prompt
from vdp_utils.measuring import timing
from vdp_utils.measuring.scoring import cuttable, opening, prefill, respond, score, taken
from vdp_utils.measuring.store import ResultStore
from vdp_utils.sources import dialogues
from vdp_utils.sources.samples import Sample

AT_ONCE = 32  # samples at most: what is measured together is lost together
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
            each=None, room: int | None = None) -> pd.DataFrame:
    """Rows of every sample under every condition, measured where the store lacks them.

    What is not `usable` is left out, and said.

    `recompute` measures all of them again. `each(lvlm, sample, condition)` makes a sample's rows:
    `measure_sample`, or `map_sample`. `measure_sample` takes several samples at once, as many as
    have `room`, tokens: 0, one by one, on a CPU, else what the device's free memory holds. The
    rows of float32 weights are the same to 1e-4.

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
        for name in ("model", "revision", "dtype", "attention"):
            if getattr(one, name) != getattr(mine, name):
                raise VDPError(f"condition of {name} {getattr(one, name)} given with "
                               f"{getattr(mine, name)}: make conditions with condition(lvlm, ...)")
    if recompute:
        for one in conditions:
            store.clear(finding, one)
    together = Together(lvlm, each or measure_sample, _room(lvlm) if room is None else room)
    most = together.most(max(one.context_length for one in conditions))
    blocks = np.array_split(np.arange(len(samples)), -(-len(samples) // most) if most > 1 else 1)
    tables = [[] for _ in conditions]
    with tqdm(total=_missing(store, finding, samples, conditions), desc=finding, unit=" tokens",
              unit_scale=True, leave=False, delay=1) as together.bar:
        for block in blocks:  # of about one size
            for table, one in zip(tables, conditions):
                label = f"{finding} {one.context_kind} {one.context_length}"
                tasks = [(one.keys(samples[n]), Thunk(together, samples[n], one)) for n in block]
                table.append(store.collect(finding, one, tasks, progress=label))
    return pd.concat([pd.concat(table).sort_values("key") for table in tables], ignore_index=True)


def _tokens(sample: Sample, one) -> int:
    """About how many tokens a sample under a condition costs, to say how long it takes."""
    return one.context_length + 100 + 20 * len(sample.questions)


def _missing(store: ResultStore, finding: str, samples: list[Sample], conditions: list) -> int:
    """Tokens of what the store lacks."""
    total = 0
    for one in conditions:
        done = store.done(finding, one)
        total += sum(_tokens(sample, one) for sample in samples
                     if not done.issuperset(one.keys(sample)))
    return total


def _room(lvlm: LVLM) -> int:
    """How many tokens may be in the model at once, by the device's free memory; 0: one prompt."""
    config = lvlm.model.config
    if lvlm.device.type != "cuda" or not cuttable(DynamicCache(config=config)):
        return 0
    needs = timing.expected(config.get_text_config(), 1, lvlm.dtype.itemsize)
    free = torch.cuda.mem_get_info(lvlm.device)[0]
    return int(0.8 * free / (2.2 * needs["cache"] + needs["working"]))  # of prefixes and questions


@dataclass
class Together:
    """What the tasks of one call of `measure` share."""

    lvlm: LVLM
    each: Callable
    room: int
    bar: tqdm | None = None
    kept: dict = field(default_factory=dict)
    kept_of: tuple = ()

    def most(self, length: int) -> int:
        """How many samples with contexts of a length to measure at once."""
        if self.each is not measure_sample:
            return 1
        longest = length + prompts.least_opening(self.lvlm) + prompts.QUESTION_ROOM
        return min(max(self.room // longest, 1), AT_ONCE)

    def rows(self, samples: list[Sample], one) -> list[list[dict]]:
        """The rows of each sample, of fewer at once where memory turns out too small.

        VDPError where one sample by itself does not fit.
        """
        alone = len(samples) == 1 and self.room < 2 or self.each is not measure_sample
        if (of := (one.image, *map(id, samples))) != self.kept_of:
            self.kept.clear()
            self.kept_of = of
        try:
            if alone:
                return [self.each(self.lvlm, sample, one) for sample in samples]
            return measure_samples(self.lvlm, samples, one, self.room, self.kept)
        except torch.OutOfMemoryError as error:
            if alone:
                raise VDPError(
                    f"{samples[0].image_id} with {one.context_length} context tokens does not fit "
                    f"the memory of {self.lvlm.device}: give shorter contexts, a dtype of 16 bits, "
                    "device='auto' or bits=4") from error
        self.kept.clear()
        torch.cuda.empty_cache()
        self.room //= 2
        half = (len(samples) + 1) // 2
        return [rows for some in (samples[:half], samples[half:]) if some
                for rows in self.rows(some, one)]


@dataclass
class Thunk:
    """A sample's task for `ResultStore.collect`."""

    shared: Together
    sample: Sample
    one: Condition

    @property
    def at_once(self) -> int:
        return self.shared.most(self.one.context_length)

    def __call__(self) -> list[dict]:
        return self.together([self])[0]

    def together(self, some: list["Thunk"]) -> list[list[dict]]:
        """The rows of each of some tasks, all of this one's condition."""
        found = self.shared.rows([one.sample for one in some], self.one)
        self.shared.bar.update(sum(_tokens(one.sample, one.one) for one in some))
        return found


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


def measure_sample(lvlm: LVLM, sample: Sample, one: Condition, share: bool = True) -> list[dict]:
    """Rows of one sample. With `share`, its questions continue one cached prefix."""
    return measure_samples(lvlm, [sample], one, share=share)[0]


@torch.no_grad()
def measure_samples(lvlm: LVLM, samples: list[Sample], one: Condition, room: int = 0,
                    kept: dict | None = None, share: bool = True) -> list[list[dict]]:
    """Rows of each sample, whose questions continue its cached prefix, with `share`.

    In `room`, tokens, whose prompts are alike, and whose questions are of one length, go through
    the model together. `kept` as in `prefill`.
    """
    started, rows = time.perf_counter(), [{} for _ in samples]
    prefixes = [prefix_of(lvlm, sample, one) for sample in samples]
    told = [lvlm.tokenizer.decode(prefix.input_ids[prefix.kinds == Kind.CONTEXT]).splitlines()
            for prefix in prefixes]
    for those in _grouped(range(len(samples)), lambda n: _make_up(prefixes[n]), room):
        cache = prefill(lvlm, *(prefixes[n] for n in those), key=tuple(those),
                        kept=kept) if share else None
        asked = [(row, n, number, prompts.asking(lvlm, question, one.image))
                 for row, n in enumerate(those)
                 for number, question in enumerate(samples[n].questions)]
        for some in _grouped(asked, lambda it: len(it[3]), room // len(prefixes[those[0]])):
            at, whose, numbers, askings = map(list, zip(*some))
            begun = [prefixes[n] for n in whose]
            questions = [samples[n].questions[number] for n, number in zip(whose, numbers)]
            kinds = torch.cat([kinds_of(lvlm, *parts) for parts in zip(begun, askings)])
            with record(lvlm.model, mass="last", kinds=kinds) as recording:
                scores, said = respond(
                    lvlm, begun, cache if cache is None or len(those) == 1 == len(some)
                    else taken(cache, at), askings, [question.options for question in questions],
                    prompts.ANSWER_ROOM,
                    [row for row, number in enumerate(numbers) if number < one.greedy])
            mass = torch.stack([recording[layer].mass[:, :, 0] for layer in sorted(recording)], 1)
            for n, number, *found in zip(whose, numbers, scores, said, mass.cpu(), kinds.cpu()):
                rows[n][number] = _row(samples[n], number, one, told[n], *found)
    took = (time.perf_counter() - started) / sum(map(len, rows))
    return [[some[number] | dict(seconds=took) for number in sorted(some)] for some in rows]


def _make_up(prefix: Prompt) -> tuple:
    """What is the same of prompts that can go through a model together."""
    return opening(prefix), len(prefix), *(
        (name, value.shape, None if value.is_floating_point() else value.numpy().tobytes())
        for name, value in sorted(prefix.images.items()))


def _grouped(items, alike, most: int) -> list[list]:
    """Items in groups of up to `most` that are alike; each by itself, in order, below 2."""
    if most < 2:
        return [[item] for item in items]
    groups = defaultdict(list)
    for item in items:
        groups[alike(item)].append(item)
    return [group[at:at + most] for group in groups.values() for at in range(0, len(group), most)]


def _row(sample: Sample, number: int, one: Condition, told: list[str], scores: list[float],
         said: str, mass: torch.Tensor, kinds: torch.Tensor) -> dict:
    """A question's row, but for its seconds; `told`: the context's lines, `mass`: layers x heads x
    `Kind`."""
    question = sample.questions[number]
    target = question.nouns[0] if question.nouns else None  # a table need not name one
    counts = torch.bincount(kinds.long(), minlength=len(Kind))
    return dict(
        **place(sample, number, one), kind=question.kind, nouns="/".join(question.nouns),
        image=one.image, **{f"{kind.name.lower()}_tokens": int(counts[kind]) for kind in Kind},
        **judged(question, scores), greedy=said,
        named=sum(target in line for line in told) if target else 0,
        target_share=sample.picture.share(target) if target else float("nan"),
        attention=halves(mass.mean(1)), head_image=halves(mass[..., Kind.IMAGE]))


def judged(question: dialogues.Question, scores: list[float]) -> dict:
    """What the options' log-likelihoods say: a row's columns from `options` to `margin`."""
    if not scores:
        raise VDPError("a question without options cannot be scored: use answer() for free text")
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


def greedy_agreement(rows: pd.DataFrame) -> tuple[float, int]:
    """Share of greedy answers that begin with the option scored best, and their number."""
    asked = rows[rows["greedy"] != ""]
    same = [g.lower().startswith(p.lower()) for g, p in zip(asked["greedy"], asked["predicted"])]
    return (sum(same) / len(same) if same else float("nan")), len(same)
