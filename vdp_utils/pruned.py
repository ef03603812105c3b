"""Measuring under pruning: answers and attention before and after context tokens are dropped."""

from collections import defaultdict
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from transformers.cache_utils import DynamicLayer

from vdp_utils import prompts, theory
from vdp_utils.errors import VDPError
from vdp_utils.lvlm import LVLM
from vdp_utils.measure import Condition, condition, halves, judged, key, kinds_of, score
from vdp_utils.prompts import Prompt, Sample
from vdp_utils.pruning import ContextPruner, Kept, droppable, staying, take
from vdp_utils.recording import decoder_of, record
from vdp_utils.strategies import REDUCTIONS, Evidence, find_strategy
from vdp_utils.tokens import Kind, pieces

AT_ONCE = 4096  # tokens of pruned prompts that run in one batch
NONE = "none"  # the strategy of a row without pruning


@dataclass(frozen=True)
class PrunedCondition(Condition):
    """A condition under which context is pruned, in flight, at each of `rates`."""

    rates: tuple[float, ...] = (0.5,)
    strategy: str = "received"
    layer: int = 0


def pruned_condition(lvlm: LVLM, context_kind: str, context_length: int, rates,
                     strategy: str = "received", layer: int = 0) -> PrunedCondition:
    """A condition with pruning; what it asks for is checked as `ContextPruner` checks it."""
    for rate in rates:
        ContextPruner(rate, strategy, layer=layer, context=(0, 1))
    return PrunedCondition(**vars(condition(lvlm, context_kind, context_length)),
                           rates=tuple(rates), strategy=strategy, layer=layer)


def _last_rows(lvlm: LVLM, inputs: dict) -> list[torch.Tensor]:
    """Attention of the prompt's last token in every layer: (heads, keys) each."""
    with record(lvlm.model, received=("last",)) as recording:
        lvlm.model(**inputs, use_cache=True, logits_to_keep=1)
    return [recording[layer].received["last"][0] for layer in sorted(recording)]


@torch.no_grad()
def masses_sample(lvlm: LVLM, sample: Sample, one: PrunedCondition) -> list[dict]:
    """What dropping context does to the answer position's attention: rows as `measure` stores them.

    Columns: image_id, question_id, context_kind, context_length, and flat float32 lists of layers
    (`before`: the image's mass without pruning) or rates x layers. Of every rate and layer, means
    over heads: `predicted`, the image's mass with queries and keys held fixed (theory (1)),
    `after`, as measured; `entropy_before`, `entropy_frozen` (held fixed), `entropy_after`; and
    shares of heads: `mass_falls` and `entropy_rises` with queries and keys held fixed,
    `falls_measured`, `premise` (of theory (b): no dropped weight exceeds a kept one) and
    `exceptions` (to (a), (b) or (c); theorems have none).
    """
    rows = []
    for number, question in enumerate(sample.questions):
        whole = prompts.join(
            prompts.shared_prefix(lvlm, sample, one.context_kind, one.context_length, one.seed,
                                  one.image), prompts.asking(lvlm, question))
        kinds = kinds_of(lvlm, whole).long()
        inputs = prompts.tensors(whole, lvlm.device)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        plain = torch.stack(_last_rows(lvlm, inputs)).double()  # (layers, heads, L)
        image, context = kinds[0] == Kind.IMAGE, kinds[0] == Kind.CONTEXT
        found = defaultdict(list)
        visual = plain[..., image].sum(-1)
        for rate in one.rates:
            with ContextPruner(rate, one.strategy, layer=one.layer, kinds=kinds)(
                    lvlm.model) as pruner:
                rest = _last_rows(lvlm, inputs)
            index = pruner.kept.index[0]
            kept = torch.zeros_like(image)
            kept[index] = True
            after = torch.stack([
                row.new_zeros(len(row), len(kept)).index_copy_(1, index, row)
                if row.shape[1] < len(kept) else row for row in rest]).double()
            frozen = theory.renormalised(plain, kept)
            moved, measured = frozen[..., image].sum(-1), after[..., image].sum(-1)
            low, high = theory.mass_bounds(visual, plain[..., context], int((~kept).sum()))
            premise = theory.lowest_go(plain, kept)
            exception = ((moved < visual - 1e-9)
                         | (premise & ~theory.majorises(frozen, plain, 1e-9))
                         | (moved < low - 1e-9) | (moved > high + 1e-9))
            entropies = [theory.entropy(x) for x in (plain, frozen, after)]
            for name, values in dict(
                    predicted=moved, after=measured, entropy_before=entropies[0],
                    entropy_frozen=entropies[1], entropy_after=entropies[2],
                    mass_falls=moved < visual - 1e-9, falls_measured=measured < visual - 1e-6,
                    entropy_rises=entropies[1] > entropies[0] + 1e-9, premise=premise,
                    exceptions=exception).items():
                found[name].append(values.double().mean(-1))
        rows.append(dict(
            key=key(sample, number), image_id=sample.image_id, question_id=str(number),
            context_kind=one.context_kind, context_length=one.context_length,
            before=visual.mean(-1).float().cpu().numpy(),
            **{name: torch.cat(values).float().cpu().numpy() for name, values in found.items()}))
    return rows


