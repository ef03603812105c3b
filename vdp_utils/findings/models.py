"""F10: whether depth spares a model the decline, and keeps pruning's gain; what training does.

Tables of several models have a column `model`, the one that others are compared with first.
"""

import re

import numpy as np
import pandas as pd

from vdp_utils import stats
from vdp_utils.attention.tokens import Kind
from vdp_utils.errors import VDPError
from vdp_utils.findings import (KINDS, OTHER_AND_MISLEADING, PRESENCE, distance, estimates,
                                recovery)
from vdp_utils.findings.decline import ends
from vdp_utils.findings.priors import KEYS, moved, with_log_chances
from vdp_utils.measuring.measure import measure, measure_sample, presence_conditions
from vdp_utils.measuring.placed import placed_condition, placed_sample
from vdp_utils.measuring.pruned import answers_sample
from vdp_utils.sources.samples import one_pair
from vdp_utils.stats import Verdict

OTHERS = ("embedded-m", "embedded-s-far", "embedded-s-short", "embedded-s-seed1")  # unless told
LENGTHS = (0, 512, 2048)
IMAGES = ("own", "text")
GAP, NEAR = "gap", "near"  # distance without text, and text without distance
EACH = {PRESENCE: measure_sample, recovery.PRUNED: answers_sample, distance.ROWS: placed_sample}
LESS, KEPT = "loses less", "gain kept"
CELL = ["between", "image"]
SMALLEST = 0.05  # of balanced accuracy
RULE = (
    "The claim is about size: of two models that differ in depth alone, by their names, the deeper "
    "one loses less, and pruning helps it too. Cells: for each model that so differs from the "
    "first one, (1) by context kind, F1's drop of balanced accuracy from no context to the longest "
    "one in the shallower model minus that in the deeper one, on the same questions; at floor: "
    "either at chance without a context (its interval holds 0.5); (2) by context kind and length, "
    f"F6's gain at rate {recovery.RATE} in the deeper one, which counts, and speaks for the claim, "
    "as F6 says. Models of one depth, or of other training, say nothing of size: none of their "
    "cells counts, so that the verdict on models of one depth is inconclusive by construction. "
    "What training does is told beside the rule, with Holm over a table. Smallest effect of "
    f"interest: {SMALLEST}. " + stats.SCHEME)


def conditions(lvlm, lengths, rates=recovery.FEW_RATES) -> dict[str, list]:
    """By table: presence with image and description, F6's own, and both versions placed."""
    placed = [placed_condition(lvlm, "other_images", 0, GAP if length else "plain", length,
                               image=image) for image in IMAGES for length in lengths]
    placed += [placed_condition(lvlm, "other_images", length, NEAR, image=image)
               for image in IMAGES for length in lengths if length]
    return {PRESENCE: presence_conditions(lvlm, KINDS, lengths)
            + presence_conditions(lvlm, OTHER_AND_MISLEADING, lengths, ["text"])
            + presence_conditions(lvlm, ["other_images"], lengths, ["swapped"]),
            recovery.PRUNED: recovery.own_conditions(lvlm, lengths, rates),
            distance.ROWS: placed}


def measured(lvlm, samples: list, store, lengths, recompute: bool = False) -> list[pd.DataFrame]:
    """One model's tables of presence (all questions), and pruned and placed (a pair an image).

    Pruned at F6's rates where notebook 06 has measured this model, else at few.
    """
    known = recovery.own_conditions(lvlm, [length for length in lengths if length])
    rates = recovery.RATES if all(store.done(recovery.PRUNED, one) for one in known) else (
        recovery.FEW_RATES)
    return [measure(lvlm, samples if table == PRESENCE else one_pair(samples), asked, store, table,
                    recompute, EACH[table]).assign(model=lvlm.name)
            for table, asked in conditions(lvlm, lengths, rates).items()]


def answers(presence: pd.DataFrame, placed: pd.DataFrame) -> pd.DataFrame:
    """Rows of image and description by what stands `between` them and the question.

    That is a context kind, a gap without text, or other images' text with what is asked about
    moved near; `context_length` is the distance in positions, or how much text it is. Only cells
    that all models have. VDPError for rows of one model.
    """
    if presence["model"].nunique() < 2:
        raise VDPError(f"rows of {presence['model'].iloc[0]} alone: name another model in OTHERS")
    told = presence[presence["image"].isin(IMAGES)]
    placed = distance.labelled(placed[placed["image"].isin(IMAGES) & (placed["rate"] == 0)])
    gap = placed[placed["text"] == distance.NO_TEXT]
    near = placed[(placed["setting"] == NEAR) & (placed["text"] == "other_images")]
    near = pd.concat([gap[gap["length"] == 0], near])
    rows = pd.concat([part.assign(between=name, context_length=part["length"])
                      for name, part in ((GAP, gap), (NEAR, near))]
                     + [told.assign(between=told["context_kind"])])
    return _shared(rows, [*CELL, "context_length"])


