"""Where tokens stand: other position ids for the same tokens, in the same order, and seen alike.

`with Placement("near", processor=processor)(model): model.generate(**inputs)`. With rotary
positions a long context does two things at once: it puts text between image and question, and it
moves the image away. Placements part the two; the causal mask stays that of the tokens' order. To
add one, write one function with `@placement`, from `Places` to how far each token moves.
"""

import contextlib
import weakref
from dataclasses import dataclass

import torch

from vdp_utils.attention.evidence import known_tokens, named
from vdp_utils.attention.kept import Bound
from vdp_utils.attention.recording import bare, decoder_of, held
from vdp_utils.attention.tokens import QUESTIONS, Kind
from vdp_utils.errors import VDPError


@dataclass(frozen=True)
class Places:
    """One prompt of L tokens without its padding, and behind it one more: what comes next."""

    kinds: torch.Tensor  # (L + 1,), the last QUESTION: a prompt may end before its question
    positions: torch.Tensor  # (L + 1,) as the model has them; one axis of a grid's three
    length: int | None
    images: str

    @property
    def asked(self) -> torch.Tensor:
        """bool (L + 1,): from the first token of the question on."""
        return (self.kinds == Kind.QUESTION).cumsum(0) > 0


PLACEMENTS: dict[str, callable] = {}
TO_A_LENGTH, IMAGES = ("squeezed", "gap"), ("all", "last")
_PLACED: weakref.WeakSet = weakref.WeakSet()  # decoders whose tokens are being placed


def placement(function):
    """Register a function `Places -> (L + 1,)`, how many positions each token moves on."""
    PLACEMENTS[function.__name__] = function
    return function


@placement
def plain(p: Places):
    """Nothing moves: the model as it is."""
    return torch.zeros_like(p.positions)


@placement
def gap(p: Places):
    """The question and all after it move on by `length`: a distance without text."""
    return p.asked * p.length


@placement
def squeezed(p: Places):
    """A context of more than `length` tokens shares that many positions, in order, as Self-Extend
    groups them (Jin et al., arXiv 2401.01325); what follows closes up."""
    context = (p.kinds == Kind.CONTEXT).long()
    before = context.cumsum(0) - context
    count = int(before[-1])
    return before * min(p.length, count) // max(count, 1) - before


@placement
def near(p: Places):
    """Images, each with what stands between it and the next context, move up to just before the
    question; the context before the question closes up to the opening. A grid moves as a block.

    `images` is "all", in their order, or "last": of images that nothing but template parts, all.
    """
    place = torch.arange(len(p.kinds), device=p.kinds.device)
    image, context = (torch.where(p.kinds == kind, place, -1).cummax(0).values
                      for kind in (Kind.IMAGE, Kind.CONTEXT))
    moves = (image > context) & ~p.asked
    if p.images == "last" and bool(moves.any()):
        moves &= context == context[moves.nonzero()[-1]]
    widths = torch.cat([p.positions.diff(), p.positions.new_zeros(1)])
    moved, others = widths * moves, widths * ~(moves | p.asked)
    on, back = others.sum() - others.cumsum(0), moved.cumsum(0) - moved
    return torch.where(moves, on, -back).masked_fill(p.asked, 0)


