"""The recipe: packed questions, patch labels, the resumable loop, and what it exports."""

import copy
import dataclasses
import itertools
import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from architectures import louder
from vdp_utils.commands import train as recipe
from vdp_utils.errors import VDPError
from vdp_utils.lvlm import load as loading, prompts
from vdp_utils.lvlm.load import embedded_folder, load_lvlm
from vdp_utils.measuring.scoring import score
from vdp_utils.sources import dialogues, scenes
from vdp_utils.sources.samples import Sample, presence_samples
from vdp_utils.training import dialogue, loop, packing
from vdp_utils.training.dialogue import (add_lora, answers, evaluate, export, image_features,
                                         load_export)
from vdp_utils.training.loop import DEVICE, Run, trainable
from vdp_utils.training.packing import WEIGHTS, PackedDialogues, pack
from vdp_utils.training.tower import BACKGROUND, GRID, labelled, object_accuracy, patch_labels


@pytest.fixture(scope="module")
def base(tiny):
    return louder(tiny)


@pytest.fixture
def learner(base):
    """A copy with LoRA whose B is no longer zero: half trained, so to say."""
    lvlm = dataclasses.replace(base, model=copy.deepcopy(base.model).to(DEVICE))
    add_lora(lvlm.model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in lvlm.model.named_parameters():
            if "lora_B" in name:
                weight.copy_(0.05 * torch.randn(weight.shape, generator=generator))
    return lvlm


# ---- packing


ROWS = [(np.array([1, 2, 3]), [(np.array([4, 5]), [6, 7, 8], "naming"),
                               (np.array([9]), [10, 11], "presence")]),
        (np.array([1]), [(np.array([12, 13]), [14, 15], "counting")])]


def test_a_batch_holds_prefix_questions_answers_and_padding():
    packed = pack(ROWS, pad=0, pixels=None, labels=None)
    assert packed.ids.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11],
                                   [1, 12, 13, 14, 15, 0, 0, 0, 0, 0, 0]]
    assert packed.blocks.tolist() == [[0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2],
                                      [0, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1]]
    assert packed.positions[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 3, 4, 5]
    assert packed.positions[1, :5].tolist() == [0, 1, 2, 3, 4]
    third = WEIGHTS["naming"] / 3
    assert packed.weights[0].tolist() == [0] * 5 + [third] * 3 + [0, 0.5, 0.5]
    kinds = [dialogues.QUESTION_KINDS.index(kind) for kind in ("naming", "presence", "counting")]
    assert packed.kinds[0].tolist() == [-1] * 5 + [kinds[0]] * 3 + [-1] + [kinds[1]] * 2
    assert packed.kinds[1].tolist() == [-1] * 3 + [kinds[2]] * 2 + [-1] * 6


def test_a_token_sees_the_prefix_and_its_own_question_up_to_itself():
    packed = pack(ROWS, pad=0, pixels=None, labels=None)
    mask = packed.mask()
    assert mask.shape == (2, 1, 11, 11) and mask.dtype == torch.bool
    for row, blocks in enumerate(packed.blocks.tolist()):
        for here, there in itertools.product(range(11), repeat=2):
            if blocks[here] >= 0:
                seen = there <= here and blocks[there] in (0, blocks[here])
                assert mask[row, 0, here, there] == seen
    assert mask.any(-1).all()  # a token that sees nothing would give NaN, padding too


@pytest.fixture(scope="module")
def batch(base):
    return PackedDialogues(base, "validation", batch=2, image=True, context=30).make(0)


@torch.no_grad()
def answer_logits(lvlm, packed):
    """Logits at all answer tokens, and (row, block) of each."""
    features = image_features(lvlm.model, packed.pixels) if packed.pixels is not None else None
    row, column = (packed.weights > 0).nonzero(as_tuple=True)
    return answers(lvlm, packed, features), torch.stack([row, packed.blocks[row, column]], 1)


