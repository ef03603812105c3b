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
from vdp_utils.findings.decline import ends
from vdp_utils.stats import Verdict

MEASURES = {"share": "mass_image", "preference": "prefers_image"}
SMALLEST = {"share": 0.005, "preference": 0.05}  # per doubling: from 0 to 4,096 there are twelve
RULE = (
    "Effects: how much the answer position's attention on the image (its share), and its "
    "preference for the image, the log2 ratio of that share to what uniform attention over the "
    "prompt would put there, fall with each doubling of 1 + context length: an image's mean "
    "least-squares slope over all lengths. Cells: context kind x layer x {share, preference}. None "
    f"is at floor or ceiling. Smallest effects of interest: {SMALLEST['share']} of all attention, "
    f"{SMALLEST['preference']} (log2), each per doubling. " + stats.SCHEME)
MAPS = "F5_maps"  # the table of maps over the image
SHOWN, MAP_LENGTHS = 4, (0, 512, 1024, 2048)  # samples and context lengths whose maps are drawn
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
    """By context kind, layer and measure: the fall of share and preference per doubling."""
    lines = []
    for (kind, layer), part in layers.groupby(["context_kind", "layer"], sort=True):
        for name, column in MEASURES.items():
            falls = stats.trend(part.assign(fall=-part[column]), value="fall")
            lines.append(dict(context_kind=kind, layer=layer, measure=name) | falls.columns())
    return stats.family(pd.DataFrame(lines))


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
    share = table[table["measure"] == "share"].rename(columns={"effect": "fall_of_share"})
    share = share.assign(layer=share["layer"].astype(str)).join(mean, ["context_kind", "layer"])
    both = share[["context_kind", "layer", "fall_of_share", "with_cause"]].dropna()
    ranks = both.groupby("context_kind")[["fall_of_share", "with_cause"]].apply(
        lambda part: part["fall_of_share"].corr(part["with_cause"], method="spearman"))
    return both.join(ranks.rename("rank_correlation"), "context_kind").reset_index(drop=True)


def first_questions(maps: pd.DataFrame) -> pd.DataFrame:
    """Maps of each image's first question whose answer is yes: there is something to look at."""
    yes = maps[maps["answer"] == "yes"].sort_values("question_id", key=lambda ids: ids.astype(int))
    return yes.groupby(["image_id", "context_length"], as_index=False).first()


def verdict(table: pd.DataFrame, layers: pd.DataFrame) -> Verdict:
    """The verdict by RULE from `tests`; the estimates are falls of the share, over all layers."""
    mean = layers.groupby(["image_id", "context_kind", "context_length"], as_index=False)[
        "mass_image"].mean()
    lengths = mean["context_length"]
    return Verdict(
        "F5", "Attention moves from image to text",
        stats.judge(table, table["measure"].map(SMALLEST)),
        f"fall of the attention on the image, mean over layers, from {lengths.min()} to "
        f"{lengths.max()} context tokens",
        {kind: stats.mean_estimate(stats.rise(*reversed(ends(part)), "mass_image"), "rise")
         for kind, part in mean.groupby("context_kind")}, RULE)
