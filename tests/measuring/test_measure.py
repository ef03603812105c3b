"""Measuring: log-likelihoods with a shared prefix, rows, conditions, reuse, and free answers."""

import copy
import dataclasses

import albums
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import DynamicCache

from architectures import louder
from vdp_utils.attention.tokens import Kind
from vdp_utils.errors import Lacking, VDPError
from vdp_utils.lvlm import prompts
from vdp_utils.measuring import measure as measuring
from vdp_utils.measuring import scoring
from vdp_utils.measuring.measure import (Condition, condition, greedy_agreement, measure,
                                         measure_sample, usable)
from vdp_utils.measuring.scoring import answer, generate
from vdp_utils.measuring.store import ResultStore, condition_hash
from vdp_utils.sources import dialogues
from vdp_utils.sources.photographs import open_source
from vdp_utils.sources.samples import Sample, presence_samples, question_samples

COLUMNS = {"key", "image_id", "question_id", "kind", "nouns", "context_kind", "context_length",
           "image", "template_tokens", "image_tokens", "context_tokens", "question_tokens",
           "options", "attention", "head_image",
           "log_likelihoods", "answer", "predicted", "correct", "margin", "greedy", "named",
           "target_share", "seconds"}


@pytest.fixture(scope="module")
def lvlm(tiny):
    return louder(tiny)


@pytest.fixture
def fed(lvlm):
    """The numbers of tokens that the model was given, one a forward pass."""
    calls = []

    def note(module, args, inputs):
        calls.append(inputs["input_ids"].shape[1])

    handle = lvlm.model.register_forward_pre_hook(note, with_kwargs=True)
    yield calls
    handle.remove()


@pytest.fixture(scope="module")
def presence():
    return presence_samples("evaluation", 3, pairs=1)


@pytest.fixture(scope="module")
def positions():
    return question_samples("evaluation", 2, "position")


@pytest.fixture
def store(tmp_path):
    return ResultStore(tmp_path)


def scores(rows):
    return torch.tensor([x for row in rows for x in row["log_likelihoods"]])


# ---- the shared prefix


@pytest.mark.parametrize("kind, length, image", [
    ("same_image", 0, "own"), ("same_image", 1, "own"), ("same_image", 130, "own"),
    ("other_images", 400, "own"),
    ("misleading", 64, "own"), ("other_images", 250, "text"), ("other_images", 60, "none")])
@pytest.mark.parametrize("asked", ["presence", "positions"])
def test_questions_that_share_a_prefix_score_as_each_would_alone(lvlm, request, asked, kind,
                                                                 length, image):
    for sample in request.getfixturevalue(asked):
        one = condition(lvlm, kind, length, image, greedy=2)
        shared = measure_sample(lvlm, sample, one)
        alone = measure_sample(lvlm, sample, one, share=False)
        torch.testing.assert_close(scores(shared), scores(alone), atol=1e-4, rtol=0)
        assert [row["greedy"] for row in shared] == [row["greedy"] for row in alone]
        for column in ("attention", "head_image"):
            for row, other in zip(shared, alone):
                np.testing.assert_allclose(row[column], other[column], atol=1e-3)


def test_position_options_have_several_tokens_and_contexts_change_the_scores(lvlm, positions):
    """Else the test above would compare little."""
    assert min(len(prompts.option_ids(lvlm, option)) for option in dialogues.POSITIONS) > 1
    settings = [("same_image", 0, "own"), ("same_image", 130, "own"), ("other_images", 130, "own"),
                ("same_image", 130, "blank"), ("same_image", 130, "swapped")]
    found = [scores(measure_sample(lvlm, positions[0], condition(lvlm, *setting)))
             for setting in settings]
    for n, one in enumerate(found):
        assert all((one - other).abs().max() > 1e-3 for other in found[:n])


