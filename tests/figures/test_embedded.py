"""Scenes and training curves of the embedded LVLM, drawn."""

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from vdp_utils import figures
from vdp_utils.sources import scenes
from vdp_utils.sources.samples import presence_samples


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_the_gallery_shows_boxes_and_nouns():
    samples = presence_samples("evaluation", 5, pairs=1)
    figure = figures.gallery(samples, columns=4)
    assert len(figure.axes) == 8
    for axes, sample in zip(figure.axes, samples):
        title = axes.get_title()
        assert sample.picture.theme in title and sample.picture.texture in title
        assert [text.get_text() for text in axes.texts] == [i.noun for i in sample.picture.items]
        boxes = [(p.get_x(), p.get_y(), p.get_x() + p.get_width(), p.get_y() + p.get_height())
                 for p in axes.patches]
        assert boxes == [item.box for item in sample.picture.items]
        (image,) = axes.images
        assert np.array_equal(np.asarray(image.get_array()), np.asarray(sample.image()))
        assert image.get_extent() == [0, scenes.SIZE, scenes.SIZE, 0]
    assert not any(axes.images for axes in figure.axes[5:])


def test_training_curves_show_each_stage_that_was_logged():
    log = pd.DataFrame(
        [(stage, 1000 * step, metric, 0.1 * step) for step in (1.0, 2.0)
         for stage, metric in (("tower", "object_patch_accuracy"), ("joint", "image_presence"),
                               ("joint", "blank_presence"), ("joint", "loss"))],
        columns=["stage", "samples", "metric", "value"])
    figure = figures.training_curves(log)
    assert [axes.get_title() for axes in figure.axes] == ["tower", "joint"]
    assert [len(axes.lines) for axes in figure.axes] == [1, 2]  # the loss is on another scale
    assert "thousands" in figure.axes[1].get_xlabel()
    assert figure.axes[0].get_ylabel() == "held-out accuracy"
    (legend,) = figure.legends
    labels = {text.get_text() for text in legend.get_texts()}
    assert labels == {"object patches", "presence, image", "presence, blank image"}
    line = {line.get_label(): line for line in figure.axes[1].lines}["presence, image"]
    np.testing.assert_allclose(line.get_xydata(), [(1, 0.1), (2, 0.2)])
