"""Several samples at once: the rows of one by one, whatever the model, and less reading."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import own_models
import pytest
import torch
from architectures import BUILDERS, build, louder
from architectures import prompt as inputs_of

from vdp_utils.attention.tokens import Kind
from vdp_utils.errors import VDPError
from vdp_utils.lvlm import prompts
from vdp_utils.lvlm.load import load_lvlm
from vdp_utils.lvlm.prompts import Prompt
from vdp_utils.measuring import measure as measuring
from vdp_utils.measuring.measure import condition, measure, presence_conditions
from vdp_utils.measuring.scoring import cuttable, prefill, start
from vdp_utils.measuring.store import ResultStore
from vdp_utils.sources import open_source
from vdp_utils.sources.samples import presence_samples, question_samples

ROOM = 100_000  # tokens


@pytest.fixture(scope="module")
def lvlm(tiny):
    return louder(tiny)


@pytest.fixture
def passes(lvlm):
    """(rows, tokens) that the model was given, one a forward pass."""
    calls = []
    handle = lvlm.model.register_forward_pre_hook(
        lambda module, args, inputs: calls.append(tuple(inputs["input_ids"].shape)),
        with_kwargs=True)
    yield calls
    handle.remove()


def rows(lvlm, samples, conditions, folder, room):
    return measure(lvlm, samples, conditions, ResultStore(folder), "F", room=room)


def assert_alike(found, wanted):
    numbers = ["log_likelihoods", "margin", "attention", "head_image", "seconds"]
    assert found.drop(columns=numbers).equals(wanted.drop(columns=numbers))
    for column, most in (("log_likelihoods", 1e-4), ("attention", 1e-3), ("head_image", 1e-3)):
        for one, other in zip(found[column], wanted[column], strict=True):
            np.testing.assert_allclose(np.float64(one), np.float64(other), atol=most, rtol=0)


SAMPLES = {"presence": lambda: presence_samples("evaluation", 4, pairs=2),
           "position": lambda: question_samples("evaluation", 3, "position")}


@pytest.fixture(scope="module", params=SAMPLES)
def one_by_one(lvlm, tmp_path_factory, request):
    """Samples, the latter's answers of several tokens, conditions, and their rows."""
    samples, images = SAMPLES[request.param](), ("own", "none", "text", "text_middle")
    images = images if request.param == "presence" else images[:1]
    conditions = presence_conditions(lvlm, ("misleading",), (0, 60), images)
    return samples, conditions, rows(lvlm, samples, conditions, tmp_path_factory.mktemp("x"), 0)


@pytest.mark.parametrize("room", [2, 700, ROOM])
def test_rows_are_those_of_one_by_one(lvlm, one_by_one, tmp_path, room):
    samples, conditions, wanted = one_by_one
    assert_alike(rows(lvlm, samples, conditions, tmp_path, room), wanted)
    assert len({tuple(one) for one in wanted["log_likelihoods"]}) > len(wanted) / 2


def test_what_a_prompt_begins_with_is_read_once_for_all_conditions(lvlm, tmp_path, passes):
    samples = presence_samples("evaluation", 4, pairs=2)
    conditions = presence_conditions(lvlm, ("same_image", "misleading"), (0, 50))
    rows(lvlm, samples, conditions, tmp_path / "alone", 0)
    alone = sum(count * length for count, length in passes)
    passes.clear()
    rows(lvlm, samples, conditions, tmp_path / "together", ROOM)
    together = sum(count * length for count, length in passes)
    opening = prompts.least_opening(lvlm)
    assert [count for count, length in passes].count(4) >= 3  # openings once, contexts twice
    assert passes.count((4, opening)) == 1 and passes.count((4, 50)) == 2
    assert alone - together >= 3 * 4 * opening


def test_samples_that_are_stored_are_not_measured_again(lvlm, tmp_path, passes):
    samples, one = presence_samples("evaluation", 5, pairs=1), condition(lvlm, "same_image", 30)
    rows(lvlm, samples[1:3], [one], tmp_path / "some", ROOM)
    passes.clear()
    found = rows(lvlm, samples, [one], tmp_path / "some", ROOM)
    assert passes[:2] == [(3, prompts.least_opening(lvlm)), (3, 30)]
    assert_alike(found, rows(lvlm, samples, [one], tmp_path / "whole", 0))
    passes.clear()
    rows(lvlm, samples, [one], tmp_path / "some", ROOM)
    assert not passes


