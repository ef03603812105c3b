"""F9: what pruning saves in time and memory, and at what accuracy."""

import numpy as np
import pandas as pd

from vdp_utils import stats
from vdp_utils.findings import ranking, recovery
from vdp_utils.findings.ranking import GROUPS, KIND, PAPER
from vdp_utils.measuring import pruned
from vdp_utils.measuring.pruned import NONE
from vdp_utils.stats import Estimate, Verdict

TIMES = "F9_times"  # the table of seconds, one row per prompt and setting
LENGTH, RATES = 1024, ranking.RATES  # where the modes are timed on every image
MODES = ("prefill", "compress", "evict")
STRATEGY_LENGTH = ranking.ABLATED  # where the strategies are
LONG = (2048, 4096)  # and where the paper's rule is timed at F6's rates
FEW_IMAGES = 20  # timed at these lengths, where a hundred would take too long
MEASURES = {"ttft_s": "time to first token", "tpot_s": "time per output token",
            "cache_bytes": "cache"}
RULE = (
    "The paper's rule during prefill after 1024 context tokens; of every image the ratio with "
    "pruning to without, their geometric mean and its 95 % BCa interval over images. Reproduced if "
    "at every rate the time to first token, the time per output token and the cache have an "
    "interval below 1; partly if the time to first token has at some rate; else not "
    "reproduced. (The benchmark's medians, on one prompt, were known when this was written.)")


def conditions(lvlm, length: int = LENGTH, rates=RATES) -> list:
    """The three modes by the paper's rule."""
    return [pruned.answer_condition(lvlm, KIND, length, rates, (PAPER,), mode=mode)
            for mode in MODES]


def strategy_conditions(lvlm, length: int = STRATEGY_LENGTH, rates=RATES) -> list:
    """Every strategy during prefill but `oracle`, which knows what nobody knows beforehand."""
    return [pruned.answer_condition(lvlm, KIND, length, rates,
                                    tuple(name for name in GROUPS if name != "oracle"))]


def long_conditions(lvlm, lengths, rates=recovery.FEW_RATES) -> list:
    """The paper's rule during prefill at the lengths and rates of F6."""
    return [pruned.answer_condition(lvlm, KIND, length, rates, (PAPER,)) for length in lengths]


def ratios(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with pruning, each measure as the logarithm of its ratio to that without."""
    by = ["image_id", "question_id", "context_length", "mode"]
    plain = rows[rows["strategy"] == NONE].set_index(by)
    found = rows[rows["strategy"] != NONE]
    at = pd.MultiIndex.from_frame(found[by])
    return found.assign(**{name: np.log(found[name].to_numpy() / plain.loc[at, name].to_numpy())
                           for name in MEASURES})


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Geometric means over images of the ratios, by mode, strategy, length, rate and measure."""
    table = stats.by_group(ratios(rows), ["mode", "strategy", "context_length", "rate"],
                           {label: name for name, label in MEASURES.items()}, sort=False)
    ends = ["value", "low", "high"]
    return table.assign(**np.exp(table[ends]))


def pareto(times: pd.DataFrame, answers: pd.DataFrame) -> pd.DataFrame:
    """One row per strategy and rate: `time` to first token relative to no pruning, `accuracy`.

    `times` is a `summary` at one length, `answers` rows of `ranking.answers`; `pareto_front` marks
    those that nothing beats in both. "none" stands at time 1.
    """
    times = times[(times["measure"] == MEASURES["ttft_s"]) & (times["mode"] == "prefill")]
    (length,) = times["context_length"].unique()
    cells = ranking.cells(answers[answers["context_length"] == length])[length]
    lines = [dict(strategy=NONE, group="no pruning", rate=0.0, time=1.0,
                  accuracy=cells.loc[NONE].iloc[0])]
    lines += [dict(strategy=line.strategy, group=GROUPS[line.strategy], rate=line.rate,
                   time=line.value, accuracy=cells.loc[line.strategy, line.rate])
              for line in times.itertuples() if line.strategy in cells.index
              and line.rate in cells]
    table = pd.DataFrame(lines).assign(context_length=length)
    beaten = [((table["time"] <= line.time) & (table["accuracy"] >= line.accuracy)
               & ((table["time"] < line.time) | (table["accuracy"] > line.accuracy))).any()
              for line in table.itertuples()]
    return table.assign(pareto_front=~np.array(beaten)).sort_values("time", ignore_index=True)


def by_length(times: pd.DataFrame, answers: pd.DataFrame) -> pd.DataFrame:
    """The paper's rule by context length: `time` as in `pareto`, and accuracy with its interval.

    One row per context kind, length and rate that both have; `answers` are `recovery`'s rows.
    """
    first = times[(times["measure"] == MEASURES["ttft_s"]) & (times["strategy"] == PAPER)
                  & (times["mode"] == "prefill")].rename(columns={"value": "time"})
    plain = first.drop_duplicates("context_length").assign(rate=0.0, time=1.0)
    both = answers[answers["image"] == "own"].merge(
        pd.concat([first, plain])[["context_length", "rate", "time"]])
    return stats.by_group(both, ["context_kind", "context_length", "rate", "time"],
                          stats.balanced_accuracy)


def verdict(table: pd.DataFrame) -> Verdict:
    """The verdict by RULE from `summary`."""
    paper = table[(table["mode"] == "prefill") & (table["strategy"] == PAPER)]
    below = paper["high"] < 1
    first = paper["measure"] == MEASURES["ttft_s"]
    line = paper[first & (paper["rate"] == 0.75)] if 0.75 in set(paper["rate"]) else paper[
        first]
    found = Estimate(*line[["value", "low", "high"]].iloc[0],
                     *map(int, line[["n_images", "n_rows"]].iloc[0]))
    return Verdict("F9", "Inference gets cheaper",
                   stats.judge(bool(below.all()), bool(below[first].any())),
                   f"time to first token at rate {line['rate'].iloc[0]:g}, relative to no pruning",
                   found, found.n_images, RULE)