@pytest.mark.parametrize("window", [100, 160, 5_000])
def test_a_model_with_a_sliding_window_scores_the_same_both_ways(tiny, positions, window):
    """Windows shorter than the prefix, passed while a question is read, and never passed."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration, MistralConfig

    old = tiny.model.config
    text = MistralConfig(
        vocab_size=old.text_config.vocab_size, hidden_size=32, intermediate_size=64,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, sliding_window=window,
        max_position_embeddings=9_000, eos_token_id=old.text_config.eos_token_id)
    config = LlavaConfig(
        vision_config=old.vision_config, text_config=text, vision_feature_layer=-1,
        image_token_index=tiny.image_token_id, image_seq_length=old.image_seq_length)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlavaForConditionalGeneration(config).eval()
    sliding = louder(dataclasses.replace(tiny, model=model))
    one = condition(sliding, "same_image", 40, greedy=2)
    shared = measure_sample(sliding, positions[0], one)
    alone = measure_sample(sliding, positions[0], one, share=False)
    torch.testing.assert_close(scores(shared), scores(alone), atol=1e-4, rtol=0)
    for one, other in zip(shared, alone):
        assert one["greedy"] == other["greedy"]
        for column in ("attention", "head_image"):
            np.testing.assert_allclose(one[column], other[column], atol=1e-3)


def test_the_shared_prefix_is_read_once_and_its_cache_is_not_copied(lvlm, positions, fed,
                                                                    monkeypatch):
    """The saving, in tokens given to the model; copies would cost what it saves."""
    sample, one = positions[0], condition(lvlm, "same_image", 300)
    prefix = len(prompts.shared_prefix(lvlm, sample, "same_image", 300))
    asking = sum(len(prompts.asking(lvlm, question)) for question in sample.questions)
    rest = sum(len(prompts.option_ids(lvlm, option)) - 1
               for question in sample.questions for option in question.options)
    with monkeypatch.context() as patch:
        patch.setattr(DynamicCache, "__deepcopy__", lambda *_: pytest.fail("the cache was copied"),
                      raising=False)
        measure_sample(lvlm, sample, one)
    assert sum(fed) == prefix + asking + rest
    fed.clear()
    measure_sample(lvlm, sample, one, share=False)
    assert sum(fed) >= len(sample.questions) * prefix + asking + rest


def test_a_score_is_the_sum_of_the_option_s_token_log_probabilities(lvlm, positions):
    """Against one plain forward pass over prompt and option."""
    sample = positions[0]
    row = measure_sample(lvlm, sample, condition(lvlm, "other_images", 33))[0]
    prefix = prompts.shared_prefix(lvlm, sample, "other_images", 33)
    prompt = prompts.join(prefix, prompts.asking(lvlm, sample.questions[0]))
    for option, score in zip(dialogues.POSITIONS, row["log_likelihoods"]):
        ids = torch.tensor(prompts.option_ids(lvlm, option))
        inputs = prompts.tensors(prompt, "cpu")
        inputs["input_ids"] = torch.cat([inputs["input_ids"], ids[None]], 1)
        with torch.no_grad():
            logits = lvlm.model(**inputs).logits[0, -len(ids) - 1:-1]
        assert score == pytest.approx(logits.log_softmax(-1).gather(1, ids[:, None]).sum().item(),
                                      abs=1e-4)
    right = dialogues.POSITIONS.index(sample.questions[0].answer)
    others = [score for n, score in enumerate(row["log_likelihoods"]) if n != right]
    assert row["margin"] == row["log_likelihoods"][right] - max(others)


def test_the_order_of_the_options_does_not_matter(lvlm, positions):
    one, sample = condition(lvlm, "same_image", 20), positions[0]
    turned = Sample(sample.picture, tuple(
        dataclasses.replace(question, options=question.options[::-1])
        for question in sample.questions))
    for row, other in zip(measure_sample(lvlm, sample, one), measure_sample(lvlm, turned, one)):
        assert row["log_likelihoods"] == pytest.approx(other["log_likelihoods"][::-1], abs=1e-5)
        assert row["options"].split("/") == other["options"].split("/")[::-1]
        assert row["margin"] == pytest.approx(other["margin"], abs=1e-5)
        for column in ("answer", "predicted", "correct"):
            assert row[column] == other[column]


# ---- rows


@pytest.mark.parametrize("kind, length, image", [
    ("same_image", 0, "own"), ("other_images", 77, "own"), ("other_images", 200, "none")])
def test_rows_have_every_documented_column_and_exact_token_counts(lvlm, presence, store, kind,
                                                                  length, image):
    rows = measure(lvlm, presence, [condition(lvlm, kind, length, image, greedy=1)], store, "F")
    assert set(rows.columns) == COLUMNS
    for name in COLUMNS - {"key", "nouns"}:
        assert name in measure.__doc__
    assert len(rows) == sum(len(sample.questions) for sample in presence)
    assert (rows["context_tokens"] == length).all() and (rows["context_length"] == length).all()
    assert (rows["image_tokens"] == (0 if image == "none" else 100)).all()
    for sample in presence:
        for number, question in enumerate(sample.questions):
            (row,) = rows[rows["key"] == f"{sample.image_id}/{number}"].to_dict("records")
            text = dialogues.LEAD_AT_START + question.text
            assert row["question_tokens"] == len(lvlm.tokenizer(text).input_ids)
            assert (row["image_id"], row["question_id"]) == (sample.image_id, str(number))
            assert row["answer"] == question.answer.lower() and row["kind"] == "presence"
            assert row["nouns"] == question.nouns[0]
            assert row["target_share"] == sample.picture.share(question.nouns[0])
            assert row["named"] == 0 or kind == "misleading" and question.answer == "No"
            assert (row["target_share"] > 0) == (question.answer == "Yes")
            yes, no = row["log_likelihoods"]
            assert row["predicted"] == ("yes" if yes > no else "no")
            assert row["correct"] == (row["predicted"] == row["answer"])
            sign = 1 if question.answer == "Yes" else -1
            assert row["margin"] == pytest.approx(sign * (yes - no))
            assert row["correct"] == (row["margin"] > 0)
            assert row["seconds"] > 0
            assert number == 0 or row["greedy"] == ""


def test_the_greedy_answer_is_what_generate_says(lvlm, positions):
    sample, end = positions[0], set()
    one = condition(lvlm, "same_image", 60, greedy=9)
    prefix = prompts.shared_prefix(lvlm, sample, "same_image", 60)
    for row, question in zip(measure_sample(lvlm, sample, one), sample.questions):
        prompt = prompts.join(prefix, prompts.asking(lvlm, question))
        with torch.no_grad():
            new = lvlm.model.generate(**prompts.tensors(prompt, "cpu"), do_sample=False,
                                      max_new_tokens=8)[0, len(prompt):]
        assert row["greedy"] == lvlm.tokenizer.decode(new, skip_special_tokens=True).strip()
        end.add(int(new[-1]))
    assert row["greedy"] and end.isdisjoint(prompts.stop_ids(lvlm))  # it did say eight tokens


def test_the_greedy_answer_ends_at_a_stop_token(lvlm, positions, monkeypatch):
    sample = positions[0]
    prefix = prompts.shared_prefix(lvlm, sample, "same_image", 0)
    asking = prompts.asking(lvlm, sample.questions[0])
    prompt = prompts.tensors(prompts.join(prefix, asking), "cpu")
    with torch.no_grad():
        new = lvlm.model.generate(**prompt, do_sample=False, max_new_tokens=8)[0, -8:].tolist()
        monkeypatch.setattr(lvlm.model.generation_config, "eos_token_id", [new[-1]])
        said = generate(lvlm, prefix, None, asking)
    assert said == lvlm.tokenizer.decode(new[:new.index(new[-1])]).strip()


def test_greedy_agreement_counts_only_what_was_asked(lvlm, presence, store):
    rows = measure(lvlm, presence, [condition(lvlm, "same_image", 0, greedy=1)], store, "F")
    rows.loc[rows["greedy"] != "", "greedy"] = rows["predicted"].str.capitalize() + ", I think"
    assert greedy_agreement(rows) == (1.0, len(presence))
    rows.loc[rows["greedy"] != "", "greedy"] = "perhaps"
    assert greedy_agreement(rows) == (0.0, len(presence))


# ---- conditions and reuse


CHANGED = {"model": "x", "revision": "x", "dtype": "bfloat16", "attention": "eager",
           "context_kind": "other_images", "context_length": 9, "image": "blank", "seed": 1,
           "greedy": 1, "misleading": 2, "code": 999}


def test_any_changed_field_of_a_condition_changes_its_hash(lvlm):
    one = condition(lvlm, "same_image", 8)
    assert set(CHANGED) == {field.name for field in dataclasses.fields(Condition)}
    hashes = {condition_hash(dataclasses.replace(one, **{name: value}))
              for name, value in CHANGED.items()}
    assert len(hashes | {condition_hash(one)}) == len(CHANGED) + 1
    assert condition_hash(condition(lvlm, "same_image", 8)) == condition_hash(one)


def test_the_same_condition_is_read_and_a_changed_one_measured(lvlm, presence, store, fed):
    first = measure(lvlm, presence, [condition(lvlm, "same_image", 8)], store, "F")
    assert fed
    fed.clear()
    again = measure(lvlm, presence, [condition(lvlm, "same_image", 8)], ResultStore(store.root),
                    "F")
    assert again.equals(first) and fed == []
    for change in (dict(context_kind="other_images"), dict(context_length=9), dict(image="blank"),
                   dict(seed=1), dict(greedy=1), dict(misleading=2)):
        setting = dict(context_kind="same_image", context_length=8) | change
        measure(lvlm, presence, [condition(lvlm, **setting)], store, "F")
        assert fed, change
        fed.clear()
    changed = dataclasses.replace(condition(lvlm, "same_image", 8), code=999)
    measure(lvlm, presence, [changed], store, "F")
    assert fed


def test_new_samples_are_measured_and_the_old_ones_kept(lvlm, presence, store, fed):
    one = condition(lvlm, "same_image", 0)
    first = measure(lvlm, presence[:2], [one], store, "F")
    fed.clear()
    rows = measure(lvlm, presence, [one], store, "F")
    assert len(rows) == len(first) + len(presence[2].questions)
    old = rows[rows["image_id"] != presence[2].image_id].reset_index(drop=True)
    assert old.equals(first)  # seconds too, so they were not measured again
    assert sum(tokens > 100 for tokens in fed) == 1  # one prefix was read


def test_recompute_measures_again(lvlm, presence, store, fed):
    one = condition(lvlm, "same_image", 8)
    first = measure(lvlm, presence, [one], store, "F")
    count = len(fed)
    again = measure(lvlm, presence, [one], store, "F", recompute=True)
    assert len(fed) == 2 * count
    assert again.drop(columns="seconds").equals(first.drop(columns="seconds"))
    assert not again["seconds"].equals(first["seconds"])


@pytest.mark.parametrize("flush_seconds", [0, 1e9])
def test_a_stopped_measurement_goes_on_without_lost_or_doubled_rows(lvlm, tmp_path, monkeypatch,
                                                                    flush_seconds):
    samples = presence_samples("evaluation", 5, pairs=1)
    one, calls, real = condition(lvlm, "same_image", 8), [], measuring.measure_sample
    whole = measure(lvlm, samples, [one], ResultStore(tmp_path / "whole"), "F")

    def stopped(lvlm, sample, one):
        calls.append(sample.image_id)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(lvlm, sample, one)

    monkeypatch.setattr(measuring, "measure_sample", stopped)
    with pytest.raises(KeyboardInterrupt):
        measure(lvlm, samples, [one], ResultStore(tmp_path / "cut", flush_seconds), "F")
    rows = measure(lvlm, samples, [one], ResultStore(tmp_path / "cut"), "F")
    assert calls[3:] == [sample.image_id for sample in samples[2:]]
    assert rows.drop(columns="seconds").equals(whole.drop(columns="seconds"))


# ---- refused


@pytest.mark.parametrize("change", [dict(model="another"), dict(revision="another")])
def test_a_condition_of_another_model_is_refused(lvlm, presence, store, fed, change):
    one = dataclasses.replace(condition(lvlm, "same_image", 0), **change)
    with pytest.raises(VDPError, match="another.*make conditions with"):
        measure(lvlm, presence, [condition(lvlm, "same_image", 0), one], store, "F")
    assert fed == []


@pytest.mark.parametrize("setting, named", [
    (("unrelated", 0), "unrelated.*same_image, other_images, misleading"),
    (("same_image", 0, "inverted"), "inverted.*own, blank, swapped"),
    (("same_image", 9_000), "9000 does not fit 'tiny'"),
    (("same_image", -1), "-1 does not fit"),
])
def test_a_condition_that_cannot_be_is_refused_before_the_model_runs(lvlm, fed, setting, named):
    with pytest.raises(VDPError, match=named):
        condition(lvlm, *setting)
    assert fed == []


def test_the_longest_context_that_fits_is_taken(lvlm, presence):
    room = lvlm.max_positions - len(prompts.opening(lvlm, presence[0].image())) - 64
    assert condition(lvlm, "same_image", room).context_length == room
    with pytest.raises(VDPError, match=f"0 to {room}"):
        condition(lvlm, "same_image", room + 1)


def test_a_question_without_options_is_refused(lvlm, store):
    (sample,) = question_samples("evaluation", 1, "naming")
    with pytest.raises(VDPError, match=r"without options.*use answer\(\)"):
        measure(lvlm, [sample], [condition(lvlm, "same_image", 0)], store, "F")
    assert len(store.read("F", condition(lvlm, "same_image", 0))) == 0


# ---- any question about any image


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.effect_noise((90, 60), 80).save(path)
    return path


def test_answer_takes_a_pil_image_a_path_or_no_image(lvlm, photo):
    asked = "What do you see?"
    with Image.open(photo) as image:
        said = answer(lvlm, image, asked, max_new_tokens=5)
    assert said and said == answer(lvlm, str(photo), asked, max_new_tokens=5)
    assert said == answer(lvlm, photo, asked, max_new_tokens=5)
    with Image.open(photo) as image:
        assert said == answer(lvlm, np.asarray(image), asked, max_new_tokens=5)
    assert isinstance(answer(lvlm, None, asked, max_new_tokens=5), str)


def test_answer_sees_image_context_and_question(lvlm, photo, monkeypatch):
    """What reaches the model: 100 image tokens or none, the context's words, then the question."""
    seen = {}

    def look(lvlm, prefix, cache, asking, max_new_tokens):
        seen.update(prefix=prefix, asking=asking, cache=cache, most=max_new_tokens)
        return "said"

    monkeypatch.setattr(scoring, "generate", look)
    assert answer(lvlm, photo, "Is it grey?", "It rained.", max_new_tokens=3) == "said"
    words = seen["prefix"].input_ids[seen["prefix"].kinds == Kind.CONTEXT]
    assert lvlm.tokenizer.decode(words) == "It rained."
    assert (seen["prefix"].kinds == Kind.IMAGE).sum() == 100 and "pixel_values" in (
        seen["prefix"].images)
    question = seen["asking"].input_ids[seen["asking"].kinds == Kind.QUESTION]
    assert lvlm.tokenizer.decode(question).endswith("Is it grey?") and seen["most"] == 3
    answer(lvlm, None, "Is it grey?")
    assert set(seen["prefix"].kinds) == {Kind.TEMPLATE} and seen["prefix"].images == {}


