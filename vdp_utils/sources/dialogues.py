"""Questions with known answers about any picture, contexts of three kinds, and dialogues.

Dialogues use the schema of the released SVIT files (Zhao et al., arXiv 2307.04087):
`{"image_id": ..., "conversations": [{"from": "user", "value": ...}, {"from": "gpt", ...}]}`.
"""

from dataclasses import dataclass
from itertools import cycle, islice

import numpy as np

from vdp_utils.errors import Lacking, VDPError
from vdp_utils.sources.pictures import Item, Picture

CONTEXT_KINDS = ("same_image", "other_images", "misleading", "prose", "repeated")
POSITIONS = ("top left", "top right", "bottom left", "bottom right")
NUMBERS = ("one", "two", "three", "four")
MIDLINE_GAP = 0.08  # a position is asked only where the box centre is this far from both midlines
RELATION_GAP = 0.2  # a relation is asked only where the box centres differ by this much

# The templates after the bar are kept from training and from contexts.
TEMPLATES = {
    "presence": (["Is there {a} in the picture?", "Do you see {a}?", "Can you see {a} here?",
                  "Does the picture show {a}?", "Is {a} visible?", "Does this image contain {a}?",
                  "Can {a} be found in the picture?", "Is {a} part of this scene?"],
                 ["Would you say {a} appears in this picture?", "Look closely: is {a} there?"]),
    "position": (["Where is the {n}?", "In which corner is the {n}?",
                  "Which part of the picture shows the {n}?", "Where can I find the {n}?",
                  "Where in the image is the {n}?"],
                 ["In what area would you look for the {n}?"]),
    "left of": (["Is the {n} to the left of the {m}?", "Is the {n} left of the {m}?",
                 "Does the {n} stand to the left of the {m}?"],
                ["Would you find the {n} on the left side of the {m}?"]),
    "above": (["Is the {n} above the {m}?", "Is the {n} higher up than the {m}?",
               "Does the {n} stand above the {m}?"],
              ["Would you find the {n} over the {m}?"]),
    "counting": (["How many {ns} are there?", "How many {ns} do you see?",
                  "What is the number of {ns}?", "Count the {ns}."],
                 ["How many {ns} appear in total?"]),
    "naming": (["Name the objects in the picture.", "What is in the picture?",
                "Which objects do you see?", "List the objects."],
               ["What things does this image contain?"]),
    "description": (["Describe the picture.", "What does the scene look like?",
                     "Give a short description.", "Tell me about the image."],
                    ["Summarise what the image shows."]),
}
QUESTION_KINDS = ("presence", "position", "relation", "counting", "naming", "description")
LEAD_AT_START = "About the image shown at the start: "
LEAD_ELSEWHERE = "About the image: "  # of a text description amid or after the context
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")

IRREGULAR = dict(sheep="sheep", fish="fish", deer="deer", knife="knives", wolf="wolves",
                 leaf="leaves", tomato="tomatoes", person="people", man="men", woman="women",
                 child="children", mouse="mice", skis="skis", scissors="scissors")
YES = ["Yes.", "Yes, {a}.", "Yes, there is {a}.", "Yes, I can see {a}.", "It does have {a}.",
       "Indeed, there is {a}.", "Yes, {a} is there.", "Sure, I see {a}."]
NO = ["No.", "No, there is no {n}.", "I cannot see {a}.", "No {n} here.", "No, I see no {n}.",
      "There is no {n}.", "No, {a} is missing.", "Not that I can see."]
