"""Three modes of running a prompt without some of its tokens; each gives its output and `Kept`.

`prefill` is pruning during prefill, `compress` prompt compression (score, then run the shortened
prompt), `evict` KV-cache eviction after prefill. `forward` is the decoder's own, `at` the layer
that scores.
"""

import contextlib

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from vdp_utils.attention.evidence import ALONE, Prompt
from vdp_utils.attention.kept import Kept, chosen
from vdp_utils.attention.recording import decoder_of
from vdp_utils.errors import VDPError


def prefill(model, forward, at: int, prompt: Prompt) -> tuple[object, Kept]:
    """One pass; after the scoring layer only the kept tokens go on, at their original positions.
    Afterwards the earlier layers' cache drops the same tokens, so it has one length."""
    layers, kept, masks = decoder_of(model).layers, None, {}
    if at == len(layers) - 1:  # nothing runs after the scoring layer
        return evict(model, forward, at, prompt)

    def shorten(module, args, kwargs):
        nonlocal kept
        if kept is None:
            kept = prompt.kept(recording)
        return kept.shortened(args, kwargs, masks)

    with prompt.recorder(model, at) as recording, contextlib.ExitStack() as hooks:
        for layer in layers[at + 1:]:
            hooks.enter_context(layer.register_forward_pre_hook(shorten, with_kwargs=True))
        output = forward(**prompt.kwargs)
    kept.drop_from(prompt.kwargs.get("past_key_values"), range(at + 1))
    return output, kept


def compress(model, forward, at: int, prompt: Prompt) -> tuple[object, Kept]:
    """Score with the layers up to the scoring layer, then run the shortened prompt from the start,
    at its original positions or, `prompt.compact`, closed up."""
    class Scored(Exception):
        """Ends the scoring pass after its layer."""

    def stop(*_):
        raise Scored

    kwargs, layer = prompt.kwargs, decoder_of(model).layers[at]
    with contextlib.suppress(Scored), layer.register_forward_hook(stop), \
            prompt.recorder(model, at) as recording, torch.no_grad():
        if recording is not None:
            forward(**kwargs | ALONE)
    kept = prompt.kept(recording)
    rows = torch.arange(len(kept.index), device=kept.index.device)[:, None]
    short, mask = chosen(kwargs, rows, kept.index), kwargs.get("attention_mask")
    if isinstance(mask, dict):
        short["attention_mask"] = {k: kept.mask4d(m) for k, m in mask.items()}
    elif mask is not None and mask.dim() == 4:
        short["attention_mask"] = kept.mask4d(mask)
    else:  # ones, never None: positions with gaps would be read as packed sequences
        short["attention_mask"] = kept.mask2d(0)
    if short.get("position_ids") is None:
        short["position_ids"] = kept.index
    if prompt.compact:
        short["position_ids"] = short["position_ids"] - kept.closing
    return forward(**short), kept


def evict(model, forward, at: int, prompt: Prompt) -> tuple[object, Kept]:
    """The whole prompt runs, then its dropped tokens leave the cache: only decoding is shorter."""
    with prompt.recorder(model, at) as recording:
        output = forward(**prompt.kwargs)
    kept = prompt.kept(recording)
    kept.drop_from(prompt.kwargs.get("past_key_values"), range(len(decoder_of(model).layers)))
    return output, kept


MODES = dict(prefill=prefill, compress=compress, evict=evict)


def check_architecture(model, mode: str, layer: int) -> None:
    """VDPError for a model whose image features come in after the scoring layer."""
    deep = len(getattr(getattr(model.config, "vision_config", None),
                       "deepstack_visual_indexes", None) or ())
    if mode == "prefill" and layer < deep - 1:
        raise VDPError(f"{type(model).__name__} adds image features after layers 0 to {deep - 1}: "
                       f"give layer={deep - 1} or more, or mode='compress'")


def prunable_cache(model, mode: str, prompt: Prompt):
    """The prompt's cache, made where one is wanted; VDPError for one that cannot drop tokens."""
    kwargs, config, length = prompt.kwargs, decoder_of(model).config, prompt.real.shape[1]
    cache, caching = kwargs.get("past_key_values"), kwargs.get("use_cache")
    if not (getattr(config, "use_cache", True) if caching is None else caching):
        if mode == "evict":
            raise VDPError("mode='evict' drops tokens from the cache: call with use_cache=True")
        return cache
    cache = kwargs["past_key_values"] = DynamicCache(config=config) if cache is None else cache
    if not isinstance(cache, DynamicCache):
        raise VDPError(f"{type(cache).__name__} has a fixed length: prune with a DynamicCache")
    for layer in cache.layers:
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            raise VDPError(f"{type(model).__name__} has cache layers of type "
                           f"{type(layer).__name__}, which cannot drop tokens")
        if mode != "compress" and length >= getattr(layer, "sliding_window", length + 1):
            raise VDPError(f"{type(model).__name__} has sliding-window layers of "
                           f"{layer.sliding_window} tokens, whose cache lost the start of this "
                           f"prompt of {length} tokens: use mode='compress'")
    return cache
