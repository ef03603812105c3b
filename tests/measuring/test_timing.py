"""What a prompt costs, by formula: held to what small models really have and do."""

import re

import pytest
import torch
import transformers as t
from torch.utils.flop_counter import FlopCounterMode

from vdp_utils.measuring.timing import SHAPES, expected, peak_increase
from vdp_utils.paths import ROOT

def small(heads, pairs, head_dim, hidden=128, layers=4, tied=False):
    torch.manual_seed(0)
    return t.LlamaForCausalLM(t.LlamaConfig(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, vocab_size=500,
        num_key_value_heads=pairs, head_dim=head_dim, intermediate_size=3 * hidden,
        tie_word_embeddings=tied, attn_implementation="eager")).eval()


@torch.no_grad()
@pytest.mark.parametrize("shape", [dict(heads=4, pairs=4, head_dim=32),
                                   dict(heads=8, pairs=2, head_dim=16, layers=3),
                                   dict(heads=4, pairs=1, head_dim=64, tied=True)])
@pytest.mark.parametrize("tokens", [10, 300])
def test_the_formula_counts_what_a_model_does(shape, tokens):
    model, ids = small(**shape), torch.arange(tokens)[None]
    with FlopCounterMode(display=False) as counted:
        cache = model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
    found = expected(model.config, tokens, size=4)
    assert found["flops"] == pytest.approx(counted.get_total_flops(), rel=0.001)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert found["cache"] == held
    numbers = sum(weight.numel() for weight in model.parameters())
    assert found["parameters"] == pytest.approx(numbers, rel=0.01)  # but for the norms'
    assert found["weights"] == 4 * found["parameters"]


@torch.no_grad()
@pytest.mark.weekly  # other work on the machine can spoil it
def test_prefill_takes_about_the_memory_of_the_formula():
    model = small(heads=8, pairs=8, head_dim=64, hidden=512, layers=6)
    model.set_attn_implementation("sdpa")
    for tokens in (1024, 4096):
        ids = torch.randint(5, 400, (1, tokens))
        found = expected(model.config, tokens, size=4)
        model(input_ids=ids, use_cache=True, logits_to_keep=1)
        peak = peak_increase(lambda ids=ids: model(input_ids=ids, use_cache=True,
                                                   logits_to_keep=1))
        assert 0.5 < peak / (found["cache"] + found["working"]) < 3


def test_readme_s_table_says_what_the_formula_says():
    """With 576 image tokens and 76 of template and question; the mean prompt of `full` has 1523."""
    lines = [line.strip("| ").split(" | ") for line in (ROOT / "README.md").read_text().splitlines()
             if re.match(r"\| (memory after|a prompt without|`make study PROFILE=full` \(h)", line)]
    memory, seconds, hours = (cells[1:] for cells in lines)
    for number, shape in enumerate(SHAPES.values()):
        config = t.LlamaConfig(**shape)
        bare, near, far = (expected(config, 576 + 76 + length) for length in (0, 2048, 8192))
        gigabytes = [(one["weights"] + one["cache"] + one["working"]) / 1e9 for one in (near, far)]
        for said, values in ((memory[number], gigabytes), (seconds[number], [
                one["flops"] / 1e14 for one in (bare, near, far)]), (hours[number], [
                    164_000 * expected(config, 1523)["flops"] / 1e14 / 3600])):
            said = [float(one) for one in said.split(", ")]
            for one, value in zip(said, values, strict=True):
                assert one == pytest.approx(value, rel=0.05, abs=0.006), (shape, said, values)
