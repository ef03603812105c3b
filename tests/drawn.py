"""What a figure shows: the values, labels and marks that were really drawn."""

import numpy as np


def points(bars):
    """(x, y, low, high) of the points of one curve with intervals."""
    line, _, (ends,) = bars.lines
    low, high = np.array([segment[:, 1] for segment in ends.get_segments()], float).T
    return (*np.asarray(line.get_xydata(), float).T, low, high)


def assert_drawn(axes, label, part, x="context_length", rtol=0.11, atol=0.0):
    """The panel has exactly one curve of this label, with the table's values and intervals."""
    (bars,) = [bars for bars in axes.containers if bars.get_label() == label]
    part = part.sort_values(x)
    at, value, low, high = points(bars)
    assert len(part) == len(at) > 0
    np.testing.assert_allclose(at, part[x], rtol=rtol, atol=atol)
    for drawn, name in ((value, "value"), (low, "low"), (high, "high")):
        np.testing.assert_allclose(drawn, part[name].astype(float), atol=1e-9)
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    assert left <= at.min() and at.max() <= right  # none is cut off
    assert bottom <= low.min() and high.max() <= top


def labels(axes):
    return [bars.get_label() for bars in axes.containers]


def legend(figure):
    (found,) = figure.legends
    return [text.get_text() for text in found.get_texts()]


def upright(axes):
    """Where vertical lines are drawn."""
    return sorted({float(line.get_xdata()[0]) for line in axes.lines
                   if len(line.get_xdata()) == 2 and line.get_xdata()[0] == line.get_xdata()[1]})


def ticks(axis):
    return [tick.get_text() for tick in axis.get_ticklabels()]


def looks(axes):
    lines = [bars.lines[0] for bars in axes.containers]
    return {(line.get_marker(), line.get_linestyle()) for line in lines}
