"""Instrumented attention: what tokens give and receive, per layer, without an L x L tensor.

`with record(model, accumulated=("all",)) as recording: model(**inputs)` runs the model under SDPA
and keeps per-layer sums. A token's accumulated attention is its column sum of
softmax(QK^T/sqrt(d)) over a set of queries (Zhou et al., arXiv 2410.19732). Where all queries
count, the attention output is taken from the same blocks of queries as the sums, so that QK^T is
computed once.
"""

import contextlib
import weakref
from dataclasses import dataclass, field
from functools import partial, wraps

import torch
from torch.nn import functional as F
from transformers import Cache, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.cache_utils import CacheLayerMixin
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from vdp_utils.attention.tokens import Kind
from vdp_utils.errors import VDPError

NAME = "vdp_recorded"  # of the attention implementation
SETS = {"all", "question", "last", "window"}  # of queries
BLOCK_BYTES = {"cpu": 8 * 2**20, "cuda": 256 * 2**20}  # of probabilities held at once
BLOCK_ROWS = {"cpu": 256}  # queries at most: longer blocks work out more that causality hides
_ACTIVE: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # attention module -> recorders
_OPEN: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # decoder -> recorders, and before
_HELD: dict = {}  # model -> how many blocks are open around it, and what the last one undoes
_EAGER = contextlib.ExitStack()  # open while any block is


@dataclass
class LayerRecord:
    """What one layer recorded in the last forward pass; fields not asked for stay empty.

    `accumulated[set]` is (B, heads, tokens): each token's attention summed over the query set, of
    all tokens read so far; 0 for those that a sliding window's cache has lost.
    `mass` is (B, heads, queries, 4): attention of the chosen queries on each token `Kind`.
    `key_norms` is (B, key-value heads, tokens), of the keys as attention sees them, NaN where lost.
    `states` are queries, keys and values as attention sees them, without the lost ones.
    """

    accumulated: dict[str, torch.Tensor] = field(default_factory=dict)
    mass: torch.Tensor | None = None
    key_norms: torch.Tensor | None = None
    states: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None


def bare(model):
    """The transformers model inside a wrapper (peft, compiled, data-parallel), whose `generate` is
    the wrapper's too; any other model itself."""
    model = getattr(model, "_orig_mod", model)  # torch.compile's
    if isinstance(model, PreTrainedModel) or not isinstance(model, torch.nn.Module):
        return model
    return next((part for part in model.modules()
                 if isinstance(part, PreTrainedModel) and part.can_generate()), model)


def decoder_of(model) -> torch.nn.Module:
    """The language model's stack of decoder layers. VDPError for a model without one."""
    model = bare(model)
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    while not hasattr(decoder, "layers") and hasattr(decoder, "model"):
        decoder = decoder.model
    decoder = getattr(decoder, "_orig_mod", decoder)
    if not hasattr(decoder, "layers") or getattr(
            getattr(model, "config", None), "is_encoder_decoder", False):
        raise VDPError(f"{type(model).__name__} has no decoder-only language model: recording and "
                       "pruning need one")
    return decoder


def attention_of(layer: torch.nn.Module, model) -> torch.nn.Module:
    """A decoder layer's attention module. VDPError where it cannot be instrumented."""
    module = getattr(layer, "self_attn", None)
    if module is None or not hasattr(module, "layer_idx") or not hasattr(module, "config"):
        raise VDPError(f"the attention of {type(model).__name__} ({type(layer).__name__}) cannot "
                       "be instrumented: it has no self_attn that calls transformers' attention "
                       "interface")
    return module


@contextlib.contextmanager
def held(model, hook, prepend: bool = False):
    """Context manager around a bare model: `hook`, a forward pre-hook with keywords, runs before
    each of its calls, and compiled code runs as it is written. The last one out undoes all."""
    if not _HELD:
        _EAGER.enter_context(torch.compiler.set_stance("force_eager"))
    blocks = _HELD.setdefault(model, [0, contextlib.ExitStack()])
    if not blocks[0]:
        _take_over(model, blocks[1])
    blocks[0] += 1
    handle = model.register_forward_pre_hook(hook, with_kwargs=True, prepend=prepend)
    try:
        yield
    finally:
        handle.remove()
        blocks[0] -= 1
        if not blocks[0]:
            _HELD.pop(model)[1].close()
        if not _HELD:
            _EAGER.close()


