"""What the benchmarks share: alternating repeats, peak memory, a wide random LVLM, its prompts.

Nothing here needs the study, so that baselines can be timed under an older transformers too.
"""

import contextlib
import ctypes
import gc
import platform
import time
from pathlib import Path

import torch
import transformers
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from vdp_utils.attention.recording import decoder_of
from vdp_utils.attention.tokens import Kind, image_token_id

DECODED = 8  # tokens timed after each prompt
IMAGE_TOKENS, QUESTION_TOKENS = 100, 16
SHAPES = {  # decoders that README and profiles/README.md reckon with, as LlamaConfig has them
    "1B (Llama 3.2)": dict(
        hidden_size=2048, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8,
        intermediate_size=8192, vocab_size=128_256, tie_word_embeddings=True),
    "3B (Qwen2.5)": dict(
        hidden_size=2048, num_hidden_layers=36, num_attention_heads=16, num_key_value_heads=2,
        intermediate_size=11_008, vocab_size=151_936, tie_word_embeddings=True),
    "7B (LLaVA-1.5)": dict(
        hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=32,
        intermediate_size=11_008, vocab_size=32_064),
    "13B (LLaVA-1.5)": dict(
        hidden_size=5120, num_hidden_layers=40, num_attention_heads=40, num_key_value_heads=40,
        intermediate_size=13_824, vocab_size=32_064)}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def alternate(repeats: int, **tasks) -> dict[str, list[float]]:
    """Seconds of each task in every round, run in turn after one warm-up each."""
    for task in tasks.values():
        task()
    seconds = {name: [] for name in tasks}
    for _ in range(repeats):
        for name, task in tasks.items():
            seconds[name].append(timed(task))
    return seconds


def timed(task) -> float:
    """Seconds that a call takes, waiting for the accelerator where there is one."""
    synchronize()
    started = time.perf_counter()
    task()
    synchronize()
    return time.perf_counter() - started


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_increase(task) -> int | None:
    """Bytes by which a call raises the peak of used memory; None where that cannot be read."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        task()
        return torch.cuda.max_memory_allocated() - before
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what was freed counts as used until it is given back
        Path("/proc/self/clear_refs").write_text("5")  # the peak restarts from what is used now
        before = _resident("VmRSS")
        task()
        return _resident("VmHWM") - before
    except (OSError, AttributeError):
        return None


def _resident(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return 1024 * int(line.split()[1])
    raise OSError(f"no {name}")


@contextlib.contextmanager
def eager_attention(model):
    """The decoder computes whole attention maps inside the block."""
    config = decoder_of(model).config
    before, config._attn_implementation = config._attn_implementation, "eager"
    try:
        yield
    finally:
        config._attn_implementation = before


def wide_lvlm(hidden: int = 1024, layers: int = 16) -> LlavaForConditionalGeneration:
    """A LLaVA of random weights, wider than the embedded one: 16 heads, 4 key-value heads."""
    torch.manual_seed(0)
    text = LlamaConfig(vocab_size=1024, hidden_size=hidden, intermediate_size=2816 * hidden // 1024,
                       num_hidden_layers=layers, num_attention_heads=16, num_key_value_heads=4,
                       max_position_embeddings=16384)
    tower = CLIPVisionConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=1,
                             num_attention_heads=2, image_size=160, patch_size=16)
    return LlavaForConditionalGeneration(LlavaConfig(
        vision_config=tower, text_config=text, image_token_index=1000)).to(DEVICE).eval()


def prompt(model, length: int) -> tuple[dict, torch.Tensor]:
    """Inputs (image, `length` context tokens, question) of random words, and their token kinds."""
    image = image_token_id(model.config)
    words = torch.Generator().manual_seed(length)
    ids = torch.randint(200, 900, (1, 2 + IMAGE_TOKENS + length + QUESTION_TOKENS + 2),
                        generator=words)
    kinds = torch.full_like(ids, int(Kind.TEMPLATE))
    at = 2
    for kind, count in ((Kind.IMAGE, IMAGE_TOKENS), (Kind.CONTEXT, length),
                        (Kind.QUESTION, QUESTION_TOKENS)):
        kinds[:, at:at + count] = int(kind)
        at += count
    ids[kinds == Kind.IMAGE] = image
    side = model.config.vision_config.image_size
    pixels = torch.randn(1, 3, side, side, generator=words)
    inputs = dict(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels)
    return {k: v.to(model.device) for k, v in inputs.items()}, kinds.to(model.device)


def expected(config, tokens: int, size: int = 2) -> dict[str, float]:
    """What a prompt of `tokens` costs a decoder of a text config, a number taking `size` bytes.

    `parameters`, the embeddings' with them, but not a vision tower's; bytes of their `weights`, of
    the prompt's `cache`, and of what prefill works with (`working`: of one layer, the activations
    of its MLP or its attention; on a CPU the peak was up to 2.3 times the two); and `flops` of
    prefill, attention counted whole as in torch.utils.flop_counter, of the logits only the last
    token's.
    """
    hidden, layers, heads = (config.hidden_size, config.num_hidden_layers,
                             config.num_attention_heads)
    width = getattr(config, "head_dim", None) or hidden // heads
    pairs = config.num_key_value_heads
    linear = layers * (2 * hidden * width * (heads + pairs) + 3 * hidden * config.intermediate_size)
    words = config.vocab_size * hidden
    parameters = linear + words * (1 if config.tie_word_embeddings else 2)
    return dict(
        parameters=parameters, weights=parameters * size,
        cache=2 * layers * pairs * width * tokens * size,
        working=tokens * size * (3 * hidden + max(3 * config.intermediate_size,
                                                  width * (4 * heads + 2 * pairs))),
        flops=2 * linear * tokens + 4 * layers * heads * width * tokens**2 + 2 * words)


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return dict(device=name, threads=str(torch.get_num_threads()), torch=torch.__version__,
                transformers=transformers.__version__)


@torch.no_grad()
def prefill_and_decode(model, inputs: dict) -> dict[str, float]:
    """Seconds to first token and per output token, and the bytes of the prompt's cache."""
    synchronize()
    started = time.perf_counter()
    output = model(**inputs, use_cache=True, logits_to_keep=1)
    synchronize()
    middle, cache = time.perf_counter(), output.past_key_values
    size = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    for _ in range(DECODED):
        output = model(input_ids=output.logits[:, -1:].argmax(-1), past_key_values=cache,
                       use_cache=True, logits_to_keep=1)
    synchronize()
    return dict(ttft_s=middle - started, tpot_s=(time.perf_counter() - middle) / DECODED,
                cache_bytes=size)
