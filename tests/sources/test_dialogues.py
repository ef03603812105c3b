import re
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vdp_utils.errors import VDPError
from vdp_utils.sources import dialogues, scenes
from vdp_utils.sources.dialogues import CONTEXT_KINDS, QUESTION_KINDS, TEMPLATES
from vdp_utils.sources.samples import presence_samples
from vdp_utils.sources.scenes import Item, Scene

IRREGULAR = dict(
    knife="knives", leaf="leaves", wolf="wolves", tomato="tomatoes", sheep="sheep", fish="fish",
    deer="deer", strawberry="strawberries", butterfly="butterflies", monkey="monkeys", key="keys",
    bus="buses", octopus="octopuses", cactus="cactuses", dress="dresses", fox="foxes",
    couch="couches", wrench="wrenches", taxi="taxis", axe="axes", piano="pianos", radio="radios",
    house="houses", shoe="shoes", mushroom="mushrooms", giraffe="giraffes")
NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4}
WORDS = {form: noun for noun in scenes.GLYPHS
         for form in (noun, IRREGULAR.get(noun, noun + "s"), noun + "s", noun + "es")}
repeatable = settings(derandomize=True, deadline=None, max_examples=60)
indices = st.integers(0, 10**6)


def named(text):
    """Nouns that a text names as whole words, in the singular or plural."""
    return {WORDS[word] for word in re.findall("[a-z]+", text.lower()) if word in WORDS}


def asked_of(scene, rng, pairs=3):
    """Nouns to ask: up to `pairs` that the scene has and as many that it lacks."""
    present = rng.permutation(list(scene.counts))[:pairs].tolist()
    absent = [n for n in scenes.GLYPHS if n not in scene.counts]
    chosen = rng.permutation(absent)[:len(present)].tolist()
    return {n: True for n in present} | {n: False for n in chosen}


def context_text(kind, scene, asked, seed, blocks):
    pieces = dialogues.context_blocks(kind, scene, asked, seed)
    return "".join(islice(pieces, blocks))


def turns(record):
    said = [turn["value"] for turn in record["conversations"]]
    return list(zip(said[::2], said[1::2]))


def pattern(template):
    """A template as a regular expression with groups n, m, ns; `a` takes the article along."""
    text = re.escape(template)
    for slot, form in (("a", "an? (?P<n>[a-z]+)"), ("n", "(?P<n>[a-z]+)"),
                       ("m", "(?P<m>[a-z]+)"), ("ns", "(?P<ns>[a-z]+)")):
        text = text.replace(r"\{" + slot + r"\}", form)
    return re.compile(text)


PATTERNS = [(name, pattern(t)) for name, (known, _) in TEMPLATES.items() for t in known
            if "{" in t]
HELD_OUT_PATTERNS = [pattern(t) for _, held_out in TEMPLATES.values() for t in held_out]


def truth(scene, text):
    """(kind, answer) of a templated question, worked out from the boxes alone, or None."""
    for name, form in PATTERNS:
        found = form.fullmatch(text)
        if not found:
            continue
        boxes = [[i.box for i in scene.items if i.noun == WORDS.get(word)]
                 for word in found.groupdict().values()]
        if name == "presence":
            return name, "Yes" if boxes[0] else "No"
        if name == "counting":
            return name, len(boxes[0])
        assert all(len(b) == 1 for b in boxes), f"ambiguous in {scene.image_id}: {text}"
        centers = [((b[0][0] + b[0][2]) / 2, (b[0][1] + b[0][3]) / 2) for b in boxes]
        if name == "position":
            (x, y), = centers
            assert min(abs(x - 80), abs(y - 80)) >= 0.08 * 160, "too near a midline to say"
            return name, f"{'top' if y < 80 else 'bottom'} {'left' if x < 80 else 'right'}"
        axis = 0 if name == "left of" else 1
        gap = centers[1][axis] - centers[0][axis]
        assert abs(gap) > 0.2 * 160, "too close to say"
        return "relation", "Yes" if gap > 0 else "No"
    return None


@pytest.mark.parametrize("noun", scenes.GLYPHS)
def test_plural(noun):
    assert dialogues.plural(noun) == IRREGULAR.get(noun, noun + "s")


def test_words_that_end_unlike_a_regular_noun_are_in_the_pinned_table():
    odd = [n for n in scenes.GLYPHS if n.endswith(("s", "x", "z", "ch", "sh", "y", "f", "fe", "o"))]
    assert set(odd) <= set(IRREGULAR)


