"""Dialogues of many turns and images: what a turn's prompt holds, and what its row says."""

import json

import numpy as np
import pytest
import torch
from architectures import louder

from vdp_utils.attention.positions import Placement
from vdp_utils.attention.pruner import ContextPruner
from vdp_utils.attention.tokens import Kind
from vdp_utils.errors import VDPError
from vdp_utils.lvlm import prompts
from vdp_utils.measuring import multi_turn, scoring
from vdp_utils.measuring.measure import measure
from vdp_utils.measuring.multi_turn import dialogue_condition, dialogue_rows
from vdp_utils.measuring.scoring import generate, score
from vdp_utils.measuring.store import ResultStore
from vdp_utils.sources import dialogues
from vdp_utils.sources.mmdu import MARK, load, synthetic

IMAGE = 100 * "<image>" + "\n"


@pytest.fixture(scope="module")
def lvlm(uneven):
    return louder(uneven)


@pytest.fixture(scope="module")
def dialogue():
    return synthetic("evaluation", 1, 2)


@pytest.fixture
def heard(monkeypatch):
    """Every prompt that is answered, in order."""
    found, real = [], multi_turn.respond
    monkeypatch.setattr(multi_turn, "respond", lambda lvlm, some, *rest: found.extend(
        some) or real(lvlm, some, *rest))
    return found


def text_of(lvlm, prompt, kind=None):
    return lvlm.tokenizer.decode(prompt.input_ids[slice(None) if kind is None
                                                  else prompt.kinds == kind])


def test_a_turn_s_prompt_is_all_that_was_said_with_the_model_s_own_replies(lvlm, dialogue, heard):
    rows = dialogue_rows(lvlm, dialogue, dialogue_condition(lvlm, "same_image", 0, reply_tokens=6))
    assert len(heard) == len(rows) == len(dialogue.turns)
    expected = ""
    for turn, row, prompt in zip(dialogue.turns, rows, heard):
        expected += f"<|im_start|>user\n{turn.said().replace(MARK, IMAGE)}<|im_end|>\n"
        assert text_of(lvlm, prompt) == expected + "<|im_start|>assistant\n"
        expected += f"<|im_start|>assistant\n{row['reply']}<|im_end|>\n"
        assert text_of(lvlm, prompt, Kind.QUESTION) == turn.words
        earlier = [word for t, r in zip(dialogue.turns, rows[:row["turn"]])
                   for word in (t.words, r["reply"])]
        assert text_of(lvlm, prompt, Kind.CONTEXT).split() == "".join(earlier).split()
        shown = prompt.images["pixel_values"].shape[0]
        assert (prompt.kinds == Kind.IMAGE).sum() == row["image_tokens"] == 100 * shown
        at = np.flatnonzero(prompt.kinds == Kind.IMAGE)[100 * (turn.about + 1) - 1]
        question = int((prompt.kinds == Kind.QUESTION).argmax())
        assert row["distance"] == question - at - 1
        assert row["latest"] == (turn.about == shown - 1)
    assert any(row["reply"] for row in rows) and any(row["reply"] != row["reference"]
                                                     for row in rows)
    assert [row["pictures"] for row in rows] == [2] * len(rows)


def test_images_come_in_the_order_in_which_they_are_shown(lvlm, dialogue):
    turns = [turn.said() for turn in dialogue.turns[:4]]
    said = [text for turn in turns for text in (turn, "Yes")][:-1]
    images = [one.image() for one in dialogue.pictures[:2]]
    both = prompts.conversation(lvlm, said, images).images["pixel_values"]
    for one, image in zip(both, images):
        alone = prompts.opening(lvlm, image).images["pixel_values"][0]
        torch.testing.assert_close(one, alone)


@pytest.mark.parametrize("placement, moved, rate", [
    ("plain", "all", 0), ("plain", "all", 0.5), ("near", "all", 0), ("near", "last", 0),
    ("near", "all", 0.5)])
