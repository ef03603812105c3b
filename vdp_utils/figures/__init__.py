"""One function a figure, from rows and tables; `save` writes PNG and PDF, the same each time.

`python -m vdp_utils.commands.redraw` draws all of them again from the stored rows, without a model.
"""

from vdp_utils.figures.cost import bench_pruning, bench_recording, break_even, cost, pareto, peers
from vdp_utils.figures.cure import (ablations, concentration, pruned_examples, recovery, strategies,
                                    targets)
from vdp_utils.figures.diagnosis import (attention, attention_and_cause, attention_maps, decline,
                                         priors, proportion, text_control)
from vdp_utils.figures.embedded import gallery, training_curves
from vdp_utils.figures.style import save

__all__ = ["ablations", "attention", "attention_and_cause", "attention_maps", "bench_pruning",
           "bench_recording", "break_even", "concentration", "cost", "decline", "gallery", "pareto",
           "peers", "priors", "proportion",
           "pruned_examples", "recovery", "save", "strategies", "targets", "text_control",
           "training_curves"]
