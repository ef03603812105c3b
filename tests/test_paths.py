"""Where a profile's and a model's files go."""

import pytest

from vdp_utils import paths
from vdp_utils.errors import VDPError


@pytest.mark.parametrize("model, name", [
    ("embedded-s", "embedded-s"), ("llava-hf/llava-1.5-7b-hf", "llava-hf-llava-1.5-7b-hf"),
    ("/data/my models/x", "-data-my-models-x"), ("..", "-"), ("../x", "--x")])
def test_a_model_s_name_becomes_one_part_of_a_path(model, name):
    assert paths.slug(model) == name


@pytest.mark.parametrize("profile, model, folder", [
    ("full", "embedded-s", "figures"), ("full", "embedded-m", "figures/embedded-m"),
    ("full", "a/b", "figures/a-b"), ("quick", "embedded-s", "build/quick/figures"),
    ("quick", "embedded-m", "build/quick/embedded-m/figures")])
def test_another_model_s_figures_have_a_folder_of_their_own(profile, model, folder):
    assert paths.figures(profile, model=model) == paths.ROOT / folder
    assert paths.figures(profile, "mine", model) == paths.Path("mine")


def test_the_figures_of_the_default_model_lie_where_they_lay():
    assert paths.figures("full") == paths.ROOT / "figures"
    assert paths.figures("smoke") == paths.ROOT / "build/smoke/figures"


def test_another_source_s_rows_and_figures_are_apart_and_never_among_the_committed():
    assert paths.results("full", data="coco-1a") == paths.ROOT / "build/results/full/coco-1a"
    assert paths.results("quick", "mine", "coco-1a") == paths.Path("mine/coco-1a")
    assert paths.figures("full", data="coco-1a") == paths.ROOT / "build/full/figures/coco-1a"
    assert paths.results("full", data="") == paths.ROOT / "data/results"


def test_an_unknown_profile_is_refused():
    for model in ("embedded-s", "embedded-m"):
        with pytest.raises(VDPError, match="unknown profile 'slow': choose one of full, quick, sm"):
            paths.figures("slow", model=model)