REPLIES = {  # in dialogues: question kind -> answer -> ways to say it
    "presence": {"Yes": YES, "No": NO},
    "position": dict.fromkeys(POSITIONS, ["At the {k}.", "It is at the {k}.", "The {n} is at the "
                                          "{k}.", "You find the {n} at the {k}."]),
    "relation": {"Yes": ["Yes, it is.", "Yes.", "That is right."],
                 "No": ["No, it is not.", "No.", "No, the other way round."]},
    "counting": dict.fromkeys(NUMBERS, ["{k}.", "I count {k} {f}.", "There {v} {k} {f}."]),
}
CHAT = [  # about the scene as a whole: names no object
    (["What would be a good title?", "How would you caption it?"],
     ["A quiet moment.", "Things at rest.", "A small collection.", "An ordinary day.",
      "Colours and shapes."]),
    (["What is the mood?", "How does it make you feel?", "Is it a cheerful picture?"],
     ["It feels calm.", "It is bright and friendly.", "Rather playful, I would say.",
      "Simple and clear.", "It has a cheerful mood."]),
    (["Is it a photograph or a drawing?", "What style is this?"],
     ["It looks like a drawing.", "It is a flat illustration.", "A simple graphic style.",
      "Bold outlines and plain colours."]),
    (["Who might like this?", "Who could use such a picture?"],
     ["Children would enjoy it.", "A teacher could use it in class.", "Anyone learning new words.",
      "It would suit a calendar."]),
    (["What could I do with it?", "Any idea how to use this?"],
     ["You could make up a story about it.", "You could print it as a card.",
      "Use it for a guessing game.", "It could go on a poster."]),
    (["Is it crowded?", "Does it look busy?"],
     ["Hard to say, judge for yourself.", "There is some free room.", "Not too much, I think."]),
    (["Is there any text to read?", "Does it show any writing?"],
     ["I find nothing to read.", "No words that I could read.", "No, only shapes."]),
    (["Are there people?", "Is anyone in it?"],
     ["I do not see a person.", "No people, as far as I can tell.", "Nobody is there."]),
    (["Could you explain it to a child?", "How would you begin a story about it?"],
     ["Once upon a time, all was still.", "I would begin with what is largest.",
      "I would point and name things one by one."]),
    (["Are the outlines thick or thin?", "How is it drawn?"],
     ["The outlines are thick and dark.", "With bold lines and flat colours."]),
    (["Is it day or night?", "What time of day could it be?"],
     ["It could be any time.", "The light does not tell.", "Perhaps around noon."]),
    (["Thank you, that helps.", "Good, please go on.", "I see, thanks."],
     ["You are welcome.", "Gladly, ask me more.", "Of course.", "Happy to help."]),
]
BACKGROUNDS = dict(plain="It is plain.", gradient="It fades softly from one side to the other.",
                   noise="It is cloudy and uneven.", stripes="It has stripes.",
                   checks="It has a check pattern.", dots="It is covered with dots.",
                   waves="It has a wavy pattern.", bricks="It looks like a brick wall.")
PLACE_NAMES = dict(kitchen="a kitchen", market="a market", street="a street", farm="a farm",
                   sea="the sea", desk="an office", garden="a garden", savannah="the savannah",
                   forest="a forest", bedroom="a home", wardrobe="a wardrobe",
                   workshop="a workshop", stage="a stage", sky="the open air")
NOT_SHOWN = ["Now a picture that is not shown here.", "Here is what was said of another picture, "
             "which is not shown.", "The next picture is not shown here.",
             "Now about a picture that you cannot see.", "Another image, not shown here."]
PROSE = {  # running text that is no dialogue and speaks of no picture
    "when": ["In the morning", "A week later", "Before the meeting", "That winter", "At last",
             "On the way home", "During the long night", "After the harvest", "Some years ago",
             "Towards evening", "In the second month", "Without a word"],
    "who": ["the old captain", "a young lawyer", "her neighbour", "the miller's daughter",
            "the new teacher", "his cousin", "a quiet stranger", "the mayor", "one of the brothers",
            "the doctor", "an unknown poet", "the tallest of the workers"],
    "did": ["wrote a long letter", "counted the days", "told the story once more", "refused to pay",
            "remembered the promise", "paid what was owed", "asked for more time", "lost the way",
            "spoke about the weather", "agreed to the plan", "thought of an answer",
            "changed the rules"],
    "why": [", since nobody had objected", ", although it was late", " and waited for a reply",
            ", as the law required", " with great care", ", which surprised the village",
            " for the third time", ", and everybody went on working", " in spite of the rain",
            ", because time was short", ", or so it was said", " as if nothing had happened"],
}
TRIES = 1_000  # other pictures looked at for one of which something may be said
NAMED = 3  # places at least that take turns in misleading sentences, one for each asked noun


