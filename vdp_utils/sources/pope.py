"""POPE's presence questions (Li et al., arXiv 2305.10355), as released, old or new.

Under the data root <dataset>_pope_<setting>.json and the photographs. With COCO's instances and
captions there too, photographs of COCO have boxes and something that was said of them.
"""

import re

from vdp_utils.errors import VDPError
from vdp_utils.sources import coco
from vdp_utils.sources.dialogues import Question
from vdp_utils.sources.words import noun

SETTINGS = ("random", "popular", "adversarial")
ASKED = re.compile(r"(?:is|are) there (?:(?:an?|any|some) )?(.+?) (?:in|on) th(?:e|is) "
                   r"(?:im\w*age|picture|photo(?:graph)?|scene)\?", re.IGNORECASE)
OF_COCO = re.compile(r"(?:COCO_(?:train|val)2014_)?(\d{12})\.jpg")


def read(source) -> None:
    """The questions of a setting, or of all three, joined on image and text."""
    setting = source.name.partition("-")[2]
    paths = [path for path in source.find("*pope_*.json")
             if path.stem.endswith(setting or SETTINGS)]
    if not paths:
        raise VDPError(f"{source.root} has no *_pope_{setting or SETTINGS[0]}.json: give the "
                       "folder that POPE's question files and photographs lie in")
    for path in paths:
        for where, record in source.read(path):
            with source.noting(where):
                name, text = record["image"], record["text"].replace("imange", "image")
                found = OF_COCO.fullmatch(name)
                photo = source.photo(found[1] if found else name, *_names(name, found))
                answer = {"yes": "Yes", "no": "No"}[record["label"].strip().lower()]
                if photo:
                    photo.add_question(yes_no(text, answer), where)
    for path in source.find("instances_*.json", "captions_*.json"):
        for where, record in source.read(path, "images.item"):
            with source.noting(where):
                if photo := source.known(record["id"]):
                    photo.size = int(record["width"]), int(record["height"])
        coco.annotate(source, path)


def _names(name: str, of_coco) -> list[str]:
    """Where a photograph of COCO may lie: 2017's folders hold those of 2014 under their numbers."""
    if not of_coco:
        return [name]
    return [*(f"{split}2014/{name}" for split in ("val", "train")), name,
            *(f"{split}2017/{of_coco[1]}.jpg" for split in ("val", "train"))]


def yes_no(text: str, answer: str, nouns=()) -> Question:
    """A question of options Yes and No; about presence where it asks in such words."""
    if (found := ASKED.fullmatch(text)) and not nouns:
        return Question("presence", text, answer, ("Yes", "No"), (noun(found[1]),))
    return Question("own", text, answer, ("Yes", "No"), tuple(nouns))
