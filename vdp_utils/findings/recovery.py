"""F6: pruning the context wins accuracy back, and costs answers that stand in the context."""

from functools import partial

import numpy as np
import pandas as pd

from vdp_utils import findings, stats
from vdp_utils.attention.recording import decoder_of
from vdp_utils.attention.tokens import Kind
from vdp_utils.errors import VDPError
from vdp_utils.findings import NEAR
from vdp_utils.findings.priors import moved, with_log_chances
from vdp_utils.measuring import pruned
from vdp_utils.measuring.pruned import COMPACT, NONE
from vdp_utils.stats import Estimate, Verdict

PRUNED = "F6_F9_pruned"  # the table of answers under pruning
KINDS = findings.KINDS[1:]  # same_image too would cost too much
LENGTHS = (0, 512, 1024, 2048)
RATES = (0.3, 0.5, 0.7, 0.9)
FEW_RATES = (0.5, 0.9)  # beyond NEAR, and with the image swapped: each costs a pass
RATE = 0.5  # which the rule looks at
KEPT, PREFILL = "compress", "prefill"  # at the old positions; during prefill
MODES = (COMPACT, KEPT, PREFILL)  # the paper's reading, the same without closing up, the fast one
DISTANCE = "distance"  # what closing up the positions does, the kept tokens being the same
EXAMPLES, SHOWN = "F6_examples", 2  # the table of what is kept, and how many samples are drawn
DESCRIBED = "text_middle"  # a text description amid the context, pruned with it: text-target
LAYERS, LAYER_LENGTHS = "F6_layers", (512, 2048)  # where the scoring layer is chosen
SMALLEST = 0.05  # of balanced accuracy
RULE = (
    "The paper's reading: score the context, then run the shortened prompt, its positions closed "
    f"up, at rate {RATE}. Effect: balanced accuracy with pruning minus without. Cells: context "
    "kinds and lengths. Where the context costs nothing there is nothing to win back: a cell "
    "counts only if no context minus all of it is above 0, p < 0.05 by the same test after Holm "
    "over all cells. A cell is for the claim only if accuracy with pruning is above chance (its "
    "95 % BCa interval lies above 0.5). Headline: by kind, all its lengths that count together, or "
    f"all of them where none does. Smallest effect of interest: {SMALLEST}. " + stats.SCHEME)
as_text = partial(findings.as_text, column=["context_kind", "context_length"], index="rate")
CELL = ["context_kind", "context_length"]
KEYS = ["image_id", "question_id", *CELL, "mode", "rate"]


def conditions(lvlm, lengths, rates=RATES, few_rates=FEW_RATES, described_length=512) -> list:
    """Own images at every length, swapped ones up to NEAR, text-target questions at one length.

    Every rate up to NEAR, few beyond it; length 0 is the anchor without context.
    """
    swapped = [pruned.answer_condition(lvlm, kind, length, few_rates, image="swapped",
                                       modes=(COMPACT,))
               for kind in KINDS for length in lengths if 0 < length <= NEAR]
    return [*own_conditions(lvlm, lengths, rates, few_rates), *swapped,
            pruned.answer_condition(lvlm, "other_images", described_length, rates,
                                    image=DESCRIBED, modes=(COMPACT,))]


def own_conditions(lvlm, lengths, rates=RATES, few_rates=FEW_RATES) -> list:
    """Those of `conditions` with the sample's own image, which F9 asks for too."""
    return [pruned.answer_condition(lvlm, kind, length, modes=MODES, rates=(
                () if not length else rates if length <= NEAR else few_rates))
            for kind in KINDS for length in lengths]


def example_conditions(lvlm, length: int = 256) -> list:
    """What the examples are drawn of: one rate, after a misleading context."""
    return [pruned.answer_condition(lvlm, "misleading", length, (RATE,), modes=(COMPACT,))]


def layer_conditions(lvlm, lengths=LAYER_LENGTHS) -> list:
    """The paper's reading scored at every layer, for validation scenes: see `best_layer`."""
    layers = range(len(decoder_of(lvlm.model).layers))
    return [pruned.answer_condition(lvlm, kind, length, (RATE,), modes=(COMPACT,), layers=layers)
            for kind in KINDS for length in lengths]