@dataclass(frozen=True)
class Question:
    """A question about one picture. `options` is empty where the answer is free text."""

    kind: str
    text: str
    answer: str
    options: tuple[str, ...]
    nouns: tuple[str, ...]


def a(noun: str) -> str:
    """The noun with its article."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def plural(noun: str) -> str:
    """The noun's plural."""
    if noun in IRREGULAR:
        return IRREGULAR[noun]
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    return noun[:-1] + "ies" if noun.endswith("y") and noun[-2:-1] not in "aeiou" else noun + "s"


def _pick(rng, items):
    return items[rng.integers(len(items))]


def _template(rng, name: str, held_out: bool) -> str:
    return _pick(rng, TEMPLATES[name][held_out])


def position(item: Item) -> str | None:
    """The item's quarter of the picture, or None too near a midline to say."""
    x, y = item.center
    if min(abs(x - 0.5), abs(y - 0.5)) < MIDLINE_GAP:
        return None
    return f"{'top' if y < 0.5 else 'bottom'} {'left' if x < 0.5 else 'right'}"


def image_leads(n: int, count: int) -> list[str]:
    """How a question may say that it is about image `n`, from 0, of the `count` shown so far."""
    leads = [f"About the {ORDINALS[n]} image: "]
    return leads + [LEAD_AT_START] * (n == 0) + ["About the last image: "] * (n == count - 1)


def presence(picture: Picture, noun: str, rng, held_out: bool = False) -> Question:
    """Is the noun in the picture? Options Yes and No."""
    text = _template(rng, "presence", held_out).format(a=a(noun))
    return Question("presence", text, "Yes" if noun in picture.counts else "No", ("Yes", "No"),
                    (noun,))


def ask(picture: Picture, kind: str, rng, held_out: bool = False, avoid=()) -> Question | None:
    """A random question of a kind that names no noun of `avoid`; None where there is none.

    Presence is balanced: yes and no with equal probability. `held_out` takes templates that
    training never showed.
    """
    counts = picture.counts
    single = [i for i in picture.items if counts[i.noun] == 1 and i.noun not in avoid]
    if kind == "presence":
        present = [n for n in counts if n not in avoid]
        if rng.random() < 0.5:
            return presence(picture, _pick(rng, present), rng, held_out) if present else None
        return presence(picture, picture.absent(rng, avoid), rng, held_out)
    if kind == "position":
        known = [i for i in single if position(i)]
        if not known:
            return None
        item = _pick(rng, known)
        text = _template(rng, "position", held_out).format(n=item.noun)
        return Question(kind, text, position(item), POSITIONS, (item.noun,))
    if kind == "relation":
        axis = int(rng.integers(2))
        pairs = [(p, q) for p in single for q in single
                 if abs(p.center[axis] - q.center[axis]) > RELATION_GAP]
        if not pairs:
            return None
        p, q = _pick(rng, pairs)
        text = _template(rng, ("left of", "above")[axis], held_out).format(n=p.noun, m=q.noun)
        return Question(kind, text, "Yes" if p.center[axis] < q.center[axis] else "No",
                        ("Yes", "No"), (p.noun, q.noun))
    if kind == "counting":
        by_count: dict[int, list[str]] = {}
        for noun, count in counts.items():
            if noun not in avoid and count <= len(NUMBERS):
                by_count.setdefault(count, []).append(noun)
        if not by_count:
            return None
        count = _pick(rng, sorted(by_count))
        noun = _pick(rng, by_count[count])
        text = _template(rng, "counting", held_out).format(ns=plural(noun))
        return Question(kind, text, NUMBERS[count - 1], NUMBERS, (noun,))
    if kind == "naming":
        text = _template(rng, "naming", held_out)
        # with articles: after them each noun is one token of the embedded LVLM
        return Question(kind, text, ", ".join(map(a, counts)), (), tuple(counts))
    if kind == "description":
        text = _template(rng, "description", held_out)
        return Question(kind, text, describe(picture, rng), (), tuple(counts))
    raise VDPError(f"unknown question kind {kind!r}: choose one of {QUESTION_KINDS}")