def test_no_question_sees_another(learner, batch):
    (before, truth), owner = answer_logits(learner, batch)
    assert truth.tolist() == batch.ids[batch.weights > 0].tolist()
    assert torch.isfinite(before).all() and owner[:, 1].min() >= 1
    for block in (1, 3):
        at = (batch.blocks[0] == block) & (batch.weights[0] == 0)
        changed = dataclasses.replace(batch, ids=batch.ids.clone())
        changed.ids[0, at] = learner.tokenizer.convert_tokens_to_ids("a")
        moved = (answer_logits(learner, changed)[0][0] - before).abs().amax(-1)
        own = (owner == torch.tensor([0, block])).all(1)
        assert moved[own].max() > 1e-2 and moved[~own].max() < 1e-5
    changed = dataclasses.replace(batch, ids=batch.ids.clone())
    changed.ids[0, 110:115] = learner.tokenizer.convert_tokens_to_ids("a")  # of the context
    moved = (answer_logits(learner, changed)[0][0] - before).abs().amax(-1)
    assert moved[owner[:, 0] == 0].min() > 1e-5 and moved[owner[:, 0] == 1].max() < 1e-5


def test_an_answer_token_does_not_see_itself(learner, batch):
    (before, _), owner = answer_logits(learner, batch)
    last = ((batch.blocks[0] == 1) & (batch.weights[0] > 0)).nonzero().max()
    changed = dataclasses.replace(batch, ids=batch.ids.clone())
    changed.ids[0, last] = learner.tokenizer.convert_tokens_to_ids("a")
    after = answer_logits(learner, changed)[0][0]
    torch.testing.assert_close(after, before)


def test_a_question_weighs_the_same_however_long_its_answer(base):
    packed, seen = PackedDialogues(base, "train", batch=8, image=True, context=0).make(0), set()
    for row in range(8):
        for block in range(1, int(packed.blocks[row].max()) + 1):
            at = (packed.blocks[row] == block) & (packed.weights[row] > 0)
            (kind,) = {dialogues.QUESTION_KINDS[k] for k in packed.kinds[row, at].tolist()}
            seen.add(kind)
            assert packed.weights[row, at].sum().item() == pytest.approx(WEIGHTS.get(kind, 1.0))
    assert {"presence", "position", "relation", "counting", "naming"} <= seen


def test_a_batch_is_the_same_each_time_and_streams_differ(base):
    one, again = (PackedDialogues(base, "train", batch=1, context=0).make(3) for _ in range(2))
    assert torch.equal(one.ids, again.ids)
    first = next(iter(PackedDialogues(base, "train", start=3, batch=1, context=0)))
    assert torch.equal(first.ids, one.ids)  # so a resumed run goes on with the next batch
    other = PackedDialogues(base, "train", batch=1, context=0).make(4)
    assert not torch.equal(other.ids[:, :200], one.ids[:, :200])


# ---- trained on what is measured


@pytest.mark.parametrize("image, context", [(True, 0), (True, 45), (False, 0), (False, 30)])
def test_training_and_measurement_give_the_model_the_same_prompts(base, monkeypatch, image,
                                                                  context):
    scene, _, _ = labelled("validation", 5)
    asked, contexts = [], []
    real_asking, real_context = prompts.asking, prompts.context

    def note_asking(lvlm, question, image="own", lead=None):
        asked.append(question)
        return real_asking(lvlm, question, image, lead)

    def note_context(tokenizer, kind, sample, length, seed=0):
        contexts.append((sample, kind, length, seed))
        return real_context(tokenizer, kind, sample, length, seed)

    with monkeypatch.context() as patch:
        patch.setattr(prompts, "asking", note_asking)
        patch.setattr(prompts, "context", note_context)
        rng = np.random.default_rng(0)
        prefix, rows = PackedDialogues(base, "validation").row(scene, rng, image, context)
    ((sample, kind, length, seed),) = contexts
    assert sample.picture == scene and length == context
    measured = prompts.shared_prefix(base, sample, kind, length, seed, "own" if image else "text")
    assert prefix.tolist() == measured.input_ids.tolist()
    assert len(rows) == len(asked) > 8
    end = [base.tokenizer.eos_token_id]
    for question, (ids, answer, kind) in zip(asked, rows):
        assert kind == question.kind
        assert ids.tolist() == prompts.asking(base, question, image).input_ids.tolist()
        assert answer == prompts.option_ids(base, question.answer) + end
        assert not question.options or question.answer in question.options
    wanted = set(dialogues.QUESTION_KINDS) - (set() if image else {"relation", "naming"})
    assert wanted - {"description"} <= {question.kind for question in asked} <= wanted