def test_answer_refuses_images_that_are_missing_or_broken(lvlm, photo, tmp_path, fed):
    with pytest.raises(VDPError, match="nowhere.png does not exist"):
        answer(lvlm, str(tmp_path / "nowhere.png"), "What?")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "cut.png").write_bytes(photo.read_bytes()[:300])
    for name in ("text.png", "cut.png"):
        with pytest.raises(VDPError, match=f"{name}.* cannot be read"):
            answer(lvlm, tmp_path / name, "What?")
    for several in ([photo, photo], [Image.open(photo)], np.zeros((4, 4, 3))):
        with pytest.raises(VDPError, match=f"image {type(several).__name__} cannot be read .*one"):
            answer(lvlm, several, "What?")
    assert fed == []


def test_answer_refuses_what_does_not_fit_and_marks_in_its_texts(lvlm, photo, fed):
    long = "word " * 9_000
    with pytest.raises(VDPError, match="context length .* does not fit 'tiny'"):
        answer(lvlm, photo, "What?", long)
    for image in (photo, None):
        with pytest.raises(VDPError, match="does not fit the 9000 positions of 'tiny'.*shorter q"):
            answer(lvlm, image, long)
    with pytest.raises(VDPError, match="does not fit the 9000 positions"):
        answer(lvlm, photo, "What?", max_new_tokens=9_000)
    for texts in (("Is <image> a dog?",), ("What?", "A <image> b")):
        with pytest.raises(VDPError, match="'<image>' in the text .* is a mark of the model's own"):
            answer(lvlm, photo, *texts)
    assert fed == []


