"""F6 and F7: answers under pruning, and what is kept."""

import numpy as np
import torch

from vdp_utils.attention.recording import record
from vdp_utils.attention.tokens import Kind, pieces
from vdp_utils.lvlm import prompts
from vdp_utils.lvlm.grid import on_picture
from vdp_utils.lvlm.load import LVLM
from vdp_utils.lvlm.prompts import Prompt
from vdp_utils.measuring.measure import halves, judged, kinds_of, last_rows, prefix_of
from vdp_utils.measuring.pruned.conditions import (AnswerCondition, Pruning, pruned_around,
                                                   pruned_place)
from vdp_utils.measuring.pruned.unpruned import Unpruned
from vdp_utils.measuring.scoring import score
from vdp_utils.sources.samples import Sample


@torch.no_grad()
def answers_sample(lvlm: LVLM, sample: Sample, one: AnswerCondition) -> list[dict]:
    """Rows of one sample: each question without pruning, and pruned in every way asked for.

    Columns: image_id, question_id, nouns, context_kind, context_length, image, strategy and mode
    ("none" without pruning), rate, layer (-1 without); options, log_likelihoods (nats), answer,
    predicted, correct and margin as `measure` has them; kept_tokens (of the context), and
    attention (of the answer position, layers x `Kind`, heads' mean, flattened float16).
    """
    prefix, rows = prefix_of(lvlm, sample, one), []
    described = (prefix.kinds == Kind.IMAGE) & (one.image in prompts.PLACES)
    prefix.kinds[described] = Kind.CONTEXT
    for number, question in enumerate(sample.questions):
        asking = prompts.asking(lvlm, question, one.image)
        first = Unpruned(lvlm, prompts.join(prefix, asking), one.layers, question,
                         np.pad(described, (0, len(asking))))
        plain, *others = one.prunings
        found = {plain: (*first.answer, int((first.kinds == Kind.CONTEXT).sum()))}
        if others:
            found |= zip(others, first.answers(others))
        for pruning, (scores, mass, kept) in found.items():
            rows.append(dict(
                **pruned_place(sample, number, one, pruning), nouns="/".join(question.nouns),
                image=one.image, **judged(question, scores), kept_tokens=kept,
                attention=halves(mass)))
    return rows


def looking(lvlm: LVLM, prefix: Prompt, asking: Prompt, question, pruning: Pruning):
    """The options' scores, attention of the answer position (layers, L; heads' mean, 0 on what was
    dropped by then), and which tokens stay, bool (L,), all as `ContextPruner` prunes."""
    kinds = kinds_of(lvlm, prefix, asking).long()
    with pruned_around(lvlm, pruning, kinds) as pruner, record(
            lvlm.model, accumulated=("last",)) as recording:
        scores = score(lvlm, prefix, None, asking, question.options)
    rows = last_rows(recording)
    stays = torch.full_like(kinds[0], pruner is None, dtype=torch.bool)
    if pruner:
        rows = [pruner.kept.spread(row) for row in rows]
        stays[pruner.kept.index[0]] = True
    return scores, torch.stack(rows).mean(1), stays


@torch.no_grad()
def example_sample(lvlm: LVLM, sample: Sample, one: AnswerCondition) -> list[dict]:
    """What pruning keeps of one sample's prompts, and where on the image the answer then looks.

    Columns: image_id, question_id, context_kind, context_length, strategy, rate, mode, layer,
    question, answer, predicted; texts and stays, a list of the context tokens' texts and whether
    each is kept; and map_image: attention on the image's cells, layers x `on_picture`'s, flattened
    float16, heads' mean.
    """
    prefix, rows, size = prefix_of(lvlm, sample, one), [], sample.picture.image().size
    context = prefix.kinds == Kind.CONTEXT
    texts = pieces(lvlm.tokenizer, prefix.input_ids[context])
    for number, question in enumerate(sample.questions):
        asking = prompts.asking(lvlm, question)
        kinds = kinds_of(lvlm, prefix, asking)[0].long()
        for pruning in one.prunings:
            scores, looks, stays = looking(lvlm, prefix, asking, question, pruning)
            found = judged(question, scores)
            rows.append(dict(
                **pruned_place(sample, number, one, pruning),
                question=question.text, answer=found["answer"], predicted=found["predicted"],
                texts=texts, stays=stays[kinds == Kind.CONTEXT].tolist(),
                map_image=halves(on_picture(lvlm, prefix, size, looks[:, kinds == Kind.IMAGE]))))
    return rows