def test_articles():
    vowels = {n for n in scenes.GLYPHS if dialogues.a(n) == f"an {n}"}
    assert vowels == {"egg", "apple", "octopus", "anchor", "envelope", "elephant", "owl", "axe",
                      "airplane", "ambulance"}
    assert all(dialogues.a(n) == f"a {n}" for n in set(scenes.GLYPHS) - vowels)


@pytest.mark.parametrize("kind", ["presence", "position", "relation", "counting"])
def test_answers_are_true_for_the_scene_and_spread_over_the_options(kind):
    rng = np.random.default_rng(1)
    asked = Counter()
    for index in range(500):
        scene = scenes.compose("evaluation", index)
        question = dialogues.ask(scene, kind, rng)
        if question is None:
            continue
        answer = NUMBERS.get(question.answer, question.answer)
        assert truth(scene, question.text) == (kind, answer), (scene, question)
        assert question.kind == kind and question.answer in question.options
        assert named(question.text) == set(question.nouns)
        asked[question.answer] += 1
    share = {answer: count / asked.total() for answer, count in asked.items()}
    assert set(share) == set(question.options)
    low, high = {"position": (0.2, 0.3), "counting": (0.03, 0.78)}.get(kind, (0.43, 0.57))
    assert low < min(share.values()) and max(share.values()) < high  # `one` is most of counting


def test_naming_and_description_answers_name_exactly_what_is_there():
    rng = np.random.default_rng(2)
    for index in range(100):
        scene = scenes.compose("evaluation", index)
        for kind in ("naming", "description"):
            question = dialogues.ask(scene, kind, rng)
            assert named(question.answer) == set(scene.counts) == set(question.nouns)
            assert question.options == ()
            if kind == "naming":  # largest first, with articles
                names = [re.fullmatch("an? (.+)", name)[1] for name in question.answer.split(", ")]
                assert names == list(scene.counts)
        for sentence in question.answer.rstrip(".").split(". "):
            (noun,) = named(sentence)
            number = sentence.split()[2]
            assert NUMBERS.get(number, 1) == scene.counts[noun]
            if place := re.search("at the (.+)", sentence):
                (item,) = (i for i in scene.items if i.noun == noun)
                assert place[1] == dialogues.position(item)


def test_presence_of_a_given_noun():
    scene = scenes.compose("evaluation", 0)
    rng = np.random.default_rng(0)
    present = next(iter(scene.counts))
    absent = next(n for n in scenes.NOUNS if n not in scene.counts)
    for noun, answer in ((present, "Yes"), (absent, "No")):
        question = dialogues.presence(scene, noun, rng)
        assert (question.answer, question.options, question.nouns) == (
            answer, ("Yes", "No"), (noun,))


def test_absent_nouns_of_training_are_never_held_out():
    rng = np.random.default_rng(3)
    asked = {q.nouns[0] for n in range(300)
             if (q := dialogues.ask(scenes.compose("train", n), "presence", rng))}
    assert asked.isdisjoint(scenes.HELD_OUT_NOUNS)
    asked = {noun for sample in presence_samples("evaluation_nouns", 300)
             for noun, present in sample.asked.items() if not present}
    assert not asked.isdisjoint(scenes.HELD_OUT_NOUNS)


def test_positions_near_a_midline_and_repeated_nouns_are_not_asked():
    rng = np.random.default_rng(0)
    middle = Scene("x", "farm", "plain", (1, 0), (Item("cow", (60, 10, 100, 50)),))
    assert dialogues.position(middle.items[0]) is None
    assert dialogues.ask(middle, "position", rng) is None
    assert dialogues.ask(middle, "relation", rng) is None
    twice = Scene("x", "farm", "plain", (1, 0), (Item("cow", (0, 0, 40, 40)),
                                                 Item("cow", (100, 100, 140, 140))))
    assert dialogues.position(twice.items[0]) == "top left"
    assert dialogues.ask(twice, "position", rng) is None
    assert dialogues.ask(twice, "counting", rng).answer == "two"


def test_questions_avoid_the_nouns_to_avoid():
    rng = np.random.default_rng(4)
    for index in range(100):
        scene = scenes.compose("evaluation", index)
        avoid = asked_of(scene, rng)
        for kind in ("presence", "position", "relation", "counting"):
            question = dialogues.ask(scene, kind, rng, avoid=avoid)
            assert question is None or set(question.nouns).isdisjoint(avoid)