def _take_over(model, undo: contextlib.ExitStack) -> None:
    """Run hooks where a wrapper calls `forward` by itself; refuse what is no prompt."""
    called, plain = [], model.forward

    @wraps(plain)
    def forward(*args, **kwargs):
        if not called:
            return model(*args, **kwargs)
        called.clear()
        return plain(*args, **kwargs)

    def guess(*args, **kwargs):
        raise VDPError("assisted generation and prompt lookup read guessed tokens together with "
                       "the prompt: leave out assistant_model= and prompt_lookup_num_tokens=")

    def prefill(*args, **kwargs):
        if any(getattr(x, "prefill_chunk_size", None) for x in (*args, *kwargs.values())):
            raise VDPError("the prompt is to be read whole: leave out prefill_chunk_size=")
        return type(model)._prefill(model, *args, **kwargs)

    if decoder_of(model) is not model:
        for handle in (model.register_forward_pre_hook(lambda *_: called.append(True)),
                       model.register_forward_hook(lambda *_: called.clear(), always_call=True)):
            undo.callback(handle.remove)
        undo.enter_context(replaced(model, "forward", forward))
    undo.enter_context(replaced(model, "_get_candidate_generator", guess))
    undo.enter_context(replaced(model, "_prefill", prefill))


@contextlib.contextmanager
def replaced(module, name: str, function):
    """Context manager: a module's method is another function, and then what it was before."""
    before = vars(module).get(name)  # where a device map, say, has set one
    setattr(module, name, function)
    try:
        yield
    finally:
        delattr(module, name)
        if before is not None:
            setattr(module, name, before)


