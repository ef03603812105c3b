"""F7: whether the gain depends on the pruning strategy, and whether the paper's rule is best."""

import pandas as pd

from vdp_utils import stats
from vdp_utils.measuring import pruned
from vdp_utils.measuring.pruned import COMPACT, NONE
from vdp_utils.stats import Estimate, Verdict

STRATEGIES = "F7_F9_strategies"  # the table of answers by strategy
KIND = "misleading"  # so that something should go, and in the text-target something should stay
TARGETS = {"image": "own", "text": "text_middle"}  # where the answer is: what stands for the image
RATES = {512: (0.5, 0.9), 2048: (0.9,)}  # by context length; half of 2,048 would cost hours
FASTV_LAYER = 1  # which counts from 0: FastV drops image tokens after the second layer
SEEDS = 2
PAPER, CHANCE = "accumulated", "random"
METHODS = ("h2o", "snapkv", "last_token", "key_norm", "expected_attention", "streaming",
           "perplexity", "contrastive_perplexity")  # published by others, on text or caches
RULES = ("accumulated question", "accumulated_normalised", "debiased", "recency", "head", "bm25")
BOUNDS = ("inverse", "oracle")  # controls, not contenders: what is least attended to; a bound
VISUAL = ("fastv_visual", "text_first")  # drop a rate of the image's tokens instead
SEEDED = (CHANCE, "random_sentences")
GROUPS = {name: group for group, names in {
    "the paper's rule": (PAPER,), "chance": SEEDED, "published method": METHODS,
    "other rule": RULES, "control": BOUNDS}.items() for name in names}
SMALLEST = 0.05  # of balanced accuracy
RULE = (
    "After misleading contexts, positions closed up, scored at the default layer; lengths and "
    "rates pooled, random strategies over seeds. Two kinds of cell, in one family. Robust, every "
    "strategy but the controls: effect is balanced accuracy with pruning minus without where the "
    "answer is in the image, and the accuracy with pruning must be above chance (its 95 % BCa "
    "interval above 0.5); from chance there is room for a gain, so that only the ceiling limits. "
    "Better, random tokens and each published method: effect is the paper's rule minus that "
    "strategy, of the mean of two balanced accuracies at equal budget, where the answer is in the "
    "image and where it stands in the context. Smallest effect of interest: "
    f"{SMALLEST}. " + stats.SCHEME)
QUESTION = ["image_id", "question_id", "answer"]
CELL = ["context_length", "rate"]


def contenders(names=tuple(GROUPS)) -> list[str]:
    """Strategies with their seeds, as `answer_condition` takes them."""
    return [text for name in names
            for text in ([f"{name} {seed}" for seed in range(SEEDS)] if name in SEEDED
                         else [name])]


def conditions(lvlm, rates=None) -> list:
    """Every strategy in both targets at every length and rate, scored at two layers; and what
    drops image tokens, during prefill. `rates` by length are RATES where not given."""
    rates = RATES if rates is None else rates
    visual = [pruned.answer_condition(lvlm, KIND, length, some, VISUAL, layers=(FASTV_LAYER,))
              for length, some in rates.items()]
    return main_conditions(lvlm, rates) + visual


def main_conditions(lvlm, rates) -> list:
    """Those of `conditions` that compare the strategies, which F9 asks for too."""
    return [pruned.answer_condition(lvlm, KIND, length, some, contenders(), image, (COMPACT,),
                                    (None, 0))
            for length, some in rates.items() for image in TARGETS.values()]


def answers(rows: pd.DataFrame) -> pd.DataFrame:
    """By layer, target, strategy, length, rate and question: `correct`, the mean over seeds.

    `layer` is the place of the scoring layer among those measured: "default", or "0". "none" (no
    pruning) stands at every layer and rate. What drops image tokens has the layer "image".
    """
    names = {image: target for target, image in TARGETS.items()}
    rows = rows.assign(target=rows["image"].map(names), correct=rows["correct"].astype(float))
    rows = rows.drop_duplicates(["image_id", "question_id", "context_length", "target",
                                 "strategy", "rate", "mode", "layer"])
    visual = rows["strategy"].isin(VISUAL)
    default = rows.loc[(rows["mode"] == COMPACT), "layer"].max()
    layer = rows["layer"].map(lambda at: "default" if at == default else str(at))
    name = rows["strategy"].where(~rows["strategy"].str.contains(r" \d+$"),
                                  rows["strategy"].str.split().str[0])
    by = ["layer", "target", "strategy", *CELL, *QUESTION]
    found = rows.assign(layer=layer.mask(visual, "image"), strategy=name).groupby(by)[
        "correct"].mean().reset_index()
    plain, others = found[found["strategy"] == NONE], found[found["strategy"] != NONE]
    places = others[["layer", "target", *CELL]].drop_duplicates()
    return pd.concat([others, plain.drop(columns=["layer", "rate"]).merge(
        places, on=["target", "context_length"])], ignore_index=True)


