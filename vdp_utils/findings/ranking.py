"""F7: whether the gain depends on the pruning strategy, and whether the paper's rule is best."""

import numpy as np
import pandas as pd
from scipy.stats import rankdata, studentized_range

from vdp_utils import pruned, stats
from vdp_utils.pruned import NONE
from vdp_utils.stats import Verdict

STRATEGIES = "F7_F9_strategies"  # the table of answers by strategy
KIND = "mentions"  # at these lengths only its lures cost accuracy (notebook 01)
LENGTHS = (128, 256, 512)
RATES = (0.5, 0.75, 0.9)
ABLATED, ABLATED_RATE = 512, 0.5  # where the paper's rule is taken apart
SEEDS = 5
PAPER, CHANCE = "received", "random"
METHODS = ("h2o", "snapkv", "last_token", "key_norm", "expected_attention", "streaming",
           "perplexity", "contrastive_perplexity")  # published by others, on text or caches
RULES = ("received_normalised", "debiased", "recency", "head", "bm25")
BOUNDS = ("inverse", "oracle")  # must be worst and best: controls, not contenders
VISUAL = ("fastv_visual", "text_first")  # drop image tokens instead
SEEDED = (CHANCE, "random_sentences")
GROUPS = {name: group for group, names in {
    "the paper's rule": (PAPER,), "chance": SEEDED, "published method": METHODS,
    "other rule": RULES, "control": BOUNDS, "drops the image": VISUAL}.items() for name in names}
SETS = ("received mean", "received question", "received mean question", "received last",
        "received mean last")  # heads and query sets of the ablation
WAYS = (("rerun", "compact"), ("rerun", "kept"), ("kv", "kept"))
RULE = (
    "Behind `mentions`, answers pooled over lengths and rates (random strategies: over seeds), "
    "paired over images; p by a sign-flip test over images, Holm over all strategies. Robust: "
    "every strategy that drops context, but for the control `inverse`, wins over no pruning (95 % "
    "BCa interval of the difference of balanced accuracy above 0, Holm p < 0.05). Better: the "
    "paper's rule wins so over random tokens and over each published method. Reproduced if robust "
    "and better; partly if one of them; else not reproduced.")
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
    return [*(pruned.answer_condition(lvlm, KIND, length, rates, contenders())
              for length in lengths),
            taken_apart(*SETS),
            *(taken_apart(PAPER, f"{CHANCE} 0", layer=layer) for layer in layers),
            *(taken_apart(PAPER, way=way, positions=positions) for way, positions in WAYS)]