# ---- answers


@dataclass(frozen=True)
class AnswerCondition(PrunedCondition):
    """Questions answered without pruning, and with it by each of `strategies` at each of `rates`.

    A strategy is a name with what differs from the default behind it, e.g. "received",
    "received mean question" (heads, query set) or "random 3" (seed). With the scene told in words
    (`image="words_middle"` and the like) these words are context here, and may be dropped.
    """

    strategies: tuple[str, ...] = ("received",)
    way: str = "inflight"
    positions: str = "kept"

    @property
    def prunings(self) -> list[tuple[str, float]]:
        """Strategy and rate of each row of a question, the unpruned one first."""
        return [(NONE, 0.0), *((strategy, rate) for rate in self.rates
                               for strategy in self.strategies)]

    def keys(self, sample: Sample) -> list[str]:
        """The row keys of a sample: each question under each pruning."""
        return [_pruned_key(sample, number, *pruning) for number in range(len(sample.questions))
                for pruning in self.prunings]


def answer_condition(lvlm: LVLM, context_kind: str, context_length: int, rates=(),
                     strategies=("received",), image: str = "own", layer: int = 0,
                     way: str = "inflight", positions: str = "kept") -> AnswerCondition:
    """A condition with pruned answers. VDPError for one that the model cannot be put under."""
    for text in strategies:
        name, options = parsed(text)
        needs = dict(processor=lvlm.processor, context=(0, 1), evidence=torch.ones(1, 1))
        for rate in rates:
            ContextPruner(rate, name, way, layer, positions=positions, **options, **needs)
    return AnswerCondition(**vars(condition(lvlm, context_kind, context_length, image)),
                           rates=tuple(rates), layer=layer, strategies=tuple(strategies), way=way,
                           positions=positions)


def parsed(text: str) -> tuple[str, dict]:
    """A strategy's name, and the options that `text` gives behind it."""
    name, *words = text.split()
    options: dict = {}
    for word in words:
        if word.isdecimal():
            options["seed"] = int(word)
        elif word in REDUCTIONS:
            options["heads"] = word
        elif word in ("all", "question", "last"):
            options["query_set"] = word
        else:
            raise VDPError(f"strategy {text!r}: {word!r} is neither a seed nor a head reduction "
                           f"({', '.join(REDUCTIONS)}) nor a query set (all, question, last)")
    return name, options


def _pruned_key(sample: Sample, number: int, strategy: str, rate: float) -> str:
    return f"{key(sample, number)}/{strategy}/{rate}"


