"""F6 and F7: answers under pruning, and what is kept."""

import torch

from vdp_utils.attention.recording import record
from vdp_utils.attention.tokens import Kind, pieces
from vdp_utils.lvlm import prompts
from vdp_utils.lvlm.load import LVLM
from vdp_utils.lvlm.prompts import Prompt
from vdp_utils.measuring.measure import (halves, judged, kinds_of, last_rows, prefix_of,
                                         score)
from vdp_utils.measuring.pruned.conditions import (NONE, AnswerCondition, pruned_around,
                                                   pruned_place)
from vdp_utils.measuring.pruned.unpruned import Unpruned
from vdp_utils.sources.samples import Sample


@torch.no_grad()
def answers_sample(lvlm: LVLM, sample: Sample, one: AnswerCondition) -> list[dict]:
    """Rows of one sample: each question without pruning, and pruned by every strategy and rate.

    Columns: image_id, question_id, nouns, context_kind, context_length, image, strategy ("none"
    without pruning), rate, mode, layer, positions; options, log_likelihoods (nats), answer,
    predicted, correct and margin as `measure` has them; kept_tokens (of the context), and
    attention (of the answer position, layers x `Kind`, heads' mean, flattened float16).
    """
    prefix = prefix_of(lvlm, sample, one)
    if one.image in prompts.PLACES:
        prefix.kinds[prefix.kinds == Kind.IMAGE] = Kind.CONTEXT
    rows = []
    for number, question in enumerate(sample.questions):
        asking = prompts.asking(lvlm, question, one.image)
        first = Unpruned(lvlm, prompts.join(prefix, asking), one.layer, question)
        context = int((first.kinds == Kind.CONTEXT).sum())
        found = [(NONE, 0.0, *first.answer, context)]
        for rate in one.rates:
            answers = (_during_prefill(first, one.strategies, rate) if one.mode == "prefill" else
                       [_answer(lvlm, prefix, asking, question, first.kinds, one, text, rate)
                        for text in one.strategies])
            found += [(text, rate, *answer) for text, answer in zip(one.strategies, answers)]
        for strategy, rate, scores, mass, kept in found:
            rows.append(dict(
                **pruned_place(sample, number, one, strategy, rate),
                nouns="/".join(question.nouns), image=one.image, mode=one.mode, layer=one.layer,
                positions=one.positions, **judged(question, scores), kept_tokens=kept,
                attention=halves(mass)))
    return rows


def _during_prefill(first: Unpruned, strategies, rate: float) -> list[tuple]:
    """What `_answer` gives, of every strategy, each going on from one unpruned pass."""
    stays = torch.stack([first.staying(text, rate) for text in strategies])
    kept = (stays & (first.kinds == Kind.CONTEXT)).sum(1).tolist()
    return [(*answer, count) for answer, count in zip(first.go_on(stays), kept)]


def _answer(lvlm: LVLM, prefix: Prompt, asking: Prompt, question, kinds, one: AnswerCondition,
            strategy: str, rate: float) -> tuple[list[float], torch.Tensor, int]:
    """The options' scores, attention (layers, 4) and kept context under a `ContextPruner`."""
    scores, rows, stays = _looking(lvlm, prefix, asking, question, kinds, one, strategy, rate)
    return scores, _by_kind(rows, kinds), int((stays & (kinds == Kind.CONTEXT)).sum())


def _looking(lvlm: LVLM, prefix: Prompt, asking: Prompt, question, kinds, one: AnswerCondition,
             strategy: str, rate: float):
    """The options' scores, attention of the answer position (layers, L; 0 on what was dropped by
    then), and which tokens stay, bool (L,); strategy "none" drops nothing."""
    with pruned_around(lvlm, one, strategy, rate, kinds[None]) as pruner, record(
            lvlm.model, accumulated=("last",)) as recording:
        scores = score(lvlm, prefix, None, asking, question.options)
    rows = last_rows(recording)
    stays = torch.full_like(kinds, pruner is None, dtype=torch.bool)
    if pruner:
        rows = [pruner.kept.spread(row) for row in rows]
        stays[pruner.kept.index[0]] = True
    return scores, torch.stack(rows).mean(1), stays


@torch.no_grad()
def example_sample(lvlm: LVLM, sample: Sample, one: AnswerCondition) -> list[dict]:
    """What pruning keeps of one sample's prompts, and where on the image the answer then looks.

    Columns: image_id, question_id, context_kind, context_length, strategy, rate, question, answer,
    predicted; texts and stays, a list of the context tokens' texts and whether each is kept; and
    map_image: attention on each image token, layers x tokens, flattened float16, heads' mean.
    """
    prefix, rows = prefix_of(lvlm, sample, one), []
    context = prefix.kinds == Kind.CONTEXT
    texts = pieces(lvlm.tokenizer, prefix.input_ids[context])
    for number, question in enumerate(sample.questions):
        asking = prompts.asking(lvlm, question)
        kinds = kinds_of(lvlm, prefix, asking)[0].long()
        for strategy, rate in one.prunings:
            scores, looks, stays = _looking(lvlm, prefix, asking, question, kinds, one, strategy,
                                            rate)
            found = judged(question, scores)
            rows.append(dict(
                **pruned_place(sample, number, one, strategy, rate),
                question=question.text, answer=found["answer"], predicted=found["predicted"],
                texts=texts, stays=stays[kinds == Kind.CONTEXT].tolist(),
                map_image=halves(looks[:, kinds == Kind.IMAGE])))
    return rows


def _by_kind(rows: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
    """Attention (n, keys) summed by the keys' kind: (n, 4)."""
    return rows.new_zeros(len(rows), len(Kind)).index_add_(1, kinds.long(), rows)