def test_a_turn_is_answered_as_its_prompt_placed_and_pruned_so(lvlm, dialogue, heard, placement,
                                                               moved, rate):
    one = dialogue_condition(lvlm, "other_images", 40, rate, placement, moved, reply_tokens=4)
    row = dialogue_rows(lvlm, dialogue, one)[4]
    question, prompt, empty = dialogue.questions[4], heard[4], prompts.words(lvlm, "")
    kinds = torch.from_numpy(prompt.kinds)[None].long()

    def answered(placement, moved, rate):
        with torch.no_grad(), Placement(placement, images=moved, kinds=kinds)(lvlm.model), \
                ContextPruner(rate, mode="compress", positions="compact", kinds=kinds)(
                    lvlm.model) as pruner:
            return (score(lvlm, prompt, None, empty, question.options),
                    generate(lvlm, prompt, None, empty, 4), pruner.kept)

    scores, reply, kept = answered(placement, moved, rate)
    assert row["log_likelihoods"] == pytest.approx(scores, abs=1e-4) and row["reply"] == reply
    gone = sorted({*range(len(prompt))} - {*kept.index[0].tolist()})
    assert len(gone) == int(rate * row["context_tokens"])
    assert set(prompt.kinds[gone]) <= {int(Kind.CONTEXT)}
    other = "all" if moved == "last" else "last"
    others = {("plain", "all", 0), ("near", other, rate), (placement, moved, 0.8)}
    for setting in others - {(placement, moved, rate)}:
        assert row["log_likelihoods"] != pytest.approx(answered(*setting)[0], abs=1e-4), setting


def test_told_dialogues_grow_the_context_and_mislead_where_they_shall(lvlm, dialogue, heard):
    for kind in ("other_images", "misleading"):
        heard.clear()
        one = dialogue_condition(lvlm, kind, 60, reply_tokens=1)
        rows = dialogue_rows(lvlm, dialogue, one)
        before = 0
        for row, turn, prompt in zip(rows, dialogue.turns, heard):
            assert row["context_tokens"] >= before + 60
            before = row["context_tokens"]
            told = text_of(lvlm, prompt, Kind.CONTEXT).splitlines()
            told = [line for line in told if line.startswith("Assistant: ")]
            (noun, *_), no = turn.question.nouns, turn.question.answer == "No"
            named = [line for line in told if dialogues.a(noun) in line]
            if turn.question.kind == "presence":
                assert bool(named) == (kind == "misleading" and no), (noun, told)
            assert text_of(lvlm, prompt, Kind.QUESTION) == turn.words


def test_without_history_a_question_comes_with_images_only(lvlm, dialogue, heard):
    rows = dialogue_rows(lvlm, dialogue, dialogue_condition(
        lvlm, "same_image", 0, history=False, reply_tokens=1))
    shown = 0
    for row, turn, prompt in zip(rows, dialogue.turns, heard):
        shown += len(turn.marks) // len(MARK)
        assert text_of(lvlm, prompt) == (f"<|im_start|>user\n{IMAGE * shown}{turn.words}"
                                         "<|im_end|>\n<|im_start|>assistant\n")
        assert row["context_tokens"] == 0 and not row["history"]
        own = prompts.opening(lvlm, dialogue.pictures[turn.about].image()).images["pixel_values"]
        torch.testing.assert_close(prompt.images["pixel_values"][turn.about], own[0])
    assert shown == 2


def test_a_released_turn_is_all_question_and_has_no_options(lvlm, dialogue, heard, tmp_path):
    record = dialogue.record()
    record["conversations"][0]["value"] = f"{MARK}{MARK}Look at them.\n\nWhat is it?"
    for turn in record["conversations"][2::2]:
        turn["value"] = turn["value"].replace(MARK, "First.\n")
    (tmp_path / "mmdu_pics").mkdir()
    for name, one in zip(record["image"], dialogue.pictures):
        one.image().save(tmp_path / name.lstrip("/"))
    (tmp_path / "benchmark.json").write_text(json.dumps([record]))
    (found,) = load(tmp_path / "benchmark.json")
    rows = dialogue_rows(lvlm, found, dialogue_condition(lvlm, "same_image", 0, reply_tokens=2))
    for prompt, row, said in zip(heard, rows, record["conversations"][::2]):
        question = said["value"].replace(MARK, "")
        assert text_of(lvlm, prompt, Kind.QUESTION) == question
        assert (row["about"], row["options"], row["predicted"]) == (-1, "", "")
        assert np.isnan([row["correct"], row["distance"], row["margin"]]).all()
        assert 0 <= row["f1"] <= 1
    assert rows[0]["image_tokens"] == 200