class record:
    """Context manager that records attention in chosen decoder layers of `model`.

    Args:
        accumulated: query sets over which attention is summed: "all", "question", "last", or
            "window" (the last `window` queries).
        mass: query set whose attention on each kind of token is kept, or None.
        key_norms: keep the keys' Euclidean norms.
        states: keep queries, keys and values themselves (for strategies that need them).
        layers: indices of the layers to record, None for all.
        kinds: (B, L) token kinds of the keys, needed for "question" and for `mass`.
        valid: bool (B, L), False at padding; None where nothing is padded.
        decoding: record passes of a single query after a cache too.

    The recording is a dict from layer index to `LayerRecord` of the last pass. The model is as
    before on exit, also after an exception; recorders nest.
    """

    def __init__(self, model, accumulated=(), mass: str | None = None, key_norms: bool = False,
                 states: bool = False, layers=None, kinds: torch.Tensor | None = None,
                 valid: torch.Tensor | None = None, window: int = 16, decoding: bool = False):
        self.model, self.sets = bare(model), tuple(accumulated)
        self.mass, self.key_norms = mass, key_norms
        self.states, self.kinds, self.valid = states, kinds, valid
        self.window, self.decoding = window, decoding
        unknown = {*self.sets, mass} - {*SETS, None}
        if unknown:
            raise VDPError(f"unknown query set {sorted(unknown)[0]!r}: choose all, question, last "
                           "or window")
        if mass == "all":
            raise VDPError("mass='all' would hold a row for every query: choose question, last or "
                           "window")
        if kinds is None and (mass or "question" in self.sets):
            raise VDPError("recording by token kind needs kinds=: see "
                           "vdp_utils.attention.tokens.token_kinds")
        self.decoder = decoder_of(model)
        stack = self.decoder.layers
        chosen = range(len(stack)) if layers is None else sorted(set(layers))
        if any(not 0 <= i < len(stack) for i in chosen):
            raise VDPError(f"layer {[i for i in chosen if not 0 <= i < len(stack)][0]} does not "
                           f"exist: {type(model).__name__} has layers 0 to {len(stack) - 1}")
        self.modules = {attention_of(stack[i], model): i for i in chosen}
        self.recording: dict[int, LayerRecord] = {}
        self.scratch: dict = {}
        self.cached: dict = {}  # attention module -> tokens read before this pass, and lost of them
        self.shortened = False  # the cache of this pass, by a ContextPruner
        self._blocks = contextlib.ExitStack()

    def __enter__(self) -> dict[int, LayerRecord]:
        recorders, before = _OPEN.setdefault(self.decoder, ([], {}))
        for config in [] if recorders else [module.config for module in self.modules]:
            before.setdefault(id(config), (config, config._attn_implementation_internal))
            config._attn_implementation_internal = NAME
        recorders.append(self)
        for module in self.modules:
            _ACTIVE.setdefault(module, []).append(self)
            hook = module.register_forward_pre_hook(self._look_at_cache, with_kwargs=True)
            self._blocks.callback(hook.remove)
        self._blocks.enter_context(held(self.model, refuse_unrecordable))
        return self.recording

    def __exit__(self, *exception) -> None:
        self._blocks.close()
        for module in self.modules:
            _ACTIVE[module].remove(self)
        recorders, before = _OPEN[self.decoder]
        recorders.remove(self)
        while before and not recorders:  # the last one out, in whatever order
            config, implementation = before.popitem()[1]
            config._attn_implementation_internal = implementation

    def _look_at_cache(self, module, args, kwargs) -> None:
        """Before a layer's attention: how much was read before, whatever its cache hands out. A
        cache of fixed length has places that hold nothing yet, a sliding window's loses tokens."""
        cache = next((x for x in (*args, *kwargs.values()) if isinstance(x, Cache)), None)
        layer = next(iter(getattr(cache, "layers", ())[module.layer_idx:]), None)
        self.cached.pop(module, None)
        self.shortened = getattr(cache, "vdp_shortened", False)
        if isinstance(layer, CacheLayerMixin):
            self.cached[module] = int(layer.get_seq_length()), layer.get_mask_sizes(1)[1]

    def place(self, module, count: int, keys: int) -> tuple[int, int]:
        """Of a pass of `count` queries: how many tokens were read before, and are lost of them."""
        return self.cached.get(module, (keys - count, 0))

    def known(self, read: int, lost: int, count: int, device) -> tuple:
        """Kinds and validity of the keys, the `read` tokens of which the first are `lost` and the
        last `count` ask; (B, keys) or None.

        Tokens after the prompt count as template. VDPError for a prompt of another length.
        """
        found = []
        for name, rest in (("kinds", int(Kind.TEMPLATE)), ("valid", True)):
            given = getattr(self, name)
            if given is not None:
                missing = read - given.shape[1]
                if missing and count == read or self.shortened:
                    raise VDPError(f"{name} describe {given.shape[1]} tokens, but attention meets "
                                   f"{read}: give one entry for each token. Inside a "
                                   "ContextPruner's block tokens go missing: record without it")
                given = F.pad(given.to(device), (0, missing), value=rest)[:, lost:]  # or cut
            found.append(given)
        return tuple(found)

    def queries(self, name: str, count: int, keys: int, kinds, valid, device):
        """Indices (B, Q) into the last `count` of `keys` tokens, and which of them are real."""
        if valid is None:
            valid = torch.ones(1, keys, dtype=torch.bool, device=device)
        if name == "question":
            valid = valid & (kinds == Kind.QUESTION)
        valid = valid[:, keys - count:]
        if name in ("last", "window"):
            from_end = valid.flip(1).cumsum(1).flip(1)
            valid = valid & (from_end <= (1 if name == "last" else self.window))
        wanted = int(valid.sum(1).max())
        order = torch.argsort(valid.int(), dim=1, descending=True, stable=True)[:, :wanted]
        return order, valid.gather(1, order)

    def observe(self, module, query, key, value, mask, scaling) -> torch.Tensor | None:
        """Record a pass through a layer; its output, where that comes out with the sums."""
        count, output = query.shape[2], None
        before, lost = self.place(module, count, key.shape[2])
        keys = before + count - lost
        key, value = key[:, :, :keys], value[:, :, :keys]  # a fixed cache's other places are empty
        kinds, valid = self.known(before + count, lost, count, query.device)
        found = self.recording[self.modules[module]] = LayerRecord()
        if "all" in self.sets:
            asking = None if valid is None or bool(valid.all()) else valid[:, keys - count:]
            output, found.accumulated["all"] = blocked_attention(query, key, value, mask, scaling,
                                                                 asking, self.scratch)
            output = output.transpose(1, 2).contiguous()
        for name in {*self.sets, self.mass} - {"all", None}:
            at, real = self.queries(name, count, keys, kinds, valid, query.device)
            rows = _rows(query, key, mask, at, scaling)
            rows = rows.masked_fill(~real[:, None, :, None], 0.0)
            if name in self.sets:
                found.accumulated[name] = rows.sum(2)
            if name == self.mass:
                found.mass = rows @ F.one_hot(kinds.long(), len(Kind)).float()[:, None]
        for name, sums in found.accumulated.items():
            found.accumulated[name] = F.pad(sums, (lost, 0))
        if self.key_norms:
            found.key_norms = F.pad(key.float().norm(dim=-1), (lost, 0), value=torch.nan)
        if self.states:
            found.states = query, key, value
        return output


