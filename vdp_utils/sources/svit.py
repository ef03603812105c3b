"""SVIT's dialogues (Zhao et al., arXiv 2307.04087), in their own form or in LLaVA's.

Their photographs are Visual Genome's: with image_data.json and objects.json under the same root
they have boxes too, and presence questions.
"""

import re
from pathlib import Path

from vdp_utils.errors import VDPError
from vdp_utils.sources import visual_genome

PARTS = ("conversation.json", "complex_reasoning.json", "detail_description.json",
         "referring_qa.json")
FORMS = (("svit.json",), PARTS, ("SVIT_mix_665K.json",), ("SVIT_core_150K.json",))
ROLES = {"user": "user", "human": "user", "gpt": "gpt", "assistant": "gpt"}
BOX = re.compile(r"<st>|\[\s*[0-9.]+\s*,[\s0-9.,]*\]")


def read(source) -> None:
    """The first of FORMS that is there: each of the others says the same, or less."""
    paths = [path for form in FORMS for path in source.find(*form)]
    if not paths:
        raise VDPError(f"{source.root} has none of SVIT's files: give the folder that "
                       f"{', '.join(name for form in FORMS for name in form)} or some lie in")
    if source.find("objects*.json") and source.find("image_data*.json"):
        visual_genome.read(source)
    form = next(form for form in FORMS if paths[0].name in form)
    for path in paths:
        if path.name in form:
            _read(source, path)
        else:
            source.skip(f"file beside {paths[0].name}", path)


def _read(source, path: Path) -> None:
    for where, record in source.read(path):
        with source.noting(where):
            if "image_id" in record:
                number = record["image_id"]
                photo = source.photo(number, *visual_genome.names(number))
            elif "image" in record:
                name = record["image"]
                number = Path(name).stem if "VG_100K" in name else name
                photo = source.photo(number, name, name.removeprefix("vg/"))
            else:
                source.skip("dialogue without an image", where)
                continue
            for turns in _dialogues(record["conversations"]) if photo else ():
                _add(photo, turns, where)


def _dialogues(parts) -> list:
    """Lists of turns: a record has one of its own or, nested, one a topic."""
    if parts and "content" in parts[0]:
        return [part["content"] for part in parts]
    return [parts]


def _add(photo, turns, where: str) -> None:
    """Each question with the answer that follows it."""
    said = [(ROLES[turn["from"]], turn["value"]) for turn in turns]
    taken = 0
    for (who, question), (then, answer) in zip(said, said[1:]):
        if (who, then) == ("user", "gpt"):
            taken += 2
            if BOX.search(question) or BOX.search(answer):
                photo.source.skip("turn with boxes as text", where)
            else:
                photo.add_turn(question, answer, where)
    if taken < len(said):
        photo.source.skip("dialogue in which not every turn is answered", where)
