"""F7: whether the gain depends on the pruning strategy, and whether the paper's rule is best."""

import numpy as np
import pandas as pd
from scipy.stats import studentized_range

from vdp_utils import stats
from vdp_utils.measuring import pruned
from vdp_utils.measuring.pruned import NONE
from vdp_utils.stats import Estimate, Verdict

STRATEGIES = "F7_F9_strategies"  # the table of answers by strategy
KIND = "misleading"  # at these lengths only its lures cost accuracy (notebook 01)
LENGTHS = (128, 256, 512)
RATES = (0.5, 0.75, 0.9)
ABLATED, ABLATED_RATE = 512, 0.5  # where the paper's rule is taken apart
SEEDS = 5
PAPER, CHANCE = "accumulated", "random"
METHODS = ("h2o", "snapkv", "last_token", "key_norm", "expected_attention", "streaming",
           "perplexity", "contrastive_perplexity")  # published by others, on text or caches
RULES = ("accumulated_normalised", "debiased", "recency", "head", "bm25")
BOUNDS = ("inverse", "oracle")  # must be worst and best: controls, not contenders
VISUAL = ("fastv_visual", "text_first")  # drop image tokens instead
SEEDED = (CHANCE, "random_sentences")
GROUPS = {name: group for group, names in {
    "the paper's rule": (PAPER,), "chance": SEEDED, "published method": METHODS,
    "other rule": RULES, "control": BOUNDS, "drops the image": VISUAL}.items() for name in names}
SETS = {"accumulated mean": "mean, all queries", "accumulated question": "max, the question's",
        "accumulated mean question": "mean, the question's", "accumulated last": "max, the last",
        "accumulated mean last": "mean, the last"}  # heads and query sets of the ablation
MODES = (("compress", "compact"), ("compress", "kept"), ("evict", "kept"))
RULE = (
    "Behind `misleading`, answers pooled over lengths and rates (random strategies: over seeds), "
    "paired over images; p by a sign-flip test over images, Holm over all strategies. Robust: "
    "every strategy, but for the control `inverse` and the two that drop image tokens, wins over "
    "no pruning (95 % BCa interval of the difference of balanced accuracy above 0, Holm p < 0.05). "
    "Better: the paper's rule wins so over random tokens and over each published method. "
    "Reproduced if robust and better; partly if one of them; else not reproduced.")
QUESTION = ["image_id", "question_id", "answer"]


def contenders() -> list[str]:
    """Every strategy with its seeds, as `answer_condition` takes them."""
    return [text for name in GROUPS
            for text in ([f"{name} {seed}" for seed in range(SEEDS)] if name in SEEDED
                         else [name])]


def conditions(lvlm, lengths, rates=RATES, ablated: int = ABLATED) -> list:
    """Every strategy at every length and rate; the ablations at one length and rate."""
    def taken_apart(*strategies, **how):
        return pruned.answer_condition(lvlm, KIND, ablated, (ABLATED_RATE,), strategies, **how)

    layers = range(1, lvlm.model.config.get_text_config().num_hidden_layers - 1)
    return [*main_conditions(lvlm, lengths, rates), taken_apart(*SETS),
            *(taken_apart(PAPER, f"{CHANCE} 0", layer=layer) for layer in layers),
            *(taken_apart(PAPER, mode=mode, positions=positions) for mode, positions in MODES)]


def main_conditions(lvlm, lengths, rates=RATES) -> list:
    """Those of `conditions` that compare the strategies, which F9 asks for too."""
    return [pruned.answer_condition(lvlm, KIND, length, rates, contenders())
            for length in lengths]


def answers(rows: pd.DataFrame) -> pd.DataFrame:
    """One line a strategy, length, rate and question: `correct`, the mean over seeds.

    "none" (no pruning) stands at every rate. The ablations' rows are left out.
    """
    main = rows[(rows["mode"] == "prefill") & (rows["layer"] == 0)
                & rows["strategy"].isin([NONE, *contenders()])]
    by = ["strategy", "context_length", "rate", *QUESTION]
    found = main.assign(strategy=main["strategy"].str.split().str[0],
                        correct=main["correct"].astype(float)).groupby(by)["correct"].mean()
    found = found.reset_index()
    plain = found[found["strategy"] == NONE]
    pruned_rows = found[found["strategy"] != NONE]
    return pd.concat([pruned_rows, *(plain.assign(rate=rate)
                                     for rate in sorted(set(pruned_rows["rate"])))])


def pooled(found: pd.DataFrame) -> pd.DataFrame:
    """`answers` averaged over lengths and rates: one line a strategy and question."""
    return found.groupby(["strategy", *QUESTION])["correct"].mean().reset_index()


def cells(found: pd.DataFrame) -> pd.DataFrame:
    """Balanced accuracy by strategy (lines), length and rate (columns)."""
    recalls = found.groupby(["strategy", "context_length", "rate", "answer"])["correct"].mean()
    return recalls.groupby(level=[0, 1, 2]).mean().unstack([1, 2])


def mean_ranks(found: pd.DataFrame) -> pd.Series:
    """Mean over images of each strategy's rank by accuracy (1 is best), ties sharing theirs."""
    scores = found.groupby(["image_id", "strategy"])["correct"].mean().unstack()
    return scores.round(9).rank(axis=1, ascending=False).mean().rename("mean_rank")


