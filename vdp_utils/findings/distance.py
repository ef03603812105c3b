"""D1, this study's own: is the image lost to the text after it, or to the distance that it makes?

With rotary positions a long context does two things at once. Four prompts part them: nothing
between image and question; the distance without text (`gap`); the text without distance (`near`);
and both, as it is.
"""

import numpy as np
import pandas as pd

from vdp_utils import stats
from vdp_utils.attention.tokens import Kind
from vdp_utils.findings import OTHER_AND_MISLEADING, where_it_costs
from vdp_utils.findings.priors import moved, with_log_chances
from vdp_utils.lvlm.prompts import BESIDE
from vdp_utils.measuring.placed import PlacedCondition, placed_condition
from vdp_utils.stats import Verdict

ROWS, TIMES = "D1_distance", "D1_times"  # the tables of answers and of seconds
KINDS = ("repeated", "prose", "same_image", "other_images", "misleading")
HARMLESS = KINDS[:-1]
IMAGES = ("own", "text", "swapped")  # the two versions, and the exchange that shows the dependency
SQUEEZED, RATES = 512, (0.5, 0.9)  # positions left to the text; of pruning by the paper's rule
NO_TEXT, AS_IT_IS = "no text", "as it is"
CELL, QUESTION = ["text", "length"], ["image_id", "question_id"]
SMALLEST = 0.05  # of balanced accuracy
RULE = (
    "Effect: balanced accuracy with all the text but the image's positions moved up to the "
    "question, minus the middle of that without any context and that of the prompt as it is: "
    "above 0 the move wins more than half of the loss back, so that distance is most of it. "
    "Cells: context kinds that do not mislead x lengths. A cell counts only where the context "
    "costs something: no context minus all of it is above 0, p < 0.05 by the same test after Holm "
    f"over all cells. Smallest effect of interest: {SMALLEST}. " + stats.SCHEME)


def conditions(lvlm, lengths) -> list[PlacedCondition]:
    """The four prompts for image and text description; the cures where F6 has them; answers that
    stand in the text, at the longest length."""
    found = [placed_condition(lvlm, "other_images", 0, image=image) for image in (*IMAGES, BESIDE)]
    for length in lengths:
        found += [placed_condition(lvlm, "other_images", 0, "gap", length, image=image)
                  for image in IMAGES]
        for kind in KINDS:
            told = kind in OTHER_AND_MISLEADING
            found += [placed_condition(lvlm, kind, length, placement, image=image)
                      for image in IMAGES[:3 if told else 1] for placement in ("plain", "near")]
            if told:
                found += cures(lvlm, kind, length)
            if told and length == max(lengths):
                found += [placed_condition(lvlm, kind, length, placement, image=BESIDE)
                          for placement in ("plain", "near")]
                found += cures(lvlm, kind, length, BESIDE)
    return found


def cures(lvlm, kind: str, length: int, image: str = "own", rates=RATES) -> list[PlacedCondition]:
    """What may be done about it beside `near`: squeezing, the paper's pruning, and both."""
    found = [placed_condition(lvlm, kind, length, placement, rate=rate, image=image)
             for rate in rates for placement in ("plain", "near")]
    found.append(placed_condition(lvlm, kind, length, rate=rates[0], positions="kept", image=image))
    if length > SQUEEZED:
        found.append(placed_condition(lvlm, kind, length, "squeezed", SQUEEZED, image=image))
    return found


def time_conditions(lvlm, length: int) -> list[PlacedCondition]:
    """The settings that are timed: the prompt as it is, moved, and all `cures`."""
    return [*(placed_condition(lvlm, "misleading", length, placement)
              for placement in ("plain", "near")), *cures(lvlm, "misleading", length)]