def test_training_and_measurement_see_the_same_pixels(base):
    scene, pixels, _ = labelled("validation", 5)
    inputs = prompts.opening(base, Sample(scene, ()).image()).images
    torch.testing.assert_close(inputs["pixel_values"][0], pixels)


def test_a_packed_answer_scores_as_a_measured_one(learner):
    """Several questions of every kind after one image and context."""
    scene, pixels, _ = labelled("validation", 5)
    rng = np.random.default_rng(1)
    asked = [dialogues.ask(scene, kind, rng)
             for kind in ("presence", "position", "relation", "counting") for _ in range(2)]
    asked = [question for question in asked if question]
    assert len(asked) >= 6
    sample = Sample(scene, tuple(asked))
    prefix = prompts.shared_prefix(learner, sample, "same_image", 50)
    end = [learner.tokenizer.eos_token_id]
    rows = [(prompts.asking(learner, q).input_ids, prompts.option_ids(learner, q.answer) + end,
             q.kind) for q in asked]
    packed = pack([(prefix.input_ids, rows)], end[0], pixels=pixels[None], labels=None)
    (logits, truth), owner = answer_logits(learner, packed)
    found = logits.log_softmax(-1).gather(1, truth[:, None])[:, 0]
    for number, question in enumerate(asked, 1):
        with torch.no_grad():
            (wanted,) = score(learner, prefix, None, prompts.asking(learner, question),
                              (question.answer,))
        own = found[owner[:, 1] == number][:-1]  # the end of the answer is not scored
        assert own.sum().item() == pytest.approx(wanted, abs=1e-3)


def test_held_out_accuracy_counts_an_answer_only_where_all_its_tokens_are_right(learner, batch,
                                                                                monkeypatch):
    at = batch.weights > 0
    truth = batch.ids[at]
    said = truth.clone()

    def all_right_but_changed(lvlm, packed, features):
        return F.one_hot(said, 600).float(), truth

    monkeypatch.setattr(dialogue, "answers", all_right_but_changed)
    kinds = ("presence", "position", "relation", "counting", "naming")
    assert evaluate(learner, {"image": [batch]}) == {f"image_{kind}": 1.0 for kind in kinds}
    assert evaluate(learner, {"blank": [batch]}) == {"blank_presence": 1.0}

    index = dialogues.QUESTION_KINDS.index("position")
    several = [(row, block) for row in range(2) for block in range(1, batch.blocks[row].max() + 1)
               if index in batch.kinds[row, batch.blocks[row] == block]]
    row, block = several[0]
    here = torch.zeros_like(at)
    here[row] = (batch.blocks[row] == block) & at[row]
    said[here[at].nonzero()[0]] += 1  # the first token of one answer
    found = evaluate(learner, {"image": [batch]})
    assert found["image_position"] == pytest.approx(1 - 1 / len(several))
    assert found["image_presence"] == 1.0


# ---- patch labels


