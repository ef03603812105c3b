"""What the study asks of a picture, whatever kind it is: synthetic scenes are the first kind."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image, ImageCms, ImageOps

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

    def ready_context(self, kind: str) -> tuple[str, np.ndarray] | None:
        """A context that its source holds, text and token ids; None where contexts are made."""
        return None

    def untold(self, kind: str, asked, swapped: bool = False) -> str:
        """Why there is no context of a kind for questions about `asked`, or, `swapped`, no other
        picture; "" where there is."""
        return ""


def open_image(image) -> Image.Image:
    """An image as a viewer shows it: RGB, turned by its EXIF tag, transparent parts on white.

    `image` is a path, a PIL image, or an array of uint8: (height, width), or with 3 or 4 channels
    last. 16-bit greys span black to white; colours under an ICC profile become sRGB's. VDPError for
    a file that is missing or cannot be read, and for greys without a known white.
    """
    what = image if isinstance(image, (str, Path)) else type(image).__name__
    try:
        if hasattr(image, "__array__") and not isinstance(image, Image.Image):
            image = Image.fromarray(np.asarray(image))
        return _shown(image if isinstance(image, Image.Image) else Image.open(image))
    except FileNotFoundError as error:
        raise VDPError(f"image {what} does not exist: check the path") from error
    except Exception as error:  # a broken file leads Pillow into errors of any kind
        raise VDPError(f"image {what} cannot be read ({error}): give one image as a path, a PIL "
                       "image or an array of uint8, or replace the file") from error


def _shown(image: Image.Image) -> Image.Image:
    image.load()
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:  # a broken tag, which viewers ignore
        pass
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"greys of mode {image.mode}, whose white is not known: store 8 or 16 "
                         "bits")
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image).convert("RGB")
    elif image.mode not in ("L", "CMYK", "LAB"):
        image = image.convert("RGB")
    return _in_srgb(image, profile).convert("RGB")


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """An image's colours by its ICC profile; as they are without one that fits."""
    if not profile:
        return image
    try:
        own = ImageCms.ImageCmsProfile(BytesIO(profile))
        if "sRGB" in ImageCms.getProfileDescription(own):
            return image
        return ImageCms.profileToProfile(image, own, ImageCms.createProfile("sRGB"),
                                         outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        return image
