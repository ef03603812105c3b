"""Measuring under pruning: answers, attention and time, before and after context is dropped.

`conditions` says what is pruned how; `answers` (F6, F7), `masses` (F8) and `times` (F9) make a
sample's rows for `measure.measure(each=...)`; `unpruned` prunes one prompt many times at once.
"""

from vdp_utils.measuring.pruned.answers import answers_sample, example_sample
from vdp_utils.measuring.pruned.conditions import (COMPACT, NONE, AnswerCondition,
                                                   PrunedCondition, Pruning, answer_condition,
                                                   pruned_condition)
from vdp_utils.measuring.pruned.masses import masses_sample
from vdp_utils.measuring.pruned.times import times_sample

__all__ = ["AnswerCondition", "COMPACT", "NONE", "PrunedCondition", "Pruning", "answer_condition",
           "answers_sample", "example_sample", "masses_sample", "pruned_condition", "times_sample"]
