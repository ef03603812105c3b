"""MMDU's released form: what is read and refused, and synthetic dialogues in it."""

import json
import re
from collections import Counter

import pytest

from vdp_utils.errors import VDPError
from vdp_utils.sources import scenes
from vdp_utils.sources.mmdu import LEAST, MARK, load, synthetic


def record(**changes):
    user, reply = {"from": "user"}, {"from": "assistant"}
    return dict(id=7, image=["/mmdu_pics/a.jpg", "mmdu_pics/b.jpg", "/mmdu_pics/c.jpg"],
                conversations=[user | dict(value=f"{MARK}{MARK}Compare <image-1> and Image2."),
                               reply | dict(value="One is red."),
                               user | dict(value=f"And this?\n{MARK}\nSay it."),
                               reply | dict(value="Blue."), user | dict(value="Sure?"),
                               reply | dict(value="Yes.")]) | changes


def stored(folder, records):
    path = folder / "benchmark.json"
    path.write_text(json.dumps(records))
    return path


@pytest.mark.parametrize("form", [list, dict])
def test_a_released_file_is_read_in_either_form(tmp_path, form):
    records = [record(), record(id="8", set="x")]
    (one, other) = load(stored(tmp_path, records if form is list else dict(enumerate(records))))
    assert (one.image_id, other.image_id) == ("7", "8")
    assert one.pictures == tuple(tmp_path / "mmdu_pics" / f"{name}.jpg" for name in "abc")
    assert [turn.said().count(MARK) for turn in one.turns] == [2, 1, 0]
    assert [turn.said() for turn in one.turns] == [
        turn["value"] for turn in record()["conversations"][::2]]
    assert [question.answer for question in one.questions] == ["One is red.", "Blue.", "Yes."]
    assert MARK not in "".join(question.text for question in one.questions)
    assert {(turn.about, turn.question.options) for turn in one.turns} == {(-1, ())}


def talk(*values, roles=("user", "assistant")):
    return [{"from": roles[n % 2], "value": value} for n, value in enumerate(values)]


@pytest.mark.parametrize("changes, message", [
    (dict(conversations=talk("Hi.", "Ho.")), "3 pictures need as many"),
    (dict(conversations=talk(3 * MARK, MARK)), "none elsewhere"),
    (dict(conversations=talk(3 * MARK)), "must alternate user, assistant"),
    (dict(conversations=talk(3 * MARK, "Ho.", roles=("human", "gpt"))), "must alternate"),
    (dict(conversations=[]), "dialogue 0 is malformed"), (dict(image=None), "is malformed"),
    (dict(conversations=[{"from": "user"}]), "needs id, image and conversations")])
def test_malformed_records_are_named(tmp_path, changes, message):
    with pytest.raises(VDPError, match=message):
        load(stored(tmp_path, [record(**changes)]))


def test_files_that_are_no_benchmark_are_refused(tmp_path):
    with pytest.raises(VDPError, match="cannot be read as a list or dict"):
        load(tmp_path / "benchmark.json")
    with pytest.raises(VDPError, match="cannot be read as a list or dict"):
        load(stored(tmp_path, 3))
    with pytest.raises(VDPError, match="the same id"):
        load(stored(tmp_path, [record(), record()]))


@pytest.fixture(scope="module")
def made():
    return [synthetic("evaluation", n, 2 + n % 5) for n in range(20)]


def test_synthetic_dialogues_have_the_released_form(made, tmp_path):
    for one, read in zip(made, load(stored(tmp_path, [one.record() for one in made]))):
        assert one.image_id == read.image_id and len(one.pictures) == len(read.pictures)
        assert [turn.said() for turn in one.turns] == [turn.said() for turn in read.turns]
        assert [q.answer for q in one.questions] == [q.answer for q in read.questions]


def test_each_question_says_which_image_and_its_answer_is_that_image_s(made):
    leads = Counter()
    for one in made:
        shown = 0
        for turn in one.turns:
            shown += turn.said().count(MARK)
            assert turn.marks == MARK * (turn.about == shown - 1) or turn.marks == ""
            lead = turn.words.removesuffix(turn.question.text)
            number = dict(first=0, second=1, third=2, fourth=3, fifth=4, sixth=5, last=shown - 1,
                          image=0)[lead.split()[2]]  # "the image shown at the start"
            assert number == turn.about
            leads[lead] += 1
            counts, (noun, *_) = one.pictures[turn.about].counts, turn.question.nouns
            if turn.question.kind == "presence":
                assert turn.question.answer == ("Yes" if noun in counts else "No")
            elif turn.question.kind == "naming":
                assert re.findall(r"an? (\w+)", turn.question.answer) == list(counts)
            else:
                assert noun in counts
        assert shown == len(one.pictures) and min(
            len(picture.counts) for picture in one.pictures) >= LEAST
    assert len(leads) == 8
    found = [scene for one in made for scene in one.pictures]
    assert len({scene.image_id for scene in found}) == len(found)


def test_no_turn_names_what_a_later_one_asks(made):
    for one in made:
        kinds = [question.kind for question in one.questions]
        assert kinds[-2:] == ["naming"] * 2 and "naming" not in kinds[:-2]
        asked = [noun for question in one.questions[:-2] for noun in question.nouns]
        assert len(asked) == len(set(asked))


def test_yes_and_no_are_as_frequent_and_another_picture_has_what_one_lacks(made):
    answers, borrowed = Counter(), 0
    for one in made:
        shown = 0
        for turn in one.turns:
            shown += turn.said().count(MARK)
            if turn.question.kind == "presence":
                answers[turn.about == shown - 1, turn.question.answer] += 1
                borrowed += shown > 1 and turn.question.answer == "No" and any(
                    turn.question.nouns[0] in other.counts for other in one.pictures[:shown])
    assert answers[True, "Yes"] == answers[True, "No"] == 40
    assert abs(answers[False, "Yes"] - answers[False, "No"]) < 15
    assert borrowed > 50


@pytest.mark.parametrize("count", [1, 7])
def test_other_numbers_of_pictures_are_refused(count):
    with pytest.raises(VDPError, match=f"{count} pictures in a dialogue: give 2 to 6"):
        synthetic("evaluation", 0, count)


def test_dialogues_are_the_same_each_time_and_keep_to_their_split():
    one, again = synthetic("train", 3, 4), synthetic("train", 3, 4)
    assert one == again != synthetic("train", 4, 4)
    assert {scene.seed[0] for scene in one.pictures} == {scenes.SPLITS["train"][0]}
