"""What the study asks of a picture, whatever kind it is: drawn scenes are the first kind."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image, ImageOps

from vdp_utils.errors import VDPError


@dataclass(frozen=True)
class Item:
    """One object in a picture of `size` (width, height): its noun and its box, all in pixels.

    The box is (x0, y0, x1, y1), x1 and y1 exclusive.
    """

    noun: str
    box: tuple[float, float, float, float]
    size: tuple[int, int]

    @property
    def center(self) -> tuple[float, float]:
        """Box centre as fractions (x, y) of the picture's width and height."""
        (x0, y0, x1, y1), (width, height) = self.box, self.size
        return (x0 + x1) / 2 / width, (y0 + y1) / 2 / height

    @property
    def share(self) -> float:
        """Share of the picture that the box fills, in (0, 1]."""
        (x0, y0, x1, y1), (width, height) = self.box, self.size
        return (x1 - x0) * (y1 - y0) / (width * height)


class Picture(Protocol):
    """One picture. Random draws about it start from `seed`, which no other picture shares."""

    image_id: str
    seed: tuple[int, ...]
    items: Sequence[Item]
    dialogue_turns: int = 4  # of a dialogue about it, before another begins

    @property
    def caption(self) -> str:
        """What to write above it in a figure."""

    @property
    def counts(self) -> dict[str, float]:
        """How often each noun stands in it, largest object first; nan where that is not known."""
        return dict(Counter(item.noun for item in sorted(self.items, key=lambda i: -i.share)))

    def share(self, noun: str) -> float:
        """Share of the picture that all objects of a noun fill, in [0, 1]; 0 where it has none.

        nan where it has some, but no box of one is known.
        """

    def absent(self, rng, avoid=()) -> str:
        """A noun that it might show, but does not, and that is not in `avoid`."""

    def frequency(self, noun: str) -> int:
        """How many pictures of a fixed set of its kind show the noun."""

    def image(self) -> Image.Image:
        """The picture itself, RGB."""

    def swap(self, avoid) -> "Picture":
        """Another picture, always the same one, that shows none of the nouns in `avoid`."""

    def other(self, rng) -> "Picture":
        """A random picture that contexts about other images may talk about."""

    def dialogue(self, rng, turns: int, avoid=()) -> dict:
        """A dialogue about it in the SVIT schema (see `dialogues`), naming no noun of `avoid`.

        It has fewer turns, or none, where no more can be said so.
        """


def open_image(image: Image.Image | str | Path) -> Image.Image:
    """An RGB image, its EXIF rotation applied, from a path or a PIL image.

    VDPError if it is missing or cannot be read.
    """
    try:
        opened = image if isinstance(image, Image.Image) else Image.open(image)
        return ImageOps.exif_transpose(opened).convert("RGB")
    except FileNotFoundError as error:
        raise VDPError(f"image {image} does not exist: check the path") from error
    except Exception as error:  # a broken file leads Pillow into errors of any kind
        raise VDPError(f"image {image} cannot be read ({error}): replace the file") from error