@torch.no_grad()
def answers_sample(lvlm: LVLM, sample: Sample, one: AnswerCondition) -> list[dict]:
    """Rows of one sample: each question without pruning, and pruned in every way asked for.

    Columns: image_id, question_id, nouns, context_kind, context_length, image, strategy ("none"
    without pruning), rate, way, layer, positions; options, log_likelihoods (nats), answer,
    predicted, correct and margin as `measure` has them; kept_tokens (of the context), and
    attention (of the answer position, layers x `Kind`, heads' mean, flattened float16).
    """
    prefix = prompts.shared_prefix(lvlm, sample, one.context_kind, one.context_length, one.seed,
                                   one.image)
    if one.image in prompts.PLACES:
        prefix.kinds[prefix.kinds == Kind.IMAGE] = Kind.CONTEXT
    rows = []
    for number, question in enumerate(sample.questions):
        asking = prompts.asking(lvlm, question, one.image in prompts.PICTURES)
        first = Unpruned(lvlm, prompts.join(prefix, asking), one.layer, question)
        context = int((first.kinds == Kind.CONTEXT).sum())
        found = [(NONE, 0.0, *first.answer, context)]
        for rate in one.rates:
            for strategy in one.strategies if one.way != "inflight" else ():
                found.append((strategy, rate, *_answer(lvlm, prefix, asking, question, first.kinds,
                                                       one, strategy, rate)))
            if one.way == "inflight":
                stays = torch.stack([first.staying(text, rate) for text in one.strategies])
                kept = (stays & (first.kinds == Kind.CONTEXT)).sum(1).tolist()
                found += [(text, rate, *answer, count) for text, answer, count in zip(
                    one.strategies, first.go_on(stays), kept)]
        for strategy, rate, scores, mass, kept in found:
            rows.append(dict(
                key=_pruned_key(sample, number, strategy, rate), image_id=sample.image_id,
                question_id=str(number), nouns="/".join(question.nouns),
                context_kind=one.context_kind, context_length=one.context_length, image=one.image,
                strategy=strategy, rate=float(rate), way=one.way, layer=one.layer,
                positions=one.positions, **judged(question, scores), kept_tokens=kept,
                attention=halves(mass)))
    return rows


def _answer(lvlm: LVLM, prefix: Prompt, asking: Prompt, question, kinds, one: AnswerCondition,
            strategy: str, rate: float) -> tuple[list[float], torch.Tensor, int]:
    """The options' scores, attention (layers, 4) and kept context under a `ContextPruner`."""
    scores, rows, stays = _looking(lvlm, prefix, asking, question, kinds, one, strategy, rate)
    return scores, _by_kind(rows, kinds), int((stays & (kinds == Kind.CONTEXT)).sum())


def _looking(lvlm: LVLM, prefix: Prompt, asking: Prompt, question, kinds, one: AnswerCondition,
             strategy: str, rate: float):
    """The options' scores, attention of the answer position (layers, L; 0 on what was dropped by
    then), and which tokens stay, bool (L,); strategy "none" drops nothing."""
    name, options = parsed(strategy)
    pruner = None if name == NONE else ContextPruner(
        rate, name, one.way, one.layer, positions=one.positions, **options, kinds=kinds[None],
        processor=lvlm.processor)
    around = pruner(lvlm.model) if pruner else nullcontext()
    with around, record(lvlm.model, received=("last",)) as recording:
        scores = score(lvlm, prefix, None, asking, question.options)
    index = pruner.kept.index[0] if pruner else torch.arange(len(kinds), device=kinds.device)
    stays = torch.zeros_like(kinds, dtype=torch.bool)
    stays[index] = True
    rows = []
    for layer in sorted(recording):
        row = recording[layer].received["last"][0].mean(0)
        rows.append(row if len(row) == len(kinds)
                    else row.new_zeros(len(kinds)).index_copy_(0, index, row))
    return scores, torch.stack(rows), stays


@torch.no_grad()
def example_sample(lvlm: LVLM, sample: Sample, one: AnswerCondition) -> list[dict]:
    """What pruning keeps of one sample's prompts, and where on the image the answer then looks.

    Columns: image_id, question_id, context_kind, context_length, strategy, rate, question, answer,
    predicted; texts and stays, a list of the context tokens' texts and whether each is kept; and
    map_image: attention on each image token, layers x tokens, flattened float16, heads' mean.
    """
    prefix, rows = prompts.shared_prefix(lvlm, sample, one.context_kind, one.context_length,
                                         one.seed, one.image), []
    context = prefix.kinds == Kind.CONTEXT
    texts = pieces(lvlm.tokenizer, prefix.input_ids[context])
    for number, question in enumerate(sample.questions):
        asking = prompts.asking(lvlm, question)
        kinds = kinds_of(lvlm, prefix, asking)[0].long()
        for strategy, rate in one.prunings:
            scores, looks, stays = _looking(lvlm, prefix, asking, question, kinds, one, strategy,
                                            rate)
            found = judged(question, scores)
            rows.append(dict(
                key=_pruned_key(sample, number, strategy, rate), image_id=sample.image_id,
                question_id=str(number), context_kind=one.context_kind,
                context_length=one.context_length, strategy=strategy, rate=float(rate),
                question=question.text, answer=found["answer"], predicted=found["predicted"],
                texts=texts, stays=stays[kinds == Kind.CONTEXT].tolist(),
                map_image=halves(looks[:, kinds == Kind.IMAGE])))
    return rows