def by_layer(rows: pd.DataFrame) -> pd.DataFrame:
    """By scoring layer (lines): the gain in balanced accuracy of each kind and length, `mean`."""
    table = {}
    for cell, part in rows.groupby(CELL, sort=True):
        plain = part[part["strategy"] == NONE]
        table["{} {}".format(*cell)] = {layer: stats.balanced_accuracy_difference(some, plain).value
                       for layer, some in part[part["strategy"] != NONE].groupby("layer")}
    table = pd.DataFrame(table).rename_axis("layer")
    return table.assign(mean=table.mean(axis=1))


def best_layer(table: pd.DataFrame) -> int:
    """Of the first half of the layers the one of the highest mean gain, of equal ones the earliest.

    Behind the middle a pass that stops at the scoring layer saves little, and behind the last layer
    nothing is left to prune during prefill. `pruner.LAYER` is this one of the embedded LVLM on
    validation scenes, and fixed for all that follows, at other depths too.
    """
    early = table["mean"][table.index < len(table) / 2]
    return int(early.round(9).idxmax())


def by_mode(rows: pd.DataFrame) -> pd.DataFrame:
    """`rows` with those without pruning once for each mode, at rate 0."""
    plain, others = rows[rows["strategy"] == NONE], rows[rows["strategy"] != NONE]
    return pd.concat([others, *(plain.assign(mode=mode) for mode in others["mode"].unique())],
                     ignore_index=True)


