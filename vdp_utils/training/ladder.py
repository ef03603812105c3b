"""The ladder of instruments: one further training, whose distances differ from step to step.

All steps see the same scenes and questions in the same order. What differs is how far a question
stands from what it is about. Distances come from position skips, position ids that jump between
two tokens (PoSE; Zhu et al., arXiv 2309.10400), and for text from some real long contexts too.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader

from vdp_utils.attention.tokens import SLOT
from vdp_utils.lvlm import prompts
from vdp_utils.lvlm.load import LVLM
from vdp_utils.sources import dialogues, scenes
from vdp_utils.sources.dialogues import LEAD_AT_START, LEAD_ELSEWHERE, NOT_SHOWN
from vdp_utils.sources.mmdu import MARK
from vdp_utils.sources.samples import Sample, one_pair, presence_samples
from vdp_utils.training.dialogue import answer_loss, answers, evaluate, image_features
from vdp_utils.training.loop import Run, autocast
from vdp_utils.training.packing import (CONTEXT_RATE, MAX_CONTEXT, QUESTIONS, WEIGHTS, Batches,
                                        Packed, pack)
from vdp_utils.training.tower import GRID, pixels

REACH = 4_400  # positions: 4,096 tokens of context, the text description and a question
STRATA = (0, 512, 1_024, 2_048, REACH)  # none and each stretch between two are as frequent
GAPS = (0, 512, 1_024, 2_048, 4_096)  # of the evaluation
RATE = 3e-4  # of the decoder's LoRA. Tower and projector stay: all instruments see alike.
BATCH, LONG_BATCH, SEVERAL_BATCH = 8, 2, 4  # rows
TEXT_RATE = 1 / 2  # share of batches
LONG_RATE = 1 / 4  # share of the text batches: real contexts of up to 4,096 tokens
SEVERAL_RATE = 1 / 8  # share of the image batches: two or three pictures per row
WORTH = WEIGHTS | {"naming": 2.0}  # more drowns presence
TEXT_QUESTIONS = {"presence": 12, "position": 2, "counting": 1}  # no relations, no sizes
SEVERAL_QUESTIONS = {"presence": 4, "position": 1, "counting": 1, "naming": 1}  # per picture
MOST = 3  # pictures per row
# how dialogues about other pictures opened when the weights that further training starts from
# were trained
EARLIER_LEADS = ["Now a different picture.", "Here is another picture.", "Next picture, please.",
                 "Let us turn to another image.", "Another image now."]


@dataclass(frozen=True)
class Instrument:
    """How far, in positions, questions stand from what they are about in training."""

    text: int
    images: int


INSTRUMENTS = {"short": Instrument(MAX_CONTEXT, MAX_CONTEXT),
               "s": Instrument(REACH, MAX_CONTEXT),
               "far": Instrument(REACH, REACH)}


def distance(rng) -> int:
    """A distance of 0 to REACH: each of STRATA's stretches, and 0, with the same probability."""
    n = int(rng.integers(len(STRATA)))
    return int(rng.integers(STRATA[n - 1] + 1, STRATA[n] + 1)) if n else 0


def skip(rng, ids: np.ndarray, start: int, end: int, questions: int, whole: int):
    """Position ids of a prefix, and positions left free before each question, as `pack` takes.

    Questions are about tokens `start` to `end` of the prefix `ids`; from `end` to a question is a
    `distance`, or the tokens between where they are more. Half of the prefixes leave all of it
    before the question, each question its own; the others share one distance, part of which lies
    somewhere in the tokens after `end`, and some more lies before `start` where that is not 0.
    `whole` is the id of the image tokens, between which nothing lies.
    """
    positions, between = np.arange(len(ids)), len(ids) - end
    room = REACH + MAX_CONTEXT - len(ids)  # no prompt is to be much longer than REACH
    if rng.random() < 0.5:
        return positions, [int(np.clip(distance(rng) - between, 0, room))
                           for _ in range(questions)]
    free = int(np.clip(distance(rng) - between, 0, room))
    inner = int(rng.integers(free + 1))
    places = [n for n in range(end, len(ids)) if whole not in (ids[n - 1], ids[n]) or n == end]
    if places:
        positions[places[rng.integers(len(places))]:] += inner
    else:
        inner = 0
    if start:
        positions[rng.integers(1, start + 1):] += rng.integers(room - free + 1)
    return positions, [free - inner] * questions