def describe(picture: Picture, rng, avoid=()) -> str:
    """The picture as text: every object not in `avoid`, with its number and place."""
    sentences = []
    for noun, count in picture.counts.items():
        if noun in avoid:
            continue
        if count > 1:
            sentences.append(f"There are {NUMBERS[count - 1] if count <= 4 else 'many'} "
                             f"{plural(noun)}.")
            continue
        where = ""
        if count == 1:
            place = position(next(i for i in picture.items if i.noun == noun))
            where = f" at the {place}" if place else " near the middle"
        sentences.append(f"There is {a(noun)}{where}.")
    return " ".join(sentences[i] for i in rng.permutation(len(sentences)))


def _turn(scene, rng, avoid) -> tuple[str, str]:
    """One question and answer about a scene in dialogue style, naming no noun of `avoid`.

    Nothing here says that a list is complete, so what is not named is not thereby absent.
    """
    seen = [n for n in scene.counts if n not in avoid]
    kind = _pick(rng, ("presence", "presence", "position", "relation", "counting", "size",
                       "naming", "description", "background", "theme", "chat"))
    if kind in REPLIES:
        question = ask(scene, kind, rng, avoid=avoid)
        if question is None and kind == "counting":
            question = presence(scene, scene.absent(rng, avoid), rng)
        if question:
            noun, answer, one = question.nouns[0], question.answer, question.answer == "one"
            reply = _pick(rng, REPLIES[question.kind][answer]).format(
                a=a(noun), n=noun, k=answer, f=noun if one else plural(noun),
                v="is" if one else "are")
            return question.text, reply[0].upper() + reply[1:]
    if kind == "size" and len(seen) > 1:
        p, q = (seen[i] for i in rng.permutation(len(seen))[:2])
        bigger = max(p, q, key=scene.share)
        ask_size = _pick(rng, ["Which takes more room, the {p} or the {q}?",
                               "What fills more of the picture, the {p} or the {q}?"])
        return ask_size.format(p=p, q=q), f"The {bigger}."
    if kind == "naming" and seen:
        some = [seen[i] for i in rng.permutation(len(seen))[:3]]
        return (_pick(rng, ["Name some things you see.", "What catches the eye?"]),
                f"For example {' and '.join(a(n) for n in some)}.")
    if kind == "description" and seen:
        return (_pick(rng, ["Describe some of it.", "Tell me a little about the picture."]),
                " ".join(sentence.rstrip(".") + "."
                         for sentence in describe(scene, rng, avoid).split(". ")[:2]))
    if kind == "theme":
        return (_pick(rng, ["What place does it remind you of?", "What is it about?"]),
                f"It makes me think of {PLACE_NAMES[scene.theme]}.")
    if kind == "background":
        return (_pick(rng, ["What is the background like?", "How would you describe the "
                            "background?", "What is behind the objects?"]),
                BACKGROUNDS[scene.texture])
    asks, replies = _pick(rng, CHAT)
    return _pick(rng, asks), _pick(rng, replies)


def dialogue(scene, rng, turns: int, avoid=()) -> dict:
    """A multi-turn dialogue about a synthetic scene in the SVIT schema, naming no noun of `avoid`.

    `scene` is a `scenes.Scene`: what is said of theme and texture is true of no other picture.
    """
    conversations, last = [], None
    while len(conversations) < 2 * turns:
        ask_text, reply = _turn(scene, rng, avoid)
        if ask_text != last:  # nobody asks the same thing twice in a row
            conversations += [{"from": "user", "value": ask_text}, {"from": "gpt", "value": reply}]
        last = ask_text
    return {"image_id": scene.image_id, "conversations": conversations}