def test_a_patch_shows_the_noun_that_fills_most_of_it():
    cow, cup = (scenes.Item(noun, (0, 0, 9, 9)) for noun in ("cow", "cup"))
    scene = scenes.Scene("made", "farm", "plain", (1, 0), (cow, cup))
    owners = np.zeros((scenes.SIZE, scenes.SIZE), np.int16)
    owners[0:16, 0:16] = 1  # patch 0: all cow
    owners[0:4, 16:22] = 2  # patch 1: 24 pixels, too few
    owners[0:5, 32:37] = 2  # patch 2: 25 pixels
    owners[16:32, 0:6] = 1  # patch 10: 96 of cow, 160 of cup
    owners[16:32, 6:16] = 2
    labels = patch_labels(scene, owners)
    a, b = scenes.NOUNS.index("cow"), scenes.NOUNS.index("cup")
    assert labels.shape == (GRID**2,)
    expected = np.full(GRID**2, BACKGROUND)
    expected[[0, 2, 10]] = a, b, b
    assert labels.tolist() == expected.tolist()


def test_labels_of_real_scenes_lie_where_their_objects_are():
    for index in range(5):
        scene, pixels, labels = labelled("validation", index)
        assert pixels.shape == (3, scenes.SIZE, scenes.SIZE) and pixels.abs().max() <= 2
        shown = {scenes.NOUNS[k] for k in labels.tolist() if k != BACKGROUND}
        assert shown and shown <= set(scene.counts)
        largest = max(scene.items, key=lambda item: item.share)
        x, y = (int(c * GRID) for c in largest.center)
        assert scenes.NOUNS.index(largest.noun) in labels.reshape(GRID, GRID)[
            max(0, y - 1):y + 2, max(0, x - 1):x + 2]


def test_object_accuracy_leaves_the_background_out():
    truth = torch.tensor([BACKGROUND, 1, 2, 3, 4])
    assert object_accuracy(torch.tensor([7, 1, 2, 3, 0]), truth) == pytest.approx(0.75)


# ---- the loop


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when a test says so."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


class Stage:
    """A stage of ten seconds a step, whose module has a trained and a frozen weight."""

    def __init__(self, folder, clock, minutes=5, seed=0):
        torch.manual_seed(seed)
        self.module, self.clock = torch.nn.Linear(3, 1), clock
        self.module.bias.requires_grad_(False)
        self.run = Run(folder, "stage", minutes, {"all": self.module}, {"all": 1e-2},
                       folder / "log.csv")

    def go(self, stop=None):
        def evaluate():
            self.clock.seconds += 1000  # not training, so not counted
            return {"accuracy": 0.5}

        for taken, batch in enumerate(self.run.steps(itertools.count(), evaluate, warmup=2)):
            if taken == stop:
                raise KeyboardInterrupt
            self.clock.seconds += 10
            self.run.learn((self.module(torch.ones(4, 3)) - batch % 2).square().mean(), 4)


def test_a_stage_takes_its_time_and_no_more(tmp_path, clock):
    stage = Stage(tmp_path, clock)
    stage.go()
    assert (stage.run.spent, stage.run.step, stage.run.samples) == (300, 30, 120)
    log = pd.read_csv(tmp_path / "log.csv")
    assert list(log.columns) == ["stage", "minutes", "step", "samples", "metric", "value"]
    assert set(log["metric"]) == {"loss", "accuracy"} and set(log["stage"]) == {"stage"}
    accuracy = log[log["metric"] == "accuracy"]
    assert list(accuracy["step"]) == [7, 14, 21, 28, 30] and (accuracy["value"] == 0.5).all()
    assert list(accuracy["samples"]) == [28, 56, 84, 112, 120]
    assert list(accuracy["minutes"]) == [1.17, 2.33, 3.5, 4.67, 5.0]


def test_the_learning_rate_warms_up_and_falls(tmp_path, clock):
    stage, rates = Stage(tmp_path, clock), []
    for _ in stage.run.steps(itertools.count(), lambda: {}, warmup=4):
        rates.append(stage.run.optimizer.param_groups[0]["lr"])
        clock.seconds += 10
        stage.run.learn(stage.module(torch.ones(1, 3)).sum(), 1)
    assert rates[0] == pytest.approx(1e-2 / 4) and max(rates) == rates[3]
    assert rates[4:] == sorted(rates[4:], reverse=True) and 0 < rates[-1] < 0.05e-2