def test_unknown_question_kind_and_context_kind_are_named():
    scene, rng = scenes.compose("evaluation", 0), np.random.default_rng(0)
    with pytest.raises(VDPError, match="unknown question kind 'colour'.*presence"):
        dialogues.ask(scene, "colour", rng)
    with pytest.raises(VDPError, match="unknown context kind 'poem'.*mentions"):
        next(dialogues.context_blocks("poem", scene, {}, 0))


@pytest.mark.parametrize("kind", QUESTION_KINDS)
def test_held_out_templates_are_asked_only_where_asked_for(kind):
    rng = np.random.default_rng(5)
    for index in range(100):
        scene = scenes.compose("train", index)
        for held_out in (False, True):
            question = dialogues.ask(scene, kind, rng, held_out=held_out)
            if question:
                found = any(form.fullmatch(question.text) for form in HELD_OUT_PATTERNS)
                assert found == held_out, question.text


def test_held_out_templates_are_unlike_the_others():
    for known, held_out in TEMPLATES.values():
        assert len(known) >= 3 and held_out and set(known).isdisjoint(held_out)


@pytest.mark.parametrize("kind", CONTEXT_KINDS)
def test_contexts_use_no_held_out_template(kind):
    for index in range(15):
        scene = scenes.compose("evaluation", index)
        asked = asked_of(scene, np.random.default_rng(index))
        for line in context_text(kind, scene, asked, (index, 1), 20).splitlines():
            assert not any(form.search(line) for form in HELD_OUT_PATTERNS), line


@pytest.mark.parametrize("split", ["train", "evaluation_nouns", "evaluation_backgrounds"])
def test_dialogues_tell_the_truth(split):
    """Every templated turn, its reply read back and compared with the boxes."""
    rng, read = np.random.default_rng(6), Counter()
    for index in range(150):
        scene = scenes.compose(split, index)
        for question, reply in turns(dialogues.dialogue(scene, rng, 6)):
            found = truth(scene, question)
            if not found:
                continue
            kind, answer = found
            read[kind] += 1
            if kind in ("presence", "relation"):
                no = re.match("No|I cannot|There is no|Not ", reply)
                assert (answer == "No") == bool(no), (question, reply)
            elif kind == "position":
                assert answer in reply
            else:
                (number,) = NUMBERS.keys() & set(re.findall("[a-z]+", reply.lower()))
                assert NUMBERS[number] == answer
                if len(reply.split()) > 1:
                    assert (dialogues.plural(scene_noun(question)) in reply) or answer == 1
            assert named(reply) <= named(question)
        for question, reply in turns(dialogues.dialogue(scene, rng, 6)):
            if not truth(scene, question):  # free turns: what they name is there
                assert named(reply) <= set(scene.counts), (question, reply)
            if size := re.fullmatch(r".*, the ([a-z]+) or the ([a-z]+)\?", question):
                shares = {noun: scene.share(noun) for noun in size.groups()}
                assert reply == f"The {max(shares, key=shares.get)}."
    assert min(read[k] for k in ("presence", "position", "relation", "counting")) > 30


def scene_noun(question):
    (noun,) = named(question)
    return noun


def test_presence_in_dialogues_is_balanced():
    rng, answers = np.random.default_rng(7), Counter()
    for index in range(300):
        scene = scenes.compose("context", index)
        for question, _ in turns(dialogues.dialogue(scene, rng, 6)):
            kind, answer = truth(scene, question) or (None, None)
            answers[answer] += kind == "presence"
    assert answers.total() > 200
    assert abs(answers["Yes"] / answers.total() - 0.5) < 0.1


def test_dialogues_alternate_and_repeat_no_question_in_a_row():
    scene = scenes.compose("train", 3)
    record = dialogues.dialogue(scene, np.random.default_rng(0), 30)
    assert record["image_id"] == scene.image_id
    assert [t["from"] for t in record["conversations"]] == ["user", "gpt"] * 30
    asks = [question for question, _ in turns(record)]
    assert all(p != q for p, q in zip(asks, asks[1:]))


def test_no_reply_says_a_sentence_twice():
    rng = np.random.default_rng(8)
    for index in range(200):
        for _, reply in turns(dialogues.dialogue(scenes.compose("context", index), rng, 4)):
            sentences = reply.rstrip(".").split(". ")
            assert len(sentences) == len(set(sentences)), reply


