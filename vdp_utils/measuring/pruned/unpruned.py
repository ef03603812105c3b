"""One prompt's pass without pruning, from which any number of pruned ones go on."""

import numpy as np
import torch
from transformers.cache_utils import DynamicLayer

from vdp_utils.attention.kept import Kept, droppable, staying
from vdp_utils.attention.pruner import ContextPruner
from vdp_utils.attention.recording import decoder_of, record, visible
from vdp_utils.attention.strategies import Evidence, find_strategy
from vdp_utils.attention.tokens import Kind, pieces, sentences
from vdp_utils.errors import VDPError
from vdp_utils.lvlm import prompts
from vdp_utils.lvlm.load import LVLM
from vdp_utils.lvlm.prompts import Prompt
from vdp_utils.measuring.measure import kinds_of
from vdp_utils.measuring.pruned.conditions import parsed

AT_ONCE = 4096  # tokens of pruned prompts that run in one batch


class Unpruned:
    """One question's prompt, run without pruning once; pruned passes go on from its first layers.

    What `ContextPruner` does during prefill, for many kept sets of one prompt: the layers up to
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
        ahead = any(mask is not None and visible(mask)[..., :start, start:].any() for mask in masks)
        return start if plain and not ahead else 0

    def _scores(self, logits: torch.Tensor) -> list[float]:
        chances = logits.float().log_softmax(-1)
        return [chances[ids[0]].item() for ids in self.ids]

    def evidence(self) -> Evidence:
        """What strategies may ask for, but for likelihoods, which cost two passes more."""
        real = torch.ones_like(self.kinds, dtype=torch.bool)
        found = Evidence(self.kinds, real, real.nonzero()[:, 0])
        found.recorded(self.found, 0)
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
        kept = Kept(rest, torch.ones_like(rest, dtype=torch.bool), len(self.kinds),
                    seen=index if start else None)
        hidden, masks = None, {}
        layers = range(self.layer + 1, len(self.decoder.layers))
        with record(self.lvlm.model, mass="last", layers=layers,
                    kinds=self.kinds[index]) as recording:
            for layer, (args, kwargs) in zip(self.decoder.layers[self.layer + 1:], self.calls):
                (first, *more), kwargs = kept.shortened(args, kwargs, masks)
                if start:
                    kwargs["past_key_values"] = _Beginning(self.cache, start, len(index))
                hidden = layer(first if hidden is None else hidden, *more, **kwargs)
        logits = self.lvlm.model.get_output_embeddings()(self.decoder.norm(hidden[:, -1]))
        early = self.masses[:self.layer + 1]
        for row, logit in enumerate(logits):
            late = [recording[n].mass[row, :, 0].mean(0) for n in layers]
            yield self._scores(logit), torch.stack([*early, *late])


class _Beginning:
    """A cache of the first `start` tokens of `cache`, for `sets` prompts; it never grows."""

    def __init__(self, cache, start: int, sets: int):
        self.cache, self.start, self.sets = cache, start, sets

    def update(self, keys, values, layer: int, *args, **kwargs):
        old = self.cache.layers[layer]
        return tuple(torch.cat([x[:, :, :self.start].expand(self.sets, -1, -1, -1), y], 2)
                     for x, y in ((old.keys, keys), (old.values, values)))


def bears_on(texts: list[str], nouns) -> np.ndarray:
    """bool (L,): tokens of the sentences that name one of `nouns`; `texts` are the tokens' own."""
    marked = np.zeros(len(texts), dtype=bool)
    for places in sentences(texts, range(len(texts))):
        sentence = "".join(texts[at] for at in places).lower()
        marked[places] = any(noun in sentence for noun in nouns)
    return marked
