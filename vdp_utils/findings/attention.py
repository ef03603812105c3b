"""F5: attention moves from image to text with context length, layer by layer.

Attention here is that of the answer position (the prompt's last token), mean over heads unless a
head is named.
"""

import numpy as np
import pandas as pd

from vdp_utils import stats
from vdp_utils.attention.tokens import Kind
from vdp_utils.errors import VDPError
from vdp_utils.findings import priors
from vdp_utils.stats import Verdict

RULE = (
    "For each context kind, over all lengths (sign-flip tests over images, p < 0.05 after Holm "
    "over kinds and layers): the answer position's attention on the image falls in a layer, and "
    "its preference for the image falls there too, the log2 ratio of its attention on the image "
    "to what uniform attention over the prompt would put there. Reproduced if both hold in every "
    "layer for every kind; partly if the attention on the image, mean over layers, falls for at "
    "least one kind; else not reproduced.")
MAPS = "F5_maps"  # the table of maps over the image
SHOWN, MAP_LENGTHS = 4, (0, 512, 2048, 4096)  # samples and context lengths whose maps are drawn
NAMES = {Kind.IMAGE: "image", Kind.CONTEXT: "context", Kind.QUESTION: "question",
         Kind.TEMPLATE: "template"}


def by_layer(rows: pd.DataFrame) -> pd.DataFrame:
    """One line a row and layer: its attention on each kind of token, and preferences.

    `mass_image`, `mass_context`, ... are shares that add up to 1. `prefers_image` is log2 of the
    image's share over the share that uniform attention would give it, `prefers_context` likewise
    (missing where there is no context).
    """
    maps = np.stack(rows["attention"].to_numpy()).astype(float).reshape(len(rows), -1, len(Kind))
    layers = maps.shape[1]
    total = rows[[f"{name}_tokens" for name in NAMES.values()]].sum(axis=1)
    long = rows[priors.KEYS].loc[rows.index.repeat(layers)].reset_index(drop=True)
    long["layer"] = np.tile(np.arange(layers), len(rows))
    for kind, name in NAMES.items():
        long[f"mass_{name}"] = maps[:, :, kind].ravel()
    for name in ("image", "context"):
        uniform = (rows[f"{name}_tokens"] / total).to_numpy().repeat(layers)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.log2(np.maximum(long[f"mass_{name}"], 1e-6) / uniform)
        long[f"prefers_{name}"] = np.where(uniform > 0, ratio, np.nan)
    return long


def summary(layers: pd.DataFrame) -> pd.DataFrame:
    """Each share and preference by context kind and length, mean over layers, with intervals."""
    measures = {f"attention on {name}": f"mass_{name}" for name in NAMES.values()}
    measures |= {"preference for image": "prefers_image",
                 "preference for context": "prefers_context"}
    return stats.by_group(layers, ["context_kind", "context_length"], measures)


def heat(layers: pd.DataFrame, column: str) -> pd.DataFrame:
    """A share or preference by layer and context length (mean over the kinds given)."""
    return layers.groupby(["layer", "context_length"])[column].mean().unstack()


def heads(rows: pd.DataFrame) -> pd.DataFrame:
    """Attention of every head on the image by context length: layer, head, length, mass."""
    lines = []
    for length, part in rows.groupby("context_length", sort=True):
        maps = np.stack(part["head_image"].to_numpy()).astype(float).mean(0)
        layers = len(part["attention"].iloc[0]) // len(Kind)
        maps = maps.reshape(layers, -1)
        lines += [dict(layer=layer, head=head, context_length=length, mass=mass)
                  for (layer, head), mass in np.ndenumerate(maps)]
    return pd.DataFrame(lines)


