"""F4: questions about objects that fill less of the image suffer more."""

import numpy as np
import pandas as pd
from scipy import special

from vdp_utils import stats
from vdp_utils.stats import Verdict

RULE = (
    "Yes-questions only. Logistic regression of a right answer on log2 of the image share that the "
    "asked object fills, log2(1 + context length) and their product. The product's coefficient "
    "says whether length costs small objects more (above 0) or large ones (below 0). Reproduced if "
    "its 95 % BCa interval over images lies above 0 for every context kind, also with the number "
    "of objects and the noun's frequency and their products with length in the model; partly if "
    "for at least one kind, else not reproduced.")
SHARE, LENGTH, PRODUCT = "log2 share", "log2 length", "share x length"
SHOWN = (0, 512, 2048)  # context lengths whose curves are drawn
CONTROLS = ("objects", "frequency")


def yes_questions(rows: pd.DataFrame, samples) -> pd.DataFrame:
    """The yes-questions with the regression's predictors, each of mean 0 and spread 1.

    `share x length` is the product of the scaled two. `frequency` is how many pictures show the
    noun, of a fixed set of the samples' kind, `objects` how many objects the asked one has.
    """
    counts = {sample.image_id: len(sample.picture.items) for sample in samples}
    yes = rows[rows["answer"] == "yes"].copy()
    raw = {SHARE: np.log2(yes["target_share"]), LENGTH: np.log2(1 + yes["context_length"]),
           "objects": yes["image_id"].map(counts),
           "frequency": yes["nouns"].map(samples[0].picture.frequency)}
    for name, values in raw.items():
        yes[name] = (values - values.mean()) / values.std()
    yes[PRODUCT] = yes[SHARE] * yes[LENGTH]
    for name in CONTROLS:
        yes[f"{name} x length"] = yes[name] * yes[LENGTH]
    return yes


def tests(yes: pd.DataFrame) -> pd.DataFrame:
    """By context kind, the product's coefficient alone, controlled, and on the margin."""
    alone = [SHARE, LENGTH, PRODUCT]
    controlled = alone + [f"{name}{end}" for name in CONTROLS for end in ("", " x length")]
    lines = []
    for kind, part in yes.groupby("context_kind", sort=True):
        for model, outcome, predictors, logistic in (
                ("right answer", "correct", alone, True),
                ("right answer, controlled", "correct", controlled, True),
                ("margin (nats)", "margin", alone, False)):
            lines.append(dict(context_kind=kind, model=model, **vars(stats.regression_effect(
                part, outcome, predictors, PRODUCT, logistic))))
    return pd.DataFrame(lines)


def verdict(tests: pd.DataFrame, yes: pd.DataFrame) -> Verdict:
    """The verdict by RULE; the estimate is the product's coefficient over all kinds together."""
    judged = tests[tests["model"].str.startswith("right answer")]
    holds = judged.assign(above=judged["low"] > 0).groupby("context_kind")["above"].all()
    pooled = stats.regression_effect(yes, "correct", [SHARE, LENGTH, PRODUCT], PRODUCT)
    return Verdict(
        "F4", "Questions about objects that fill less of the image suffer more",
        stats.judge(bool(holds.all()), bool(holds.any())),
        "log-odds of a right answer per standard deviation of log share and of log length",
        pooled, pooled.n_images, RULE)


def summary(yes: pd.DataFrame, bins: int = 4) -> pd.DataFrame:
    """Recall by context kind, length and bin of equally many questions by share.

    `n_images` counts the bin's images, `images` all.
    """
    edges = yes.drop_duplicates(["image_id", "question_id"])["target_share"].quantile(
        np.linspace(0, 1, bins + 1)).to_numpy()
    yes = yes.assign(bin=np.clip(np.searchsorted(edges, yes["target_share"], "right") - 1,
                                 0, bins - 1))
    lines = []
    for (kind, length, number), part in yes.groupby(["context_kind", "context_length", "bin"]):
        share = float(np.exp(np.log(part["target_share"]).mean()))
        lines.append(dict(context_kind=kind, context_length=length, bin=number, share=share,
                          images=yes["image_id"].nunique(),
                          **vars(stats.mean_estimate(part, "correct"))))
    return pd.DataFrame(lines)


def curves(yes: pd.DataFrame, points: int = 40) -> pd.DataFrame:
    """Recall that the logistic regression expects, by context kind, length and share."""
    predictors, lines = [SHARE, LENGTH, PRODUCT], []
    shares = np.geomspace(yes["target_share"].min(), yes["target_share"].max(), points)
    logs = np.log2(yes["target_share"])
    scaled = (np.log2(shares) - logs.mean()) / logs.std()
    for kind, part in yes.groupby("context_kind"):
        x = np.column_stack([part[predictors].to_numpy(float), np.ones(len(part))])
        (found,) = stats.regression(x, part["correct"].to_numpy(float), np.ones((1, len(part))))
        for length, z in part.groupby("context_length")[LENGTH].first().items():
            logits = found @ np.stack([scaled, np.full(points, z), scaled * z, np.ones(points)])
            lines += [dict(context_kind=kind, context_length=length, share=share, recall=recall)
                      for share, recall in zip(shares, special.expit(logits))]
    return pd.DataFrame(lines)
