"""The budget, which tokens stay, and how a model goes on with what is left of its tensors."""

import itertools
import math
from dataclasses import dataclass

import torch
from transformers.cache_utils import DynamicCache, DynamicSlidingWindowLayer

from vdp_utils.attention.recording import take
from vdp_utils.attention.strategies import Evidence, Strategy
from vdp_utils.errors import VDPError


def kept_count(candidates: int, rate: float) -> int:
    """How many of `candidates` tokens a rate keeps: ceil((1 - rate) n), the same for all."""
    if not 0 <= rate < 1:
        raise VDPError(f"rate {rate}: give a share of the context in [0, 1)")
    return candidates - math.floor(rate * candidates + 1e-9)


def keep(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Indices of the `count` highest scores, ascending; of equal scores the earlier are kept."""
    if not bool(torch.isfinite(scores).all()):
        raise VDPError("the importance scores hold NaN or infinity: check the model's attention "
                       "(a half-precision overflow?) or load it in float32")
    return torch.argsort(scores, descending=True, stable=True)[:count].sort().values


def droppable(strategy: Strategy, rate: float, kinds: torch.Tensor, real: torch.Tensor
              ) -> tuple[torch.Tensor, int]:
    """Of one prompt: the positions (n,) that a strategy may drop, and how many of them it drops:
    a share `rate`, so that all strategies that drop context drop equally many."""
    wanted = torch.zeros_like(real)
    for kind in strategy.drops:
        wanted |= kinds == kind
    candidates = (wanted & real).nonzero()[:, 0]
    return candidates, len(candidates) - kept_count(len(candidates), rate)


@torch.no_grad()
def staying(strategy: Strategy, evidence: Evidence, candidates: torch.Tensor, lost: int
            ) -> torch.Tensor:
    """bool (L,) of one prompt: the best of its candidates, and all that is no candidate."""
    stays = evidence.real.clone()
    if lost:
        evidence.candidates, evidence.count = candidates, len(candidates) - lost
        stays[candidates] = False
        stays[candidates[keep(strategy.score(evidence), evidence.count)]] = True
    return stays


def chosen(kwargs: dict, rows: torch.Tensor, index: torch.Tensor) -> dict:
    """A decoder's arguments, but for its mask, for the tokens `index` (b, n) of `rows` (b, 1)."""
    batch = kwargs["inputs_embeds"].shape[:2]
    short = {name: value[rows, index] if isinstance(value, torch.Tensor)
             and value.shape[:2] == batch else value for name, value in kwargs.items()}
    positions = kwargs.get("position_ids")
    if positions is not None:  # (..., B or 1, L)
        every = positions.expand(*positions.shape[:-2], batch[0], -1)
        short["position_ids"] = every[..., rows, index]
    if kwargs.get("deepstack_visual_embeds") is not None:  # one entry an image token (Qwen3-VL)
        number = kwargs["visual_pos_masks"].flatten().cumsum(0).view(batch)[rows, index] - 1
        number = number[short["visual_pos_masks"]]
        short["deepstack_visual_embeds"] = [x[number] for x in kwargs["deepstack_visual_embeds"]]
    return short


@dataclass
class Kept:
    """What one prompt's pruning kept. `index` (B, n) are original positions, ascending; rows with
    fewer kept tokens are filled up with dropped ones, which `real` (B, n) marks False."""

    index: torch.Tensor
    real: torch.Tensor
    length: int  # of the prompt before
    next_position: torch.Tensor | None = None  # (B,): of the next token, where any was dropped
    seen: torch.Tensor | None = None  # (B, m): positions of all keys, where a cache holds some
    closing: torch.Tensor | None = None  # (B, n): by how much each closes up, where they do

    @classmethod
    def where(cls, stays: torch.Tensor) -> "Kept":
        """What stays of every row: bool (B, L)."""
        width = int(stays.sum(1).max())
        # kept tokens first, then fillers of shorter rows, put back in order
        index = torch.argsort(stays.int(), dim=1, descending=True, stable=True)[:, :width]
        index = index.sort(1).values
        return cls(index, stays.gather(1, index), stays.shape[1])

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
        positions = kwargs.get("position_ids")
        if positions is not None:
            kwargs["position_ids"] = take(positions, self.index, positions.dim() - 1,
                                          positions.dim() - 2)
        return (hidden, *args[1:]), kwargs

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

    def drop_from(self, cache, layers) -> None:
        """Leave only the kept tokens in these layers of a cache, if there is one."""
        for layer in (cache.layers[i] for i in layers) if cache is not None else ():
            layer.keys = take(layer.keys, self.index, 2).contiguous()
            layer.values = take(layer.values, self.index, 2).contiguous()
            if isinstance(layer, DynamicSlidingWindowLayer):
                layer.cumulative_length = layer.keys.shape[2]


class Bound(DynamicCache):
    """A cache that goes on only inside its blocks, which know the positions of what comes next."""

    numbers, open = itertools.count(), set()  # of blocks

    @classmethod
    def bind(cls, cache, block: int) -> None:
        """From now on a cache, and its copies, go on inside a block only."""
        if type(cache) in (DynamicCache, cls):
            cache.__class__, cache.blocks = cls, {*getattr(cache, "blocks", ()), block}

    def update(self, *args, **kwargs):
        if not self.blocks <= self.open:
            raise VDPError("this cache was filled inside a ContextPruner's or a Placement's block, "
                           "which alone knows the positions of what comes next: go on inside it")
        return super().update(*args, **kwargs)


@dataclass(frozen=True)
class Continuation:
    """A prompt's cache, and how the model goes on after it."""

    model: torch.nn.Module
    cache: object
    kept: Kept
    compact: bool

    def unread(self, wanted: int | None) -> int | None:
        """How many tokens of a conversation, told up to now, are new, where `generate` reckons
        `wanted` by the cache's length."""
        if wanted is None or self.kept.next_position is None:
            return wanted
        wanted -= self.kept.length - self.kept.index.shape[1]
        if wanted <= 0:
            raise VDPError("the input ends before what the cache has read: give the conversation "
                           "from its first token on, or new tokens with a mask of all of it")
        return wanted

    def continued(self, kwargs: dict, told: torch.Tensor | None = None) -> dict:
        """The arguments of a step after the cache: its mask and its next positions. `told` is the
        padding mask that the model was called with, where these arguments have it prepared."""
        if self.kept.next_position is None:  # nothing was dropped
            return kwargs
        inputs = kwargs.get("input_ids")
        count = (kwargs["inputs_embeds"] if inputs is None else inputs).shape[1]
        done = self.cache.get_seq_length() - self.kept.index.shape[1]
        reached = int(self.kept.next_position.max()) + done + count
        for layer in self.cache.layers:
            if isinstance(layer, DynamicSlidingWindowLayer) and reached > layer.sliding_window:
                raise VDPError(f"{type(self.model).__name__} has sliding windows of "
                               f"{layer.sliding_window} tokens, which count positions that are no "
                               f"longer there once {reached} are passed: generate fewer tokens, "
                               "or prune without a cache")
        kwargs, mask = dict(kwargs), kwargs.get("attention_mask")
        prepared = isinstance(mask, dict) or mask is not None and mask.dim() == 4
        known, after = self.kept.mask2d(done + count), done + count
        told = told if prepared else mask
        if isinstance(told, torch.Tensor) and told.dim() == 2 and told.shape[1] >= after:
            known[:, -after:] = told[:, -after:]  # later turns of a batch are padded too
        if not prepared and not (mask is None and bool(self.kept.real.all())):
            kwargs["attention_mask"] = known
        if kwargs.get("position_ids") is None or self.compact:
            steps = known[:, -after:].cumsum(1)[:, -count:] - 1
            kwargs["position_ids"] = self.kept.next_position[:, None] + steps
        return kwargs