class Placement:
    """Give the tokens of every prompt that a model reads inside `with placement(model):` places.

    Args:
        kind: a name in `PLACEMENTS`: "plain", "near", "squeezed" or "gap".
        length: positions that "squeezed" leaves to the context, or that "gap" adds.
        images: which ones "near" moves: "all" or "last".
        processor: tells context from question by its chat template, and `question` by which rule
            (`tokens.token_kinds`): "found", "turn" or "line"; or
        context: a span (start, stop); or kinds: (B, L) of `Kind`, directly.

    What comes behind a prompt goes on from its highest position. A prompt's own position_ids are
    taken for the model's; behind it others than the model's are refused. A prefix read inside the
    block may be continued there (its question may come later), a cache filled elsewhere not: its
    positions are fixed. Goes with `record` and `ContextPruner`, which score and keep tokens at
    these places. The model is as before on exit.
    """

    def __init__(self, kind: str, length: int | None = None, images: str = "all", processor=None,
                 context: tuple[int, int] | None = None, kinds: torch.Tensor | None = None,
                 question: str = "found"):
        for name, value, known in (("placement", kind, PLACEMENTS), ("images", images, IMAGES),
                                   ("question", question, QUESTIONS)):
            if value not in known:
                raise VDPError(f"unknown {name} {value!r}: choose one of {', '.join(known)}")
        if (kind in TO_A_LENGTH) != (length is not None) or length is not None and length < 1:
            raise VDPError(f"length={length} does not go with placement {kind!r}: give a number "
                           f"of positions from 1 on to {' or '.join(TO_A_LENGTH)}, and to no other")
        if kind != "plain" and processor is None and context is None and kinds is None:
            raise VDPError("say which tokens are context: give processor=, context=(start, stop) "
                           "or kinds=")
        self.kind, self.length, self.images = kind, length, images
        self.told = dict(kinds=kinds, processor=processor, context=context, question=question)
        self.model = None

    def __call__(self, model):
        """A context manager in which the tokens of `model` are placed so; yields this placement."""
        return self._around(model)

    @contextlib.contextmanager
    def _around(self, model):
        model = bare(model)
        check_positions(model)
        decoder = decoder_of(model)
        if self.model is not None or decoder in _PLACED:
            raise VDPError("placements do not nest: leave the other Placement's block first")
        self.model, self._arrived, self._reached, self._block = model, {}, None, next(Bound.numbers)
        with contextlib.ExitStack() as hooks:
            _PLACED.add(decoder)
            hooks.callback(_PLACED.discard, decoder)
            hooks.callback(setattr, self, "model", None)
            Bound.open.add(self._block)
            hooks.callback(Bound.open.discard, self._block)
            if self.kind != "plain":
                # first of all hooks: a ContextPruner's sets positions that are placed already
                hooks.enter_context(held(model, self._arrive, prepend=True))
                hooks.enter_context(decoder.register_forward_pre_hook(
                    self._place, with_kwargs=True))
                hooks.enter_context(decoder.register_forward_hook(self._leave))
            yield self

    def _arrive(self, model, args, kwargs):
        """The model is called: with a prompt, or with a step behind one."""
        self._arrived = kwargs = named(model.forward, args, kwargs)
        cache, given = kwargs.get("past_key_values"), kwargs.get("position_ids")
        if _holds_tokens(cache) and given is not None:
            wanted = self._behind(cache, given.shape[-1])[0]
            axis = given if given.dim() == 2 else given[-1]
            if not bool((axis == wanted).all()):
                raise VDPError("tokens behind a prompt go on from its highest position: leave out "
                               "position_ids, or give them to the prompt")

    def _place(self, decoder, args, kwargs):
        """The decoder is called: set the positions of a prompt, or of what comes behind one."""
        kwargs = named(type(decoder).forward.__get__(decoder), args, kwargs)
        arrived, self._arrived, self._reached = self._arrived, {}, None
        if _holds_tokens(cache := kwargs.get("past_key_values")):
            ids = kwargs.get("input_ids")
            count = (kwargs["inputs_embeds"] if ids is None else ids).shape[1]
            return (), kwargs | dict(position_ids=self._behind(cache, count)[1])
        _, kinds, real = known_tokens(self.model, arrived, kwargs, **self.told)
        positions = kwargs.get("position_ids")
        if positions is None:
            positions = torch.arange(real.shape[1], device=real.device)[None]
        positions = positions.expand(*positions.shape[:-2], *real.shape).clone()
        # of four axes the first counts tokens and is not rotary (Qwen-VL, generating)
        turning = positions if positions.dim() == 2 else positions[-3:]
        ends = [self._move(row, *rest) for row, *rest in zip(turning.movedim(-2, 0), kinds, real)]
        self._reached = [torch.stack(x) for x in zip(*ends)]
        placed = dict(position_ids=positions)
        if kwargs.get("attention_mask") is None:  # gaps would be read as packed sequences
            placed["attention_mask"] = torch.ones_like(kinds)
        return (), kwargs | placed

    def _move(self, positions, kinds, real):
        """Move one row's positions (L,) or (3, L) in place; the next one before and after."""
        at = real.nonzero()[:, 0]
        mine = positions[..., at]
        own = torch.cat([mine.view(-1, len(at))[-1], mine.max()[None] + 1])
        kinds = torch.cat([kinds[at], kinds.new_full((1,), int(Kind.QUESTION))])
        by = PLACEMENTS[self.kind](Places(kinds, own, self.length, self.images))
        positions[..., at] = mine + by[:-1]
        return own[-1], own[-1] + by[-1]

    def _leave(self, decoder, args, output):
        """The decoder has read a prompt: note on its cache, for copies too, where it ends."""
        cache = getattr(output, "past_key_values", None)
        if self._reached is not None and cache is not None:
            cache.vdp_placed = self._block, int(cache.get_seq_length()), *self._reached
            if not torch.equal(*self._reached):
                Bound.bind(cache, self._block)
        self._reached = None

    def _behind(self, cache, count: int) -> list[torch.Tensor]:
        """The positions of `count` tokens behind a cache, as the model has them and as placed."""
        block, length, *starts = getattr(cache, "vdp_placed", (None, None))
        if block != self._block:
            raise VDPError("the cache handed in was filled outside this block: its positions are "
                           "fixed. Read the prompt inside the block, from its first token on")
        done = int(cache.get_seq_length()) - length  # of a fixed cache it is a tensor that grows
        return [(start + done)[:, None] + torch.arange(count, device=start.device)
                for start in starts]


def _holds_tokens(cache) -> bool:
    return cache is not None and cache.get_seq_length() > 0


def check_positions(model) -> None:
    """VDPError for a model whose positions cannot be moved: not rotary, or read as packing."""
    config, name = getattr(model, "config", None), type(model).__name__
    if config is None or config.is_encoder_decoder:
        return  # no decoder to place tokens in
    config = config.get_text_config()
    if config.model_type == "bloom" or any(
            getattr(one, "alibi", False) for one in (config, getattr(config, "attn_config", None))):
        raise VDPError(f"{name} has ALiBi: its distances count tokens, whatever position ids say. "
                       "Placements need rotary positions")
    if not any("rotary" in type(module).__name__.lower() for module in model.modules()):
        raise VDPError(f"{name} has learned positions, each by itself: moving them says nothing of "
                       "distance. Placements need rotary positions")
    if "flash" in (config._attn_implementation or ""):
        raise VDPError(f"{name} runs under {config._attn_implementation}, which reads gaps in the "
                       "positions as packed sequences: load it with attention='sdpa'")