def test_a_killed_stage_goes_on_where_it_was_saved(tmp_path, clock):
    stage = Stage(tmp_path, clock)
    with pytest.raises(KeyboardInterrupt):
        stage.go(stop=14)
    saved = copy.deepcopy(stage.module.state_dict())
    moments = stage.run.optimizer.state_dict()["state"]

    again = Stage(tmp_path, clock, seed=1)
    assert (again.run.spent, again.run.step, again.run.samples) == (140, 14, 56)
    assert not again.run.finished
    assert torch.equal(again.module.weight, saved["weight"])
    assert not torch.equal(again.module.bias, saved["bias"])  # what is frozen is not stored
    torch.testing.assert_close(again.run.optimizer.state_dict()["state"], moments)
    again.go()
    assert (again.run.spent, again.run.step, again.run.samples) == (300, 30, 120)
    steps = pd.read_csv(tmp_path / "log.csv").query("metric == 'loss'")["step"]
    assert list(steps) == [7, 14, 21, 28, 30]


def test_a_finished_stage_does_nothing(tmp_path, clock):
    stage = Stage(tmp_path, clock)
    stage.go()
    log, state = (tmp_path / "log.csv").read_bytes(), (tmp_path / "stage.pt").read_bytes()
    again = Stage(tmp_path, clock, seed=1)
    assert again.run.finished
    again.go(stop=0)  # would raise at the first batch
    assert torch.equal(again.module.weight, stage.module.weight)
    assert (tmp_path / "log.csv").read_bytes() == log
    assert (tmp_path / "stage.pt").read_bytes() == state
    longer = Stage(tmp_path, clock, minutes=6)
    longer.go()
    assert (longer.run.step, longer.run.spent) == (36, 360)


def test_a_save_that_is_cut_off_leaves_the_last_one(tmp_path, clock, monkeypatch):
    stage = Stage(tmp_path, clock)
    with pytest.raises(KeyboardInterrupt):
        stage.go(stop=10)

    def cut(state, path):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", cut)
    with pytest.raises(OSError):
        stage.run.save()
    assert Stage(tmp_path, clock).run.step == 7


# ---- learning and exporting


def test_only_lora_projector_and_tower_learn(learner):
    names = set(trainable(learner.model))
    assert any("lora_A" in name for name in names) and any("projector" in name for name in names)
    assert any("vision_tower" in name for name in names)
    for name in names:
        assert "lora_" in name or "projector" in name or "vision_tower" in name
        assert "post_layernorm" not in name
    layers = learner.model.config.text_config.num_hidden_layers
    adapted = sum(".lora_A." in name for name in names)
    assert adapted == layers * len(dialogue.TARGETS)


def test_a_few_steps_lower_the_loss(learner, batch, tmp_path):
    decoder = learner.model.model.language_model
    run = Run(tmp_path, "stage", 60, {"decoder": decoder}, {"decoder": 3e-3}, tmp_path / "log.csv")
    with torch.no_grad():
        features = image_features(learner.model, batch.pixels)
    frozen = copy.deepcopy(learner.model.lm_head.weight)
    for group in run.optimizer.param_groups:
        group["lr"] = 3e-3
    for _ in range(10):
        logits, truth = answers(learner, batch, features)
        run.learn(F.cross_entropy(logits, truth), 2)
    assert run.losses[-1] < 0.9 * run.losses[0]
    assert torch.equal(learner.model.lm_head.weight, frozen)


def small_base(patch, base, folder):
    """The recipe and the loader take a small base model, and their models from `folder`."""
    def build(layers):
        return copy.deepcopy(base.model), base.processor

    patch.setenv("VDP_CACHE", str(folder / "cache"))
    for module in (recipe, loading):
        patch.setattr(module, "build_embedded", build)
        patch.setattr(module, "MODELS", folder / "models")
    return folder / "models"


