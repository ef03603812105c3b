"""Stage 1: the vision tower learns which noun each patch shows."""

import itertools
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from vdp_utils.lvlm.load import PATCH
from vdp_utils.sources import scenes
from vdp_utils.training.loop import DEVICE, Run, autocast

GRID = scenes.SIZE // PATCH
BACKGROUND = len(scenes.NOUNS)  # class of a patch that shows no object
BATCH = 64  # scenes
MIN_PIXELS = 24  # opaque pixels under which a patch (256 pixels) counts as background


def pixels(image: np.ndarray) -> torch.Tensor:
    """uint8 (H, W, 3) -> float32 (3, H, W), normalised as the processor does."""
    return (torch.from_numpy(image).permute(2, 0, 1).float() / 255 - 0.5) / 0.25


def patch_labels(scene: scenes.Scene, owners: np.ndarray) -> np.ndarray:
    """Noun class of each patch, int64 (GRID * GRID,), from `scenes.render`'s owners."""
    counts = np.stack([np.full((GRID, GRID), MIN_PIXELS)] + [
        (owners == k + 1).reshape(GRID, PATCH, GRID, PATCH).sum((1, 3))
        for k in range(len(scene.items))])
    classes = np.array([BACKGROUND] + [scenes.NOUNS.index(i.noun) for i in scene.items])
    return classes[counts.argmax(0)].ravel()


def labelled(split: str, index: int) -> tuple[scenes.Scene, torch.Tensor, torch.Tensor]:
    """Scene number `index` with its pixels (3, SIZE, SIZE) and patch labels (GRID**2,)."""
    scene = scenes.compose(split, index)
    owners = np.zeros((scenes.SIZE, scenes.SIZE), np.int16)
    image = scenes.render(scene, owners)
    return scene, pixels(image), torch.from_numpy(patch_labels(scene, owners))


class LabelledScenes(IterableDataset):
    """Endless (pixels, patch labels) of a split's scenes, from scene number `start`."""

    def __init__(self, split: str, start: int = 0):
        self.split, self.start = split, start

    def __iter__(self):
        for index in itertools.count(self.start):
            yield labelled(self.split, index)[1:]


def object_accuracy(found: torch.Tensor, truth: torch.Tensor) -> float:
    """Share of the patches showing an object whose noun is right."""
    return (found == truth)[truth != BACKGROUND].float().mean().item()


def train_tower(folder: Path, minutes: float, log: Path, tower) -> None:
    """Dense noun labels, cross-entropy; `tower` is changed in place."""
    width = tower.config.hidden_size
    head = torch.nn.Sequential(torch.nn.LayerNorm(width), torch.nn.Linear(width, BACKGROUND + 1))
    head.to(DEVICE)
    run = Run(folder, "tower", minutes, {"tower": tower, "head": head},
              {"tower": 1e-3, "head": 1e-3}, log, decay=0.02)
    images, truth = next(iter(DataLoader(LabelledScenes("validation"), 256)))

    def logits(pixel_values):
        with autocast():
            features = tower(pixel_values.to(DEVICE), output_hidden_states=True).hidden_states[-1]
            return head(features[:, 1:]).float()

    @torch.no_grad()
    def evaluate():
        return {"object_patch_accuracy": object_accuracy(logits(images).argmax(-1).cpu(), truth)}

    batches = DataLoader(LabelledScenes("train", run.samples), BATCH, num_workers=1)
    for pixel_values, labels in run.steps(batches, evaluate):
        run.learn(F.cross_entropy(logits(pixel_values).flatten(0, 1),
                                  labels.to(DEVICE).flatten()), BATCH)
