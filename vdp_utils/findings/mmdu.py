"""F12: pruning what was said holds in dialogues of many turns and images."""

import numpy as np
import pandas as pd

from vdp_utils import findings, stats
from vdp_utils.measuring.judge import OVERALL
from vdp_utils.measuring.multi_turn import dialogue_condition
from vdp_utils.stats import Estimate, Verdict

DIALOGUES, RELEASED = "F12_dialogues", "F12_released"  # tables of turns, synthetic and released
KINDS = findings.KINDS[1:]
PICTURES = (2, 3, 4, 5, 6)  # shown in the dialogues, in turn
LENGTH = 96  # tokens at least that each turn tells before its question
RATE, REPLY = 0.5, 512  # REPLY: most tokens of a reply to a released turn
BINS = (0, 100, 200, 400, 800, 1600, np.inf)  # of distances, tokens
SMALLEST = 0.05  # of balanced accuracy
BARE, PLAIN, PRUNED = "all images, no words", "whole dialogue", "pruned"
SETTINGS = {  # (history, placement, moved, rate) -> its name
    (False, "plain", "all", 0): BARE, (True, "plain", "all", 0): PLAIN,
    (True, "plain", "all", RATE): PRUNED,
    (True, "near", "all", 0): "near, all images", (True, "near", "last", 0): "near, last image",
    (True, "near", "all", RATE): "near, all images, pruned",
    (True, "near", "last", RATE): "near, last image, pruned"}
CELL, KEYS = ["context_kind", "which"], ["image_id", "question_id"]
RULE = (
    "Synthetic dialogues in MMDU's form, the model's own replies in their history; presence "
    "questions. The paper's reading: score all words said so far, then run the shortened prompt, "
    f"its positions closed up, at rate {RATE}; the images of all turns stay. Effect: balanced "
    "accuracy with pruning minus without. Cells: context kinds x whether the image asked about is "
    "the latest shown or an earlier one. At floor: chance even where the images shown so far come "
    "without any words (the interval holds 0.5): who cannot tell the images apart has nothing to "
    "win back. A cell counts only if, besides, that accuracy minus the whole dialogue's is above "
    "0, p < 0.05 by the same test after Holm over all cells. A cell is for the claim only if "
    "accuracy with pruning is above chance (its 95 % BCa interval lies above 0.5). Headline: by "
    "kind, its cells that count together, or all where none does. The unit is the dialogue. "
    f"Smallest effect of interest: {SMALLEST}. " + stats.SCHEME)


def conditions(lvlm, length: int = LENGTH) -> list:
    """Every setting after either kind of told dialogues; without words; and as they stand."""
    return [*(dialogue_condition(lvlm, kind, length, rate, placement, moved) for kind in KINDS
              for history, placement, moved, rate in SETTINGS if history),
            dialogue_condition(lvlm, "same_image", 0, history=False), *as_they_stand(lvlm)]


def as_they_stand(lvlm, **options) -> list:
    """Dialogues of nothing but questions and replies, whole and pruned."""
    return [dialogue_condition(lvlm, "same_image", 0, rate, **options) for rate in (0, RATE)]


def turns(rows: pd.DataFrame) -> pd.DataFrame:
    """`rows` with their `setting`, less those turns that some condition did not ask."""
    asked = rows.groupby(KEYS)["f1"].transform(lambda f1: f1.notna().all())
    keys = zip(*(rows[name] for name in ("history", "placement", "moved", "rate")))
    return rows.assign(setting=[SETTINGS[key] for key in keys])[asked]


def presence(rows: pd.DataFrame) -> pd.DataFrame:
    """Presence turns of KINDS, those without words in each; `which`: the latest or an earlier."""
    rows = turns(rows[rows["kind"] == "presence"])
    bare = rows[rows["setting"] == BARE]
    rows = pd.concat([rows[rows["context_kind"].isin(KINDS)], *(
        bare.assign(context_kind=kind) for kind in KINDS)], ignore_index=True)
    return rows.assign(which=np.where(rows["latest"], "latest", "earlier"))


def summary(rows: pd.DataFrame, by=(*CELL, "setting")) -> pd.DataFrame:
    """Balanced accuracy of presence turns with its interval; `by` may name `pictures`, too."""
    return stats.by_group(presence(rows), by, stats.balanced_accuracy)