def refuse_unrecordable(model, args, kwargs):
    """Forward pre-hook: VDPError for attention maps, which SDPA does not make, and for gradient
    checkpointing."""
    if kwargs.get("output_attentions") or getattr(model.config, "output_attentions", False):
        raise VDPError("output_attentions=True returns nothing under SDPA: read the recording "
                       "instead, or load the model with attn_implementation='eager'")
    decoder = decoder_of(model)
    if decoder.training and any(getattr(part, "gradient_checkpointing", False)
                                for part in (decoder, *decoder.layers)):
        raise VDPError("gradient checkpointing runs layers without their cache, and once more in "
                       "the backward pass, when nothing is recorded or pruned: call "
                       "model.gradient_checkpointing_disable() first, or model.eval()")


def take(tensor: torch.Tensor, index: torch.Tensor, dim: int, batch: int = 0) -> torch.Tensor:
    """Entries `index` (B or 1, n) along `dim`, row by row of the dimension `batch` (B or 1)."""
    shape = [1] * tensor.dim()
    shape[batch], shape[dim] = index.shape
    return torch.take_along_dim(tensor, index.view(shape), dim)


def _visible(mask, at: torch.Tensor, count: int, keys: int) -> torch.Tensor:
    """bool (B, 1, Q, keys): which keys the queries `at` (B, Q) see."""
    if mask is None:
        last = at + keys - count
        return (torch.arange(keys, device=at.device) <= last[..., None])[:, None]
    return take(mask[..., :keys], at, 2)


def _rows(query, key, mask, at, scaling) -> torch.Tensor:
    """Attention probabilities float32 (B, heads, Q, keys) of the queries `at` (B, Q)."""
    batch, heads, count, width = query.shape
    chosen = (take(query, at, 2) * scaling).reshape(batch * key.shape[1], -1, width)
    scores = chosen @ key.flatten(0, 1).transpose(1, 2)  # of a group at once: keys are not copied
    scores = scores.view(batch, heads, -1, key.shape[2]).float()
    return scores.masked_fill_(~_visible(mask, at, count, key.shape[2]), -torch.inf).softmax(-1)


def _room(scratch: dict, number: int, kind: torch.dtype, device) -> torch.Tensor:
    """Memory for `number` values, kept in `scratch` from call to call."""
    found = scratch.get(kind)
    if found is None or len(found) < number or found.device != device:
        scratch[kind] = found = torch.empty(number, dtype=kind, device=device)
    return found


