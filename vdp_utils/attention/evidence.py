"""What a strategy needs to know of a prompt: words, marks and likelihoods, and what is recorded."""

import contextlib
import inspect
from dataclasses import dataclass

import torch

from vdp_utils.attention.kept import Kept, chosen, staying
from vdp_utils.attention.recording import SETS, record, take, visible
from vdp_utils.attention.strategies import Evidence, Strategy
from vdp_utils.attention.tokens import Kind, pieces, token_kinds, visual_token_ids
from vdp_utils.errors import VDPError

ALONE = dict(past_key_values=None, use_cache=False)  # a pass that leaves no trace


@dataclass
class Prompt:
    """One prompt of B rows and L tokens as it reaches the decoder, and what is known of it."""

    kwargs: dict  # the decoder's arguments, inputs_embeds (B, L, width) among them
    ids: torch.Tensor | None  # (B, L)
    kinds: torch.Tensor  # (B, L)
    real: torch.Tensor  # bool (B, L), False at padding
    strategy: Strategy
    rows: list[Evidence]
    lost: list[int]  # how many tokens of each row go
    compact: bool  # whether the others close up

    def read(self, processor, marks: torch.Tensor | None) -> None:
        """The tokens' texts, and `marks` (b, L) of what bears on the question, where needed."""
        if "pieces" in self.strategy.needs:
            for one, ids in zip(self.rows, self.ids):
                one.pieces = pieces(getattr(processor, "tokenizer", processor), ids)
        if "evidence" in self.strategy.needs:
            for one, marked in zip(self.rows, fitted("evidence", marks, self.real)):
                one.evidence = marked

    def recorder(self, model, layer: int):
        """Records what the strategy needs of a layer; gives None where it needs nothing."""
        one, needs = self.rows[0], self.strategy.needs
        sets = {one.query_set if need == "query_set" else need for need in needs} & SETS
        if not sets and "states" not in needs:
            return contextlib.nullcontext()
        return record(model, accumulated=sets, states="states" in needs, layers=[layer],
                      kinds=self.kinds, window=one.window,
                      valid=None if bool(self.real.all()) else self.real)

    def kept(self, recording: dict | None) -> Kept:
        """Score every row and keep the best of its candidates, and all the rest."""
        for found in (recording or {}).values():
            for row, one in enumerate(self.rows):
                one.recorded(found, row)
        stays = torch.stack([staying(self.strategy, one, one.candidates, lost)
                             for one, lost in zip(self.rows, self.lost)])
        kept, positions = Kept.where(stays), self.kwargs.get("position_ids")
        if positions is None:
            positions = torch.arange(self.real.shape[1], device=stays.device)[None]
        text = (positions if positions.dim() == 2 else positions[-1]).expand_as(stays)
        last = self.real.shape[1] - 1 - self.real.flip(1).int().argmax(1)
        kept.next_position = take(text, last[:, None], 1)[:, 0] + 1
        if self.compact:
            self._check_compact(text, stays, positions.dim() == 3)
            gone = text.masked_fill(stays | ~self.real, torch.iinfo(text.dtype).max).sort(1).values
            kept.closing = torch.searchsorted(gone, take(text, kept.index, 1))
            kept.next_position -= (self.real & ~stays).sum(1)
        return kept

    def _check_compact(self, text: torch.Tensor, stays: torch.Tensor, grids: bool) -> None:
        """VDPError where positions cannot close up: an image's grid has no one line of them."""
        context = self.real & (self.kinds == Kind.CONTEXT)
        if grids and bool((self.real & ~stays & ~context).any()):
            raise VDPError(f"strategy {self.strategy.name!r} drops image tokens, whose positions "
                           "in three dimensions cannot be closed up: use positions='kept'")
        if any(len(row[some].unique()) < int(some.sum()) for row, some in zip(text, context)):
            raise VDPError("context tokens share positions, as Placement('squeezed') lets them, "
                           "and so cannot be closed up: use positions='kept'")


def named(function, args: tuple, kwargs: dict) -> dict:
    """All arguments of a call by name."""
    return kwargs | dict(zip(inspect.signature(function).parameters, args)) if args else kwargs


