"""Maps over a picture: every model's tokens lie where the model saw them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vdp_utils.attention.tokens import Kind
from vdp_utils.lvlm.grid import SIDE, on_picture
from vdp_utils.lvlm.prompts import Prompt


def asked(runs, processor=None, images=None, merge=2):
    """A model and a prompt with runs of so many image tokens."""
    kinds = [kind for count in runs for kind in [Kind.TEMPLATE] + [Kind.IMAGE] * count]
    config = SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=merge))
    lvlm = SimpleNamespace(
        model=SimpleNamespace(config=config),
        processor=SimpleNamespace(image_processor=processor or SimpleNamespace()))
    return lvlm, Prompt(np.zeros(len(kinds)), np.array(kinds), images or {})


def spot(rows, columns, row, column):
    """Two layers that look at one token: the second half as much."""
    grid = torch.zeros(2, rows, columns)
    grid[:, row, column] = torch.tensor([1.0, 0.5])
    return grid.flatten(1)


def centre(found):
    """Where the first layer looks, (x, y) as fractions of the picture; and what both look."""
    cells = found.reshape(2, SIDE, SIDE)
    at = (torch.arange(SIDE) + 0.5) / SIDE
    return ((cells[0].sum(0) @ at).item(), (cells[0].sum(1) @ at).item()), found.sum(1).tolist()


def test_the_embedded_lvlm_s_own_grid_is_left_as_it_is():
    maps = torch.rand(3, 100)
    assert on_picture(*asked([100]), (160, 160), maps) is maps


@pytest.mark.parametrize("runs, images, shape", [
    ([576], {}, (24, 24)), ([64, 64, 64, 64], {}, (8, 8)),
    ([12 * 7], {"image_grid_thw": torch.tensor([[1, 24, 14]])}, (12, 7))])
def test_tokens_keep_their_place_and_their_weight(runs, images, shape):
    for row, column in ((0, 0), (shape[0] - 1, 2), (3, shape[1] - 1)):
        maps = spot(*shape, row, column)
        maps = torch.cat([torch.zeros(2, sum(runs) - maps.shape[1]), maps], 1)  # after tiles
        found, weight = centre(on_picture(*asked(runs, images=images), (300, 200), maps))
        expected = (column + 0.5) / shape[1], (row + 0.5) / shape[0]
        np.testing.assert_allclose(found, expected, atol=0.5 / SIDE)
        np.testing.assert_allclose(weight, [1, 0.5], rtol=1e-6)


@pytest.mark.parametrize("size, keeps", [
    ({"shortest_edge": 336}, (1 / 2, 1.0)), ({"height": 448, "width": 336}, (1.0, 3 / 4))])
def test_what_the_processor_cuts_off_is_not_looked_at(size, keeps):
    cropped = SimpleNamespace(do_center_crop=True, do_resize=True, size=size,
                              crop_size={"height": 336, "width": 336})
    whole = on_picture(*asked([576], cropped), (640, 320), torch.ones(1, 576) / 576)
    cells = whole.reshape(SIDE, SIDE)
    np.testing.assert_allclose(cells.sum(), 1, rtol=1e-5)
    for axis, share in enumerate(keeps):  # x, y
        seen = cells.sum(axis)
        at = np.abs((np.arange(SIDE) + 0.5) / SIDE - 0.5)
        assert (seen[at > share / 2 + 0.051] == 0).all()
        assert (seen[at < share / 2 - 0.051] > 0).all()


def test_without_a_known_grid_there_is_no_map():
    assert on_picture(*asked([70]), (64, 64), torch.ones(2, 70)).isnan().all()
