"""Context pruning around any transformers LVLM: `with ContextPruner(rate=0.5)(model): ...`

Context tokens are scored by a strategy at one decoder layer and the lowest are dropped, in one of
three ways; image, question and template tokens always stay (Zhou et al., arXiv 2410.19732).

- `inflight`: one pass; after the scoring layer only the kept tokens go on, at their original
  positions. Afterwards the earlier layers' cache drops the same tokens, so it has one length.
- `rerun`: score with the layers up to the scoring layer, then run the shortened prompt from the
  start, at its original positions (`kept`) or closed up (`compact`).
- `kv`: the whole prompt runs, then its dropped tokens leave the cache: only decoding is shorter.
"""

import contextlib
import inspect
from dataclasses import dataclass

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from vdp_utils.attention.recording import decoder_of, record, refuse_output_attentions
from vdp_utils.attention.strategies import (QUERY_SETS, REDUCTIONS, Evidence, Strategy,
                                            find_strategy, keep, kept_count)
from vdp_utils.attention.tokens import Kind, image_token_id, pieces, token_kinds
from vdp_utils.errors import VDPError

WAYS = ("inflight", "rerun", "kv")


class _Scored(Exception):
    """Ends the scoring pass of `rerun` after its layer."""


def take(tensor: torch.Tensor, index: torch.Tensor, dim: int, batch: int = 0) -> torch.Tensor:
    """Entries `index` (B, n) along `dim`, row by row of the dimension `batch` (1 or B long)."""
    tensor = tensor.expand(*[len(index) if d == batch else -1 for d in range(tensor.dim())])
    view, shape = [1] * tensor.dim(), list(tensor.shape)
    view[batch], view[dim], shape[dim] = len(index), index.shape[1], index.shape[1]
    return tensor.gather(dim, index.view(view).expand(shape))


@dataclass
class Kept:
    """What one prompt's pruning kept. `index` (B, n) are original positions, ascending; rows with
    fewer kept tokens are filled up with dropped ones, which `real` (B, n) marks False."""

    index: torch.Tensor
    real: torch.Tensor
    length: int  # of the prompt before
    next_position: torch.Tensor | None = None  # (B,): of the next token
    seen: torch.Tensor | None = None  # (B, m): positions of all keys, where a cache holds some

    def mask2d(self, after: int) -> torch.Tensor:
        """int64 (B, n + after): the padding mask once `after` tokens follow the prompt."""
        return torch.cat([self.real, self.real.new_ones(len(self.real), after)], 1).long()

    def spread(self, row: torch.Tensor) -> torch.Tensor:
        """Attention (heads, keys) of the first prompt over all its tokens, 0 on the dropped."""
        if row.shape[1] == self.length:
            return row
        return row.new_zeros(len(row), self.length).index_copy_(1, self.index[0], row)

    def shortened(self, args: tuple, kwargs: dict, masks: dict) -> tuple[tuple, dict]:
        """A decoder layer's arguments for the kept tokens; `masks` keeps what is worked out."""
        kwargs, mask = dict(kwargs), kwargs.get("attention_mask")
        hidden = args[0] if args else kwargs.pop("hidden_states")
        if hidden.shape[1] == self.length:
            hidden = take(hidden, self.index, 1)
        if id(mask) not in masks:
            masks[id(mask)] = self.mask4d(mask)
        kwargs["attention_mask"] = masks[id(mask)]
        turns = kwargs.get("position_embeddings")
        if turns is not None:
            kwargs["position_embeddings"] = tuple(
                take(x, self.index, x.dim() - 2, x.dim() - 3) for x in turns)
        kwargs["position_ids"] = self.positions(kwargs.get("position_ids"))
        return (hidden, *args[1:]), kwargs

    def positions(self, positions: torch.Tensor | None) -> torch.Tensor | None:
        """The kept tokens' entries of positions (..., B or 1, L)."""
        if positions is None:
            return None
        return take(positions, self.index, positions.dim() - 1, positions.dim() - 2)

    def mask4d(self, mask: torch.Tensor | None) -> torch.Tensor | None:
        """The kept rows and columns of an attention mask (B or 1, 1, L, L); None stays causal."""
        keys, full = self.index if self.seen is None else self.seen, bool(self.real.all())
        if mask is not None:
            mask = take(take(mask, self.index, 2), keys, 3)
        elif full and keys is self.index:
            return None
        else:
            mask = (self.index[:, :, None] >= keys[:, None])[:, None]
        if not full:  # a filled-up place is seen by itself only
            own = torch.eye(self.index.shape[1], dtype=torch.bool, device=mask.device)
            seen = self.real[:, None, None, :] | own
            mask = (mask & seen) if mask.dtype == torch.bool else mask.masked_fill(
                ~seen, torch.finfo(mask.dtype).min)
        return mask


