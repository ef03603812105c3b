"""Visual Genome's objects (Krishna et al., arXiv 1602.07332), versions 1.2 and 1.4.

Under the data root image_data.json, objects.json, and photographs in VG_100K/ and VG_100K_2/. What
it does not list may be there all the same, so its 'no' is less sure than COCO's.
"""

import re
from collections import Counter
from dataclasses import replace

from vdp_utils.errors import VDPError
from vdp_utils.sources.dialogues import plural
from vdp_utils.sources.words import noun

COMMON = 200  # names of objects that are kept: those that most photographs have


def read(source) -> None:
    """Photographs with the boxes of the commonest nouns."""
    images, objects = source.find("image_data*.json"), source.find("objects*.json")
    if not images or not objects:
        raise VDPError(f"{source.root} lacks image_data.json or objects.json: give the folder that "
                       "Visual Genome's were unpacked in")
    for path in (*images[:-1], *objects[:-1]):
        source.skip("file beside one of a later name", path)
    for where, record in source.read(images[-1]):
        with source.noting(where):
            number = record["image_id"] if "image_id" in record else record["id"]
            source.photo(number, *names(number, record.get("url") or ""),
                         size=(record["width"], record["height"]))
    for where, record in source.read(objects[-1]):
        with source.noting(where):
            number = record["image_id"] if "image_id" in record else record["id"]
            photo = source.known(number, where)
            for count, one in enumerate(record["objects"] if photo else (), 1):
                with source.noting(f"{where}, object {count}"):
                    named = one["names"] if "names" in one else one["name"]
                    name = named if isinstance(named, str) else named[0]
                    photo.add_box(noun(name), [one[k] for k in "xywh"], where)
    _keep_common(source)


def names(number, url: str = "") -> list[str]:
    """Where its file may lie: the folder of its address first, which its number does not tell."""
    folders = [*re.findall(r"/(VG_100K(?:_2)?/)\d", url), "VG_100K/", "VG_100K_2/", ""]
    return [f"{folder}{number}.jpg" for folder in dict.fromkeys(folders)]


def _keep_common(source) -> None:
    """Leave out rare names, and make plurals nouns of a number not known: 'trees' is one box."""
    photos = source.kept.values()
    shown = Counter(name for photo in photos for name in {i.noun for i in photo.items})
    common = {name for name, _ in sorted(shown.items(), key=lambda n: (-n[1], n[0]))[:COMMON]}
    single = {plural(name): name for name in common if plural(name) != name}
    for photo in photos:
        kept = []
        for item in photo.items:
            name = single.get(item.noun, item.noun)
            if name != item.noun:
                photo.nouns[name] = None
            if name in common:
                kept.append(replace(item, noun=name))
            else:
                source.skip(f"object not of the {COMMON} commonest names", photo.image_id)
        photo.items = kept
        photo.nouns = {name: None for name in photo.nouns if name in common}