def _by_kind(rows: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
    """Attention (n, keys) summed by the keys' kind: (n, 4)."""
    return rows.new_zeros(len(rows), len(Kind)).index_add_(1, kinds.long(), rows)


class Unpruned:
    """One question's prompt, run without pruning once; pruned passes go on from its first layers.

    What `ContextPruner` does in flight, for many kept sets of one prompt: the layers up to
    `layer` run once for all, and so does what stands before the context, unless a set lacks some of
    it; the rest once for each set, sets of equal size in one batch.
    `answer` is the unpruned answer: the options' log-likelihoods and attention (layers, 4).
    VDPError for options of several tokens.
    """

    def __init__(self, lvlm: LVLM, whole: Prompt, layer: int, question):
        self.lvlm, self.whole, self.layer, self.question = lvlm, whole, layer, question
        self.kinds = kinds_of(lvlm, whole)[0].long()
        self.ids = [prompts.option_ids(lvlm, option) for option in question.options]
        if any(len(ids) != 1 for ids in self.ids):
            raise VDPError(f"options {question.options} are not one token each under "
                           f"{lvlm.name!r}: ask questions whose options are")
        self.inputs = prompts.tensors(whole, lvlm.device)
        self.decoder, self.calls = decoder_of(lvlm.model), []
        hooks = [later.register_forward_pre_hook(
            lambda module, args, kwargs: self.calls.append((args, kwargs)), with_kwargs=True)
            for later in self.decoder.layers[layer + 1:]]
        kinds = self.kinds[None]
        try:
            with record(lvlm.model, mass="last", kinds=kinds) as masses, record(
                    lvlm.model, ("all", "question", "last", "window"), states=True, layers=[layer],
                    kinds=kinds) as at:
                outputs = lvlm.model(**self.inputs, use_cache=True, logits_to_keep=1)
        finally:
            for hook in hooks:
                hook.remove()
        self.cache, logits = outputs.past_key_values, outputs.logits[0, -1]
        for _, kwargs in self.calls:
            kwargs["past_key_values"] = None
        self.before = self._before()
        self.found = at[layer]
        self.masses = torch.stack([masses[n].mass[0, :, 0].mean(0) for n in sorted(masses)])
        self.answer = self._scores(logits), self.masses
        self._evidence: Evidence | None = None

    def _before(self) -> int:
        """How many tokens before the context no dropping changes, in any layer: they run once."""
        start = int((self.kinds == Kind.CONTEXT).int().argmax())
        masks = [kwargs.get("attention_mask") for _, kwargs in self.calls]
        plain = all(type(layer) is DynamicLayer for layer in self.cache.layers)
        ahead = any(mask is not None and _open(mask)[..., :start, start:].any() for mask in masks)
        return start if plain and not ahead else 0

    def _scores(self, logits: torch.Tensor) -> list[float]:
        chances = logits.float().log_softmax(-1)
        return [chances[ids[0]].item() for ids in self.ids]

    def evidence(self) -> Evidence:
        """What strategies may ask for, but for likelihoods, which cost two passes more."""
        real = torch.ones_like(self.kinds, dtype=torch.bool)
        found = Evidence(self.kinds, real, real.nonzero()[:, 0])
        found.received = {name: x[0] for name, x in self.found.received.items()}
        found.queries, found.keys, found.values = (x[0] for x in self.found.states)
        found.pieces = pieces(self.lvlm.tokenizer, self.whole.input_ids)
        found.evidence = torch.from_numpy(bears_on(found.pieces, self.question.nouns)).to(
            self.kinds.device)
        return found

    def staying(self, text: str, rate: float) -> torch.Tensor:
        """bool (L,): the tokens that a strategy keeps."""
        name, options = parsed(text)
        strategy = find_strategy(name)
        if self._evidence is None:
            self._evidence = self.evidence()
        evidence = self._evidence
        if "log_probs" in strategy.needs and evidence.log_probs is None:
            pruner = ContextPruner(0.5, "contrastive_perplexity", kinds=self.kinds[None])
            with pruner(self.lvlm.model):
                self.lvlm.model(**self.inputs, use_cache=False, logits_to_keep=1)
            evidence.log_probs, evidence.asked_log_probs = pruner.log_probs[0]
        for option, default in dict(heads="max", query_set="all", seed=0).items():
            setattr(evidence, option, options.get(option, default))
        return staying(strategy, evidence, *droppable(strategy, rate, self.kinds, evidence.real))

    def go_on(self, stays: torch.Tensor) -> list[tuple[list[float], torch.Tensor]]:
        """Scores and attention of each kept set: `stays` is bool (sets, L)."""
        sizes, found = stays.sum(1), [None] * len(stays)
        shared = torch.where(stays[:, :self.before].all(1), self.before, 0)
        for size, start in set(zip(sizes.tolist(), shared.tolist())):
            equal = ((sizes == size) & (shared == start)).nonzero()[:, 0]
            index = stays[equal].nonzero()[:, 1].view(len(equal), size)
            answers = (answer for some in index.split(max(1, AT_ONCE // (size - start)))
                       for answer in self._batch(some, start))
            for number, answer in zip(equal.tolist(), answers):
                found[number] = answer
        return found

    def _batch(self, index: torch.Tensor, start: int):
        """`index` (sets, n), of which the first `start` tokens are as in the unpruned pass."""
        rest = index[:, start:]
        kept = Kept(rest, torch.ones_like(rest, dtype=torch.bool), len(self.kinds))
        hidden, masks = None, {}
        layers = range(self.layer + 1, len(self.decoder.layers))
        with record(self.lvlm.model, mass="last", layers=layers,
                    kinds=self.kinds[index]) as recording:
            for layer, (args, kwargs) in zip(self.decoder.layers[self.layer + 1:], self.calls):
                whole = kwargs.get("attention_mask")
                (first, *more), kwargs = kept.shortened(args, kwargs, masks)
                if start:
                    kwargs |= dict(past_key_values=_Behind(self.cache, start, len(index)),
                                   attention_mask=_behind(whole, rest, index))
                hidden = layer(first if hidden is None else hidden, *more, **kwargs)
        logits = self.lvlm.model.get_output_embeddings()(self.decoder.norm(hidden[:, -1]))
        early = self.masses[:self.layer + 1]
        for row, logit in enumerate(logits):
            late = [recording[n].mass[row, :, 0].mean(0) for n in layers]
            yield self._scores(logit), torch.stack([*early, *late])


class _Behind:
    """A cache of the first `start` tokens of `cache`, for `sets` prompts; it never grows."""

    def __init__(self, cache, start: int, sets: int):
        self.cache, self.start, self.sets = cache, start, sets

    def update(self, keys, values, layer: int, *args, **kwargs):
        old = self.cache.layers[layer]
        return tuple(torch.cat([x[:, :, :self.start].expand(self.sets, -1, -1, -1), y], 2)
                     for x, y in ((old.keys, keys), (old.values, values)))


def _open(mask: torch.Tensor) -> torch.Tensor:
    """bool: where an attention mask lets a query see a key."""
    return mask if mask.dtype == torch.bool else mask >= 0


def _behind(mask: torch.Tensor | None, rest: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """The rows `rest` and columns `index` of an attention mask; None is causal."""
    if mask is None:
        shape = rest.shape[1], index.shape[1]
        return torch.ones(shape, dtype=torch.bool, device=index.device).tril(
            shape[1] - shape[0])[None, None]
    return take(take(mask, rest, 2), index, 3)


def bears_on(texts: list[str], nouns) -> np.ndarray:
    """bool (L,): tokens of the sentences that name one of `nouns`; `texts` are the tokens' own."""
    marked, start = np.zeros(len(texts), dtype=bool), 0
    for at, text in enumerate(texts):
        if text.rstrip(" ").endswith((".", "!", "?", "\n")) or at == len(texts) - 1:
            sentence = "".join(texts[start:at + 1]).lower()
            marked[start:at + 1] = any(noun in sentence for noun in nouns)
            start = at + 1
    return marked