def droppable(strategy: Strategy, rate: float, kinds: torch.Tensor, real: torch.Tensor
              ) -> tuple[torch.Tensor, int]:
    """Of one prompt: the positions (n,) that a strategy may drop, and how many of them it drops.

    As many for every strategy, as far as it can: a share `rate` of the context.
    """
    wanted = torch.zeros_like(real)
    for kind in strategy.drops:
        wanted |= kinds == kind
    candidates = (wanted & real).nonzero()[:, 0]
    context = int(((kinds == Kind.CONTEXT) & real).sum())
    return candidates, min(context - kept_count(context, rate), len(candidates))


@torch.no_grad()
def staying(strategy: Strategy, evidence: Evidence, candidates: torch.Tensor, lost: int
            ) -> torch.Tensor:
    """bool (L,) of one prompt: the best of its candidates, and all that is no candidate."""
    stays = evidence.real.clone()
    if lost:
        evidence.candidates = candidates
        stays[candidates] = False
        stays[candidates[keep(strategy.score(evidence), len(candidates) - lost)]] = True
    return stays


class ContextPruner:
    """Prune the context of every prompt that a model reads inside `with pruner(model):`.

    Args:
        rate: share of the context dropped, in [0, 1).
        strategy: a name in `strategies.STRATEGIES`.
        way: "inflight", "rerun" or "kv".
        layer: decoder layer whose attention scores, from 0; None: an eighth of the depth.
        heads: "max" or "mean" over heads. query_set: "all", "question" or "last".
        positions: "kept" or, for `rerun`, "compact".
        processor: tells context from question by its chat template; or
        context: a span (start, stop); or kinds: (B, L) of `Kind`, directly.
        evidence: bool (B, L) for the strategy `oracle`. seed: for the random strategies.

    `pruner.kept` is the last prompt's `Kept`, and `pruner.log_probs` its rows' likelihoods where
    the strategy asks for them. The model is as before on exit.
    """

    def __init__(self, rate: float, strategy: str = "received", way: str = "inflight",
                 layer: int | None = None, heads: str = "max", query_set: str = "all",
                 positions: str = "kept", processor=None, context: tuple[int, int] | None = None,
                 kinds: torch.Tensor | None = None, evidence: torch.Tensor | None = None,
                 window: int = 16, seed: int = 0):
        kept_count(1, rate)
        for name, value, known in (("way", way, WAYS), ("heads", heads, tuple(REDUCTIONS)),
                                   ("query_set", query_set, QUERY_SETS),
                                   ("positions", positions, ("kept", "compact"))):
            if value not in known:
                raise VDPError(f"unknown {name} {value!r}: choose one of {', '.join(known)}")
        if positions == "compact" and way != "rerun":
            raise VDPError(f"positions='compact' needs way='rerun': {way} keeps what it computed "
                           "at the original positions")
        if processor is None and context is None and kinds is None:
            raise VDPError("say which tokens are context: give processor=, context=(start, stop) "
                           "or kinds=")
        if context is not None and context[0] == context[1]:
            raise VDPError(f"context {context} is empty: give the span of the tokens to prune")
        self.rate, self.strategy, self.way, self.layer = rate, find_strategy(strategy), way, layer
        self.heads, self.query_set, self.positions = heads, query_set, positions
        self.processor, self.span, self.given_kinds = processor, context, kinds
        self.evidence, self.window, self.seed = evidence, window, seed
        self.kept: Kept | None = None
        self.model = None
        if "evidence" in self.strategy.needs and evidence is None:
            raise VDPError("strategy 'oracle' needs evidence=: bool (B, L), the tokens that bear "
                           "on the question")
        if "pieces" in self.strategy.needs and processor is None:
            raise VDPError(f"strategy {strategy!r} reads the words: give processor=")

    def __call__(self, model):
        """A context manager in which `model` prunes; yields this pruner."""
        return self._around(model)

    @contextlib.contextmanager
    def _around(self, model):
        decoder = decoder_of(model)
        depth = len(decoder.layers)
        layer = depth // 8 if self.layer is None else self.layer
        if not 0 <= layer < depth:
            raise VDPError(f"layer {layer} does not exist: {type(model).__name__} has layers 0 to "
                           f"{depth - 1}")
        if self.model is not None:
            raise VDPError("this ContextPruner prunes a model already: make another one")
        if getattr(decoder.forward, "__func__", None) is ContextPruner._decode_or_prefill:
            raise VDPError("this model is being pruned already: leave the other ContextPruner's "
                           "block first")
        with record(model, layers=[layer]):  # can its attention be instrumented at all?
            pass
        self._check_architecture(model, decoder, layer)
        self.model, self.decoder, self.at, self._forward = model, decoder, layer, decoder.forward
        self._names = list(inspect.signature(decoder.forward).parameters)
        self._model_names = list(inspect.signature(model.forward).parameters)
        self._kinds = self._padding = self._ids = self._cache = None
        self._dropped_any = False
        before = vars(decoder).get("forward")  # where a device map has set one
        decoder.forward = self._decode_or_prefill
        hook = model.register_forward_pre_hook(self._arrive, with_kwargs=True)
        try:
            yield self
        finally:
            hook.remove()
            del decoder.forward
            if before is not None:
                decoder.forward = before
            self.model = self._cache = None

    def _check_architecture(self, model, decoder, layer: int) -> None:
        deep = len(getattr(getattr(model.config, "vision_config", None),
                           "deepstack_visual_indexes", None) or ())
        if self.way == "inflight" and layer < deep - 1:
            raise VDPError(f"{type(model).__name__} adds image features after layers 0 to "
                           f"{deep - 1}: give layer={deep - 1} or more, or way='rerun'")

    # The prompt arrives at the model: which token is what?
    def _arrive(self, model, args, kwargs):
        kwargs = kwargs | dict(zip(self._model_names, args))
        refuse_output_attentions(model, (), kwargs)
        cache, ids = kwargs.get("past_key_values"), kwargs.get("input_ids")
        if cache is not None and cache.get_seq_length() > 0:
            if cache is not self._cache:
                raise VDPError("the cache handed in already holds tokens: prune a whole prompt, "
                               "from its first token on")
            inputs = ids if ids is not None else kwargs["inputs_embeds"]
            return (), self._continued(kwargs, inputs.shape[1])
        self._ids, self._padding = ids, kwargs.get("attention_mask")
        self._kinds = None if ids is None else self._kinds_of(ids)
        return (), kwargs

    def _kinds_of(self, ids: torch.Tensor) -> torch.Tensor:
        if self.given_kinds is not None:
            return self._fitted("kinds", self.given_kinds, ids).long()
        image = image_token_id(self.model.config)
        return token_kinds(ids, None if self.span else self.processor, image, self.span)

    @staticmethod
    def _fitted(name: str, given: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """What was given for each token, repeated for beams; VDPError for another shape."""
        batch, length = inputs.shape[:2]
        if given.dim() != 2 or given.shape[1] != length or batch % len(given):
            raise VDPError(f"{name} of shape {tuple(given.shape)} do not fit a prompt of shape "
                           f"{(batch, length)}: give one entry for each token")
        return given.to(inputs.device).repeat_interleave(batch // len(given), 0)

    def _continued(self, kwargs: dict, count: int) -> dict:
        """The arguments of a step behind the pruned cache: its mask and its next positions."""
        if not self._dropped_any:
            return kwargs
        done = self._cache.get_seq_length() - self.kept.index.shape[1]
        for layer in self._cache.layers:
            if not isinstance(layer, DynamicSlidingWindowLayer):
                continue
            reached = int(self.kept.next_position.max()) + done + count
            if reached > layer.sliding_window:
                raise VDPError(f"{type(self.model).__name__} has sliding windows of "
                               f"{layer.sliding_window} tokens, which count positions that are no "
                               f"longer there once {reached} are passed: generate fewer tokens, "
                               "or prune without a cache")
        kwargs, mask = dict(kwargs), kwargs.get("attention_mask")
        prepared = isinstance(mask, dict) or mask is not None and mask.dim() == 4
        if not prepared and not (mask is None and bool(self.kept.real.all())):
            kwargs["attention_mask"] = self.kept.mask2d(done + count)
        if kwargs.get("position_ids") is None or self.positions == "compact":
            start = self.kept.next_position + done
            kwargs["position_ids"] = start[:, None] + torch.arange(count, device=start.device)
        return kwargs

    # The decoder is called: prune a prompt, or go on behind a pruned one.
    def _decode_or_prefill(self, *args, **kwargs):
        kwargs |= dict(zip(self._names, args))
        cache = kwargs.get("past_key_values")
        if cache is not None and cache.get_seq_length() > 0:
            embeds = kwargs.get("inputs_embeds")
            count = (embeds if embeds is not None else kwargs["input_ids"]).shape[1]
            return self._forward(**self._continued(kwargs, count))
        if kwargs.get("inputs_embeds") is None:
            self._ids = kwargs.get("input_ids")
            kwargs["inputs_embeds"] = self.decoder.get_input_embeddings()(kwargs.pop("input_ids"))
        embeds = kwargs["inputs_embeds"]
        if self._kinds is None or self._kinds.shape[1] != embeds.shape[1]:
            if self.given_kinds is None:
                raise VDPError(f"{type(self.model).__name__} hands its language model "
                               f"{embeds.shape[1]} embeddings whose tokens are not known: give "
                               "kinds= (1, L), one for each")
            self._kinds = self._fitted("kinds", self.given_kinds, embeds).long()
        real = self._real(embeds, kwargs.get("attention_mask"))
        candidates, dropped = zip(*(droppable(self.strategy, self.rate, row, ok)
                                    for row, ok in zip(self._kinds, real)))
        self._dropped_any = any(dropped)
        if not self._dropped_any:
            every = torch.arange(embeds.shape[1], device=embeds.device)
            self.kept = Kept(every.expand(len(embeds), -1), real, embeds.shape[1])
            output = self._forward(**kwargs)
            self._cache = getattr(output, "past_key_values", None)
            return output
        caching = kwargs.get("use_cache")
        if caching or caching is None and getattr(self.decoder.config, "use_cache", True):
            if kwargs.get("past_key_values") is None:
                kwargs["past_key_values"] = DynamicCache(config=self.decoder.config)
            self._check_cache(kwargs["past_key_values"], embeds.shape[1])
        elif self.way == "kv":
            raise VDPError("way='kv' drops tokens from the cache: call with use_cache=True")
        self.log_probs = self._log_probs(kwargs, real) if "log_probs" in self.strategy.needs else {}
        if "evidence" in self.strategy.needs:
            self._marked = self._fitted("evidence", self.evidence, embeds)
        run = {"inflight": self._inflight, "rerun": self._rerun, "kv": self._kv}[self.way]
        output = run(kwargs, real, candidates, dropped)
        self._cache = kwargs.get("past_key_values")
        self.kept.next_position = self._next_position(kwargs, real)
        self._kinds = self._padding = self._ids = None  # they were this prompt's
        return output

    def _real(self, embeds: torch.Tensor, mask) -> torch.Tensor:
        """bool (B, L): False at padding."""
        padding = mask if self._padding is None else self._padding
        if isinstance(padding, torch.Tensor) and padding.dim() == 2:
            return padding.to(embeds.device).bool()
        return torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device)

    def _check_cache(self, cache, length: int) -> None:
        name = type(self.model).__name__
        if not isinstance(cache, DynamicCache):
            raise VDPError(f"{type(cache).__name__} has a fixed length: prune with a DynamicCache")
        for kept in cache.layers:
            if type(kept) is DynamicSlidingWindowLayer:
                if self.way != "rerun" and length >= kept.sliding_window:
                    raise VDPError(f"{name} has sliding-window layers of {kept.sliding_window} "
                                   f"tokens, whose cache lost the start of this prompt of {length} "
                                   "tokens: use way='rerun'")
            elif type(kept) is not DynamicLayer:
                raise VDPError(f"{name} has cache layers of type {type(kept).__name__}, which "
                               "cannot drop tokens")

    def _next_position(self, kwargs: dict, real: torch.Tensor) -> torch.Tensor:
        """(B,): one after the last real token's position."""
        if self.positions == "compact":
            return self.kept.real.sum(1)
        positions = kwargs.get("position_ids")
        last = real.shape[1] - 1 - real.flip(1).int().argmax(1)
        if positions is None:
            return last + 1
        text = positions if positions.dim() == 2 else positions[0]
        return text.expand(len(real), -1).gather(1, last[:, None])[:, 0] + 1

    # The three ways.
    def _inflight(self, kwargs, real, candidates, dropped):
        cache, layers, masks = kwargs.get("past_key_values"), self.decoder.layers, {}

        def shorten(module, args, layer_kwargs):
            if self.kept is None:
                self.kept = self._select(self._evidence(recording, real), candidates,
                                         dropped, real)
            return self.kept.shortened(args, layer_kwargs, masks)

        self.kept = None
        if self.at == len(layers) - 1:  # nothing runs after the scoring layer
            return self._kv(kwargs, real, candidates, dropped)
        with self._recorder(real) as recording, contextlib.ExitStack() as hooks:
            for layer in layers[self.at + 1:]:
                hooks.callback(layer.register_forward_pre_hook(shorten, with_kwargs=True).remove)
            output = self._forward(**kwargs)
        self._drop_from(cache, range(self.at + 1))
        return output

    def _rerun(self, kwargs, real, candidates, dropped):
        recording: dict = {}
        if self._attends():
            def stop(*_):
                raise _Scored

            hook = self.decoder.layers[self.at].register_forward_hook(stop)
            try:
                with self._recorder(real) as recording, torch.no_grad():
                    self._forward(**kwargs | dict(past_key_values=None, use_cache=False))
            except _Scored:
                pass
            finally:
                hook.remove()
        self.kept = self._select(self._evidence(recording, real), candidates, dropped, real)
        index, length = self.kept.index, real.shape[1]
        short = dict(kwargs, inputs_embeds=take(kwargs["inputs_embeds"], index, 1))
        mask = kwargs.get("attention_mask")
        if isinstance(mask, dict):
            short["attention_mask"] = {k: self.kept.mask4d(m) for k, m in mask.items()}
        elif mask is not None and mask.dim() == 4:
            short["attention_mask"] = self.kept.mask4d(mask)
        else:  # ones, never None: positions with gaps would be read as packed sequences
            short["attention_mask"] = self.kept.mask2d(0)
        positions = kwargs.get("position_ids")
        if self.positions == "compact":
            if positions is not None and positions.dim() == 3:
                raise VDPError(f"{type(self.model).__name__} has positions in three dimensions, "
                               "which cannot be closed up: use positions='kept'")
            short["position_ids"] = (self.kept.real.cumsum(1) - 1).clamp(min=0)
        else:
            if positions is None:
                positions = torch.arange(length, device=index.device)[None]
            short["position_ids"] = self.kept.positions(positions)
        for name, value in kwargs.items():  # anything else with one entry a token
            if name not in ("inputs_embeds", "attention_mask", "position_ids") and isinstance(
                    value, torch.Tensor) and value.shape[:2] == real.shape:
                short[name] = take(value, index, 1)
        if kwargs.get("deepstack_visual_embeds") is not None:  # one entry an image token (Qwen3-VL)
            stays = torch.zeros_like(real).scatter(1, index, self.kept.real)
            stays = stays[kwargs["visual_pos_masks"]]
            short["deepstack_visual_embeds"] = [x[stays] for x in kwargs["deepstack_visual_embeds"]]
        return self._forward(**short)

    def _kv(self, kwargs, real, candidates, dropped):
        with self._recorder(real) as recording:
            output = self._forward(**kwargs)
        self.kept = self._select(self._evidence(recording, real), candidates, dropped, real)
        self._drop_from(kwargs.get("past_key_values"), range(len(self.decoder.layers)))
        return output

    def _drop_from(self, cache, layers) -> None:
        """Leave only the kept tokens in the cache of some layers."""
        if cache is None:
            return
        for layer in (cache.layers[i] for i in layers):
            layer.keys = take(layer.keys, self.kept.index, 2).contiguous()
            layer.values = take(layer.values, self.kept.index, 2).contiguous()
        for layer in cache.layers:
            if isinstance(layer, DynamicSlidingWindowLayer):
                layer.cumulative_length = layer.keys.shape[2]

    # Scores.
    def _attends(self) -> bool:
        return bool(self.strategy.needs & {"query_set", "all", "last", "window", "states"})

    def _recorder(self, real: torch.Tensor):
        """Records what the strategy needs at the scoring layer."""
        if not self._attends():
            return contextlib.nullcontext({})
        sets = {self.query_set if need == "query_set" else need for need in self.strategy.needs}
        return record(self.model, received=sets & {"all", "question", "last", "window"},
                      states="states" in sets, layers=[self.at], kinds=self._kinds,
                      valid=None if bool(real.all()) else real, window=self.window)

    @torch.no_grad()
    def _evidence(self, recording, real):
        """One `Evidence` a row."""
        needs, found = self.strategy.needs, recording.get(self.at)
        for row in range(len(real)):
            evidence = Evidence(self._kinds[row], real[row], real[row].nonzero()[:, 0],
                                self.heads, self.query_set, self.window, self.seed)
            if found is not None:
                evidence.received = {name: x[row] for name, x in found.received.items()}
            if "states" in needs:
                evidence.queries, evidence.keys, evidence.values = (x[row] for x in found.states)
            if "pieces" in needs:
                tokenizer = getattr(self.processor, "tokenizer", self.processor)
                evidence.pieces = pieces(tokenizer, self._ids[row])
            if "evidence" in needs:
                evidence.evidence = self._marked[row]
            if "log_probs" in needs:
                evidence.log_probs, evidence.asked_log_probs = self.log_probs[row]
            yield evidence

    @torch.no_grad()
    def _log_probs(self, kwargs, real: torch.Tensor) -> list[tuple]:
        """A row: log p of its context tokens as they stand, and with the question before them."""
        if self._ids is None:
            raise VDPError(f"strategy {self.strategy.name!r} asks how likely each token is: call "
                           "with input_ids")
        hidden = self._forward(**kwargs | dict(
            past_key_values=None, use_cache=False, attention_mask=real.long())).last_hidden_state
        rows = []
        for row, ok in enumerate(real):
            order, kinds = ok.nonzero()[:, 0], self._kinds[row]
            found = [self._likelihood(hidden[row, order], row, order), None]
            context = order[kinds[order] == Kind.CONTEXT]
            if "asked_log_probs" in self.strategy.needs and len(context):
                order = torch.cat([order[order < context[0]], order[kinds[order] == Kind.QUESTION],
                                   context])
                turned = self._forward(**self._turned(kwargs, row, order)).last_hidden_state[0]
                found[1] = self._likelihood(turned, row, order)
            rows.append(tuple(found))
        return rows

    def _turned(self, kwargs, row: int, order: torch.Tensor) -> dict:
        """Decoder arguments for one row's tokens in another order, one behind the other."""
        batch = kwargs["inputs_embeds"].shape[:2]
        turned = {name: value[row, order][None] if isinstance(value, torch.Tensor)
                  and value.shape[:2] == batch else value for name, value in kwargs.items()}
        positions, start = kwargs.get("position_ids"), int(
            (self._kinds[row][order] == Kind.QUESTION).nonzero()[0])
        after = torch.arange(len(order) - start, device=order.device)
        if positions is not None:
            own = positions.expand(*positions.shape[:-2], batch[0], -1)[..., row, order[:start]]
            following = own.amax() + 1 + after if start else after
            turned["position_ids"] = torch.cat(
                [own, following.expand(*own.shape[:-1], -1)], -1).unsqueeze(-2)
        return turned | dict(past_key_values=None, use_cache=False, attention_mask=torch.ones(
            1, len(order), dtype=torch.long, device=order.device))

    def _likelihood(self, hidden, row: int, order: torch.Tensor) -> torch.Tensor:
        """log p of each context token given those before it in `order`, (L,); 0 elsewhere."""
        result = torch.zeros(self._kinds.shape[1], device=hidden.device)
        wanted = (self._kinds[row][order[1:]] == Kind.CONTEXT).nonzero()[:, 0]
        for some in wanted.split(512):  # the vocabulary is wide
            logits = self.model.get_output_embeddings()(hidden[some]).float()
            ids = self._ids[row, order[some + 1]]
            result[order[some + 1]] = logits.log_softmax(-1).gather(1, ids[:, None])[:, 0]
        return result

    def _select(self, evidence, candidates, dropped, real) -> Kept:
        """Score every row and keep the best of its candidates, and all the rest."""
        stays = torch.stack([staying(self.strategy, one, some, lost)
                             for one, some, lost in zip(evidence, candidates, dropped)])
        width = int(stays.sum(1).max())
        # kept tokens first, then fillers of shorter rows, put back in order
        index = torch.argsort(stays.int(), dim=1, descending=True, stable=True)[:, :width]
        index = index.sort(1).values
        return Kept(index, stays.gather(1, index), real.shape[1])