# ---- attention


def test_attention_is_that_of_the_answer_position_under_eager_maps(lvlm, presence):
    sample = presence[0]
    one = condition(lvlm, "other_images", 60)
    rows = measure_sample(lvlm, sample, one)
    maps = measuring.map_sample(lvlm, sample, one)
    model = copy.deepcopy(lvlm.model)
    model.set_attn_implementation("eager")
    prefix = prompts.shared_prefix(lvlm, sample, "other_images", 60)
    for row, mapped, question in zip(rows, maps, sample.questions):
        whole = prompts.join(prefix, prompts.asking(lvlm, question))
        with torch.no_grad():
            eager = model(**prompts.tensors(whole, "cpu"), output_attentions=True).attentions
        last = torch.stack([layer[0, :, -1] for layer in eager]).numpy()  # layers, heads, tokens
        kinds = np.stack([last[..., whole.kinds == kind].sum(-1) for kind in Kind], -1)
        np.testing.assert_allclose(row["attention"], kinds.mean(1).ravel(), atol=1e-3)
        np.testing.assert_allclose(row["head_image"], kinds[..., Kind.IMAGE].ravel(), atol=1e-3)
        image = last[..., whole.kinds == Kind.IMAGE].mean(1)
        np.testing.assert_allclose(mapped["map_image"], image.ravel(), atol=1e-3)
        assert (mapped["key"], mapped["predicted"]) == (row["key"], row["predicted"])
        counts = [row[f"{kind.name.lower()}_tokens"] for kind in Kind]
        assert counts == [int((whole.kinds == kind).sum()) for kind in Kind]


