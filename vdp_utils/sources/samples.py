"""Samples: one picture and the questions that are asked about it."""

import itertools
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from vdp_utils.errors import Lacking, VDPError
from vdp_utils.sources import dialogues, scenes
from vdp_utils.sources.dialogues import Question
from vdp_utils.sources.pictures import Picture

PICTURES = ("own", "blank", "swapped")
subfolder = ""  # of rows and figures: other sources than scenes have one


@dataclass(frozen=True)
class Sample:
    """One picture and the questions that are asked about it.

    Contexts and swapped pictures heed the `unasked` questions too, so that they do not change with
    how many are asked.
    """

    picture: Picture
    questions: tuple[Question, ...]
    unasked: tuple[Question, ...] = ()

    @property
    def image_id(self) -> str:
        return self.picture.image_id

    @property
    def asked(self) -> dict[str, bool]:
        """Every noun a question names, asked or not -> whether the picture shows it."""
        questions = (*self.questions, *self.unasked)
        return {n: n in self.picture.counts for n in sorted(n for q in questions for n in q.nouns)}

    def ask(self, *questions: Question) -> "Sample":
        """The same sample with only these of its questions asked."""
        rest = tuple(q for q in (*self.questions, *self.unasked) if q not in questions)
        return replace(self, questions=questions, unasked=rest)

    def lacks(self, kind: str, image: str = "own") -> str:
        """Why it has no prompt of a context kind and an image, which are those of
        `prompts.shared_prefix`; "" where it has."""
        if image not in (*PICTURES, "none") and any(q.kind == "own" for q in self.questions):
            return "a text description says only which objects there are, and where"
        return self.picture.untold(kind, self.asked, swapped=image == "swapped")

    def image(self, which: str = "own") -> Image.Image:
        """The picture, a mid-grey one, or another with none of the asked nouns; all of one size."""
        if which not in PICTURES:
            raise VDPError(f"there is no picture {which!r}: choose one of {', '.join(PICTURES)}")
        own = self.picture.image()
        if which == "own":
            return own
        if which == "blank":
            return Image.new("RGB", own.size, (128, 128, 128))
        return self.picture.swap(self.asked).image().resize(own.size)


def presence_samples(split: str, count: int, pairs: int = 3,
                     held_out: bool = False) -> list[Sample]:
    """`count` images with up to `pairs` yes- and as many no-questions each (never unbalanced).

    `held_out` asks by templates that training never showed. In the split `evaluation_nouns` all
    questions are about nouns that training never showed.
    """
    among = {True: scenes.HELD_OUT_NOUNS, False: ()}
    return [ask_presence(scene, pairs, held_out, among[scene.has_new_nouns])
            for scene in (scenes.compose(split, i) for i in range(count))]


def ask_presence(picture: Picture, pairs: int = 3, held_out: bool = False, among=()) -> Sample:
    """Up to `pairs` yes- and as many no-questions about a picture; about nouns of `among`, if any.

    The absent nouns come from `among` too, or else from `picture.absent`.
    """
    rng = np.random.default_rng((*picture.seed, 2))
    present = [n for n in picture.counts if not among or n in among]
    chosen = [present[i] for i in rng.permutation(len(present))[:pairs]]
    absent: list[str] = []
    for _ in chosen:
        pool = [n for n in among if n not in picture.counts and n not in absent]
        absent.append(pool[rng.integers(len(pool))] if among else picture.absent(rng, absent))
    questions = [dialogues.presence(picture, noun, rng, held_out) for noun in (*chosen, *absent)]
    return Sample(picture, tuple(questions[i] for i in rng.permutation(len(questions))))


def one_question(samples: list[Sample]) -> list[Sample]:
    """The samples with their first question only."""
    return [sample.ask(sample.questions[0]) for sample in samples]


def one_pair(samples: list[Sample], described: bool = False) -> list[Sample]:
    """The samples with their first yes- and their first no-question; those that have both.

    `described`: of questions that a text description answers. Lacking where no sample has both.
    """
    if described:
        samples = [one.ask(*(q for q in one.questions if q.kind != "own")) for one in samples]
    firsts = [[q for answer in ("Yes", "No") for q in
               [q for q in sample.questions if q.answer == answer][:1]] for sample in samples]
    found = [sample.ask(*pair) for sample, pair in zip(samples, firsts) if len(pair) == 2]
    if not found:
        raise Lacking("no image has both a yes- and a no-question" + described * (
            " that a text description answers") + ": give a source of both")
    return found


def question_samples(split: str, count: int, kind: str, per_image: int = 3) -> list[Sample]:
    """The first `count` images of a split that have questions of `kind`, `per_image` at most."""
    every = (drawn(scenes.compose(split, i), kind, per_image) for i in itertools.count())
    return list(itertools.islice((sample for sample in every if sample.questions), count))


def drawn(picture: Picture, kind: str, most: int) -> Sample:
    """A picture with up to `most` questions of a kind, each about other nouns."""
    rng = np.random.default_rng((*picture.seed, 3))
    asked = [dialogues.ask(picture, kind, rng) for _ in range(2 * most)]
    return Sample(picture, tuple({q.nouns: q for q in asked if q}.values())[:most])
