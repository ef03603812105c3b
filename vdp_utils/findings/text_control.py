"""F2: the same questions about text descriptions of the scenes do not suffer as much."""

import pandas as pd

from vdp_utils import stats
from vdp_utils.errors import VDPError
from vdp_utils.findings import NEAR, estimates
from vdp_utils.findings.decline import ends
from vdp_utils.lvlm.prompts import PLACES
from vdp_utils.measuring.measure import presence_conditions
from vdp_utils.stats import Estimate, Verdict

IMAGES = ("own", "text")  # the scene as an image, and as a text description in the image's place
SMALLEST = 0.05  # of balanced accuracy
RULE = (
    "Effect: the loss of balanced accuracy from no context to the given length with the image, "
    "minus that loss with the text description in the image's place, on the same questions (a "
    "difference in differences). Cells: context kind x length, every length above 0. At floor: "
    "both versions at chance after that context (their intervals hold 0.5), or both misled almost "
    f"always (at most {1 - stats.CEILING:.2f}). At ceiling: both at {stats.CEILING} or more, so "
    f"that neither lost anything. Smallest effect of interest: {SMALLEST}. " + stats.SCHEME)


def place_conditions(lvlm, lengths) -> list:
    """The description before, amid and after contexts of one kind, up to NEAR."""
    near = [length for length in lengths if length <= NEAR]
    return presence_conditions(lvlm, ["other_images"], near, PLACES)


def summary(rows: pd.DataFrame, columns=("context_kind", "image")) -> pd.DataFrame:
    """Balanced accuracy with its interval by context kind, image or description, and length."""
    return stats.by_group(rows, [*columns, "context_length"],
                          {"balanced accuracy": stats.balanced_accuracy})


def tests(rows: pd.DataFrame) -> pd.DataFrame:
    """By context kind and length: both losses, and their difference.

    VDPError unless a kind's rows with image and description have the same context lengths.
    """
    lines = []
    for kind, part in rows.groupby("context_kind", sort=True):
        by_image = [part[part["image"] == image] for image in IMAGES]
        lengths = [set(one["context_length"]) for one in by_image]
        if lengths[0] != lengths[1]:
            raise VDPError(f"image and text description after {kind!r} differ in the lengths "
                           f"{sorted(lengths[0] ^ lengths[1])}: measure both at all")
        accuracy = {(image, length): stats.balanced_accuracy(some) for (image, length), some
                    in part[part["image"].isin(IMAGES)].groupby(["image", "context_length"])}
        first, *longer = sorted(lengths[0])
        for length in longer:
            (near, far), (near_text, far_text) = (
                ends(one[one["context_length"] <= length]) for one in by_image)
            more = stats.accuracy_test((1, near), (-1, far), (-1, near_text), (1, far_text))
            loss = [accuracy[image, first].value - accuracy[image, length].value
                    for image in IMAGES]
            limit = _limit(*(accuracy[image, length] for image in IMAGES))
            lines.append(dict(context_kind=kind, context_length=length, loss_image=loss[0],
                              loss_text=loss[1]) | more.columns() | dict(limit=limit))
    return stats.family(pd.DataFrame(lines))


def _limit(*accuracies: Estimate) -> str:
    misled = all(one.value <= 1 - stats.CEILING for one in accuracies)
    return "floor" if misled else stats.limit(*accuracies)


def places(rows: pd.DataFrame) -> pd.DataFrame:
    """Accuracy by where in the context the description stands: rows of one context kind.

    At the lengths at which it stands in all `PLACES`: elsewhere there is nothing to compare.
    """
    told = rows[rows["image"].isin(PLACES)]
    known = told.groupby("context_length")["image"].transform("nunique")
    return summary(told[known == len(PLACES)], ("image",))


def verdict(table: pd.DataFrame) -> Verdict:
    """The verdict by RULE from `tests`.

    The estimates are each kind's at its longest length that counts, or at its longest where none
    does.
    """
    counts = table.assign(counts=table["limit"] == "")
    last = counts.sort_values(["counts", "context_length"]).groupby("context_kind").tail(1)
    last = last.sort_values("context_kind")
    named = [f"{line.context_kind} at {line.context_length}{f' ({line.limit})' * bool(line.limit)}"
             for line in last.itertuples()]
    return Verdict(
        "F2", "Equally long text-only questions do not suffer as much",
        stats.judge(table, SMALLEST),
        "loss of balanced accuracy with the image minus with the text description, after the "
        "longest context at which neither floor nor ceiling hides it",
        estimates(last.assign(context_kind=named)), RULE)