def image_target(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows about the sample's own image, with `mass`: its share of attention, mean over layers.

    In every mode the answer without any context stands at each length as rate 1, and that without
    pruning as rate 0.
    """
    own = rows[rows["image"] == "own"]
    bare, own = own[own["context_length"] == 0], own[own["context_length"] > 0]
    if bare.empty or own.empty:
        raise VDPError("rows lack the length 0 or any other: measure both, with "
                       "recovery.conditions")
    own = by_mode(own)
    after = own[[*CELL, "mode"]].drop_duplicates().itertuples(index=False)
    own = pd.concat([own, *(bare[bare["context_kind"] == kind].assign(
        context_length=length, mode=mode, rate=1.0) for kind, length, mode in after)])
    maps = np.stack(own["attention"].to_numpy()).astype(float).reshape(len(own), -1, len(Kind))
    return own.assign(mass=maps[:, :, Kind.IMAGE].mean(1)).reset_index(drop=True)


def dependency(rows: pd.DataFrame) -> pd.DataFrame:
    """By question, kind, length, mode and rate: KL(P_own || P_swapped) in nats, and `flip`."""
    rows = by_mode(with_log_chances(rows))
    own, swapped = (rows[rows["image"] == image].set_index(KEYS) for image in ("own", "swapped"))
    own = own.loc[own.index.intersection(swapped.index)]
    swapped = swapped.loc[own.index]
    return moved(own, swapped).reset_index()


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Each measure with its interval by context kind, length, mode and rate."""
    by = [*CELL, "mode", "rate"]
    return pd.concat([
        stats.by_group(image_target(rows), by, {
            "balanced accuracy": stats.balanced_accuracy, "yes-rate": stats.yes_rate,
            "attention on image": "mass"}),
        stats.by_group(dependency(rows), by, {"KL, swapped": "kl", "flip rate, swapped": "flip"}),
    ], ignore_index=True)


def targets(rows: pd.DataFrame) -> pd.DataFrame:
    """Accuracy by rate where the answer is in the image and, where that was measured, where it
    stands in the context."""
    described = rows[rows["image"] == DESCRIBED]
    length = (described if len(described) else rows[rows["context_length"] > 0])[
        "context_length"].iloc[0]
    seen = rows[(rows["image"] == "own") & (rows["context_kind"] == "other_images")
                & (rows["context_length"] == length)]
    both = by_mode(pd.concat([seen.assign(target="image"), described.assign(target="text")]))
    return stats.by_group(both[both["mode"] == COMPACT], ["target", "context_length", "rate"],
                          stats.balanced_accuracy)


def _by_rate(own: pd.DataFrame) -> dict[tuple, pd.DataFrame]:
    """Rows of one kind and length by mode and rate."""
    return dict(iter(own.groupby(["mode", "rate"])))


def tests(rows: pd.DataFrame) -> pd.DataFrame:
    """The rule's cells by context kind and length: what pruning wins, paired, and what there is.

    `accuracy` is that with pruning, `cost` that of no context minus all of it, `cost_p` its p-value
    after Holm.
    """
    lines = []
    for cell, own in image_target(rows).groupby(CELL, sort=True):
        part = _by_rate(own)
        plain, short, bare = (part[COMPACT, rate] for rate in (0.0, RATE, 1.0))
        accuracy, cost = stats.balanced_accuracy(short), stats.accuracy_test((1, bare), (-1, plain))
        lines.append(dict(zip(CELL, cell))
                     | stats.accuracy_test((1, short), (-1, plain)).columns()
                     | dict(accuracy=accuracy.value, holds=accuracy.low > stats.CHANCE,
                            cost=cost.effect.value, cost_p=cost.p))
    return findings.where_it_costs(pd.DataFrame(lines))


def gains(rows: pd.DataFrame) -> pd.DataFrame:
    """All gains by context kind, length, mode and rate, beside the rule; Holm over all lines.

    `effect` is balanced accuracy with pruning minus without; at the mode "distance" that with
    compact positions minus that with the old ones, the kept tokens being the same.
    """
    lines = []
    for cell, own in image_target(rows).groupby(CELL, sort=True):
        part = _by_rate(own)
        pairs = {(mode, rate): ((mode, rate), (mode, 0.0)) for mode, rate in part
                 if 0 < rate < 1}
        pairs |= {(DISTANCE, rate): ((COMPACT, rate), (KEPT, rate)) for mode, rate in pairs
                  if mode == KEPT}
        lines += [dict(zip([*CELL, "mode", "rate"], (*cell, *name)))
                  | stats.accuracy_test((1, part[one]), (-1, part[other])).columns()
                  for name, (one, other) in pairs.items()]
    return stats.family(pd.DataFrame(lines))


def returns(rows: pd.DataFrame) -> pd.DataFrame:
    """Whether the answer returns to the image: by measure, kind, length and rate, beside the rule.

    `effect` is the paired difference with pruning minus without, in the paper's reading, of the
    image's share of attention and of KL(P_own || P_swapped) in nats; Holm over all lines.
    """
    measured = {"attention on image": image_target(rows).rename(columns=dict(mass="value")),
                "KL, swapped": dependency(rows).rename(columns=dict(kl="value"))}
    lines = []
    for measure, found in measured.items():
        for cell, part in found[found["mode"] == COMPACT].groupby(CELL, sort=True):
            values = part.set_index(["image_id", "question_id"])
            plain = values.loc[values["rate"] == 0, "value"]
            for rate, some in values[values["rate"].between(0, 1, "neither")].groupby("rate"):
                change = (some["value"] - plain).rename("change").reset_index()
                lines.append(dict(zip(["measure", *CELL, "rate"], (measure, *cell, rate)))
                             | stats.mean_test(change, "change").columns())
    return stats.family(pd.DataFrame(lines))


def verdict(table: pd.DataFrame, rows: pd.DataFrame) -> Verdict:
    """The verdict by RULE from `tests`."""
    own = image_target(rows)
    own = own[own["mode"] == COMPACT]
    own["question_id"] = own["context_length"].astype(str) + "/" + own["question_id"]
    estimates: dict[str, Estimate] = {}
    for kind, cells in table.groupby("context_kind", sort=True):
        counted = cells[cells["limit"] == ""] if (cells["limit"] == "").any() else cells
        part = own[(own["context_kind"] == kind)
                   & own["context_length"].isin(counted["context_length"])]
        estimates[kind] = stats.balanced_accuracy_difference(
            *(part[part["rate"] == rate] for rate in (RATE, 0.0)))
    return Verdict(
        "F6", "Pruning the context wins accuracy back", stats.judge(table, SMALLEST),
        f"balanced accuracy with pruning at rate {RATE}, positions closed up, minus without",
        estimates, RULE)
