"""Where on a picture its tokens lie, whatever grid a model lays over it."""

import math

import numpy as np
import torch

from vdp_utils.attention.tokens import Kind
from vdp_utils.lvlm.load import LVLM
from vdp_utils.lvlm.prompts import Prompt

SIDE = 10  # cells of a map, as many as the embedded LVLM has tokens


def on_picture(lvlm: LVLM, prompt: Prompt, size: tuple[int, int],
               maps: torch.Tensor) -> torch.Tensor:
    """Weights of image tokens (layers, tokens) as those of SIDE x SIDE cells of a picture of
    `size` (width, height): (layers, SIDE * SIDE), row by row from the top.

    The tokens lie on the grid that the processor names (Qwen-VL), or on a square one; of several
    runs of tokens, tiles, the last shows the whole picture. Cells that the processor cuts off have
    0. nan where the grid is not known.
    """
    shape, (width, height) = _grid(lvlm, prompt), _seen(lvlm, size)
    if shape is None:
        return maps.new_full((len(maps), SIDE * SIDE), torch.nan)
    if shape == (SIDE, SIDE) and width == height == 1:
        return maps
    maps = maps[:, maps.shape[1] - math.prod(shape):].reshape(-1, *shape)
    down, across = (torch.from_numpy(_overlap(count, share)).to(maps)
                    for count, share in zip(shape, (height, width)))
    return torch.einsum("ih,lhw,jw->lij", down, maps, across).flatten(1)


def _grid(lvlm: LVLM, prompt: Prompt) -> tuple[int, int] | None:
    """Rows and columns of the tokens of the picture, or of the view of all of it."""
    if (named := prompt.images.get("image_grid_thw")) is not None:
        merged = lvlm.model.config.vision_config.spatial_merge_size
        return tuple(count // merged for count in named[0, 1:].tolist())
    image = np.flatnonzero(prompt.kinds == Kind.IMAGE)
    count = len(np.split(image, np.flatnonzero(np.diff(image) > 1) + 1)[-1])
    side = math.isqrt(count)
    return (side, side) if side * side == count else None


def _seen(lvlm: LVLM, size: tuple[int, int]) -> tuple[float, float]:
    """The shares of a picture's width and height, from its middle, that the processor keeps."""
    images = lvlm.processor.image_processor
    if not getattr(images, "do_center_crop", False) or not getattr(images, "do_resize", True):
        return 1.0, 1.0
    if edge := images.size.get("shortest_edge"):
        made = [side * edge / min(size) for side in size]
    else:
        made = images.size["width"], images.size["height"]
    cut = images.crop_size["width"], images.crop_size["height"]
    return tuple(min(1.0, kept / whole) for kept, whole in zip(cut, made))


def _overlap(count: int, share: float) -> np.ndarray:
    """What share of each of `count` tokens, side by side on a middle `share`, each cell holds."""
    cells = np.linspace(0, 1, SIDE + 1)[:, None]
    tokens = 0.5 + share * np.linspace(-0.5, 0.5, count + 1)
    shared = np.minimum(cells[1:], tokens[1:]) - np.maximum(cells[:-1], tokens[:-1])
    return shared.clip(0) / np.diff(tokens)
