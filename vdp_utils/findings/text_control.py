"""F2: the same questions about scenes told in words do not suffer as much."""

import pandas as pd

from vdp_utils import stats
from vdp_utils.errors import VDPError
from vdp_utils.findings import NEAR
from vdp_utils.findings.decline import ends
from vdp_utils.lvlm.prompts import PLACES
from vdp_utils.measuring.measure import presence_conditions
from vdp_utils.stats import Estimate, Verdict

IMAGES = ("own", "text")  # the scene as an image, and told in words in the image's place
RULE = (
    "For each context kind and two spans, from no context to the longest context of the model's "
    "training and to the longest of all: the loss of balanced accuracy with the image minus the "
    "loss with the scene in words (a difference in differences, paired over images) has a 95 % "
    "BCa interval above 0. Reproduced if this holds for every kind and span, partly if for at "
    "least one, else not reproduced.")


def place_conditions(lvlm, lengths) -> list:
    """The words before, amid and after contexts of one kind, up to NEAR."""
    return presence_conditions(lvlm, ["other_images"], [n for n in lengths if n <= NEAR], PLACES)


def summary(rows: pd.DataFrame, columns=("context_kind", "image")) -> pd.DataFrame:
    """Balanced accuracy with its interval by context kind, image or words, and length."""
    return stats.by_group(rows, [*columns, "context_length"],
                          {"balanced accuracy": stats.balanced_accuracy})


def spans(rows: pd.DataFrame, trained: int | None) -> list[int]:
    """The contexts up to which the rule looks: the longest trained, where known, and of all."""
    lengths = sorted(rows["context_length"].unique())
    familiar = [n for n in lengths if 0 < n <= (trained or 0)]
    return [int(n) for n in dict.fromkeys([*familiar[-1:], lengths[-1]])]


def tests(rows: pd.DataFrame, trained: int | None) -> pd.DataFrame:
    """By context kind and span: both losses, and their difference with its interval.

    VDPError unless a kind's rows with the image and in words have the same context lengths.
    """
    lines = []
    for kind, part in rows.groupby("context_kind", sort=True):
        lengths = [set(part.loc[part["image"] == image, "context_length"]) for image in IMAGES]
        if lengths[0] != lengths[1]:
            raise VDPError(f"image and words behind {kind!r} differ in the lengths "
                           f"{sorted(lengths[0] ^ lengths[1])}: measure both at all")
        for span in spans(rows, trained):
            upto = part[part["context_length"] <= span]
            near, far = zip(*(ends(upto[upto["image"] == image]) for image in IMAGES))
            image, words = (stats.balanced_accuracy_difference(*pair) for pair in zip(near, far))
            more = _more_with_image(upto)
            lines.append(dict(context_kind=kind, span=span, loss_image=image.value,
                              loss_words=words.value, more_with_image=more.value, low=more.low,
                              high=more.high, n_images=more.n_images, n_rows=more.n_rows))
    return pd.DataFrame(lines)


def _more_with_image(rows: pd.DataFrame) -> Estimate:
    """The loss from the shortest to the longest context with the image, minus that in words."""
    (near, far), (near_words, far_words) = (ends(rows[rows["image"] == image]) for image in IMAGES)
    return stats.balanced_accuracy_contrast((1, near), (-1, far), (-1, near_words), (1, far_words))


def places(rows: pd.DataFrame) -> pd.DataFrame:
    """Accuracy by where in the context the scene is told: rows of `PLACES` of one context kind.

    At the lengths at which it is told in all of them: elsewhere there is nothing to compare.
    """
    told = rows[rows["image"].isin(PLACES)]
    known = told.groupby("context_length")["image"].transform("nunique")
    return summary(told[known == len(PLACES)], ("image",))


def verdict(table: pd.DataFrame, rows: pd.DataFrame) -> Verdict:
    """The verdict by RULE from `tests`; the estimate is all kinds' difference, longest context."""
    holds = table["low"] > 0
    more = _more_with_image(rows)
    return Verdict(
        "F2", "Equally long text-only questions do not suffer as much",
        stats.judge(bool(holds.all()), bool(holds.any())),
        f"loss of balanced accuracy up to {rows['context_length'].max()} context tokens, "
        "with the image minus in words", more, more.n_images, RULE)