def critical_difference(count: int, images: int) -> float:
    """Difference of mean ranks of `count` strategies beyond chance at 5 % (Nemenyi, in Demsar
    2006, eq. 5.3)."""
    q = studentized_range.ppf(0.95, count, np.inf) / 2**0.5
    return float(q * (count * (count + 1) / (6 * images)) ** 0.5)


def _difference(a: pd.DataFrame, b: pd.DataFrame, prefix: str) -> dict:
    """Balanced accuracy of `a` minus that of `b` with its interval, and the sign-flip p."""
    estimate = stats.balanced_accuracy_difference(a, b)
    return {prefix: estimate.value, f"{prefix}_low": estimate.low, f"{prefix}_high": estimate.high,
            f"{prefix}_p": stats.sign_flip(stats.rise(b, a, "correct")["rise"])}


def tests(found: pd.DataFrame) -> pd.DataFrame:
    """One line a strategy, best mean rank first, from `answers`.

    `gain` is its balanced accuracy minus that without pruning, `behind` the paper's rule's minus
    its own, their p-values Holm's over all strategies; `mean_rank` counts "none" too.
    """
    pool = dict(iter(pooled(found).groupby("strategy")))
    ranks, lines = mean_ranks(found), []
    for name, part in pool.items():
        if name == NONE:
            continue
        accuracy = stats.balanced_accuracy(part)
        lines.append(dict(strategy=name, group=GROUPS[name], accuracy=accuracy.value,
                          **_difference(part, pool[NONE], "gain"),
                          **_difference(pool[PAPER], part, "behind"),
                          mean_rank=ranks[name], n_images=accuracy.n_images,
                          n_rows=accuracy.n_rows))
    table = pd.DataFrame(lines)
    other = table["strategy"] != PAPER
    table["gain_p"] = stats.holm(table["gain_p"])
    table.loc[other, "behind_p"] = stats.holm(table.loc[other, "behind_p"])
    return table.sort_values("mean_rank", kind="stable").reset_index(drop=True)


def ablations(rows: pd.DataFrame) -> pd.DataFrame:
    """The paper's rule with one choice changed, at one length and rate: one line a setting.

    `gain` as in `tests`, at that length and rate; `behind` is the rule as it is minus the setting,
    its p-values Holm's over all settings.
    """
    length = rows.loc[rows["strategy"].isin(SETS), "context_length"].iloc[0]
    rows = rows[(rows["context_length"] == length) & rows["rate"].isin([0, ABLATED_RATE])]
    flight = rows["mode"] == "prefill"
    first = rows[flight & (rows["layer"] == 0)]

    def named(part, *names):
        return part[part["strategy"].isin(names)].assign(correct=lambda x: x["correct"].astype(
            float)).groupby(QUESTION)["correct"].mean().reset_index()

    plain, paper = named(first, NONE), named(first, PAPER)
    settings = [("as it is", "layer 0, max, all queries", paper)]
    settings += [("heads and queries", label, named(first, name)) for name, label in SETS.items()]
    for layer in sorted(set(rows.loc[flight, "layer"]) - {0}):
        part = rows[flight & (rows["layer"] == layer)]
        settings += [("scoring layer", f"layer {layer}", named(part, PAPER)),
                     ("random tokens go", f"after layer {layer}", named(part, f"{CHANCE} 0"))]
    settings.append(("random tokens go", "after layer 0", named(first, f"{CHANCE} 0")))
    settings += [("mode", f"{mode}, {positions} positions" if mode == "compress" else mode,
                  named(rows[(rows["mode"] == mode) & (rows["positions"] == positions)], PAPER))
                 for mode, positions in MODES]
    settings += [("what goes", "random tokens" if name == CHANCE else "random sentences",
                  named(first, *(f"{name} {seed}" for seed in range(SEEDS)))) for name in SEEDED]
    settings += [("what goes", "sentences by bm25", named(first, "bm25"))]
    settings += [("what goes", f"image tokens, {name}", named(first, name)) for name in VISUAL]
    lines = [dict(group=group, setting=setting, context_length=length, rate=ABLATED_RATE,
                  n_images=part["image_id"].nunique(), **_difference(part, plain, "gain"),
                  **_difference(paper, part, "behind")) for group, setting, part in settings]
    table = pd.DataFrame(lines).drop(columns="gain_p")
    table.loc[1:, "behind_p"] = stats.holm(table.loc[1:, "behind_p"])
    order = list(dict.fromkeys(table["group"]))
    return table.sort_values(["group", "setting"], kind="stable", key=lambda x: x.map(
        order.index) if x.name == "group" else x).reset_index(drop=True)


def verdict(table: pd.DataFrame) -> Verdict:
    """The verdict by RULE from `tests`."""
    context = table[~table["group"].eq("drops the image") & table["strategy"].ne("inverse")]
    robust = bool(((context["gain_low"] > 0) & (context["gain_p"] < 0.05)).all())
    rivals = table[table["strategy"].isin([CHANCE, *METHODS])]
    better = bool(((rivals["behind_low"] > 0) & (rivals["behind_p"] < 0.05)).all())
    chance = table.set_index("strategy").loc[CHANCE]
    lead = Estimate(chance["behind"], chance["behind_low"], chance["behind_high"],
                    int(chance["n_images"]), int(chance["n_rows"]))
    return Verdict("F7", "The gain is robust to the strategy, and the paper's rule is better",
                   stats.judge(robust and better, robust or better),
                   "balanced accuracy, the paper's rule minus random tokens", lead, lead.n_images,
                   RULE)