def by_distance(rows: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of presence turns by kind, setting and tokens back to the image asked about, in
    BINS, whose mean `distance` is, but for bins of few dialogues."""
    rows, by = presence(rows), ["context_kind", "setting", "distance"]
    bins = pd.cut(rows["distance"], BINS, right=False)
    rows["distance"] = rows.groupby([*by[:2], bins], observed=True)["distance"].transform("mean")
    return stats.by_group(_several(rows, by), by, "correct")


def by_turn(rows: pd.DataFrame) -> pd.DataFrame:
    """Token F1 and ROUGE-L by the reference, by kind, setting and turn (from 1)."""
    rows, by = turns(rows), ["context_kind", "setting", "turn"]
    return stats.by_group(_several(rows.assign(turn=rows["turn"] + 1), by), by,
                          {"token F1": "f1", "ROUGE-L": "rouge_l"})


def _several(rows: pd.DataFrame, by) -> pd.DataFrame:
    """Rows of those groups that have two dialogues or more, as an interval needs, and more than a
    sixth of all."""
    most = max(1, rows["image_id"].nunique() // 6)
    return rows[rows.groupby(by)["image_id"].transform("nunique") > most]


def _cells(rows: pd.DataFrame):
    """Each cell's columns, and its rows by setting."""
    for cell, part in presence(rows).groupby(CELL, sort=True):
        yield dict(zip(CELL, cell)), dict(iter(part.groupby("setting")))


def tests(rows: pd.DataFrame) -> pd.DataFrame:
    """The rule's cells by context kind and which image is meant.

    `bare` and `accuracy` are those of images without words and with pruning, `cost` what the words
    cost without it, `cost_p` its p-value after Holm.
    """
    lines = []
    for cell, of in _cells(rows):
        bare, short = (stats.balanced_accuracy(of[name]) for name in (BARE, PRUNED))
        cost = stats.accuracy_test((1, of[BARE]), (-1, of[PLAIN]))
        lines.append(cell | stats.accuracy_test((1, of[PRUNED]), (-1, of[PLAIN])).columns() | dict(
            bare=bare.value, accuracy=short.value, holds=short.low > stats.CHANCE,
            cost=cost.effect.value, cost_p=cost.p, floor=stats.limit(bare) == "floor"))
    table = pd.DataFrame(lines)
    return findings.where_it_costs(table, table.pop("floor"))


def changes(rows: pd.DataFrame) -> pd.DataFrame:
    """What each setting makes of the whole dialogue's accuracy, beside the rule; Holm over all."""
    return stats.family(pd.DataFrame([
        cell | dict(setting=name) | stats.accuracy_test((1, of[name]), (-1, of[PLAIN])).columns()
        for cell, of in _cells(rows) for name in of if name not in (BARE, PLAIN)]))


def overall(judged: pd.DataFrame) -> pd.DataFrame:
    """By rate: the mean of the judge's own Overall, all turns pooled, its interval over dialogues,
    and how many replies have which status. No lines where nothing was judged."""
    lines = {}
    for rate, part in judged.groupby("rate"):
        scored = part.dropna(subset=[OVERALL]).groupby("image_id")[OVERALL].agg(["sum", "count"])
        found = stats.bca(lambda total, count, axis=-1: total.sum(axis) / count.sum(axis),
                          *scored.to_numpy(float).T) if len(scored) > 1 else [np.nan] * 3
        lines[rate] = {"Overall": str(Estimate(*found, 0, 0)), **part["status"].value_counts()}
    return pd.DataFrame.from_dict(lines, "index").fillna(0)


def verdict(table: pd.DataFrame, rows: pd.DataFrame) -> Verdict:
    """The verdict by RULE from `tests`; a kind of which nothing counts says why."""
    found, estimates = presence(rows), {}
    for kind, cells in table.groupby("context_kind", sort=True):
        counted, limits = cells[cells["limit"] == ""], sorted(set(cells["limit"]))
        name = kind if len(counted) else f"{kind} ({', '.join(limits)})"
        which = (counted if len(counted) else cells)["which"]
        part = found[(found["context_kind"] == kind) & found["which"].isin(which)]
        estimates[name] = stats.balanced_accuracy_difference(
            *(part[part["setting"] == setting] for setting in (PRUNED, PLAIN)))
    return Verdict(
        "F12", "Pruning holds in dialogues of many turns and images", stats.judge(table, SMALLEST),
        f"balanced accuracy with what was said pruned at rate {RATE}, positions closed up, minus "
        "without", estimates, RULE)
