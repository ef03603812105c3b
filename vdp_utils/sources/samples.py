"""Samples: one image and the questions that are asked about it."""

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from vdp_utils.errors import VDPError
from vdp_utils.sources import dialogues, scenes
from vdp_utils.sources.dialogues import Question

PICTURES = ("own", "blank", "swapped")


@dataclass(frozen=True)
class Sample:
    """One image and the questions that are asked about it."""

    scene: scenes.Scene
    questions: tuple[Question, ...]

    @property
    def image_id(self) -> str:
        return self.scene.scene_id

    @property
    def asked(self) -> dict[str, bool]:
        """Every noun a question names -> whether the scene has it."""
        return {n: n in self.scene.counts for q in self.questions for n in q.nouns}

    def image(self, which: str = "own") -> Image.Image:
        """The scene rendered, a mid-grey image, or another scene with none of the asked nouns."""
        if which not in PICTURES:
            raise VDPError(f"there is no picture {which!r}: choose one of {', '.join(PICTURES)}")
        if which == "blank":
            return Image.new("RGB", (scenes.SIZE, scenes.SIZE), (128, 128, 128))
        scene, index = self.scene, self.scene.seed[1]
        while which == "swapped" and (scene == self.scene or not set(self.asked).isdisjoint(
                scene.counts)):
            index += 1
            scene = scenes.compose("context", index)
        return Image.fromarray(scenes.render(scene))


def presence_samples(split: str, count: int, pairs: int = 3,
                     held_out: bool = False) -> list[Sample]:
    """`count` images with up to `pairs` yes- and as many no-questions each (never unbalanced).

    `held_out` asks by templates that training never showed. In the split `evaluation_nouns` all
    questions are about nouns that training never showed.
    """
    return [_presence_sample(scenes.compose(split, i), pairs, held_out) for i in range(count)]


def one_question(samples: list[Sample]) -> list[Sample]:
    """The samples with their first question only."""
    return [replace(sample, questions=sample.questions[:1]) for sample in samples]


def one_pair(samples: list[Sample]) -> list[Sample]:
    """The samples with their first yes- and their first no-question."""
    firsts = [[next(q for q in sample.questions if q.answer == answer) for answer in ("Yes", "No")]
              for sample in samples]
    return [replace(sample, questions=tuple(pair)) for sample, pair in zip(samples, firsts)]


def question_samples(split: str, count: int, kind: str, per_image: int = 3) -> list[Sample]:
    """The first `count` images of a split that have questions of `kind`, `per_image` at most."""
    samples, index = [], 0
    while len(samples) < count:
        scene = scenes.compose(split, index)
        rng = np.random.default_rng((*scene.seed, 3))
        asked = [dialogues.ask(scene, kind, rng) for _ in range(2 * per_image)]
        unique = {q.nouns: q for q in asked if q}
        if unique:
            samples.append(Sample(scene, tuple(unique.values())[:per_image]))
        index += 1
    return samples


def _presence_sample(scene: scenes.Scene, pairs: int, held_out: bool) -> Sample:
    rng, new_nouns = np.random.default_rng((*scene.seed, 2)), scene.has_new_nouns
    present = list(scene.counts)
    if new_nouns:  # ask about the nouns that training never showed
        present = [n for n in present if n in scenes.HELD_OUT_NOUNS]
    chosen = [present[i] for i in rng.permutation(len(present))[:pairs]]
    absent: list[str] = []
    for _ in chosen:
        if new_nouns:
            pool = [n for n in scenes.HELD_OUT_NOUNS if n not in scene.counts and n not in absent]
            absent.append(pool[rng.integers(len(pool))])
        else:
            absent.append(scenes.draw_noun(rng, scene.theme, {*scene.counts, *absent}))
    questions = [dialogues.presence(scene, noun, rng, held_out) for noun in (*chosen, *absent)]
    return Sample(scene, tuple(questions[i] for i in rng.permutation(len(questions))))