def test_the_findings_share_conditions_and_so_rows(lvlm):
    shared = measuring.presence_conditions(lvlm, ["other_images"], [0, 64], prompts.IMAGES)
    assert len(set(shared)) == 2 * len(prompts.IMAGES)
    assert set(measuring.presence_conditions(lvlm, ["other_images"], [64])) <= set(shared)
    assert {one.greedy for one in shared if one.image == "own"} == {1}
    assert {one.greedy for one in shared if one.image != "own"} == {0}


def test_maps_are_stored_and_read_again(lvlm, presence, store, monkeypatch):
    one = condition(lvlm, "other_images", 30)
    first = measure(lvlm, presence, [one], store, "maps", each=measuring.map_sample)
    monkeypatch.setattr(measuring, "prefill", None)
    again = measure(lvlm, presence, [one], store, "maps", each=measuring.map_sample)
    assert len(first) == len(again) == sum(len(sample.questions) for sample in presence)
    assert len(first["map_image"].iloc[0]) == 100 * len(lvlm.model.model.language_model.layers)


# ---- what a source lacks


def test_what_few_images_lack_leaves_these_out_and_what_most_lack_that_itself(
        tiny, tmp_path, store, capsys):
    _, captions = albums.coco(tmp_path)
    names = "A person, a bird, a surfboard, an oven, a refrigerator, a cup, a dog and a couch."
    for one in captions["annotations"]:
        if one["image_id"] < 3:
            one["caption"] = names
    albums.write(tmp_path / "annotations/captions_val2017.json", captions)
    samples = open_source("coco", tmp_path).presence_samples("evaluation", 6)
    lack = {sample.image_id for sample in samples if sample.lacks("same_image")}
    assert 0 < len(lack) <= 3
    kinds = ("same_image", "other_images")
    conditions = [condition(tiny, kind, length) for kind in kinds for length in (0, 32)]
    rows = measure(tiny, samples, conditions, store, "few")
    assert set(rows["image_id"]) == {sample.image_id for sample in samples} - lack
    assert set(rows["context_kind"]) == set(kinds)
    said = capsys.readouterr().out
    assert f"Left out: images without same_image contexts; {len(lack)} of 6 images have" in said
    none, told = [sample for sample in samples if sample.image_id in lack], []
    some = none + [sample for sample in samples if sample not in none][:len(none) - 1]
    found, left = usable(some, conditions, told.append)
    assert found == some and {one.context_kind for one in left} == {"other_images"}
    assert told[0].startswith(f"Left out: same_image contexts; {len(none)} of {len(some)} images")
    with pytest.raises(Lacking, match="same_image contexts: .* images have none .nothing is said"):
        usable(none, conditions[:2], told.append)


def test_of_scenes_nothing_is_left_out_nor_looked_at(tiny, presence, capsys):
    conditions = [condition(tiny, kind, 8, image) for kind in dialogues.CONTEXT_KINDS
                  for image in prompts.IMAGES]
    samples, found = usable(presence, conditions)
    assert (samples, found) == (presence, conditions) and capsys.readouterr().out == ""


def test_a_text_description_answers_no_question_of_a_table_s_own(tiny, tmp_path):
    samples = open_source("table+scenes", albums.table(tmp_path)).presence_samples("evaluation", 9)
    own = {s.image_id: s.lacks("other_images", "text") for s in samples}
    assert {name for name, why in own.items() if why} == {"table-c.jpg"}
    assert not any(s.lacks("other_images", image) for s in samples for image in ("own", "none"))
