"""Where a model's loss in long contexts comes from, text or distance, and what helps."""

import pandas as pd

from vdp_utils import stats
from vdp_utils.findings import OTHER_AND_MISLEADING
from vdp_utils.findings.distance import AS_IT_IS, NO_TEXT, RATES, SQUEEZED, labelled
from vdp_utils.measuring.placed import PlacedCondition, placed_condition
from vdp_utils.stats import Estimate

PROBE = "probe"  # the table of rows
TEXTS = {NO_TEXT: NO_TEXT, "other_images": "text about other images",
         "misleading": "misleading text"}
BY = ["length", "text", "setting"]


def conditions(lvlm, lengths) -> list[PlacedCondition]:
    """No text, with nothing or a gap before the question; and all settings behind each text."""
    found = [placed_condition(lvlm, "other_images", 0)]
    for length in sorted(set(lengths)):
        found.append(placed_condition(lvlm, "other_images", 0, "gap", length))
        for kind in OTHER_AND_MISLEADING:
            found += [placed_condition(lvlm, kind, length), placed_condition(
                lvlm, kind, length, "near")]
            if length > SQUEEZED:
                found.append(placed_condition(lvlm, kind, length, "squeezed", SQUEEZED))
            found += [placed_condition(lvlm, kind, length, rate=rate) for rate in RATES]
    return found


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Balanced accuracy by length, text and setting, one line each."""
    return stats.by_group(labelled(rows), BY, stats.balanced_accuracy, sort=False)


def tests(rows: pd.DataFrame) -> pd.DataFrame:
    """By length and text, changes of balanced accuracy, paired over images, one line each.

    `context` is the prompt as it is beside one with nothing before the question; its two parts
    are `distance` (a gap without text beside nothing) and `text` (as it is beside that gap); the
    settings stand beside the prompt as it is. p is a sign-flip test's over images, and Holm's over
    all lines.
    """
    parts, lines = dict(iter(labelled(rows).groupby(BY, sort=False))), []
    for (length, text, setting), mine in parts.items():
        bare, gap = parts[0, NO_TEXT, AS_IT_IS], parts[length, NO_TEXT, AS_IT_IS]
        if length == 0:
            continue
        beside = {setting: parts[length, text, AS_IT_IS]}
        if setting == AS_IT_IS:
            beside = {"distance": bare} if text == NO_TEXT else {"context": bare, "text": gap}
        for effect, other in beside.items():
            p = stats.sign_flip(stats.rise(other, mine, "correct")["rise"])
            lines.append(dict(length=length, text=text, effect=effect, p=p)
                         | vars(stats.balanced_accuracy_difference(mine, other)))
    table = pd.DataFrame(lines)
    return table.assign(p_holm=stats.holm(table["p"]))


def sentences(table: pd.DataFrame, bare: Estimate, model: str) -> list[str]:
    """What `tests` say of the longest length: what is lost, what to, and what helps.

    `bare` is balanced accuracy with nothing before the question; significant is p < 0.05 after
    Holm.
    """
    length = table["length"].max()
    table = table[table["length"] == length].set_index(["text", "effect"])
    said = {key: f"{line.value:+.2f} [{line.low:+.2f}, {line.high:+.2f}]"
            + (" (not significant)" if line.p_holm >= 0.05 else "")
            for key, line in table.iterrows()}
    lost = {key for key, line in table.iterrows() if line.p_holm < 0.05 and line.value < 0}
    first, second = OTHER_AND_MISLEADING
    sources = [_source(lost, kind) for kind in OTHER_AND_MISLEADING]
    helps = []
    for kind in OTHER_AND_MISLEADING:
        mine = table.loc[kind].drop(index=["context", "text"])
        mine = mine[mine["p_holm"] < 0.05].sort_values("value", ascending=False)
        changes = ", ".join(f"{effect} {said[kind, effect]}" for effect in mine.index)
        helps.append(f"after {TEXTS[kind]} {changes or 'nothing significant'}")
    return [
        f"With nothing before the question {model} has a balanced accuracy of {bare.value:.2f} "
        f"[{bare.low:.2f}, {bare.high:.2f}]; {length} tokens about other images change it by "
        f"{said[first, 'context']}, misleading ones by {said[second, 'context']}.",
        f"After {TEXTS[first]} {sources[0]}, after {TEXTS[second]} {sources[1]}: distance alone "
        f"changes it by {said[NO_TEXT, 'distance']}, the words on top by {said[first, 'text']} "
        f"and, where they mislead, by {said[second, 'text']}.",
        f"What helps or harms: {'; '.join(helps)}."]


def _source(lost: set, kind: str) -> str:
    """What a loss behind a text comes from: those of its parts that are significant."""
    parts = [name for name, key in (("the distance", (NO_TEXT, "distance")),
                                    ("the words", (kind, "text"))) if key in lost]
    if (kind, "context") not in lost:
        return "nothing is lost for sure"
    return f"the loss comes from {' and '.join(parts) or 'neither part for sure'}"
