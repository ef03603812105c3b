"""F9: what pruning saves in time and memory, and at what accuracy."""

import numpy as np
import pandas as pd

from vdp_utils import stats
from vdp_utils.findings import ranking, recovery
from vdp_utils.findings.ranking import GROUPS, KIND, PAPER
from vdp_utils.measuring import pruned
from vdp_utils.measuring.pruned import COMPACT, NONE
from vdp_utils.stats import Estimate, Verdict

TIMES, LATE = "F9_times", "F9_late"  # tables of seconds: at LENGTH and STRATEGY_LENGTH; at LONG
LENGTH, RATES = 1024, (0.5, 0.75, 0.9)  # where the modes are timed
MODES = (COMPACT, "prefill", "evict")  # the first is the paper's reading
STRATEGY_LENGTH = 512  # where the strategies are
LONG = (1024, 2048)  # and where the paper's rule is timed at F6's rates
MEASURES = {"ttft_s": "time to first token", "tpot_s": "time per output token",
            "cache_bytes": "cache"}
SMALLEST = 0.05  # of a logarithm: five per cent
RULE = (
    "The paper's rule in the paper's reading, compression with positions closed up, after "
    f"{LENGTH} context tokens of one prompt an image. Effect: minus the logarithm of the ratio "
    "with pruning to without. Cells: time to first token, time per output token and size of the "
    f"cache, at each rate. Headline: their ratios at rate {recovery.RATE}. Smallest effect of "
    f"interest: {SMALLEST}, that is five per cent. " + stats.SCHEME)


def conditions(lvlm, length: int = LENGTH, rates=RATES) -> list:
    """The three modes by the paper's rule."""
    return [pruned.answer_condition(lvlm, KIND, length, rates, (PAPER,), modes=MODES)]


def strategy_conditions(lvlm, length: int = STRATEGY_LENGTH, rates=recovery.FEW_RATES) -> list:
    """Every strategy in the paper's reading but `oracle`, which knows what nobody knows
    beforehand."""
    return [pruned.answer_condition(lvlm, KIND, length, rates, modes=MODES[:1], strategies=tuple(
        name for name in GROUPS if name != "oracle"))]


def long_conditions(lvlm, lengths, rates=recovery.FEW_RATES) -> list:
    """The paper's rule in the paper's reading at the lengths and rates of F6."""
    return [pruned.answer_condition(lvlm, KIND, length, rates, (PAPER,), modes=MODES[:1])
            for length in lengths]


def ratios(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with pruning, each measure as the logarithm of its ratio to that without, of the
    same prompt in the same condition."""
    by = ["image_id", "question_id", "context_length"]
    plain = rows[rows["strategy"] == NONE].groupby(by)[list(MEASURES)].mean()
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

    `times` is a `summary` at one length, `answers` rows of `ranking.answers`, of which the mean
    accuracy of both targets counts; `pareto_front` marks those that nothing beats in both. "none"
    stands at time 1.
    """
    times = times[times["measure"] == MEASURES["ttft_s"]]
    (length,) = times["context_length"].unique()
    cells = ranking.cells(answers).loc["default"].T.groupby(["context_length", "rate"]).mean()
    cells = cells.loc[length]
    lines = [dict(strategy=NONE, group="no pruning", rate=0.0, time=1.0,
                  accuracy=cells[NONE].iloc[0])]
    lines += [dict(strategy=line.strategy, group=GROUPS[line.strategy], rate=line.rate,
                   time=line.value, accuracy=cells.loc[line.rate, line.strategy])
              for line in times.itertuples() if line.strategy in cells
              and line.rate in cells.index]
    table = pd.DataFrame(lines).assign(context_length=length)
    front = ranking.pareto_front(table.assign(speed=-table["time"]), "speed", "accuracy")
    return table.assign(pareto_front=front).sort_values("time", ignore_index=True)


def by_length(times: pd.DataFrame, answers: pd.DataFrame) -> pd.DataFrame:
    """The paper's rule by context length: `time` as in `pareto`, and accuracy with its interval.

    One row per context kind, length and rate that both have; `answers` are `recovery`'s rows.
    """
    first = times[(times["measure"] == MEASURES["ttft_s"]) & (times["strategy"] == PAPER)
                  & (times["mode"] == COMPACT)].rename(columns={"value": "time"})
    plain = first.drop_duplicates("context_length").assign(rate=0.0, time=1.0)
    answers = recovery.by_mode(answers[answers["image"] == "own"])
    both = answers[answers["mode"] == COMPACT].merge(
        pd.concat([first, plain])[["context_length", "rate", "time"]])
    return stats.by_group(both, ["context_kind", "context_length", "rate", "time"],
                          stats.balanced_accuracy)


def tests(rows: pd.DataFrame) -> pd.DataFrame:
    """The rule's cells by measure and rate, from rows of `conditions`."""
    found = ratios(rows)
    found, lines = found[(found["mode"] == COMPACT) & (found["strategy"] == PAPER)], []
    for rate, part in found.groupby("rate"):
        lines += [dict(measure=label, rate=rate)
                  | stats.mean_test(part.assign(effect=-part[name]), "effect").columns()
                  for name, label in MEASURES.items()]
    return stats.family(pd.DataFrame(lines))


def verdict(table: pd.DataFrame) -> Verdict:
    """The verdict by RULE from `tests`."""
    estimates = {}
    for line in table[table["rate"] == recovery.RATE].itertuples():
        ends = np.exp([-line.effect, -line.high, -line.low])
        estimates[line.measure] = Estimate(*map(float, ends), line.n_images, line.n_rows)
    return Verdict("F9", "Inference gets cheaper", stats.judge(table, SMALLEST),
                   f"at rate {recovery.RATE}, relative to no pruning", estimates, RULE)