class Further(Batches):
    """Endless batches of the further training of an instrument, from batch number `start`.

    A batch's rows are `image`, `text` (no image), `long` (text in a long context) or `several`
    (pictures); `kind` fixes what is otherwise drawn. Scenes, questions and wording hang on split,
    seed and number alone, so that all instruments see the same.
    """

    def __init__(self, lvlm: LVLM, split: str, instrument: Instrument, seed: int = 0,
                 start: int = 0, kind: str | None = None):
        self.lvlm, self.split, self.instrument = lvlm, split, instrument
        self.seed, self.start, self.kind = seed, start, kind

    def drawn_kind(self, rng) -> str:
        """What a batch's rows are."""
        text, special = rng.random() < TEXT_RATE, rng.random()
        if text:
            return "long" if special < LONG_RATE else "text"
        return "several" if special < SEVERAL_RATE else "image"

    def make(self, number: int) -> Packed:
        """Batch `number`: the same on every machine."""
        stream = list(scenes.SPLITS).index(self.split)
        rng = np.random.default_rng((stream, self.seed, number, 12))
        placing = np.random.default_rng((stream, self.seed, number, 13))
        kind = self.drawn_kind(rng)
        kind = self.kind or kind
        several, pictured = kind == "several", kind in ("several", "image")
        reach = self.instrument.images if pictured else self.instrument.text
        length = self.length(kind, rng)
        index = 10**9 * (1 + self.seed) + 100 * number  # far from the earlier stages' scenes
        shown, rows, skips = [], [], []
        for _ in range({"long": LONG_BATCH, "several": SEVERAL_BATCH}.get(kind, BATCH)):
            count = int(rng.integers(2, MOST + 1)) if several else 1
            row = [scenes.compose(self.split, index + n) for n in range(count)]
            index += count
            ids, start, end, asked = (self.several(row, rng) if several
                                      else self.single(row[0], rng, kind, length))
            shown += [pixels(scenes.render(scene)) for scene in row] if pictured else []
            rows.append((ids, asked))
            if reach > MAX_CONTEXT:
                skips.append(skip(placing, ids, start, end, len(asked), self.lvlm.image_token_id))
        return pack(rows, self.lvlm.tokenizer.pad_token_id, skips, WORTH,
                    pixels=torch.stack(shown) if shown else None, labels=None)

    def length(self, kind: str, rng) -> int:
        """Tokens of context in a batch of one scene per row."""
        short, share = int(rng.integers(16, MAX_CONTEXT + 1)), rng.random()
        if kind != "long":
            return short if share < CONTEXT_RATE else 0
        if self.instrument.text <= MAX_CONTEXT:
            return short
        return round(MAX_CONTEXT * (GAPS[-1] / MAX_CONTEXT) ** share)

    def single(self, scene: scenes.Scene, rng, kind: str, length: int):
        """A row about one scene: prefix, its tokens that describe or show the scene, questions."""
        tokenizer, image = self.lvlm.tokenizer, kind == "image"
        asked = self.asked(scene, QUESTIONS if image else TEXT_QUESTIONS, rng)
        own = rng.random() < 0.5
        # a dialogue about this scene may speak of half the asked nouns, as dialogues do
        quiet = tuple(q for q in asked if q.kind == "presence" and rng.random() < 0.5)
        about = "same_image" if image and own else "other_images"
        seed = int(rng.integers(2**31))
        sample = Sample(scene, quiet if about == "same_image" else ())
        text = prompts.context(tokenizer, about, sample, length, seed,
                               leads=[*EARLIER_LEADS, *NOT_SHOWN])
        start = len(opening := self.opening(image))
        at = 0
        if image:
            ids, span = np.concatenate([opening, text]), (0, start)
        else:
            described = prompts.text_description(tokenizer, sample, seed)
            if rng.random() < 0.5:
                at = prompts.turn_start(tokenizer, text, rng.random())
            ids = np.concatenate([opening, text[:at], described, text[at:]])
            span = (start + at, start + at + len(described))
        leads = (LEAD_ELSEWHERE, LEAD_ELSEWHERE if at else LEAD_AT_START)
        return ids, *span, [self.question(q, image, leads[rng.integers(2)]) for q in asked]

    def several(self, pictures: list[scenes.Scene], rng):
        """A row of pictures, each followed by turns about it, and questions that name theirs.

        Where the answer is no, another picture has the noun if it can.
        """
        asked = [[q for kind, n in SEVERAL_QUESTIONS.items() for _ in range(n)
                  if (q := self.ask(scene, kind, pictures, rng))] for scene in pictures]
        turns = []
        for n, scene in enumerate(pictures):  # what is asked of a picture no other's turns name
            avoid = {noun for m, questions in enumerate(asked) for q in questions
                     for noun in q.nouns
                     if q.kind == "presence" and (m != n or rng.random() < 0.5)}
            record = dialogues.dialogue(scene, rng, int(rng.integers(1, 3)), avoid)
            turns.append(record["conversations"])
        text = (self.in_one_turn if rng.random() < 0.5 else self.in_chat_turns)(turns)
        ids = np.array(self.tokens(text))
        first_end = int((ids == self.lvlm.image_token_id).argmax()) + GRID**2
        questions = []
        for n, own in enumerate(asked):
            leads = dialogues.image_leads(n, len(pictures))
            questions += [self.question(q, True, leads[rng.integers(len(leads))]) for q in own]
        return ids, 0, first_end, questions

    def ask(self, scene, kind: str, pictures, rng) -> dialogues.Question | None:
        """A question about one of several pictures."""
        question = dialogues.ask(scene, kind, rng)
        elsewhere = sorted({noun for other in pictures for noun in other.counts}
                           - set(scene.counts))
        if kind == "presence" and question and question.answer == "No" and elsewhere:
            return dialogues.presence(scene, elsewhere[rng.integers(len(elsewhere))], rng)
        return question

    def in_one_turn(self, turns) -> str:
        """Pictures and dialogues as one user turn: every picture stands where its dialogue does."""
        before, _ = prompts.frame(self.lvlm.processor, True)
        mark = before[before.index("<image>"):]
        return before + mark.join(dialogues.as_text({"conversations": t}) for t in turns)

    def in_chat_turns(self, turns) -> str:
        """Pictures and dialogues as the chat's own turns, up to where the question begins."""
        said = [MARK * (n == 0) + turn["value"] for conversation in turns
                for n, turn in enumerate(conversation)]
        return prompts.chat(self.lvlm.processor, [*said, SLOT]).partition(SLOT)[0]