def blocked_attention(query, key, value, mask, scaling, valid=None, scratch=None):
    """Attention output (B, heads, L, width), and accumulated attention float32 (B, heads, keys).

    Blocks of queries of about `BLOCK_BYTES` of probabilities; only the keys a block can see are
    touched. `valid` (B, L) leaves padded queries out of the sums. Blocks lie in the same
    memory, in `scratch` from call to call: fresh pages would cost as much as QK^T.
    """
    batch, heads, count, width = query.shape
    kv_heads, keys = key.shape[1], key.shape[2]
    groups, past = heads // kv_heads, keys - count
    device = query.device
    at_once = 1 if device.type == "cpu" else batch * kv_heads
    room = BLOCK_BYTES.get(device.type, BLOCK_BYTES["cuda"])
    # a multiple of 16, so that most rows of a block begin at a cache line: up to 8 % faster
    rows = max(1, room // (4 * at_once * groups * keys * 16)) * 16
    query = (query * scaling).contiguous().view(batch * kv_heads, groups, count, width)
    key, value = key.contiguous().flatten(0, 1), value.contiguous().flatten(0, 1)
    mask = None if mask is None else mask.expand(batch, -1, -1, -1)
    valid = None if valid is None else valid.expand(batch, -1)
    output = torch.empty(*query.shape[:3], value.shape[-1], dtype=query.dtype, device=device)
    accumulated = torch.zeros(batch * kv_heads, groups, keys, device=device)
    rows = min(rows, count, BLOCK_ROWS.get(device.type, rows))
    corner = torch.full((rows, rows), -torch.inf, device=device).triu(1)
    reuse = not (torch.is_grad_enabled() and (query.requires_grad or key.requires_grad))
    scratch = {} if scratch is None else scratch
    room = [_room(scratch, at_once * groups * rows * keys, kind, device)
            for kind in {query.dtype: 0, torch.float32: 0}] if reuse else []
    for head in range(0, batch * kv_heads, at_once):
        some = slice(head, head + at_once)
        rows_of = torch.arange(head, head + at_once, device=device) // kv_heads
        for start in range(0, count, rows):
            stop = min(start + rows, count)
            seen = past + stop if mask is None else keys
            n = stop - start
            block = query[some, :, start:stop].flatten(1, 2)
            flat = [part[:len(block) * groups * n * seen].view(-1, groups * n, seen)
                    for part in room] or [None]
            scores = torch.bmm(block, key[some, :seen].transpose(1, 2), out=flat[0])
            scores = scores.float().view(-1, groups, n, seen)
            if mask is None:
                scores[..., past + start:] += corner[:n, :n]
            else:
                hidden = ~mask[rows_of, :, start:stop, :keys]  # (heads, 1, n, keys)
                scores = scores.masked_fill(hidden, -torch.inf)
            chances = torch.softmax(
                scores, -1, out=flat[-1].view(scores.shape) if reuse else None)
            if mask is not None:  # a padded query may see nothing
                chances = chances.masked_fill(hidden.all(-1, keepdim=True), 0.0)
            if valid is None:
                accumulated[some, :, :seen] += chances.sum(2)
            else:
                weight = valid[rows_of, start:stop].float()
                accumulated[some, :, :seen] += torch.einsum("hgnk,hn->hgk", chances, weight)
            mixed = torch.bmm(chances.flatten(1, 2).to(value.dtype), value[some, :seen])
            output[some, :, start:stop] = mixed.view(-1, groups, n, value.shape[-1])
    return (output.view(batch, heads, count, -1), accumulated.view(batch, heads, keys))


def visible(mask: torch.Tensor) -> torch.Tensor:
    """bool: where an attention mask, boolean or additive, lets a query see a key."""
    return mask if mask.dtype == torch.bool else mask >= 0


def _attention(module, query, key, value, attention_mask, dropout=0.0, scaling=None, **kwargs):
    recorders = [r for r in _ACTIVE.get(module, ())
                 if r.decoding or query.shape[2] > 1
                 or not r.place(module, query.shape[2], key.shape[2])[0]]
    plain = partial(sdpa_attention_forward, module, query, key, value, attention_mask,
                    dropout=dropout, **kwargs)
    if not recorders:
        return plain(scaling=scaling)
    for name in ("softcap", "position_bias", "s_aux"):
        if kwargs.get(name) is not None:
            raise VDPError(f"attention with {name} cannot be recorded")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    mask = None if attention_mask is None else visible(attention_mask)
    if mask is None and not kwargs.get("is_causal", getattr(module, "is_causal", True)):
        mask = torch.ones(1, 1, query.shape[2], key.shape[2], dtype=torch.bool, device=query.device)
    outputs = [r.observe(module, query, key, value, mask, scaling) for r in recorders]
    outputs = [output for output in outputs if output is not None]
    return (outputs[-1], None) if outputs else plain(scaling=scaling)


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)  # without it the padding mask would be None
