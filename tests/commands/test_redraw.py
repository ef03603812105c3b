"""Figures from stored rows: of both sizes, and refused where a size's rows are missing."""

import itertools
from types import SimpleNamespace

import pytest
from matplotlib import pyplot as plt

from vdp_utils import paths, stats
from vdp_utils.commands import redraw
from vdp_utils.errors import VDPError
from vdp_utils.findings import NEUTRAL_AND_LURING, PRESENCE
from vdp_utils.sources.samples import presence_samples

LENGTHS = (0, 512, 2048)  # those whose curves F4 draws


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(stats, "RESAMPLES", 199)
    yield
    plt.close("all")


def as_larger(folder, images, **changed):
    """Committed rows of size S about six scenes, stored in `folder` as if they were M's."""
    small = redraw.Stored(paths.results("full"), "embedded-s")
    larger = redraw.Stored(folder, "embedded-m")
    name = dict(model="embedded-m", revision=larger.revision) | changed
    asked = {sample.image_id for sample in presence_samples("evaluation", 6)}
    for one in small.store.conditions(PRESENCE):
        if ((one["model"], one["revision"]) == (small.model, small.revision)
                and one["image"] in images and one["context_length"] in LENGTHS
                and one["context_kind"] in NEUTRAL_AND_LURING):
            rows = small.store.read(PRESENCE, one)
            larger.store.append(PRESENCE, one | name, rows[rows["image_id"].isin(asked)])
    return larger


def test_a_size_is_drawn_from_rows_with_and_without_image_and_in_words(tmp_path):
    larger = as_larger(tmp_path, ("own", "words", "none"))
    drawn = dict(redraw.of_each_size(larger))
    assert list(drawn) == ["fig01_long_context_decline", "fig02_text_only_control",
                           "fig03_prior_consistency", "fig04_target_proportion",
                           "fig05_attention_distribution"]
    for figure in drawn.values():
        assert figure.get_suptitle().startswith("embedded-m: ")
    assert len(drawn["fig02_text_only_control"].axes) == 2  # one a kind, none of places
    (legend,) = drawn["fig03_prior_consistency"].legends
    assert not [text for text in legend.get_texts() if "swapped" in text.get_text()]


def test_figures_of_the_larger_size_are_named_so(monkeypatch):
    monkeypatch.setattr(redraw, "of_each_size", lambda stored: [("fig01", stored.model)])
    small = redraw.Stored(paths.results("full"), "embedded-s")
    found = dict(itertools.islice(redraw.diagnosis(small, SimpleNamespace(model="embedded-m")), 2))
    assert list(found) == ["fig01", "fig01_m"]
    assert (found["fig01"], found["fig01_m"]) == ("embedded-s", "embedded-m")


@pytest.mark.parametrize("images, changed, lacking", [
    ((), {}, ""), (("own", "none"), {}, " with the images words"),
    (("words",), {}, " with the images none, own"),
    (("own", "words", "none"), {"revision": "of other weights"}, ""),
    (("own", "words", "none"), {"model": "embedded-s"}, "")])
def test_missing_rows_of_a_size_are_named(tmp_path, images, changed, lacking):
    larger = as_larger(tmp_path, images, **changed)
    with pytest.raises(VDPError, match=f"no rows of {PRESENCE}{lacking} for embedded-m in .*make"):
        next(redraw.of_each_size(larger))