def labelled(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with `length` (the distance in positions), `text` (a context kind, or none) and
    `setting` (what is done about it)."""
    gap, pruned = rows["placement"] == "gap", rows["rate"] > 0
    name = rows["placement"].mask(gap | (rows["placement"] == "plain"), AS_IT_IS)
    what = "pruned " + rows["rate"].astype(str)
    what = what.mask(rows["positions"] == "kept", what + ", old positions")
    what = what.mask(rows["placement"] == "near", "near, " + what)
    return rows.assign(
        length=rows["context_length"] + rows["places"] * gap,
        text=rows["context_kind"].mask(rows["context_length"] == 0, NO_TEXT),
        setting=name.mask(pruned, what))


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Accuracy, yes-rate and margin by image, text, length and setting, one line each, and how far
    the answer moves when the image is exchanged, where that was measured."""
    rows = labelled(rows)
    by = [*CELL, "setting"]
    keys = [*by, *QUESTION]
    own, swapped = (with_log_chances(rows[rows["image"] == image]).set_index(keys)
                    for image in ("own", "swapped"))
    own = own.loc[own.index.intersection(swapped.index)]
    exchanged = moved(own, swapped.loc[own.index]).reset_index()
    return pd.concat([
        stats.by_group(rows[rows["image"] != "swapped"], ["image", *by], {
            "balanced accuracy": stats.balanced_accuracy, "yes-rate": stats.yes_rate,
            "answer margin (nats)": "margin"}, sort=False),
        stats.by_group(exchanged, by, {"KL, swapped": "kl", "flip rate, swapped": "flip"},
                       sort=False).assign(image="own")], ignore_index=True)


def _four(rows: pd.DataFrame, image: str = "own"):
    """By text and length: the rows with nothing between, of the gap, of `near`, and as it is."""
    rows = labelled(rows[rows["image"] == image])
    parts = dict(iter(rows.groupby([*CELL, "setting"], sort=False)))
    bare = parts[NO_TEXT, 0, AS_IT_IS]
    for text, length, setting in parts:
        if setting == "near":
            yield (text, length), (bare, parts[NO_TEXT, length, AS_IT_IS],
                                   parts[text, length, "near"], parts[text, length, AS_IT_IS])


def tests(rows: pd.DataFrame) -> pd.DataFrame:
    """The rule's cells by text and length; `cost` is what the context costs, `cost_p` its p-value
    after Holm, `near` what moving the image's positions wins back of it."""
    lines = []
    for cell, (bare, _, near, plain) in _four(rows):
        if cell[0] in HARMLESS:
            cost = stats.accuracy_test((1, bare), (-1, plain))
            lines.append(dict(zip(CELL, cell)) | stats.accuracy_test(
                (1, near), (-0.5, bare), (-0.5, plain)).columns() | dict(
                    near=stats.balanced_accuracy_difference(near, plain).value,
                    cost=cost.effect.value, cost_p=cost.p))
    return where_it_costs(pd.DataFrame(lines))


def parts(rows: pd.DataFrame) -> pd.DataFrame:
    """What accuracy changes by, by image, text and length, paired; Holm over all lines.

    `distance` is the gap without text beside nothing, `text` all the text without distance beside
    nothing, `both` the prompt as it is beside nothing, and `left over` what both do beyond the sum
    of each alone: an interaction.
    """
    lines = []
    for image in set(rows["image"]) & set(IMAGES[:2]):
        for cell, (bare, gap, near, plain) in _four(rows, image):
            for part, weighted in dict(
                    distance=((1, gap), (-1, bare)), text=((1, near), (-1, bare)),
                    both=((1, plain), (-1, bare)),
                    **{"left over": ((1, plain), (-1, gap), (-1, near), (1, bare))}).items():
                lines.append(dict(image=image, **dict(zip(CELL, cell)), part=part)
                             | stats.accuracy_test(*weighted).columns())
    table = pd.DataFrame(lines).sort_values(["image", *CELL], ignore_index=True)
    return stats.family(table)


def remedies(rows: pd.DataFrame) -> pd.DataFrame:
    """By target, text, length and setting: `accuracy` and, beside the prompt as it is, `effect`.

    The target `image` is asked about the image, `text` about a description amid the context, with
    a blank image before it. Holm over all lines.
    """
    lines = []
    for target, image in (("image", "own"), ("text", BESIDE)):
        mine = labelled(rows[rows["image"] == image])
        told = mine[mine["text"].isin(OTHER_AND_MISLEADING)]
        for cell, some in told.groupby(CELL, sort=True):
            settings = dict(iter(some.groupby("setting", sort=False)))
            plain = settings.pop(AS_IT_IS)
            lines += [dict(target=target, **dict(zip(CELL, cell)), setting=setting,
                           accuracy=stats.balanced_accuracy(part).value,
                           before=stats.balanced_accuracy(plain).value)
                      | stats.accuracy_test((1, part), (-1, plain)).columns()
                      for setting, part in settings.items()]
    return stats.family(pd.DataFrame(lines))


def looking(rows: pd.DataFrame) -> pd.DataFrame:
    """How attention on the image falls with the distance alone, by layer and distance.

    `value` is the mean over images of the change, from no distance, of the log-odds of the image's
    share of the answer position's attention (heads' mean; nats). Everything else that can be
    attended to stays where it is, so this is what the image's attention scores lose.
    """
    bare = labelled(rows[(rows["image"] == "own") & (rows["context_length"] == 0)])
    maps = np.stack(bare["attention"].to_numpy()).astype(float).reshape(len(bare), -1, len(Kind))
    mass = maps[:, :, Kind.IMAGE].clip(1e-4, 1 - 1e-4)
    odds = pd.DataFrame(np.log(mass / (1 - mass))).assign(
        **{name: bare[name].to_numpy() for name in [*QUESTION, "length"]})
    odds = odds.melt([*QUESTION, "length"], var_name="layer", value_name="odds")
    start = odds[odds["length"] == 0].set_index([*QUESTION, "layer"])["odds"]
    at = pd.MultiIndex.from_frame(odds[[*QUESTION, "layer"]])
    odds["change"] = odds["odds"] - start.loc[at].to_numpy()
    return stats.by_group(odds, ["layer", "length"], "change")


def times(rows: pd.DataFrame) -> pd.DataFrame:
    """By setting: time to first token relative to that of the same prompt as it is, geometric mean
    over images."""
    rows = labelled(rows).assign(ratio=np.log(rows["ttft_s"] / rows["plain_ttft_s"]))
    table = stats.by_group(rows, ["setting"], "ratio", sort=False)
    ends = ["value", "low", "high"]
    return table.assign(**np.exp(table[ends]))


def verdict(table: pd.DataFrame, rows: pd.DataFrame) -> Verdict:
    """The verdict by RULE from `tests`; the estimates are what `near` wins at the longest length,
    by context kind."""
    longest = table["length"].max()
    estimates = {text: stats.balanced_accuracy_difference(near, plain)
                 for (text, length), (_, _, near, plain) in _four(rows) if length == longest}
    return Verdict(
        "D1", "An image that is lost after text which does not mislead is lost to the distance",
        stats.judge(table, SMALLEST),
        f"gain of balanced accuracy by moving the image's positions up, {longest} context tokens",
        estimates, RULE)
