"""Samples: which images, and which questions about them."""

import re
from collections import Counter

import numpy as np
import pytest

from vdp_utils.errors import VDPError
from vdp_utils.sources import dialogues, scenes
from vdp_utils.sources.samples import (Sample, one_pair, presence_samples, question_samples)


@pytest.fixture(scope="module")
def samples():
    return presence_samples("evaluation", 60)


@pytest.mark.parametrize("split", ["evaluation", "evaluation_nouns", "evaluation_backgrounds"])
def test_presence_samples_are_balanced_and_ask_no_noun_twice(split):
    for sample in presence_samples(split, 60):
        answers = Counter(q.answer for q in sample.questions)
        nouns = [q.nouns[0] for q in sample.questions]
        assert answers["Yes"] == answers["No"] <= 3
        assert len(nouns) == len(set(nouns)) == len(sample.questions) == len(sample.asked)
        for question in sample.questions:
            present = question.nouns[0] in {i.noun for i in sample.picture.items}
            assert question.answer == ("Yes" if present else "No")
            assert sample.asked[question.nouns[0]] == present
            assert (question.nouns[0] in scenes.HELD_OUT_NOUNS) == (split == "evaluation_nouns")


def test_presence_samples_number_order_and_templates(samples):
    assert [s.image_id for s in samples] == [f"evaluation-{n:06d}" for n in range(60)]
    assert samples == presence_samples("evaluation", 60)
    first = Counter(s.questions[0].answer for s in samples)
    assert 15 < first["Yes"] < 45  # no answer comes first
    assert max(len(s.questions) for s in samples) == 6
    assert max(len(s.questions) for s in presence_samples("evaluation", 20, pairs=1)) == 2
    asked = {re.sub(r"\ban? [a-z]+\b", "{a}", q.text, count=1)
             for s in presence_samples("evaluation", 20, held_out=True)
             for q in s.questions}
    assert len(asked) == 2 and asked.isdisjoint(dialogues.TEMPLATES["presence"][0])


def test_every_sample_has_questions():
    lacking = [s.image_id for s in presence_samples("evaluation_nouns", 300)
               if not s.questions]
    assert not lacking


@pytest.mark.parametrize("kind", ["position", "relation", "counting"])
def test_question_samples_have_distinct_questions_of_the_kind(kind):
    found = question_samples("evaluation", 20, kind, per_image=2)
    assert len(found) == 20
    for sample in found:
        assert 1 <= len(sample.questions) <= 2
        assert {q.kind for q in sample.questions} == {kind}
        assert len({q.nouns for q in sample.questions}) == len(sample.questions)


def test_images_own_blank_and_swapped(samples, monkeypatch):
    shown = []
    render = scenes.render
    monkeypatch.setattr(scenes, "render", lambda scene: shown.append(scene) or render(scene))
    for sample in samples:
        own, blank, swapped = map(sample.image, ("own", "blank", "swapped"))
        assert shown[-2] == sample.picture and shown[-1] != sample.picture
        assert set(sample.asked).isdisjoint(item.noun for item in shown[-1].items)
        assert own.size == blank.size == swapped.size == (scenes.SIZE, scenes.SIZE)
        assert own.mode == blank.mode == swapped.mode == "RGB"
        assert {low == high for low, high in blank.getextrema()} == {True}
        np.testing.assert_array_equal(np.asarray(own), render(sample.picture))
        assert np.any(np.asarray(own) != np.asarray(swapped))


def test_swapped_is_another_scene_even_where_nothing_present_is_asked():
    scene = scenes.compose("context", 5)
    absent = next(n for n in scenes.NOUNS if n not in scene.counts)
    sample = Sample(scene, (dialogues.presence(scene, absent, np.random.default_rng(0)),))
    assert np.any(np.asarray(sample.image("swapped")) != np.asarray(sample.image("own")))


def test_a_pair_is_the_first_yes_and_the_first_no():
    for sample, pair in zip(presence_samples("evaluation", 5),
                            one_pair(presence_samples("evaluation", 5))):
        assert [q.answer for q in pair.questions] == ["Yes", "No"]
        for question in pair.questions:
            same = [q for q in sample.questions if q.answer == question.answer]
            assert same[0] == question


def test_an_unknown_picture_is_refused(samples):
    with pytest.raises(VDPError, match="there is no picture 'text': choose one of own"):
        samples[0].image("text")