def _sentence(rng, avoid) -> str:
    """A sentence of PROSE that names no noun of `avoid`."""
    while True:
        text = "{} {} {}{}.".format(*(_pick(rng, part) for part in PROSE.values()))
        if not any(noun in text.lower() for noun in avoid):
            return text


def as_text(record: dict, lead: str = "") -> str:
    """A dialogue as plain text, one line per turn; `lead` opens the first user turn."""
    lines = []
    for turn in record["conversations"]:
        name = "User" if turn["from"] == "user" else "Assistant"
        lines.append(f"{name}: {lead}{turn['value']}\n")
        lead = ""
    return "".join(lines)


def check_context_kind(kind: str) -> None:
    """VDPError for a context kind that there is not."""
    if kind not in CONTEXT_KINDS:
        raise VDPError(f"unknown context kind {kind!r}: choose one of {', '.join(CONTEXT_KINDS)}")


def context_blocks(kind: str, picture: Picture, asked: dict[str, bool], seed, leads=NOT_SHOWN,
                   misleading: int = 1):
    """Endless pieces of context text, nearest to the question first.

    `asked` maps every noun that may be asked to whether the picture shows it. `same_image` talks
    about this picture and `other_images` about others, and neither names an asked noun, so neither
    states the answer. `misleading` is `other_images` with `misleading` sentences per dialogue, each
    of which affirms of another picture a noun that this one lacks: the asked ones in turn. Where
    they are fewer than NAMED, some turns name none, so that a noun is named as often however many
    are asked. Dialogues about others open with one of `leads`. `prose` is running text about no
    picture, a paragraph each, and `repeated` one sentence of it over and over. Longer contexts
    extend shorter ones at the far end. VDPError where nothing may be said: every turn there is
    names an asked noun.
    """
    check_context_kind(kind)
    rng = np.random.default_rng(seed)
    if kind in ("prose", "repeated"):
        told = [_sentence(rng, asked)] * 5
        while True:
            yield " ".join(told) + "\n"
            told = [_sentence(rng, asked) for _ in told] if kind == "prose" else told
    absent = [noun for noun, present in asked.items() if not present]
    absent += [None] * (NAMED - len(absent))
    turns = cycle([absent[n] for n in rng.permutation(len(absent))] if kind == "misleading" else [])
    while True:
        if kind == "same_image":
            yield as_text(_said([picture], rng, lambda: picture.dialogue_turns, asked))
            continue
        others = (picture.other(rng) for _ in range(TRIES))
        record = _said(others, rng, lambda: int(rng.integers(3, 6)), asked)
        for noun in filter(None, islice(turns, misleading)):
            at = 2 * int(rng.integers(len(record["conversations"]) // 2 + 1))
            record["conversations"][at:at] = [
                {"from": "user", "value": _template(rng, "presence", False).format(a=a(noun))},
                {"from": "gpt", "value": _pick(rng, YES[1:]).format(a=a(noun))}]
        yield as_text(record, lead=_pick(rng, leads) + " ")


def _said(among, rng, turns, asked) -> dict:
    """The first dialogue that has turns, of any of the pictures."""
    for picture in among:
        if (record := picture.dialogue(rng, turns(), asked))["conversations"]:
            return record
    free = (f" that does not name one of {', '.join(asked)}"
            if asked and picture.dialogue(rng, turns(), {})["conversations"] else "")
    raise Lacking(f"nothing is said of {picture.image_id}{free}: choose another context kind, or a "
                  "source with more talk")


def text_description(picture: Picture, seed) -> str:
    """The picture as text, a dialogue of one question and answer: every object is named."""
    rng = np.random.default_rng((*seed, 7))
    record = {"conversations": [
        {"from": "user", "value": _template(rng, "description", False)},
        {"from": "gpt", "value": "The image shows the following. " + describe(picture, rng)}]}
    return as_text(record)