@pytest.fixture
def stand_in(base, monkeypatch, tmp_path):
    return small_base(monkeypatch, base, tmp_path)


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    """(models, state): folders in which the recipe has run once, a second or so a stage."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        models = small_base(patch, base, folder)
        recipe.train("s", 0.04, folder / "state")
        yield models, folder / "state"


def test_what_is_exported_loads_as_the_model_in_memory(learner, base, stand_in):
    export(learner, 2, stand_in / "s")
    manifest = json.loads((stand_in / "s" / "manifest.json").read_text())
    assert manifest["max_context"] == packing.MAX_CONTEXT
    loaded = load_lvlm("embedded-s", DEVICE)
    assert loaded.trained_context == packing.MAX_CONTEXT
    (sample,) = presence_samples("evaluation", 1)
    inputs = prompts.tensors(prompts.shared_prefix(loaded, sample, "same_image", 60), DEVICE)
    with torch.no_grad():
        before, trained, found = (m.model.to(DEVICE)(**inputs).logits
                                  for m in (base, learner, loaded))
    assert (trained - before).abs().max() > 0.5
    torch.testing.assert_close(found, trained, atol=0.02, rtol=0.01)
    names = {name for name, _ in loaded.model.named_parameters()}
    assert names == {name for name, _ in base.model.named_parameters()}  # no LoRA left


def test_the_whole_recipe_runs_and_runs_again_without_learning(trained):
    """Every stage is logged, and the result loads."""
    models, state = trained
    log = pd.read_csv(models / "s" / "training_log.csv")
    assert list(dict.fromkeys(log["stage"])) == list(recipe.SHARES)
    metrics = log.groupby("stage")["metric"].agg(set)
    assert metrics["tower"] == {"loss", "object_patch_accuracy"}
    assert metrics["projector"] == {"loss", "object_patch_accuracy", "place_accuracy"}
    assert {"image_presence", "text_presence"} <= metrics["oracle"]
    assert {"image_naming"} <= metrics["naming"] and "blank_presence" not in metrics["naming"]
    assert {"blank_presence", "context_presence", "image_naming"} <= metrics["joint"]
    assert np.isfinite(log["value"]).all()
    first = embedded_folder(models / "s")
    written = (models / "s" / "training_log.csv").read_bytes()
    recipe.train("s", 0.04, state)
    assert embedded_folder(models / "s") == first  # the same weights, byte for byte
    assert (models / "s" / "training_log.csv").read_bytes() == written


def test_a_larger_size_grows_from_the_weights_of_a_smaller(learner, base, tmp_path):
    export(learner, 2, tmp_path)
    weights = load_file(tmp_path / "weights.safetensors")
    save_file({k: v for k, v in weights.items() if "language_model.layers.1." not in k},
              tmp_path / "weights.safetensors")
    grown = dataclasses.replace(base, model=copy.deepcopy(base.model))
    add_lora(grown.model)
    load_export(grown, tmp_path)
    for (name, found), wanted in zip(trainable(grown.model).items(),
                                     trainable(learner.model).values()):
        if "language_model.layers.1." in name:
            assert "lora_A" in name or not found.any()
        else:
            torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-3)
    weights["model.language_model.layers.2.mlp.up_proj.lora_A"] = torch.zeros(1)
    save_file(weights, tmp_path / "weights.safetensors")
    with pytest.raises(VDPError, match="layers.2.*smaller"):
        load_export(grown, tmp_path)


def test_growing_runs_the_last_stage_only_and_keeps_the_log(trained):
    models, state = trained
    recipe.train("m", 0.04, state, start_from="s")
    smaller, larger = (pd.read_csv(models / size / "training_log.csv") for size in "sm")
    assert larger.iloc[:len(smaller)].equals(smaller)
    assert set(larger["stage"][len(smaller):]) == {"further"}
    assert embedded_folder(models / "m") != embedded_folder(models / "s")
