"""COCO's instances and captions (Lin et al., arXiv 1405.0312), as released or in that form.

Under the data root instances_<split>.json and captions_<split>.json, and photographs in <split>/.
A crowd's box is that of its mask; masks themselves, polygons or RLE, are not looked at.
"""

from pathlib import Path

from vdp_utils.errors import VDPError
from vdp_utils.sources.dialogues import TEMPLATES
from vdp_utils.sources.words import noun

ASKS = TEMPLATES["description"][0]  # what a caption answers


def read(source) -> None:
    """All splits whose photographs are there."""
    paths = source.find("instances_*.json", "captions_*.json")
    if not any(path.name.startswith("instances") for path in paths) and source.need_images:
        raise VDPError(f"{source.root} has no instances_*.json: give the folder that COCO's "
                       "annotations and photographs were unpacked in")
    there = [path for path in paths if source.has_folder(_split(path))] or paths
    for path in paths:
        if source.need_images and path not in there:
            source.skip("file whose folder of photographs is not there", path)
            continue
        for where, record in source.read(path, "images.item"):
            with source.noting(where):
                name = record["file_name"]
                source.photo(record["id"], f"{_split(path)}/{name}", name,
                             size=(record["width"], record["height"]))
        annotate(source, path)


def _split(path: Path) -> str:
    return path.stem.partition("_")[2]


def annotate(source, path: Path) -> None:
    """Boxes or captions of one file, for the photographs that the source has already."""
    captions, names = path.name.startswith("captions"), {}
    for where, record in () if captions else source.read(path, "categories.item"):
        with source.noting(where):
            names[record["id"]] = noun(record["name"])
    for where, record in source.read(path, "annotations.item"):
        with source.noting(where):
            photo = source.known(record["image_id"], where)
            if photo and captions:
                photo.add_turn(ASKS[len(photo.turns) % len(ASKS)], record["caption"], where)
            elif photo:
                photo.add_box(names[record["category_id"]], record["bbox"], where,
                              crowd=bool(record.get("iscrowd")))
