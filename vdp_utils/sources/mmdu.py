"""Dialogues of many turns about many images, as MMDU has them (Liu et al., arXiv 2406.11833).

A released record is `{"id": ..., "image": ["/mmdu_pics/<name>.jpg", ...], "conversations":
[{"from": "user", "value": ...}, {"from": "assistant", ...}, ...]}`: each MARK in a user's turn is
the next image, so that images grow turn by turn, and the assistant's turns are the references.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vdp_utils.errors import VDPError
from vdp_utils.sources import dialogues, scenes
from vdp_utils.sources.dialogues import Question
from vdp_utils.sources.pictures import Picture

MARK = "<ImageHere>"
LEAST = 4  # nouns in a synthetic dialogue's pictures, so that each can be asked about repeatedly
ROOM = 100  # scenes among which the pictures of one dialogue are sought


@dataclass(frozen=True)
class Turn:
    """A user's turn: the MARKs it opens with, its words (released ones hold the MARKs), a question
    whose answer is the reference, and the number of the picture it is about, -1 if not known."""

    marks: str
    words: str
    question: Question
    about: int = -1

    def said(self, told: str = "") -> str:
        """All of it; `told`, lines of text, comes before the question."""
        return self.marks + told + self.words


@dataclass(frozen=True)
class Dialogue:
    """Its name, its pictures (files of released ones) in order, and the user's turns. To `measure`
    it is a sample, its name standing for the image, the unit of statistics."""

    image_id: str
    pictures: tuple[Picture | Path, ...]
    turns: tuple[Turn, ...]

    @property
    def questions(self) -> tuple[Question, ...]:
        return tuple(turn.question for turn in self.turns)

    def lacks(self, kind: str, image: str = "own") -> str:
        """See `Sample.lacks`."""
        return ""

    def record(self) -> dict:
        """The dialogue in the released form, its pictures named, but not stored."""
        said = [{"from": role, "value": value} for turn in self.turns for role, value in (
            ("user", turn.said()), ("assistant", turn.question.answer))]
        return {"id": self.image_id, "conversations": said, "image": [
            f"/mmdu_pics/{getattr(one, 'image_id', one)}.png" for one in self.pictures]}


def load(path: str | Path) -> list[Dialogue]:
    """The dialogues of a released `benchmark.json`, beside which the folder of pictures lies.

    VDPError for a file that cannot be read or a malformed record; pictures are not looked for yet.
    """
    path = Path(path)
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
        records = list(records.values() if isinstance(records, dict) else records)
    except (OSError, ValueError, TypeError) as error:
        raise VDPError(f"{path}: cannot be read as a list or dict of dialogues ({error}); give "
                       "MMDU's benchmark.json") from error
    found = [_released(one, path.parent, f"{path}: dialogue {n}") for n, one in enumerate(records)]
    if len({one.image_id for one in found}) < len(found):
        raise VDPError(f"{path}: two dialogues have the same id: give each its own")
    return found


def _released(record, folder: Path, where: str) -> Dialogue:
    try:
        name = str(record["id"])
        pictures = tuple(folder / one.lstrip("/") for one in record["image"])
        roles, values = zip(*((turn["from"], turn["value"]) for turn in record["conversations"]))
        marks = [value.count(MARK) for value in values]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise VDPError(f"{where} is malformed ({error!r}): each needs id, image and conversations "
                       "of turns with 'from' and 'value'") from error
    if roles != ("user", "assistant") * (len(roles) // 2):
        raise VDPError(f"{where} ({name}) is malformed: turns must alternate user, assistant")
    if any(marks[1::2]) or sum(marks) != len(pictures):
        raise VDPError(f"{where} ({name}) is malformed: its {len(pictures)} pictures need as many "
                       f"{MARK} in the user's turns and none elsewhere, found {marks}")
    return Dialogue(name, pictures, tuple(
        Turn("", said, Question("free", said.replace(MARK, "").strip(), reply, (), ()))
        for said, reply in zip(values[::2], values[1::2])))


def synthetic(split: str, index: int, pictures: int) -> Dialogue:
    """Dialogue number `index` of a split about two to six synthetic scenes.

    Each picture comes with a presence question about it; then one on position or number, and one
    on presence that goes back to an earlier picture. Last the objects of two pictures are named:
    no turn names what a later one asks about. Yes and no take turns; where the answer is no,
    another picture shown by then has the noun if it can.
    """
    if not 2 <= pictures <= len(dialogues.ORDINALS):
        raise VDPError(f"{pictures} pictures in a dialogue: give 2 to {len(dialogues.ORDINALS)}")
    found = (scenes.compose(split, ROOM * index + n) for n in range(ROOM))
    found = [scene for scene in found if len(scene.counts) >= LEAST][:pictures]
    rng = np.random.default_rng((scenes.SPLITS[split][0], index, 16))
    turns, used, shown = [], set(), 0

    def add(about: int, question: Question | None, new: bool = False):
        if question:
            leads = dialogues.image_leads(about, shown)
            lead = leads[rng.integers(len(leads))]
            turns.append(Turn(MARK * new, lead + question.text, question, about))
            used.update(question.nouns)

    for latest in range(pictures):
        shown, yes = latest + 1, (index + latest) % 2
        add(latest, _presence(found, latest, shown, bool(yes), used, rng), new=True)
        add(latest, dialogues.ask(found[latest], ("position", "counting")[rng.integers(2)], rng,
                                  avoid=used))
        if latest:
            back = int(rng.integers(latest))
            add(back, _presence(found, back, shown, not yes, used, rng))
    for about in rng.permutation(pictures)[:2].tolist():
        add(about, dialogues.ask(found[about], "naming", rng))
    return Dialogue(f"{split}-dialogue-{index:04d}", tuple(found), tuple(turns))


def _presence(pictures, about: int, shown: int, yes: bool, used: set, rng) -> Question:
    """A presence question about a noun that none of the dialogue has asked about yet."""
    own = pictures[about]
    present = [noun for noun in own.counts if noun not in used]
    others = [noun for one in pictures[:shown] for noun in one.counts
              if noun not in own.counts and noun not in used]
    absent = others or [own.absent(rng, used)]
    nouns = present if yes and present else absent
    return dialogues.presence(own, nouns[rng.integers(len(nouns))], rng)