# ---- evaluation


@torch.no_grad()
def presence_hits(lvlm: LVLM, packed: Packed) -> pd.DataFrame:
    """One row per presence question: row, block, gap, answer, correct.

    The likelier of Yes and No, by their first tokens, is what the model says. `gap`: how many
    positions lie free before the question.
    """
    logits, truth = answers(lvlm, packed, image_features(lvlm.model, packed.pixels))
    yes, no = (prompts.option_ids(lvlm, option)[0] for option in ("Yes", "No"))
    presence = dialogues.QUESTION_KINDS.index("presence")
    lines, seen = [], set()
    for (row, at), line, token in zip((packed.weights > 0).nonzero().tolist(), logits.cpu(),
                                      truth.tolist()):
        block = int(packed.blocks[row, at])
        if packed.kinds[row, at] != presence or (row, block) in seen:
            continue
        seen.add((row, block))
        own, prefix = packed.blocks[row] == block, packed.blocks[row] == 0
        gap = packed.positions[row, own].min() - packed.positions[row, prefix].max() - 1
        lines.append(dict(row=row, block=block, gap=int(gap), answer="yes" if token == yes
                          else "no", correct=bool((line[yes] > line[no]) == (token == yes))))
    return pd.DataFrame(lines)


def presence_by_gap(lvlm: LVLM, samples: list[Sample], image: bool) -> pd.DataFrame:
    """Rows of every presence question after its image, or its text description, at each of GAPS.

    Columns image_id, question_id, gap, answer, correct. No text: the question's position ids
    alone begin later.
    """
    tables, ends = [], [lvlm.tokenizer.eos_token_id]
    which = "own" if image else "text"
    for sample in samples:
        prefix = prompts.shared_prefix(lvlm, sample, "other_images", 0, image=which)
        asked = [(prompts.asking(lvlm, q, which).input_ids,
                  prompts.option_ids(lvlm, q.answer) + ends, q.kind)
                 for q in sample.questions for _ in GAPS]
        skips = (np.arange(len(prefix)), [gap for _ in sample.questions for gap in GAPS])
        shown = torch.as_tensor(prefix.images["pixel_values"]) if image else None
        packed = pack([(prefix.input_ids, asked)], ends[0], [skips], pixels=shown, labels=None)
        rows = presence_hits(lvlm, packed)
        tables.append(rows.assign(image_id=sample.image_id,
                                  question_id=(rows["block"] - 1) // len(GAPS)))
    return pd.concat(tables, ignore_index=True)


def presence_of_several(lvlm: LVLM, split: str, questions: int) -> pd.DataFrame:
    """Presence questions about the first and as many about the last of two or three pictures.

    `questions` at least of each. Columns image_id (of the row of pictures), question_id, which,
    answer, correct.
    """
    data = Further(lvlm, split, INSTRUMENTS["short"], kind="several")
    per_picture, tables = SEVERAL_QUESTIONS["presence"], []
    for number in range(math.ceil(questions / per_picture / SEVERAL_BATCH)):
        packed = data.make(number)
        found = presence_hits(lvlm, packed)
        for row, lines in found.groupby("row"):
            picture = np.arange(len(lines)) // per_picture
            tables.append(lines.assign(
                image_id=f"{number}-{row}", question_id=lines["block"],
                which=np.select([picture == 0, picture == picture.max()], ["first", "last"],
                                "middle")))
    table = pd.concat(tables, ignore_index=True)
    return table[table["which"] != "middle"]


# ---- training


def train_further(folder: Path, instrument: Instrument, steps: int, log: Path, lvlm: LVLM,
                  seed: int = 0, every: int = 100, images: int = 60) -> None:
    """`steps` batches of an instrument; held-out accuracy by gap every `every` steps."""
    run = Run(folder, "distances", 0, {"decoder": lvlm.model.model.language_model},
              {"decoder": RATE}, log, limit=steps)
    samples = one_pair(presence_samples("validation", images))
    validation = {kind: [Further(lvlm, "validation", INSTRUMENTS["short"], kind=kind).make(n)
                         for n in range(4)] for kind in ("image", "text", "several")}
    due = run.step + every - run.step % every

    def evaluation():
        nonlocal due
        if run.step < due and not run.finished:
            return {}
        due = run.step + every - run.step % every
        values = evaluate(lvlm, validation)
        for kind in ("image", "text"):
            with autocast():
                rows = presence_by_gap(lvlm, samples, kind == "image")
            values |= {f"{kind}_gap_{gap}": rows["correct"][rows["gap"] == gap].mean()
                       for gap in GAPS}
        return values

    data = Further(lvlm, "train", instrument, seed, run.step)
    for packed in run.steps(DataLoader(data, batch_size=None, num_workers=1), evaluation,
                            warmup=40):
        with autocast():
            with torch.no_grad():
                features = image_features(lvlm.model, packed.pixels)
            loss = answer_loss(lvlm, packed, features)
        run.learn(loss, len(packed.ids))