def test_fixed_phrases_name_no_noun():
    fixed = [line for pair in dialogues.CHAT for lines in pair for line in lines]
    fixed += [*dialogues.BACKGROUNDS.values(), *dialogues.PLACE_NAMES.values(), *dialogues.LEADS,
              *dialogues.YES, *dialogues.NO, *dialogues.POSITIONS, dialogues.QUESTION_LEAD]
    fixed += [line for lines in TEMPLATES.values() for line in sum(lines, [])]
    assert {line: found for line in fixed if (found := named(line))} == {}


def test_every_theme_and_texture_has_its_words():
    assert set(dialogues.PLACE_NAMES) == set(scenes.THEMES)
    assert set(dialogues.BACKGROUNDS) == set(scenes.TEXTURES + scenes.HELD_OUT_TEXTURES)


@repeatable
@given(st.sampled_from(["same", "other"]), st.sampled_from(list(scenes.SPLITS)), indices,
       st.integers(0, 99))
def test_same_and_other_never_name_an_asked_noun(kind, split, index, seed):
    scene = scenes.compose(split, index)
    asked = asked_of(scene, np.random.default_rng(seed))
    text = context_text(kind, scene, asked, (index, seed), 25)
    assert named(text).isdisjoint(asked)
    assert named(text)  # but others


@repeatable
@given(st.sampled_from(list(scenes.SPLITS)), indices, st.integers(0, 99))
def test_mentions_affirms_the_absent_and_never_names_the_present(split, index, seed):
    scene = scenes.compose(split, index)
    asked = asked_of(scene, np.random.default_rng(seed))
    lines = context_text("mentions", scene, asked, (index, seed), 60).splitlines()
    absent = {noun for noun, present in asked.items() if not present}
    assert named("\n".join(lines)) & set(asked) == absent
    for question, reply in zip(lines[::2], lines[1::2]):
        if lure := named(question) & absent:
            assert named(reply) == lure
            assert not re.match("Assistant: (No|I cannot|There is no)", reply)
        else:
            assert named(reply).isdisjoint(asked)


@repeatable
@given(st.sampled_from(list(scenes.SPLITS)), indices, st.integers(0, 99))
def test_a_scene_in_words_names_every_object(split, index, seed):
    scene = scenes.compose(split, index)
    head = dialogues.in_words(scene, (index, seed))
    assert re.fullmatch(r"User: .+\nAssistant: The image shows the following\. .+\n", head)
    said = {WORDS[w]: (number, w) for number, w in re.findall(
        "There (?:is|are) (an?|two|three|four) ([a-z]+)", head)}
    wanted = {n: ("two three four".split()[count - 2], IRREGULAR.get(n, n + "s")) if count > 1
              else ("an" if n[0] in "aeiou" else "a", n) for n, count in scene.counts.items()}
    assert said == wanted


def test_same_is_about_this_scene_and_other_about_others():
    scene = Scene("x", "farm", "stripes", (1, 0), (
        Item("cow", (0, 0, 40, 40)), Item("pig", (100, 100, 140, 140)),
        Item("car", (100, 0, 140, 40))))
    same = context_text("same", scene, {"cow": True, "tree": False}, 0, 60)
    assert {"pig", "car"} <= named(same) and "I see no pig" not in same
    assert set(re.findall("makes me think of (.+)\\.", same)) == {"a farm"}
    assert "It is plain." not in same and not any(lead in same for lead in dialogues.LEADS)
    other = context_text("other", scene, {"cow": True, "tree": False}, 0, 60)
    assert len(set(re.findall("makes me think of (.+)\\.", other))) > 5
    assert all(line.count("picture") or line.count("image") for line in other.splitlines()[:1])
    assert sum(other.count(lead) for lead in dialogues.LEADS) == 60  # each says that it is another


@pytest.mark.parametrize("kind", CONTEXT_KINDS)
def test_contexts_are_the_same_from_the_same_seed_only(kind):
    scene = scenes.compose("evaluation", 1)
    asked = asked_of(scene, np.random.default_rng(0))
    texts = [context_text(kind, scene, asked, seed, 5) for seed in ((1, 2), (1, 2), (1, 3))]
    assert texts[0] == texts[1] != texts[2]


def test_as_text_is_one_line_a_turn():
    record = {"conversations": [{"from": "user", "value": "Is it day?"},
                                {"from": "gpt", "value": "Yes."},
                                {"from": "user", "value": "Thanks."}]}
    assert dialogues.as_text(record, "Next. ") == (
        "User: Next. Is it day?\nAssistant: Yes.\nUser: Thanks.\n")
