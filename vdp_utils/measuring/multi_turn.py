"""F12: dialogues of many turns and images, the model's own replies in their history."""

from dataclasses import dataclass

import numpy as np
import torch
from rouge_score.rouge_scorer import RougeScorer

from vdp_utils.attention.tokens import Kind
from vdp_utils.errors import VDPError
from vdp_utils.lvlm import prompts
from vdp_utils.lvlm.load import LVLM
from vdp_utils.lvlm.prompts import Prompt
from vdp_utils.measuring.measure import judged, kinds_of, place, respond
from vdp_utils.measuring.placed import PlacedCondition, around, placed_condition
from vdp_utils.sources import dialogues
from vdp_utils.sources.dialogues import LEAD_AT_START
from vdp_utils.sources.mmdu import MARK, Dialogue, Turn

ROUGE = RougeScorer(["rouge1", "rougeL"])
BEFORE = ("dialogue", "images", "image")  # a question: all that was said; images alone; its image


@dataclass(frozen=True)
class DialogueCondition(PlacedCondition):
    """How a dialogue's turns are asked: images of all turns stay, all words said before may go.

    In synthetic dialogues every turn first tells at least `context_length` tokens of dialogues,
    of the context kind, about pictures that are not shown: the context grows turn by turn.
    """

    before: str = "dialogue"
    reply_tokens: int = 32  # at most


def dialogue_condition(lvlm: LVLM, context_kind: str, context_length: int, rate: float = 0.0,
                       placement: str = "plain", moved: str = "all", before: str = "dialogue",
                       reply_tokens: int = 32) -> DialogueCondition:
    """A condition of dialogues. VDPError for one that the model cannot be put under."""
    if before not in BEFORE:
        raise VDPError(f"unknown before={before!r}: choose one of {', '.join(BEFORE)}")
    base = placed_condition(lvlm, context_kind, context_length, placement, rate=rate, moved=moved)
    return DialogueCondition(**vars(base), before=before, reply_tokens=reply_tokens)


@torch.no_grad()
def dialogue_rows(lvlm: LVLM, dialogue: Dialogue, one: DialogueCondition) -> list[dict]:
    """Rows of one dialogue, one a turn, as `measure` stores them.

    Columns: image_id (the dialogue), question_id (the turn), context_kind, context_length, before,
    placement, moved, rate; turn, pictures (in the whole dialogue), about (-1 where not known),
    latest (about the last image shown so far), distance (tokens between the image asked about and
    the question, NaN where not known), context_tokens and image_tokens, all before pruning; kind,
    nouns, question, reference, reply, f1 and rouge_l (of the reply by the reference); and what
    `measure` has of options: options, log_likelihoods, answer, predicted, correct (1.0 or 0.0),
    margin, empty or NaN where there are none. A turn that passes the model's positions is not
    asked: its reply is empty and its scores are NaN.
    """
    images = [picture.image() if hasattr(picture, "image") else prompts.open_image(picture)
              for picture in dialogue.pictures]
    said, rows, shown = [], [], 0
    for number, turn in enumerate(dialogue.turns):
        said.append(turn.said(_told(lvlm, dialogue, turn, number, one)))
        shown += said[-1].count(MARK)
        alone, asked, which = turn.question.text, said, images[:shown]
        if one.before == "images":
            asked = [MARK * shown + turn.words.replace(MARK, "")]
        elif one.before == "image":
            if turn.about < 0:
                raise VDPError(f"dialogue {dialogue.image_id} does not say which image its turns "
                               "are about: take before='images' or 'dialogue'")
            asked, which = [MARK + LEAD_AT_START + alone], [images[turn.about]]
        prompt = prompts.conversation(lvlm, asked, which, whole=turn.about < 0)
        scores, reply = [], ""
        fits = len(prompt) + one.reply_tokens <= lvlm.max_positions
        if fits:
            with around(lvlm, one, kinds_of(lvlm, prompt).long()):
                scores, reply = respond(lvlm, prompt, turn.question.options, one.reply_tokens)
        said.append(reply.replace(MARK, ""))
        counts = np.bincount(prompt.kinds, minlength=len(Kind))
        rows.append(dict(
            **place(dialogue, number, one), before=one.before, placement=one.placement,
            moved=one.moved, rate=one.rate, turn=number, pictures=len(images), about=turn.about,
            latest=turn.about == shown - 1, distance=_distance(prompt, turn, len(which)),
            context_tokens=int(counts[Kind.CONTEXT]), image_tokens=int(counts[Kind.IMAGE]),
            kind=turn.question.kind, nouns="/".join(turn.question.nouns), question=alone,
            reference=turn.question.answer, reply=reply,
            **by_reference(turn.question.answer, reply if fits else None),
            **_by_options(turn.question, scores)))
    return rows


def _told(lvlm: LVLM, dialogue: Dialogue, turn: Turn, number: int, one: DialogueCondition) -> str:
    """What a turn tells before its question, which no question's answer hangs on. A misleading
    dialogue affirms the noun asked about, where the answer is no, of a picture not shown."""
    if not one.context_length or turn.about < 0:
        return ""
    picture = dialogue.pictures[turn.about]
    nouns = sorted({noun for question in dialogue.questions for noun in question.nouns})
    asked = dict.fromkeys(nouns, True) | {n: n in picture.counts for n in turn.question.nouns}
    key = (*picture.seed, number, one.seed, 17 + dialogues.CONTEXT_KINDS.index(one.context_kind))
    blocks = dialogues.context_blocks(one.context_kind, picture, asked, key,
                                      misleading=dialogues.NAMED)
    text = ""
    while len(prompts.words(lvlm, text)) < one.context_length:
        text = next(blocks) + text
    return text


def _distance(prompt: Prompt, turn: Turn, shown: int) -> float:
    """Tokens between the image that a turn is about and its question."""
    if turn.about < 0:
        return float("nan")
    image = np.flatnonzero(prompt.kinds == Kind.IMAGE)  # pictures of one size: as many tokens each
    last = image[len(image) // shown * min(turn.about + 1, shown) - 1]
    return float((prompt.kinds == Kind.QUESTION).argmax() - last - 1)


def _by_options(question: dialogues.Question, scores: list[float]) -> dict:
    if scores:
        found = judged(question, scores)
        return found | dict(correct=float(found["correct"]))
    return dict(options="/".join(question.options), log_likelihoods=[], answer="", predicted="",
                correct=float("nan"), margin=float("nan"))


def by_reference(reference: str, reply: str | None) -> dict:
    """Token F1 (which is ROUGE-1's) and ROUGE-L's F of a reply, in [0, 1]; NaN without one."""
    if reply is None:
        return dict(f1=float("nan"), rouge_l=float("nan"))
    found = ROUGE.score(reference, reply)
    return dict(f1=float(found["rouge1"].fmeasure), rouge_l=float(found["rougeL"].fmeasure))