@pytest.mark.parametrize("most", [2, 1, 0, -1])
def test_where_memory_is_too_small_fewer_go_at_once(lvlm, tmp_path, monkeypatch, most):
    samples, tried = presence_samples("evaluation", 5, pairs=1), []
    conditions = presence_conditions(lvlm, ("same_image",), (0, 20))
    wanted = rows(lvlm, samples, conditions, tmp_path / "alone", 0)
    real = measuring.measure_samples

    def small(lvlm, samples, one, room=0, kept=None, share=True):
        tried.append(len(samples))
        if (room or most < 0) and len(samples) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(lvlm, samples, one, room, kept, share)

    monkeypatch.setattr(measuring, "measure_samples", small)
    if most < 0:
        with pytest.raises(VDPError, match=f"{samples[0].image_id} with 0 context tokens does not "
                           "fit the memory of cpu: give shorter"):
            rows(lvlm, samples, conditions, tmp_path / "together", 1_000)
        return
    assert_alike(rows(lvlm, samples, conditions, tmp_path / "together", 1_000), wanted)
    assert tried[0] == 5
    assert tried.count(5) == 1  # what was learnt is heeded afterwards


def test_a_sliding_window_is_measured_one_by_one(tiny):
    """Its cache cannot be cut back, nor its rows be chosen."""
    from transformers import DynamicCache, MistralConfig

    text = MistralConfig(sliding_window=100)
    assert not cuttable(DynamicCache(config=text))
    assert cuttable(DynamicCache(config=tiny.model.config))
    model = SimpleNamespace(config=text, device=torch.device("cuda"))
    assert measuring._room(dataclasses.replace(tiny, model=model)) == 0
    assert measuring._room(tiny) == 0  # on a CPU


@pytest.mark.parametrize("name", sorted({*BUILDERS} - {"instructblip"}))  # has no cache
def test_every_architecture_reads_in_parts_and_together_as_it_does_alone(name):
    model, images = build(name)
    lvlm, parts = SimpleNamespace(model=model, device=model.device), []
    for seed in range(3):
        inputs, kinds = inputs_of(name, images, seed=seed)
        ids, kinds = inputs.pop("input_ids")[0].numpy(), kinds[0].numpy()
        inputs.pop("attention_mask")
        inputs = {key: value + 0.1 * seed if value.is_floating_point() else value
                  for key, value in inputs.items()}
        parts.append(Prompt(ids, kinds, inputs).split(int((kinds == Kind.QUESTION).argmax())))
    prefixes, askings = map(list, zip(*parts))
    with torch.no_grad():
        alone = [start(lvlm, [one], prefill(lvlm, one), [asking])[0][0]
                 for one, asking in parts]
        kept = {}
        for _ in range(2):  # read, and then kept
            cache = prefill(lvlm, *prefixes, key=name, kept=kept)
            if not cuttable(cache):
                pytest.skip("one by one")
            together = start(lvlm, prefixes, cache, askings)[0]
            torch.testing.assert_close(together, torch.stack(alone), atol=1e-4, rtol=0)
    assert (alone[0] - alone[1]).abs().max() > 1e-2


@pytest.mark.parametrize("name", own_models.BUILDERS)
def test_photographs_of_several_shapes_go_with_their_like(make_tokenizer, tmp_path, name):
    (tmp_path / "model").mkdir()
    own_models.BUILDERS[name](tmp_path / "model", make_tokenizer())
    lvlm = louder(load_lvlm(tmp_path / "model"))
    own_models.photographs(tmp_path / "album", 6)
    samples = open_source("coco", tmp_path / "album").presence_samples("evaluation", 6, 1)
    assert len({sample.image().size for sample in samples}) == 3
    conditions = presence_conditions(lvlm, ("misleading",), (0, 30))
    samples = samples[:4] if name == "smolvlm" else samples
    assert_alike(rows(lvlm, samples, conditions, tmp_path / "together", 1_000_000),
                 rows(lvlm, samples, conditions, tmp_path / "alone", 0))
