"""F11: the best pruning rate against the context's length."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from vdp_utils.figures import style
from vdp_utils.figures.style import WIDE


def law(curves: pd.DataFrame, best: pd.DataFrame, laws: pd.DataFrame, predicted, held_out: int,
        model: str) -> Figure:
    """F11: accuracy against the rate by length; the best rate by variant, and what laws say.

    `predicted(line, lengths)` gives the rates of a line of `laws`, of which the first two are
    drawn: beyond the shaded lengths, which they were fitted to, they predict.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDE, 3.0))
    lengths = sorted(curves["context_length"].unique())
    for number, length in enumerate(lengths):
        part = curves[curves["context_length"] == length]
        style.curve(left, part.assign(rate=part["rate"] + 0.006 * (number - 2)), number, "rate",
                    label=f"{length} context tokens", spread=0)
    left.set(xlabel="pruning rate", ylabel="balanced accuracy, mean of both targets")
    left.legend(fontsize=6)
    for number, (variant, part) in enumerate(best.groupby("variant", sort=False)):
        style.curve(right, part, number, label=variant, line="none")
    fine = np.geomspace(lengths[0], lengths[-1], 60)
    for line, look in zip(laws.itertuples(), ("-", "--")):
        right.plot(fine, predicted(line, fine), look, color="0.3", label=f"law: {line.law}")
    right.axvspan(lengths[0] / 1.2, max(n for n in lengths if n < held_out) * 1.2, color="0.94",
                  zorder=-1, linewidth=0, label="lengths that the laws are fitted to")
    right.set_xscale("log", base=2)
    right.set_xticks(lengths, [style.short(length) for length in lengths])
    right.minorticks_off()
    right.set(xlabel="context length (tokens)", ylabel="best pruning rate", ylim=(-0.03, 1.03))
    right.legend(fontsize=6)
    figure.suptitle(f"{model}: how much to prune, where something should go and something stay "
                    f"(n = {curves['n_images'].max()} images, 95 % intervals)", fontsize=8)
    return figure
