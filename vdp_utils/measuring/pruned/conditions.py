"""What is pruned how: conditions of `measure` with pruning strategies, modes and rates."""

from contextlib import nullcontext
from dataclasses import dataclass

import torch

from vdp_utils.attention.pruner import ContextPruner
from vdp_utils.attention.strategies import QUERY_SETS, REDUCTIONS
from vdp_utils.errors import VDPError
from vdp_utils.lvlm import prompts
from vdp_utils.lvlm.load import LVLM
from vdp_utils.measuring.measure import Condition, condition, key, kinds_of, place, prefix_of
from vdp_utils.sources.samples import Sample

NONE = "none"  # the strategy of a row without pruning


@dataclass(frozen=True)
class PrunedCondition(Condition):
    """A condition under which context is pruned, during prefill, at each of `rates`."""

    rates: tuple[float, ...] = (0.5,)
    strategy: str = "accumulated"
    layer: int = 0


def pruned_condition(lvlm: LVLM, context_kind: str, context_length: int, rates,
                     strategy: str = "accumulated", layer: int = 0) -> PrunedCondition:
    """A condition with pruning; what it asks for is checked as `ContextPruner` checks it."""
    for rate in rates:
        ContextPruner(rate, strategy, layer=layer, context=(0, 1))
    return PrunedCondition(**vars(condition(lvlm, context_kind, context_length)),
                           rates=tuple(rates), strategy=strategy, layer=layer)


@dataclass(frozen=True)
class AnswerCondition(PrunedCondition):
    """Questions answered without pruning, and with it by each of `strategies` at each of `rates`.

    A strategy is a name followed by what differs from the default, e.g. "accumulated",
    "accumulated mean question" (heads, query set) or "random 3" (seed). A text description in the
    image's place (`image="text_middle"` and the like) is context here, and may be dropped.
    """

    strategies: tuple[str, ...] = ("accumulated",)
    mode: str = "prefill"
    positions: str = "kept"

    @property
    def prunings(self) -> list[tuple[str, float]]:
        """Strategy and rate of each row of a question, the unpruned one first."""
        return [(NONE, 0.0), *((strategy, rate) for rate in self.rates
                               for strategy in self.strategies)]

    def keys(self, sample: Sample) -> list[str]:
        """The row keys of a sample: each question under each pruning."""
        return [pruned_key(sample, number, *pruning) for number in range(len(sample.questions))
                for pruning in self.prunings]


def answer_condition(lvlm: LVLM, context_kind: str, context_length: int, rates=(),
                     strategies=("accumulated",), image: str = "own", layer: int = 0,
                     mode: str = "prefill", positions: str = "kept") -> AnswerCondition:
    """A condition with pruned answers. VDPError for one that the model cannot be put under."""
    for text in strategies:
        name, options = parsed(text)
        needs = dict(processor=lvlm.processor, context=(0, 1), evidence=torch.ones(1, 1))
        for rate in rates:
            ContextPruner(rate, name, mode, layer, positions=positions, **options, **needs)
    return AnswerCondition(**vars(condition(lvlm, context_kind, context_length, image)),
                           rates=tuple(rates), layer=layer, strategies=tuple(strategies), mode=mode,
                           positions=positions)


def parsed(text: str) -> tuple[str, dict]:
    """A strategy's name, and the options that follow it in `text`."""
    name, *words = text.split()
    options: dict = {}
    for word in words:
        if word.isdecimal():
            options["seed"] = int(word)
        elif word in REDUCTIONS:
            options["heads"] = word
        elif word in QUERY_SETS:
            options["query_set"] = word
        else:
            raise VDPError(f"strategy {text!r}: {word!r} is neither a seed nor a head reduction "
                           f"({', '.join(REDUCTIONS)}) nor a query set ({', '.join(QUERY_SETS)})")
    return name, options


def pruned_key(sample: Sample, number: int, strategy: str, rate: float) -> str:
    return f"{key(sample, number)}/{strategy}/{rate}"


def pruned_place(sample: Sample, number: int, one: AnswerCondition, strategy: str, rate: float
                 ) -> dict:
    """As `measure.place`, of a question under one pruning."""
    return place(sample, number, one) | dict(key=pruned_key(sample, number, strategy, rate),
                                             strategy=strategy, rate=float(rate))


def asked(lvlm: LVLM, sample: Sample, one: PrunedCondition, question
          ) -> tuple[dict, torch.Tensor]:
    """A question's whole prompt as inputs of the model, and its token kinds (1, L)."""
    whole = prompts.join(prefix_of(lvlm, sample, one), prompts.asking(lvlm, question, one.image))
    inputs = prompts.tensors(whole, lvlm.device)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return inputs, kinds_of(lvlm, whole).long()


def pruned_around(lvlm: LVLM, one: AnswerCondition, strategy: str, rate: float,
                  kinds: torch.Tensor):
    """A context manager that prunes the model so; nothing for "none". `kinds` is (1, L)."""
    name, options = parsed(strategy)
    if name == NONE:
        return nullcontext()
    return ContextPruner(rate, name, one.mode, one.layer, positions=one.positions, kinds=kinds,
                         processor=lvlm.processor, **options)(lvlm.model)
