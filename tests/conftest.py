"""Fixtures shared by the tests: small tokenizers and a tiny LVLM, all without a download."""

import os

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # a core each
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items):
    """The slowest first in either half, with which each of two processes begins.

    In the second a little later: the first has put the embedded model together by then.
    """
    slow = [item for item in items if item.path.name == "test_notebooks.py"]
    others = [item for item in items if item.path.name != "test_notebooks.py"]
    half = len(others) // 2
    later = half + len(others) // 12
    items[:] = [*slow[::2], *others[:later], *slow[1::2], *others[later:]]


@pytest.fixture(scope="session")
def make_tokenizer():
    """make_tokenizer(words=False): a tokenizer trained on a few dialogues about scenes.

    Byte-level BPE of 600 tokens, so that any text survives a round trip; with `words`, one token
    a word or sign, as unlike it as can be. The special tokens are the base model's.
    """
    import numpy as np
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from vdp_utils.sources import dialogues, scenes

    def make(words: bool = False):
        rng = np.random.default_rng(0)
        lines = [dialogues.as_text(dialogues.dialogue(scenes.compose("train", n), rng, 4))
                 for n in range(40)] + ["Yes", "No", *dialogues.POSITIONS, *dialogues.NUMBERS]
        special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"]
        if words:
            tokenizer = Tokenizer(models.WordLevel(unk_token="<|endoftext|>"))
            tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
            trainer = trainers.WordLevelTrainer(special_tokens=special)
        else:
            tokenizer = Tokenizer(models.BPE())
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            tokenizer.decoder = decoders.ByteLevel()
            trainer = trainers.BpeTrainer(
                vocab_size=600, special_tokens=special, show_progress=False,
                initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
        tokenizer.train_from_iterator(lines, trainer)
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>",
            pad_token="<|im_end|>", unk_token="<|endoftext|>",
            additional_special_tokens=["<image>"])

    return make


@pytest.fixture(scope="session")
def base_tokenizer():
    """The embedded LVLM's tokenizer, read from the base model's file (some seconds)."""
    from transformers import AutoTokenizer

    from vdp_utils.lvlm.load import base_gguf

    path = base_gguf()
    return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


@pytest.fixture(scope="session")
def tiny(make_tokenizer):
    """An LVLM made like the embedded one, tiny and with random (fixed) weights; do not change it.

    Two decoder layers, 32 wide, two heads, 600 tokens of byte-level BPE, 100 visual tokens,
    9000 positions, float32 on the CPU. Its answers mean nothing, but are the same every time.
    """
    import torch
    from transformers import (CLIPImageProcessorPil, CLIPVisionConfig, LlamaConfig, LlavaConfig,
                              LlavaForConditionalGeneration, LlavaProcessor)

    from vdp_utils.lvlm import load
    from vdp_utils.sources import scenes

    tokenizer = make_tokenizer()
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=9_000, tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id)
    tower = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        image_size=scenes.SIZE, patch_size=load.PATCH)
    config = LlavaConfig(
        vision_config=tower, text_config=text, vision_feature_layer=-1, tie_word_embeddings=True,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(scenes.SIZE // load.PATCH) ** 2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlavaForConditionalGeneration(config).eval()
    images = CLIPImageProcessorPil(
        size={"height": scenes.SIZE, "width": scenes.SIZE}, do_center_crop=False,
        image_mean=[0.5] * 3, image_std=[0.25] * 3)
    processor = LlavaProcessor(
        images, tokenizer, patch_size=load.PATCH, chat_template=load.CHAT_TEMPLATE,
        vision_feature_select_strategy="default", num_additional_image_tokens=1)
    return load.LVLM("tiny", "random", model, processor)


@pytest.fixture(scope="session")
def uneven(tiny):
    """`tiny` with four layers instead of two, and weights large enough for uneven attention."""
    import copy
    import dataclasses

    import torch

    model = copy.deepcopy(tiny.model)
    stack = model.model.language_model.layers
    for number in (2, 3):
        stack.append(copy.deepcopy(stack[number - 2]))
        stack[number].self_attn.layer_idx = number
    model.config.text_config.num_hidden_layers = 4
    with torch.no_grad():
        for weight in stack.parameters():
            weight.mul_(4 if weight.ndim > 1 else 1)
    return dataclasses.replace(tiny, model=model)