def known_tokens(model, arrived: dict, kwargs: dict, kinds=None, processor=None, context=None,
                 question="found"):
    """What is known of a prompt's tokens: ids or None, kinds and whether real, (B, L) each.

    `arrived` are the model's arguments, `kwargs` the decoder's, inputs_embeds among them; the rest
    is as `ContextPruner` takes it. VDPError where kinds cannot be told.
    """
    ids, mask, embeds = arrived.get("input_ids"), arrived.get("attention_mask"), kwargs.get(
        "inputs_embeds")
    if embeds is None:
        embeds = ids = kwargs["input_ids"]
    mask = kwargs.get("attention_mask") if mask is None else mask
    if kinds is not None:
        kinds = fitted("kinds", kinds, embeds).long()
    elif ids is not None and ids.shape[1] == embeds.shape[1]:
        kinds = token_kinds(ids, None if context else processor, visual_token_ids(model.config),
                            context, question)
    else:
        raise VDPError(f"{type(model).__name__} hands its language model {embeds.shape[1]} "
                       "embeddings whose tokens are not known: give kinds= (1, L), one for each")
    real = torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
    if isinstance(mask, dict):  # prepared, a mask for each sort of layer
        mask = next((one for one in mask.values() if one is not None), None)
    if isinstance(mask, torch.Tensor) and mask.dim() == 4:  # a token that is real sees itself
        mask = visible(mask)[:, 0].diagonal(dim1=1, dim2=2)
    if isinstance(mask, torch.Tensor):
        real = mask.to(embeds.device).bool().expand_as(real)
    return ids, kinds, real


def fitted(name: str, given: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """What was given for each token, repeated for beams; VDPError for another shape."""
    batch, length = inputs.shape[:2]
    if given.dim() != 2 or given.shape[1] != length or batch % len(given):
        raise VDPError(f"{name} of shape {tuple(given.shape)} do not fit a prompt of shape "
                       f"{(batch, length)}: give one entry for each token")
    return given.to(inputs.device).repeat_interleave(batch // len(given), 0)


@torch.no_grad()
def likelihoods(prompt: Prompt, model, forward) -> list[tuple]:
    """Each row's (log_probs, asked_log_probs), as its `Evidence` has them from here on; [] for a
    strategy that needs none. `forward` is the decoder's. VDPError for a prompt without ids."""
    name, needs = prompt.strategy.name, prompt.strategy.needs
    if "log_probs" not in needs:
        return []
    if prompt.ids is None:
        raise VDPError(f"strategy {name!r} asks how likely each token is: call with input_ids")
    plain = prompt.kwargs | ALONE | dict(attention_mask=prompt.real.long())
    head, hidden = model.get_output_embeddings(), forward(**plain).last_hidden_state
    for row, (one, ids) in enumerate(zip(prompt.rows, prompt.ids)):
        order = one.real.nonzero()[:, 0]
        one.log_probs = _log_probs(head, hidden[row, order], one, ids, order)
        context = order[one.kinds[order] == Kind.CONTEXT]
        if "asked_log_probs" in needs and len(context):
            before, question = order[order < context[0]], order[one.kinds[order] == Kind.QUESTION]
            if not len(question):
                raise VDPError(f"strategy {name!r} puts the question first: the prompt has none")
            order = torch.cat([before, question, context])
            turned = forward(**_turned(prompt.kwargs, row, order, len(before)))
            one.asked_log_probs = _log_probs(head, turned.last_hidden_state[0], one, ids, order)
    return [(one.log_probs, one.asked_log_probs) for one in prompt.rows]


def _turned(kwargs: dict, row: int, order: torch.Tensor, start: int) -> dict:
    """Decoder arguments for a row's tokens in another order, from `start` on one by one."""
    turned = chosen(kwargs, order.new_tensor([[row]]), order[None])
    positions = turned.get("position_ids")
    if positions is not None:
        after = torch.arange(len(order) - start, device=order.device)
        positions[..., start:] = after + (positions[..., :start].amax() + 1 if start else 0)
    return turned | ALONE | dict(attention_mask=torch.ones_like(order)[None])


def _log_probs(head, hidden: torch.Tensor, one: Evidence, ids: torch.Tensor, order: torch.Tensor
               ) -> torch.Tensor:
    """log p of each context token given those before it in `order`, (L,); 0 elsewhere."""
    result = torch.zeros(len(ids), device=hidden.device)
    wanted = (one.kinds[order[1:]] == Kind.CONTEXT).nonzero()[:, 0]
    for some in wanted.split(512):  # the vocabulary is wide
        at, log_p = order[some + 1], head(hidden[some]).float().log_softmax(-1)
        result[at] = log_p.gather(1, ids[at][:, None])[:, 0]
    return result