def _shared(rows: pd.DataFrame, cell: list[str]) -> pd.DataFrame:
    """The rows of those cells that all models have."""
    known = rows.groupby(cell)["model"].transform("nunique")
    return rows[known == rows["model"].nunique()].reset_index(drop=True)


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Accuracy by model, image or description, what stands between, and length."""
    return stats.by_group(rows, ["model", *CELL, "context_length"],
                          {"balanced accuracy": stats.balanced_accuracy}, sort=False)


def drops(rows: pd.DataFrame) -> pd.DataFrame:
    """What each model loses to the longest context or distance."""
    return stats.by_group(rows, ["model", *CELL], {
        "drop": lambda part: stats.balanced_accuracy_difference(*ends(part))}, sort=False)


def contrasts(rows: pd.DataFrame, reference: str) -> pd.DataFrame:
    """How much less each other model loses than `reference`, paired; Holm over all lines.

    `effect` is the loss of `reference` to the longest context or distance, minus the other's.
    """
    lines = []
    for cell, part in rows.groupby(CELL, sort=False):
        by_model = dict(iter(part.groupby("model", sort=False)))
        near, far = ends(by_model.pop(reference))
        for model, other in by_model.items():
            start, end = ends(other)
            at_floor = [stats.limit(stats.balanced_accuracy(one)) == "floor"
                        for one in (near, start)]
            lines.append(dict(reference=reference, model=model, **dict(zip(CELL, cell)))
                         | stats.accuracy_test((1, near), (-1, far), (-1, start),
                                               (1, end)).columns()
                         | dict(limit="floor" if any(at_floor) else ""))
    return stats.family(pd.DataFrame(lines))


def gains(pruned: pd.DataFrame) -> pd.DataFrame:
    """F6's cells of each model; Holm over all lines."""
    own = _shared(pruned[pruned["image"] == "own"], recovery.CELL)
    return stats.family(pd.concat(
        [recovery.tests(part).assign(model=model)
         for model, part in own.groupby("model", sort=False)], ignore_index=True))


def dependency(presence: pd.DataFrame) -> pd.DataFrame:
    """Causal dependency and attention on the image by model and length, after other images."""
    neutral = presence[presence["context_kind"] == "other_images"]
    own, swapped = (with_log_chances(neutral[neutral["image"] == image]).set_index(
        ["model", *KEYS]) for image in ("own", "swapped"))
    mass = [np.reshape(one, (-1, len(Kind)))[:, Kind.IMAGE].mean(dtype=float)
            for one in own["attention"]]
    both = moved(own, swapped.reindex(own.index)).assign(mass=mass).dropna().reset_index()
    return stats.by_group(_shared(both, ["context_length"]), ["model", "context_length"], {
        "KL, swapped": "kl", "flip rate, swapped": "flip", "attention on image": "mass"},
        sort=False)


def depths(rows: pd.DataFrame) -> dict[str, int]:
    """The decoder layers of each model, from what its rows hold of attention."""
    return {model: len(maps) // len(Kind) for model, maps in rows.groupby("model", sort=False)[
        "attention"].first().items()}


def training(name: str) -> str:
    """A model's name without its size, or which run of training it is: what must be equal."""
    return re.sub(r"(?<=^embedded-)[sml]|-seed\d+|\d+(\.\d+)?[bm](?![a-z])", "", name,
                  flags=re.IGNORECASE)


def tests(rows: pd.DataFrame, pruned: pd.DataFrame) -> pd.DataFrame:
    """The rule's cells by `claim`, model, context kind and length, from `answers` and pruned rows.

    Models that say nothing of size have cells too, which do not count. `model` is the deeper one
    of a pair.
    """
    (first, *others), layers = rows["model"].unique(), depths(rows)
    images = rows[(rows["image"] == "own") & rows["between"].isin(KINDS)]
    alike = [model for model in layers if training(model) == training(first)]
    tables = []
    for other in others:
        shallow = other if layers[other] < layers[first] else first
        table = contrasts(images[images["model"].isin([first, other])], shallow)
        if other not in alike or layers[other] == layers[first]:
            table["limit"] = "same depth" if other in alike else "other training"
        tables.append(table.assign(claim=LESS, context_kind=table["between"], holds=True,
                                   context_length=rows["context_length"].max()))
    kept, least = gains(pruned).assign(claim=KEPT), min(layers[model] for model in alike)
    kept.loc[kept["model"].map(layers) == least, "limit"] = "not deeper"
    kept.loc[~kept["model"].isin(alike), "limit"] = "other training"
    return stats.family(pd.concat([*tables, kept], ignore_index=True)[
        ["claim", "model", *recovery.CELL, "effect", "low", "high", "p", "n_images", "n_rows",
         "holds", "limit"]])


def verdict(table: pd.DataFrame, rows: pd.DataFrame) -> Verdict:
    """The verdict by RULE from `tests`.

    The estimates are, by model, how much less it loses than the first one, all context kinds
    together: of those that count, or of all where none does.
    """
    first, longest = rows["model"].iloc[0], rows["context_length"].max()
    images = rows[(rows["image"] == "own") & rows["between"].isin(KINDS)]
    images = images.assign(question_id=images["between"] + "/" + images["question_id"],
                           between="all kinds")
    less = table[table["claim"] == LESS]
    counted = set(less.loc[less["limit"] == "", "model"]) - {first} or set(images["model"])
    found = contrasts(images[images["model"].isin({first, *counted})], first)
    return Verdict(
        "F10", "In larger models accuracy falls less with context, and pruning's gain is kept",
        stats.judge(table, SMALLEST),
        f"drop of balanced accuracy from 0 to {longest} context tokens, {first} minus the other",
        estimates(found.assign(context_kind=found["model"])), RULE)
