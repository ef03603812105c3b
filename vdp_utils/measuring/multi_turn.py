"""F12: dialogues of many turns and images, the model's own replies in their history."""

from dataclasses import dataclass

import numpy as np
import torch
from rouge_score.rouge_scorer import RougeScorer

from vdp_utils.attention.tokens import Kind
from vdp_utils.lvlm import prompts
from vdp_utils.lvlm.load import LVLM
from vdp_utils.measuring.measure import judged, kinds_of, place
from vdp_utils.measuring.scoring import respond
from vdp_utils.measuring.placed import PlacedCondition, around, placed_condition
from vdp_utils.sources import dialogues
from vdp_utils.sources.mmdu import MARK, Dialogue, Turn
from vdp_utils.sources.pictures import open_image

ROUGE = RougeScorer(["rouge1", "rougeL"])


@dataclass(frozen=True)
class DialogueCondition(PlacedCondition):
    """How a dialogue's turns are asked: images of all turns stay, all words said before may go.

    In synthetic dialogues every turn first tells at least `context_length` tokens of dialogues,
    of the context kind, about pictures that are not shown: the context grows turn by turn.
    """

    history: bool = True  # else every question comes with the images shown so far and no words
    reply_tokens: int = 32  # at most


def dialogue_condition(lvlm: LVLM, context_kind: str, context_length: int, rate: float = 0.0,
                       placement: str = "plain", moved: str = "all", **options
                       ) -> DialogueCondition:
    """A condition of dialogues. VDPError for one that the model cannot be put under."""
    base = placed_condition(lvlm, context_kind, context_length, placement, rate=rate, moved=moved)
    return DialogueCondition(**vars(base), **options)


@torch.no_grad()
def dialogue_rows(lvlm: LVLM, dialogue: Dialogue, one: DialogueCondition) -> list[dict]:
    """Rows of one dialogue, one a turn, as `measure` stores them.

    Columns: image_id (the dialogue), question_id, context_kind, context_length, history, placement,
    moved, rate; turn, pictures (of the whole dialogue), about (-1 where not known), latest (about
    the last image so far), distance (tokens between the image asked about and the question, NaN
    where not known), context_tokens and image_tokens, all before pruning; kind, question,
    reference, reply, f1 (of tokens, which is ROUGE-1's) and rouge_l, of the reply by the
    reference; and as `measure` has them, empty or NaN without options, options, log_likelihoods,
    answer, predicted, correct (1.0 or 0.0), margin. A turn that passes the model's positions is
    not asked: no reply, and NaN for scores.
    """
    images, said, rows, shown = images_of(dialogue), [], [], 0
    for number, turn in enumerate(dialogue.turns):
        said.append(turn.said(_told(lvlm, dialogue, turn, number, one)))
        shown += said[-1].count(MARK)
        asked = said if one.history else [MARK * shown + turn.words.replace(MARK, "")]
        prompt = prompts.conversation(lvlm, asked, images[:shown], whole=turn.about < 0)
        question, scores, reply, by_words = turn.question, [], "", (np.nan, np.nan)
        if len(prompt) + one.reply_tokens <= lvlm.max_positions:
            with around(lvlm, one, kinds_of(lvlm, prompt).long()):
                (scores,), (reply,) = respond(lvlm, [prompt], None, [prompts.words(lvlm, "")],
                                              [question.options], one.reply_tokens)
            found = ROUGE.score(question.answer, reply)
            by_words = [float(found[name].fmeasure) for name in ("rouge1", "rougeL")]
        said.append(prompts.unmarked(lvlm.tokenizer, reply.replace(MARK, "")))
        choice = judged(question, scores) if scores else dict(
            options="", log_likelihoods=[], answer="", predicted="", correct=np.nan, margin=np.nan)
        counts = np.bincount(prompt.kinds, minlength=len(Kind))
        rows.append(dict(
            **place(dialogue, number, one), history=one.history, placement=one.placement,
            moved=one.moved, rate=one.rate, turn=number, pictures=len(images), about=turn.about,
            latest=turn.about == shown - 1, distance=_distance(prompt, turn, shown),
            context_tokens=int(counts[Kind.CONTEXT]), image_tokens=int(counts[Kind.IMAGE]),
            kind=question.kind, question=question.text, reference=question.answer, reply=reply,
            **dict(zip(("f1", "rouge_l"), by_words)),
            **choice | dict(correct=float(choice["correct"]))))
    return rows


def images_of(dialogue: Dialogue) -> list:
    """A dialogue's pictures as PIL images."""
    return [one.image() if hasattr(one, "image") else open_image(one)
            for one in dialogue.pictures]


def _told(lvlm: LVLM, dialogue: Dialogue, turn: Turn, number: int, one: DialogueCondition) -> str:
    """What a turn tells before its question: nothing that answers any question. A misleading
    dialogue affirms of a picture not shown the noun asked about, where the answer is no."""
    if not one.context_length or turn.about < 0:
        return ""
    picture, text = dialogue.pictures[turn.about], ""
    nouns = sorted({noun for question in dialogue.questions for noun in question.nouns})
    asked = dict.fromkeys(nouns, True) | {n: n in picture.counts for n in turn.question.nouns}
    key = (*picture.seed, number, one.seed, 17 + dialogues.CONTEXT_KINDS.index(one.context_kind))
    blocks = dialogues.context_blocks(one.context_kind, picture, asked, key,
                                      misleading=dialogues.NAMED)
    while len(prompts.words(lvlm, text)) < one.context_length:
        text = next(blocks) + text
    return text


def _distance(prompt: prompts.Prompt, turn: Turn, shown: int) -> float:
    """Tokens between the image that a turn is about and its question."""
    if turn.about < 0:
        return np.nan
    image = np.flatnonzero(prompt.kinds == Kind.IMAGE)  # pictures of one size: as many tokens each
    last = image[len(image) // shown * (turn.about + 1) - 1]
    return float((prompt.kinds == Kind.QUESTION).argmax() - last - 1)
