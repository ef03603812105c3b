"""One prompt's pass without pruning, from which any number of pruned ones go on."""

import numpy as np
import torch
from transformers.cache_utils import DynamicCache

from vdp_utils.attention.kept import Kept, chosen, droppable, staying
from vdp_utils.attention.pruner import ContextPruner, named
from vdp_utils.attention.recording import decoder_of, record, visible
from vdp_utils.attention.strategies import Evidence, find_strategy
from vdp_utils.attention.tokens import Kind, pieces, sentences
from vdp_utils.errors import VDPError
from vdp_utils.lvlm import prompts
from vdp_utils.lvlm.load import LVLM
from vdp_utils.lvlm.prompts import Prompt
from vdp_utils.measuring.measure import kinds_of
from vdp_utils.measuring.pruned.conditions import COMPACT, Pruning, parsed
from vdp_utils.measuring.scoring import cuttable

AT_ONCE = 4096  # tokens of pruned prompts that run in one batch


class Unpruned:
    """One question's prompt, run without pruning once; pruned passes go on from it.

    What `ContextPruner` does, for many kept sets of one prompt, sets of equal size in one batch.
    `layers` are those that may score. What stands before the context runs once for all, unless a
    set lacks some of it; during prefill so do the layers up to the scoring one. `described` marks
    the tokens of a text description of the image, for the oracle.
    `answer` is the unpruned answer: the options' log-likelihoods and attention (layers, 4).
    VDPError for options of several tokens.
    """

    def __init__(self, lvlm: LVLM, whole: Prompt, layers, question, described=None):
        self.lvlm, self.whole, self.layers, self.question = lvlm, whole, sorted(layers), question
        self.kinds = kinds_of(lvlm, whole)[0].long()
        self.described = np.zeros(len(whole), dtype=bool) if described is None else described
        self.ids = [prompts.option_ids(lvlm, option) for option in question.options]
        if any(len(ids) != 1 for ids in self.ids):
            raise VDPError(f"options {question.options} are not one token each under "
                           f"{lvlm.name!r}: ask questions whose options are")
        self.inputs = prompts.tensors(whole, lvlm.device)
        self.decoder, self.calls = decoder_of(lvlm.model), []
        hooks = [part.register_forward_pre_hook(
            lambda module, args, kwargs: self.calls.append((args, kwargs)), with_kwargs=True)
            for part in (self.decoder, *self.decoder.layers[self.layers[0] + 1:])]
        kinds = self.kinds[None]
        try:
            with record(lvlm.model, mass="last", kinds=kinds) as masses, record(
                    lvlm.model, ("all", "question", "last", "window"), states=True,
                    layers=self.layers, kinds=kinds) as self.found:
                outputs = lvlm.model(**self.inputs, use_cache=True, logits_to_keep=1)
        finally:
            for hook in hooks:
                hook.remove()
        self.cache, logits = outputs.past_key_values, outputs.logits[0, -1]
        (args, kwargs), *self.calls = self.calls
        self.given = named(self.decoder.forward, args, kwargs)
        for _, kwargs in self.calls:
            kwargs["past_key_values"] = None
        self.before = self._before()
        self.masses = torch.stack([masses[n].mass[0, :, 0].mean(0) for n in sorted(masses)])
        self.answer = self._scores(logits), self.masses
        self._evidence: Evidence | None = None

    def _before(self) -> int:
        """How many tokens before the context no dropping changes, in any layer: they run once."""
        start = int((self.kinds == Kind.CONTEXT).int().argmax())
        masks = [kwargs.get("attention_mask") for _, kwargs in self.calls]
        ahead = any(mask is not None and visible(mask)[..., :start, start:].any() for mask in masks)
        return start if cuttable(self.cache) and not ahead else 0

    def _scores(self, logits: torch.Tensor) -> list[float]:
        chances = logits.float().log_softmax(-1)
        return [chances[ids[0]].item() for ids in self.ids]

    def evidence(self) -> Evidence:
        """What strategies may ask for, but for attention, and likelihoods, which cost two passes.

        The oracle's marks: the text description's sentences about the asked noun before the rest of
        it, and last what names the noun elsewhere, since it speaks of other images.
        """
        real = torch.ones_like(self.kinds, dtype=torch.bool)
        found = Evidence(self.kinds, real, real.nonzero()[:, 0])
        found.pieces = pieces(self.lvlm.tokenizer, self.whole.input_ids)
        named = bears_on(found.pieces, self.question.nouns).astype(int)
        found.evidence = torch.from_numpy(np.where(self.described, 1 + named, -named)).to(
            self.kinds.device)
        return found

    def staying(self, pruning: Pruning) -> torch.Tensor:
        """bool (L,): the tokens that a pruning keeps."""
        name, options = parsed(pruning.strategy)
        strategy = find_strategy(name)
        if self._evidence is None:
            self._evidence = self.evidence()
        evidence = self._evidence
        evidence.recorded(self.found[pruning.layer], 0)
        if "log_probs" in strategy.needs and evidence.log_probs is None:
            pruner = ContextPruner(0.99, "contrastive_perplexity", "compress",
                                   kinds=self.kinds[None])
            with pruner(self.lvlm.model):
                self.lvlm.model(**self.inputs, use_cache=False, logits_to_keep=1)
            evidence.log_probs, evidence.asked_log_probs = pruner.log_probs[0]
        for option, default in dict(heads="max", query_set="all", seed=0).items():
            setattr(evidence, option, options.get(option, default))
        return staying(strategy, evidence, *droppable(strategy, pruning.rate, self.kinds,
                                                      evidence.real))

    def answers(self, prunings) -> list[tuple[list[float], torch.Tensor, int]]:
        """Scores, attention and count of kept context tokens of each pruning."""
        stays = torch.stack([self.staying(pruning) for pruning in prunings])
        kept = (stays & (self.kinds == Kind.CONTEXT)).sum(1).tolist()
        runs, found = [(p.mode, p.layer if p.mode == "prefill" else -1) for p in prunings], {}
        for run in dict.fromkeys(runs):
            mine = [number for number, other in enumerate(runs) if other == run]
            once, which = stays[mine].unique(dim=0, return_inverse=True)
            answers = self.go_on(once, *run)
            found |= {number: answers[at] for number, at in zip(mine, which.tolist())}
        return [(*found[number], count) for number, count in enumerate(kept)]

    def go_on(self, stays: torch.Tensor, mode: str, layer: int = -1) -> list[tuple]:
        """Scores and attention of each kept set, bool (sets, L), in a mode; `layer` as it scored.

        The first token of `evict` comes from the whole prompt, and so it does during prefill where
        no layer is left.
        """
        if mode == "evict" or mode == "prefill" and layer == len(self.decoder.layers) - 1:
            return [self.answer] * len(stays)
        sizes, found = stays.sum(1), [None] * len(stays)
        shared = torch.where(stays[:, :self.before].all(1), self.before, 0)
        for size, start in set(zip(sizes.tolist(), shared.tolist())):
            equal = ((sizes == size) & (shared == start)).nonzero()[:, 0]
            index = stays[equal].nonzero()[:, 1].view(len(equal), size)
            answers = (answer for some in index.split(max(1, AT_ONCE // (size - start)))
                       for answer in (self._later_layers(some, start, layer) if mode == "prefill"
                                      else self._from_the_start(some, start, mode == COMPACT)))
            for number, answer in zip(equal.tolist(), answers):
                found[number] = answer
        return found

    def _kept(self, index: torch.Tensor, start: int) -> Kept:
        """Of `index` (sets, n) those after the first `start`, which are as in the unpruned pass."""
        rest = index[:, start:]
        return Kept(rest, torch.ones_like(rest, dtype=torch.bool), len(self.kinds),
                    seen=index if start else None)

    def _later_layers(self, index: torch.Tensor, start: int, layer: int):
        """Pruning during prefill: the layers after the scoring one, at the old positions."""
        kept, hidden, masks = self._kept(index, start), None, {}
        layers = range(layer + 1, len(self.decoder.layers))
        with record(self.lvlm.model, mass="last", layers=layers,
                    kinds=self.kinds[index]) as recording:
            for number, (args, kwargs) in zip(layers, self.calls[layer - self.layers[0]:]):
                (first, *more), kwargs = kept.shortened(args, kwargs, masks)
                if start:
                    kwargs["past_key_values"] = _Beginning(self.cache, start, len(index))
                hidden = self.decoder.layers[number](first if hidden is None else hidden, *more,
                                                     **kwargs)
        return self._found(self.decoder.norm(hidden[:, -1]), recording)

    def _from_the_start(self, index: torch.Tensor, start: int, compact: bool):
        """Prompt compression: every layer, at the old positions or, `compact`, closed up."""
        kept = self._kept(index, start)
        given = chosen(self.given, torch.zeros_like(index[:, :1]), kept.index)
        mask, cache = self.given.get("attention_mask"), DynamicCache() if start else None
        if isinstance(mask, dict):
            mask = {name: kept.mask4d(one) for name, one in mask.items()}
        elif mask is not None and mask.dim() == 4:
            mask = kept.mask4d(mask)
        else:  # ones, never None: positions with gaps would be read as packed sequences
            mask = torch.ones_like(index)
        positions = given.get("position_ids")
        positions = kept.index if positions is None else positions
        if compact:  # by as many as were dropped before it
            positions = positions - (kept.index - torch.arange(
                start, index.shape[1], device=index.device))
        for number, layer in enumerate(self.cache.layers if start else ()):
            cache.update(*(x[:, :, :start].expand(len(index), -1, -1, -1)
                           for x in (layer.keys, layer.values)), number)
        with record(self.lvlm.model, mass="last", kinds=self.kinds[index]) as recording:
            output = self.decoder(**given | dict(
                attention_mask=mask, position_ids=positions, past_key_values=cache,
                use_cache=cache is not None))
        return self._found(output.last_hidden_state[:, -1], recording)

    def _found(self, hidden: torch.Tensor, recording: dict):
        """Scores and attention of each set from the last token's state (sets, width)."""
        early = self.masses[:len(self.masses) - len(recording)]
        for row, logits in enumerate(self.lvlm.model.get_output_embeddings()(hidden)):
            late = [recording[n].mass[row, :, 0].mean(0) for n in sorted(recording)]
            yield self._scores(logits), torch.stack([*early, *late])


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