def tests(layers: pd.DataFrame) -> pd.DataFrame:
    """By context kind and layer: the trends of the image's share and of the preference for it."""
    lines = []
    for (kind, layer), part in layers.groupby(["context_kind", "layer"], sort=True):
        line = dict(context_kind=kind, layer=layer)
        for name, column in (("mass", "mass_image"), ("preference", "prefers_image")):
            trend = stats.trend(part, value=column)
            line |= {f"{name}_slope": trend.slope.value, f"{name}_p": trend.p}
        lines.append(line)
    table = pd.DataFrame(lines)
    for name in ("mass", "preference"):
        table[f"{name}_p_holm"] = stats.holm(table.pop(f"{name}_p"))
    return table


def falls(table: pd.DataFrame, name: str) -> pd.Series:
    """Whether `mass` or `preference` falls, for each line of `tests`."""
    return (table[f"{name}_slope"] < 0) & (table[f"{name}_p_holm"] < 0.05)


def against_cause(rows: pd.DataFrame, image: str = "swapped") -> pd.DataFrame:
    """How attention on the image ranks with how far the answer moves when the image is swapped.

    Spearman's correlation over questions between a layer's attention on the image ("mean": all
    layers') and KL(P_own || P_swapped), by context kind and length: does the one say the other?
    VDPError without rows of that image.
    """
    found = priors.pairs(rows)[[*priors.KEYS, f"kl_{image}"]].dropna()
    if found.empty:
        raise VDPError(f"rows lack the image {image!r}: measure it with priors.conditions")
    layers = by_layer(rows[rows["image"] == "own"])
    mean = layers.groupby(priors.KEYS, as_index=False)["mass_image"].mean().assign(layer="mean")
    both = pd.concat([layers.assign(layer=layers["layer"].astype(str)), mean]).merge(
        found, on=priors.KEYS)
    return stats.by_group(both, ["context_kind", "context_length", "layer"], lambda part: (
        stats.rank_correlation(part, "mass_image", f"kl_{image}")))


def over_layers(table: pd.DataFrame, correlations: pd.DataFrame) -> pd.DataFrame:
    """By kind and layer: the fall of the image's share beside its correlation with the cause.

    The correlation is the mean over context lengths; `rank_correlation` is Spearman's between the
    two columns over a kind's layers.
    """
    mean = correlations.groupby(["context_kind", "layer"])["value"].mean().rename("with_cause")
    wide = table.assign(layer=table["layer"].astype(str)).join(mean, ["context_kind", "layer"])
    wide = wide.dropna(subset="with_cause")[["context_kind", "layer", "mass_slope", "with_cause"]]
    ranks = wide.groupby("context_kind")[["mass_slope", "with_cause"]].apply(
        lambda part: part["mass_slope"].corr(part["with_cause"], method="spearman"))
    return wide.join(ranks.rename("rank_correlation"), "context_kind").reset_index(drop=True)


def first_questions(maps: pd.DataFrame) -> pd.DataFrame:
    """Maps of each image's first question whose answer is yes: there is something to look at."""
    yes = maps[maps["answer"] == "yes"].sort_values("question_id", key=lambda ids: ids.astype(int))
    return yes.groupby(["image_id", "context_length"], as_index=False).first()


def verdict(table: pd.DataFrame, layers: pd.DataFrame) -> Verdict:
    """The verdict by RULE from `tests`; the estimate is the drop of the image's share."""
    both = falls(table, "mass") & falls(table, "preference")
    mean = layers.groupby(["image_id", "context_kind", "context_length"], as_index=False)[
        "mass_image"].mean()
    trends = [stats.trend(part, value="mass_image") for _, part in mean.groupby("context_kind")]
    partly = any(trend.slope.value < 0 and p < 0.05
                 for trend, p in zip(trends, stats.holm([trend.p for trend in trends])))
    lengths = mean["context_length"]
    near, far = lengths.min(), lengths.max()
    drop = stats.rise(mean[lengths == far], mean[lengths == near], "mass_image")
    estimate = stats.mean_estimate(drop, "rise")
    return Verdict(
        "F5", "Attention moves from image to text",
        stats.judge(bool(both.all()), partly),
        f"drop of the attention on the image, mean over layers, from {near} to {far} context "
        "tokens",
        estimate, estimate.n_images, RULE)