def test_turns_that_pass_the_positions_are_not_asked(lvlm, dialogue, monkeypatch):
    config = lvlm.model.config.get_text_config()
    one = dialogue_condition(lvlm, "same_image", 0, reply_tokens=4)
    rows = dialogue_rows(lvlm, dialogue, one)
    length = rows[2]["context_tokens"] + rows[2]["image_tokens"] + 60
    monkeypatch.setattr(config, "max_position_embeddings", length)
    short = dialogue_rows(lvlm, dialogue, one)
    assert short[0]["reply"] == rows[0]["reply"] and np.isfinite(short[0]["f1"])
    assert short[-1]["reply"] == "" and np.isnan([short[-1]["f1"], short[-1]["correct"]]).all()


def test_rows_are_stored_and_not_measured_again(lvlm, tmp_path):
    found, store = [synthetic("evaluation", n, 2) for n in range(2)], ResultStore(tmp_path)
    one = dialogue_condition(lvlm, "misleading", 20, 0.5, reply_tokens=2)
    first = measure(lvlm, found, [one], store, "test", each=dialogue_rows)
    again = measure(lvlm, found, [one], store, "test", each=lambda *_: 1 / 0)
    assert len(first) == sum(len(d.turns) for d in found) and first.equals(again)
    assert set(first["kind"]) == {"presence", "naming"} | set(first["kind"])
    assert first.loc[first["kind"] == "naming", "correct"].isna().all()


def test_replies_are_scored_by_the_reference(lvlm, dialogue, monkeypatch):
    replies = {"Yes": "yes, yes", "No": "Yes."}
    replies |= {q.answer: ", ".join(reversed(q.answer.split(", "))) for q in dialogue.questions
                if q.kind == "naming"}
    by_text = {turn.words: replies.get(turn.question.answer, "") for turn in dialogue.turns}
    monkeypatch.setattr(multi_turn, "respond", lambda lvlm, some, *_: (
        [[]], [by_text[text_of(lvlm, some[0], Kind.QUESTION)]]))
    rows = dialogue_rows(lvlm, dialogue, dialogue_condition(lvlm, "same_image", 0))
    for row in rows:
        expected = {"Yes": (2 / 3, 2 / 3), "No": (0, 0)}.get(row["reference"], (0, 0))
        if row["kind"] == "naming":
            assert row["f1"] == pytest.approx(1) and 0 < row["rouge_l"] < 1
        else:
            assert (row["f1"], row["rouge_l"]) == pytest.approx(expected)


@pytest.mark.parametrize("options, message", [
    (dict(moved="first", placement="near"), "unknown images 'first'"),
    (dict(rate=1), "give a share of the context")])
def test_what_cannot_be_asked_is_refused(lvlm, options, message):
    with pytest.raises(VDPError, match=message):
        dialogue_condition(lvlm, "other_images", 40, **options)


def test_a_reply_brings_no_image_with_it(lvlm, dialogue, monkeypatch):
    one = dialogue_condition(lvlm, "same_image", 0)
    with monkeypatch.context() as patch:
        patch.setattr(multi_turn, "respond", lambda *_: ([[]], [f"{MARK} or <image> or so"]))
        assert dialogue_rows(lvlm, dialogue, one)[-1]["image_tokens"] == 200
    says = [torch.eye(len(lvlm.tokenizer))[[token]]
            for token in (lvlm.image_token_id, lvlm.tokenizer.eos_token_id)]
    monkeypatch.setattr(scoring, "start", lambda *_: (says[0], None))
    monkeypatch.setattr(scoring, "_go_on", lambda *_: (says[1], None))
    assert generate(lvlm, None, None, None) == ""