def layers(found: pd.DataFrame) -> list[str]:
    """The scoring layers of `answers`, the default one first."""
    return sorted(set(found["layer"]) - {"image"}, reverse=True)


def pooled(found: pd.DataFrame, layer: str = "default") -> dict[str, pd.DataFrame]:
    """`answers` at a layer averaged over lengths and rates, by strategy."""
    part = found[found["layer"] == layer]
    part = part.groupby(["strategy", "target", *QUESTION])["correct"].mean().reset_index()
    return dict(iter(part.groupby("strategy")))


def cells(found: pd.DataFrame) -> pd.DataFrame:
    """Balanced accuracy by layer and strategy (lines), target, length and rate (columns)."""
    by = ["layer", "strategy", "target", *CELL]
    recalls = found.groupby([*by, "answer"])["correct"].mean()
    return recalls.groupby(level=by).mean().unstack(["target", *CELL]).sort_index(axis=1)


def about(target: str, rows: pd.DataFrame) -> pd.DataFrame:
    """Rows whose answer is in that target."""
    return rows[rows["target"] == target]


def both(rows: pd.DataFrame, weight: float = 1) -> list[tuple[float, pd.DataFrame]]:
    """Weighted parts of a contrast that add to the mean accuracy of the two targets."""
    return [(weight / len(TARGETS), about(target, rows)) for target in TARGETS]


def scores(found: pd.DataFrame, layer: str = "default") -> pd.DataFrame:
    """One row per strategy, best first: `value`, the mean accuracy of both targets, with its
    interval, that of each target, `image` and `text`, and `pareto_front`: no other strategy has
    more of both, controls aside."""
    lines = []
    for name, rows in pooled(found, layer).items():
        of = {target: stats.balanced_accuracy(about(target, rows)).value for target in TARGETS}
        mean = stats.balanced_accuracy_contrast(*both(rows))
        lines.append(dict(strategy=name, group=GROUPS.get(name, "no pruning"), **vars(mean), **of))
    table = pd.DataFrame(lines).assign(layer=layer)
    rivals = table[~table["strategy"].isin(BOUNDS)]
    front = pareto_front(rivals, "image", "text").reindex(table.index, fill_value=False)
    return table.assign(pareto_front=front).sort_values(
        "value", ascending=False, kind="stable", ignore_index=True)


def pareto_front(table: pd.DataFrame, x: str, y: str) -> pd.Series:
    """Whether no other row of a table has more of `x` or of `y`, and no less of the other."""
    return pd.Series([not ((table[x] >= a) & (table[y] >= b)
                           & ((table[x] > a) | (table[y] > b))).any()
                      for a, b in zip(table[x], table[y])], table.index)


def tests(found: pd.DataFrame) -> pd.DataFrame:
    """The rule's cells from `answers`: `part`, robust or better, and the strategy's `accuracy`."""
    pool, lines = pooled(found), []
    for name in GROUPS:
        if name in BOUNDS:
            continue
        own, plain = (about("image", pool[one]) for one in (name, NONE))
        accuracy = stats.balanced_accuracy(own)
        ends = stats.limit(accuracy, stats.balanced_accuracy(plain))
        lines.append(dict(part="robust", strategy=name)
                     | stats.accuracy_test((1, own), (-1, plain)).columns()
                     | dict(accuracy=accuracy.value, holds=accuracy.low > stats.CHANCE,
                            limit="ceiling" if ends == "ceiling" else ""))
    for name in (CHANCE, *METHODS):
        paper, own = (stats.balanced_accuracy_contrast(*both(pool[one])) for one in (PAPER, name))
        lines.append(dict(part="better", strategy=name)
                     | stats.accuracy_test(*both(pool[PAPER]), *both(pool[name], -1)).columns()
                     | dict(accuracy=own.value, holds=True, limit=stats.limit(paper, own)))
    return stats.family(pd.DataFrame(lines))


def above_oracle(found: pd.DataFrame) -> pd.DataFrame:
    """Strategies that beat `oracle` by the mean of both targets, and by more than their interval:
    there should be none, since it knows what bears on the question."""
    pool = pooled(found)
    lines = [dict(strategy=name) | vars(stats.balanced_accuracy_contrast(
        *both(pool[name]), *both(pool["oracle"], -1))) for name in GROUPS if name != "oracle"]
    table = pd.DataFrame(lines)
    return table[table["low"] > 0]


def verdict(table: pd.DataFrame) -> Verdict:
    """The verdict by RULE from `tests`."""
    estimates = {}
    for part, name, words in (("robust", PAPER, "over no pruning, image"),
                              ("better", CHANCE, "over random tokens, both targets")):
        line = table[(table["part"] == part) & (table["strategy"] == name)].iloc[0]
        estimates[words] = Estimate(line["effect"], line["low"], line["high"],
                                    int(line["n_images"]), int(line["n_rows"]))
    return Verdict("F7", "The gain is robust to the strategy, and the paper's rule is better",
                   stats.judge(table, SMALLEST), "balanced accuracy, what the paper's rule gains",
                   estimates, RULE)
