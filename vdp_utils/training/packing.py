"""Packed dialogues: many questions after one image, each seeing the image and itself only."""

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import IterableDataset

from vdp_utils.lvlm import prompts
from vdp_utils.lvlm.load import LVLM
from vdp_utils.sources import dialogues, scenes
from vdp_utils.sources.samples import Sample
from vdp_utils.training.tower import GRID, labelled

QUESTIONS = {"presence": 5, "position": 3, "relation": 2, "counting": 1, "naming": 1}
# Of the steps before the joint one: naming's loss drowns position's until position is learned.
ORACLE_QUESTIONS = {"presence": 5, "position": 8, "relation": 2}
NAMING_QUESTIONS = {"naming": 1, "presence": 1, "position": 1}
DESCRIPTION_RATE = 0.1  # share of images with a description among the questions
TEXT_ONLY_RATE, CONTEXT_RATE = 0.15, 0.4  # shares of batches
WEIGHTS = {"naming": 6.0, "position": 2.0}  # a question's weight in the loss, 1 where not listed
MAX_CONTEXT = 512  # longest training context, tokens


@dataclass
class Packed:
    """A batch: token tensors (B, L); `blocks` is 0 in the shared prefix, n in question n."""

    ids: torch.Tensor
    blocks: torch.Tensor  # -1: padding
    positions: torch.Tensor
    weights: torch.Tensor  # of the loss at predicting this token
    kinds: torch.Tensor  # question kind of an answer token, -1 elsewhere
    pixels: torch.Tensor | None  # (B, 3, SIZE, SIZE)
    labels: torch.Tensor | None  # (B, GRID**2)

    def mask(self) -> torch.Tensor:
        """bool (B, 1, L, L): a token sees the prefix and its own question's earlier tokens."""
        rows, columns = self.blocks[:, :, None], self.blocks[:, None, :]
        causal = torch.ones(self.ids.shape[1], self.ids.shape[1], dtype=torch.bool,
                            device=self.ids.device).tril()
        return (((columns == 0) | (columns == rows)) & causal)[:, None]


def pack(rows: list[tuple[np.ndarray, list[tuple]]], pad: int, skips=None, worth=WEIGHTS,
         **images) -> Packed:
    """Rows of (prefix ids, [(question ids, answer ids, kind), ...]) -> one padded batch.

    `skips` holds, for each row, the prefix's position ids and how many positions are left free
    before each question; without it no position is. `worth`: as WEIGHTS.
    """
    length = max(len(prefix) + sum(len(q) + len(x) for q, x, _ in asked) for prefix, asked in rows)
    ids = np.full((len(rows), length), pad)
    blocks, positions = np.full(ids.shape, -1), np.zeros(ids.shape, np.int64)
    weights, kinds = np.zeros(ids.shape, np.float32), np.full(ids.shape, -1)
    for r, (prefix, asked) in enumerate(rows):
        at = len(prefix)
        places, gaps = skips[r] if skips else (np.arange(at), [0] * len(asked))
        ids[r, :at], blocks[r, :at], positions[r, :at] = prefix, 0, places
        for n, (question, answer, kind) in enumerate(asked, 1):
            middle, end = at + len(question), at + len(question) + len(answer)
            ids[r, at:middle], ids[r, middle:end] = question, answer
            blocks[r, at:end] = n
            positions[r, at:end] = places[-1] + 1 + gaps[n - 1] + np.arange(end - at)
            weights[r, middle:end] = worth.get(kind, 1.0) / len(answer)
            kinds[r, middle:end] = dialogues.QUESTION_KINDS.index(kind)
            at = end
    tensors = (torch.from_numpy(x) for x in (ids, blocks, positions, weights, kinds))
    return Packed(*tensors, **images)


class Batches(IterableDataset):
    """Endless batches from number `start`, each by `make(number)`, for `lvlm`."""

    def __iter__(self):
        return map(self.make, itertools.count(self.start))

    def tokens(self, text: str) -> list[int]:
        return self.lvlm.tokenizer(text.replace("<image>", "<image>" * GRID**2),
                                   add_special_tokens=False).input_ids

    def opening(self, image: bool) -> np.ndarray:
        return np.array(self.tokens(prompts.frame(self.lvlm.processor, image)[0]))

    def asked(self, scene: scenes.Scene, numbers: dict[str, int], rng) -> list[dialogues.Question]:
        """Questions about a scene, so many of each kind, and now and then a description's."""
        kinds = [kind for kind, n in numbers.items() for _ in range(n)]
        if rng.random() < DESCRIPTION_RATE:
            kinds.append("description")
        return [question for kind in kinds if (question := dialogues.ask(scene, kind, rng))]

    def question(self, question: dialogues.Question, image: bool, lead: str | None = None):
        """Question ids, answer ids with their end, and kind, as `pack` takes them."""
        answer = self.lvlm.tokenizer(question.answer, add_special_tokens=False).input_ids
        return (prompts.asking(self.lvlm, question, "own" if image else "text", lead).input_ids,
                answer + [self.lvlm.tokenizer.eos_token_id], question.kind)


class PackedDialogues(Batches):
    """Endless batches of `batch` scenes with their questions, from batch number `start`.

    `image` and `context` fix what is otherwise drawn per batch: whether the scene is an image or
    a text description, and the context's length in tokens; `questions` how many of each kind.
    """

    def __init__(self, lvlm: LVLM, split: str, start: int = 0, batch: int = 8,
                 image: bool | None = None, context: int | None = None, questions=QUESTIONS):
        self.lvlm, self.split, self.start, self.batch = lvlm, split, start, batch
        self.image, self.context, self.questions = image, context, questions

    def make(self, number: int) -> Packed:
        """Batch `number`: the same on every machine."""
        stream = list(scenes.SPLITS).index(self.split)
        rng = np.random.default_rng((stream, number, 11))
        image = rng.random() > TEXT_ONLY_RATE if self.image is None else self.image
        context = int(rng.integers(16, MAX_CONTEXT + 1)) * (rng.random() < CONTEXT_RATE)
        context = context if self.context is None else self.context
        found = [labelled(self.split, number * self.batch + i) for i in range(self.batch)]
        rows = [self.row(scene, rng, image, context) for scene, _, _ in found]
        extra = dict(pixels=torch.stack([p for _, p, _ in found]) if image else None,
                     labels=torch.stack([x for _, _, x in found]) if image else None)
        return pack(rows, self.lvlm.tokenizer.pad_token_id, **extra)

    def row(self, scene: scenes.Scene, rng, image: bool, context: int):
        tokenizer = self.lvlm.tokenizer
        unknown = () if image else ("relation", "naming")  # text tells no places or sizes
        asked = self.asked(scene, {kind: n for kind, n in self.questions.items()
                                   if kind not in unknown}, rng)
        quiet, kind = (), "other_images"
        if image:
            # a dialogue about this scene may speak of half the asked nouns, as dialogues do
            quiet = tuple(q for q in asked if q.kind == "presence" and rng.random() < 0.5)
            kind = ("same_image", "other_images")[rng.integers(2)]
        sample = Sample(scene, quiet if kind == "same_image" else ())
        seed = int(rng.integers(2**31))
        parts = [self.opening(image), prompts.context(tokenizer, kind, sample, context, seed)]
        if not image:
            parts.insert(1, prompts.text_description(tokenizer, sample, seed))
        return np.concatenate(parts), [self.question(q, image) for q in asked]
