"""One function a figure, from rows and tables; `save` writes PNG and PDF, the same each time.

`vdp figures` draws all of them again from the stored rows, without a model.
"""

from vdp_utils.figures.attention import attention, attention_and_cause, attention_maps
from vdp_utils.figures.bench import bench_pruning, bench_recording
from vdp_utils.figures.concentration import concentration
from vdp_utils.figures.cost import baselines, break_even, cost, pareto
from vdp_utils.figures.decline import decline
from vdp_utils.figures.distance import cures, looking, parts, text_or_distance
from vdp_utils.figures.embedded import gallery, training_curves
from vdp_utils.figures.law import law
from vdp_utils.figures.mmdu import dialogues
from vdp_utils.figures.models import depth_or_training, pruning_gain, side_by_side
from vdp_utils.figures.priors import priors
from vdp_utils.figures.proportion import proportion
from vdp_utils.figures.ranking import strategies, two_targets
from vdp_utils.figures.recovery import pruned_examples, recovery, returning, targets
from vdp_utils.figures.style import save
from vdp_utils.figures.text_control import text_control

__all__ = ["attention", "attention_and_cause", "attention_maps", "baselines", "bench_pruning",
           "bench_recording", "break_even", "concentration", "cost", "cures", "decline",
           "depth_or_training", "dialogues", "gallery", "law", "looking", "pareto", "parts",
           "priors", "proportion", "pruned_examples", "pruning_gain", "recovery", "returning",
           "save", "side_by_side", "strategies", "targets", "text_control", "text_or_distance",
           "training_curves", "two_targets"]
