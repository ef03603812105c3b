"""Context pruning around any transformers LVLM: `with ContextPruner(rate=0.5, ...)(model): ...`

Context tokens are scored by a strategy at one decoder layer and the lowest are dropped, in one of
three `modes`; image, question and template tokens always stay (Zhou et al., arXiv 2410.19732).
"""

import contextlib
import functools

import torch

from vdp_utils.attention.evidence import Prompt, known_tokens, likelihoods, named
from vdp_utils.attention.kept import Bound, Continuation, Kept, droppable, kept_count
from vdp_utils.attention.law import rate_of
from vdp_utils.attention.modes import MODES, check_architecture, prunable_cache
from vdp_utils.attention.recording import (bare, decoder_of, held, record, refuse_unrecordable,
                                           replaced)
from vdp_utils.attention.strategies import QUERY_SETS, REDUCTIONS, Evidence, find_strategy
from vdp_utils.attention.tokens import QUESTIONS, Kind
from vdp_utils.errors import VDPError


LAYER, DEPTH = 1, 6  # the layer that scores, of how many: chosen by `findings.recovery.best_layer`


def default_layer(depth: int) -> int:
    """The decoder layer, from 0, that scores where none is named: the same share of any depth."""
    return depth * LAYER // DEPTH


class ContextPruner:
    """Prune the context of every prompt that a model reads inside `with pruner(model):`.

    Args:
        rate: share of the context dropped, in [0, 1), or "auto": by the model's own law of the
            context's length (`law.rate_of`).
        strategy: a name in `strategies.STRATEGIES`.
        mode: "prefill" (pruning during prefill), "compress" (score, then run the shortened prompt)
            or "evict" (from the KV cache, after prefill).
        layer: decoder layer whose attention scores, from 0; None: a sixth of the depth.
        heads: "max" or "mean" over heads. query_set: "all", "question" or "last".
        positions: "kept" or, for `compress`, "compact".
        processor: tells context from question by its chat template, and `question` by which rule
            (`tokens.token_kinds`): "found", "turn" or "line"; or
        context: a span (start, stop); or kinds: (B, L) of `Kind`, directly.
        evidence: (B, L) for the strategy `oracle`, bool or how well each token bears on the
            question. seed: for the random strategies.

    What comes behind a prompt is never pruned, and needs this block: inside it a conversation goes
    on with `generate(all of it, past_key_values=...)`, or with its new tokens.

    `pruner.kept` is the last prompt's `Kept`, and `pruner.log_probs` its rows' likelihoods where
    the strategy asks for them. The model is as before on exit.
    """

    def __init__(self, rate: float | str, strategy: str = "accumulated", mode: str = "prefill",
                 layer: int | None = None, heads: str = "max", query_set: str = "all",
                 positions: str = "kept", processor=None, context: tuple[int, int] | None = None,
                 kinds: torch.Tensor | None = None, evidence: torch.Tensor | None = None,
                 window: int = 16, seed: int = 0, question: str = "found"):
        if rate != "auto":
            kept_count(1, rate)
        for name, value, known in (("mode", mode, MODES), ("heads", heads, REDUCTIONS),
                                   ("query_set", query_set, QUERY_SETS),
                                   ("question", question, QUESTIONS),
                                   ("positions", positions, ("kept", "compact"))):
            if value not in [*known]:
                raise VDPError(f"unknown {name} {value!r}: choose one of {', '.join(known)}")
        if positions == "compact" and mode != "compress":
            raise VDPError(f"positions='compact' needs mode='compress': {mode} keeps what it "
                           "computed at the original positions")
        if processor is None and context is None and kinds is None:
            raise VDPError("say which tokens are context: give processor=, context=(start, stop) "
                           "or kinds=")
        if context is not None and context[0] == context[1]:
            raise VDPError(f"context {context} is empty: give the span of the tokens to prune")
        self.rate, self.strategy = rate, find_strategy(strategy)
        self.mode, self.layer = mode, layer
        if "evidence" in self.strategy.needs and evidence is None:
            raise VDPError("strategy 'oracle' needs evidence=: (B, L), how well the tokens bear "
                           "on the question")
        if "pieces" in self.strategy.needs and processor is None:
            raise VDPError(f"strategy {strategy!r} reads the words: give processor=")
        self.options = dict(heads=heads, query_set=query_set, window=window, seed=seed)
        self.compact, self.processor, self.evidence = positions == "compact", processor, evidence
        self.told = dict(kinds=kinds, processor=processor, context=context, question=question)
        self.kept: Kept | None = None
        self.log_probs: list[tuple] = []
        self.model = None

    def __call__(self, model):
        """A context manager in which `model` prunes; yields this pruner."""
        return self._around(model)

    @contextlib.contextmanager
    def _around(self, model):
        model, decoder = bare(model), decoder_of(model)
        at = default_layer(len(decoder.layers)) if self.layer is None else self.layer
        record(model, layers=[at])  # can its attention be instrumented at all?
        if self.model is not None:
            raise VDPError("this ContextPruner prunes a model already: make another one")
        if getattr(decoder.forward, "__func__", None) is ContextPruner._decode:
            raise VDPError("this model is being pruned already: leave the other ContextPruner's "
                           "block first")
        check_architecture(model, self.mode, at)
        if self.rate == "auto":
            rate_of(model, 1)
        self.model, self.at, self._forward = model, at, decoder.forward
        self._arrived, self._after = {}, None  # a call of the model; how it goes on after it
        self._block = next(Bound.numbers)
        try:
            with held(model, self._arrive), replaced(decoder, "forward", self._decode), \
                    self._conversing(model):
                Bound.open.add(self._block)
                yield self
        finally:
            Bound.open.discard(self._block)
            self.model, self._arrived, self._after = None, {}, None

    def _conversing(self, model):
        """Context manager: `generate` feeds what is new behind a pruned prompt, where it reckons
        by the length of the shortened cache."""
        plain = getattr(model, "prepare_inputs_for_generation", None)
        if plain is None:
            return contextlib.nullcontext()

        @functools.wraps(plain)
        def prepare(*args, next_sequence_length=None, past_key_values=None, **kwargs):
            if kwargs.get("is_first_iteration") and self._after is not None and (
                    past_key_values is self._after.cache):
                next_sequence_length = self._after.unread(next_sequence_length)
            return plain(*args, next_sequence_length=next_sequence_length,
                         past_key_values=past_key_values, **kwargs)

        return replaced(model, "prepare_inputs_for_generation", prepare)

    def _arrive(self, model, args, kwargs):
        """The model is called: with a prompt, or with a step after one."""
        kwargs = named(model.forward, args, kwargs)
        refuse_unrecordable(model, (), kwargs)
        cache = kwargs.get("past_key_values")
        if cache is not None and cache.get_seq_length() > 0:
            if self._after is None or cache is not self._after.cache:
                raise VDPError("the cache handed in already holds tokens: prune a whole prompt, "
                               "from its first token on")
            kwargs = self._after.continued(kwargs)
        self._arrived = kwargs
        return (), kwargs

    def _decode(self, *args, **kwargs):
        """The decoder is called: prune a prompt, or go on after a pruned one."""
        kwargs = named(self._forward, args, kwargs)
        cache = kwargs.get("past_key_values")
        if cache is not None and cache.get_seq_length() > 0:
            told, self._arrived = self._arrived.get("attention_mask"), {}
            return self._forward(**self._after.continued(kwargs, told) if self._after else kwargs)
        prompt = self._prompt(kwargs)
        if any(prompt.lost):
            cache = prunable_cache(self.model, self.mode, prompt)
            prompt.read(self.processor, self.evidence)
            self.log_probs = likelihoods(prompt, self.model, self._forward)
            output, self.kept = MODES[self.mode](self.model, self._forward, self.at, prompt)
            if cache is not None:
                cache.vdp_shortened = True
                Bound.bind(cache, self._block)
        else:
            every = torch.arange(prompt.real.shape[1], device=prompt.real.device)
            self.kept = Kept(every.expand_as(prompt.real), prompt.real, len(every))
            output = self._forward(**kwargs)
            cache = getattr(output, "past_key_values", None)
        self._after = Continuation(self.model, cache, self.kept, self.compact)
        return output

    def _prompt(self, kwargs: dict) -> Prompt:
        """What the decoder is called with, and what may go of it."""
        arrived, self._arrived = self._arrived, {}
        ids, kinds, real = known_tokens(self.model, arrived, kwargs, **self.told)
        if kwargs.get("inputs_embeds") is None:
            kwargs["inputs_embeds"] = decoder_of(self.model).get_input_embeddings()(
                kwargs.pop("input_ids"))
        candidates, lost = zip(*(droppable(self.strategy, self._rate(*row), *row)
                                 for row in zip(kinds, real)))
        rows = [Evidence(*row, **self.options) for row in zip(kinds, real, candidates)]
        return Prompt(kwargs, ids, kinds, real, self.strategy, rows, lost, self.compact)

    def _rate(self, kinds: torch.Tensor, real: torch.Tensor) -> float:
        """The share of one prompt's context that is dropped."""
        if self.rate != "auto":
            return self.rate
        return rate_of(self.model, int(((kinds == Kind.CONTEXT) & real).sum()))
