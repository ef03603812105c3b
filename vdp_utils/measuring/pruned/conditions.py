"""What is pruned how: conditions of `measure` with pruning strategies, modes, layers and rates."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch

from vdp_utils.attention.pruner import ContextPruner, default_layer
from vdp_utils.attention.recording import decoder_of
from vdp_utils.attention.strategies import QUERY_SETS, REDUCTIONS
from vdp_utils.errors import VDPError
from vdp_utils.lvlm import prompts
from vdp_utils.lvlm.load import LVLM
from vdp_utils.measuring.measure import Condition, condition, key, kinds_of, place, prefix_of
from vdp_utils.sources.samples import Sample

NONE = "none"  # the strategy and the mode of a row without pruning
COMPACT = "compress compact"  # the mode that reads the paper most naturally: positions close up


class Pruning(NamedTuple):
    """How one row's prompt is pruned; as it stands, not at all.

    `mode` is one of `modes.MODES`, or "compress compact": compression with positions closed up.
    """

    strategy: str = NONE
    rate: float = 0.0
    mode: str = NONE
    layer: int = -1


@dataclass(frozen=True)
class PrunedCondition(Condition):
    """A condition under which context is pruned, during prefill, at each of `rates`."""

    rates: tuple[float, ...] = (0.5,)
    strategy: str = "accumulated"
    layer: int = 0


def pruned_condition(lvlm: LVLM, context_kind: str, context_length: int, rates,
                     strategy: str = "accumulated", layer: int | None = None) -> PrunedCondition:
    """A condition with pruning; what it asks for is checked as `ContextPruner` checks it."""
    for rate in rates:
        ContextPruner(rate, strategy, layer=layer, context=(0, 1))
    return PrunedCondition(**vars(condition(lvlm, context_kind, context_length)),
                           rates=tuple(rates), strategy=strategy, layer=scoring(lvlm, layer))


@dataclass(frozen=True)
class AnswerCondition(Condition):
    """Questions answered without pruning, and with it by each strategy, rate, mode and layer.

    A strategy is a name followed by what differs from the default, e.g. "accumulated",
    "accumulated mean question" (heads, query set) or "random 3" (seed). A text description in the
    image's place (`image="text_middle"` and the like) is context here, and may be dropped.
    """

    rates: tuple[float, ...] = ()
    strategies: tuple[str, ...] = ("accumulated",)
    modes: tuple[str, ...] = ("prefill",)
    layers: tuple[int, ...] = (0,)

    @property
    def prunings(self) -> list[Pruning]:
        """How each row of a question is pruned, the unpruned one first."""
        return [Pruning(), *(Pruning(strategy, rate, mode, layer) for layer in self.layers
                             for mode in self.modes for rate in self.rates
                             for strategy in self.strategies)]

    def keys(self, sample: Sample) -> list[str]:
        """The row keys of a sample: each question under each pruning."""
        return [pruned_key(sample, number, pruning) for number in range(len(sample.questions))
                for pruning in self.prunings]


def answer_condition(lvlm: LVLM, context_kind: str, context_length: int, rates=(),
                     strategies=("accumulated",), image: str = "own", modes=("prefill",),
                     layers=(None,)) -> AnswerCondition:
    """A condition with pruned answers. VDPError for one that the model cannot be put under."""
    found = AnswerCondition(
        **vars(condition(lvlm, context_kind, context_length, image)), rates=tuple(rates),
        strategies=tuple(strategies), modes=tuple(modes),
        layers=tuple(dict.fromkeys(scoring(lvlm, layer) for layer in layers)))
    for pruning in found.prunings[1:]:
        pruner(lvlm, pruning, context=(0, 1), evidence=torch.ones(1, 1))
    return found


def scoring(lvlm: LVLM, layer: int | None) -> int:
    """A layer's number; the default's where it is None."""
    return default_layer(len(decoder_of(lvlm.model).layers)) if layer is None else layer


def pruner(lvlm: LVLM, pruning: Pruning, **tokens) -> ContextPruner:
    """What prunes so; `tokens` say which may go, as `ContextPruner` takes them."""
    name, options = parsed(pruning.strategy)
    mode, *positions = pruning.mode.split()
    return ContextPruner(pruning.rate, name, mode, pruning.layer, processor=lvlm.processor,
                         positions=" ".join(positions) or "kept", **options, **tokens)


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


def pruned_key(sample: Sample, number: int, pruning: Pruning) -> str:
    return "/".join(map(str, (key(sample, number), *pruning)))


def pruned_place(sample: Sample, number: int, one: AnswerCondition, pruning: Pruning) -> dict:
    """As `measure.place`, of a question under one pruning, whose fields are columns too."""
    return place(sample, number, one) | pruning._asdict() | dict(
        key=pruned_key(sample, number, pruning))


def asked(lvlm: LVLM, sample: Sample, one: Condition, question) -> tuple[dict, torch.Tensor]:
    """A question's whole prompt as inputs of the model, and its token kinds (1, L)."""
    whole = prompts.join(prefix_of(lvlm, sample, one), prompts.asking(lvlm, question, one.image))
    inputs = prompts.tensors(whole, lvlm.device)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return inputs, kinds_of(lvlm, whole).long()


def pruned_around(lvlm: LVLM, pruning: Pruning, kinds: torch.Tensor):
    """A context manager that prunes the model so; nothing for "none". `kinds` is (1, L)."""
    if pruning.strategy == NONE:
        return nullcontext()
    return pruner(lvlm, pruning, kinds=kinds)(lvlm.model)
