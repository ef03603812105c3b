"""Small files in the forms in which COCO, Visual Genome, SVIT and POPE are released."""

import json

import numpy as np
from PIL import Image

ROTATED = 6  # EXIF: what is stored is shown turned by a quarter
SAID = {  # of image 1, 2, ...: captions that real annotators might write
    1: ["A man riding a wave on top of a surfboard.", "Two seagulls stand on the sand ."],
    2: ["A kitchen with a stove, a fridge and two mugs.", "the floor is of brown wood\n"],
    3: ["Three puppies sleep on a couch.", "A lamp stands in the corner."],
    4: ["A yellow taxi waits at the lights.", "The road is wet after the rain."],
    5: ["A small table with fruit on it.", "Some bananas lie beside a knife."],
    6: ["An empty beach under a grey sky.", "It is early in the morning."],
}
SHOWN = {  # image: nouns with boxes (x, y, width, height) in pixels of 80 x 60
    1: [("person", (10, 10, 20, 30)), ("surfboard", (5, 30, 40, 10)), ("bird", (60, 2, 10, 10))],
    2: [("oven", (0, 0, 30, 40)), ("refrigerator", (50, 0, 30, 60)), ("cup", (32, 30, 5, 5)),
        ("cup", (40, 30, 5, 5))],
    3: [("dog", (0, 30, 30, 30)), ("couch", (0, 20, 80, 40)), ("dog", (20, 40, 20, 20))],
    4: [("car", (10, 20, 40, 20)), ("traffic light", (70, 0, 8, 20)), ("person", (2, 20, 5, 20))],
    5: [("dining table", (0, 20, 80, 40)), ("banana", (30, 25, 20, 10)),
        ("knife", (60, 30, 10, 3))],
    6: [("bird", (30, 10, 4, 4)), ("boat", (60, 30, 15, 10))],
}


def photograph(path, number=1, size=(80, 60), exif=None, **options):
    """Noise of the number's own. With `exif` stored turned, to be shown in `size`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (*size[::-1], 3)).astype(np.uint8)
    image = Image.fromarray(pixels)
    if exif:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = exif
        image = image.transpose(Image.Transpose.ROTATE_90)
    image.save(path, **options)


def write(path, content):
    """JSON, or text as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def coco(root, split="val2017", files=True, names="{:012d}.jpg"):
    """Annotations (returned, as written) and photographs of a split."""
    nouns = sorted({noun for some in SHOWN.values() for noun, _ in some})
    images = [dict(license=4, file_name=names.format(n), height=60, width=80, id=n) for n in SHOWN]
    boxes = [dict(segmentation=[[1.5, 2.0, 3.0, 4.0, 5.0, 6.0]], area=1.0, iscrowd=0, image_id=n,
                  bbox=list(map(float, box)), id=10 * n + at,
                  category_id=10 + 3 * nouns.index(noun))
             for n, some in SHOWN.items() for at, (noun, box) in enumerate(some)]
    boxes.append(boxes[0] | dict(iscrowd=1, bbox=[0, 0, 80, 20],
                                 segmentation={"counts": [100, 200, 4500], "size": [60, 80]}))
    instances = dict(info={}, licenses=[], images=images, annotations=boxes, categories=[
        dict(supercategory="thing", id=10 + 3 * n, name=noun) for n, noun in enumerate(nouns)])
    captions = dict(info={}, licenses=[], images=images, annotations=[
        dict(image_id=n, id=10 * n + at, caption=text) for n, said in SAID.items()
        for at, text in enumerate(said)])
    write(root / f"annotations/instances_{split}.json", instances)
    write(root / f"annotations/captions_{split}.json", captions)
    for number in SHOWN if files else ():
        photograph(root / split / names.format(number), number)
    return instances, captions


def genome(root, version="1.4"):
    """Visual Genome's files (returned, as written), photographs in both its folders."""
    folders = {n: "VG_100K_2" if n % 2 else "VG_100K" for n in SHOWN}
    images = [dict(image_id=n, width=80, height=60, coco_id=None, flickr_id=n,
                   url=f"https://cs.stanford.edu/people/rak248/{folder}/{n}.jpg")
              for n, folder in folders.items()]
    more = {"merged_object_ids": []} if version == "1.4" else {}
    objects = [dict(image_id=n, image_url=images[n - 1]["url"], objects=[dict(
        synsets=[], object_id=10 * n + at, names=[noun], **dict(zip("xywh", box)), **more)
        for at, (noun, box) in enumerate(some)]) for n, some in SHOWN.items()]
    write(root / "image_data.json", images)
    write(root / "objects.json", objects)
    for number, folder in folders.items():
        photograph(root / folder / f"{number}.jpg", number)
    return images, objects


def turns(said, names=("user", "gpt"), first=""):
    """Messages of a dialogue about some captions."""
    return [dict(zip(("from", "value"), one)) for at, text in enumerate(said) for one in (
        (names[0], first * (at == 0) + "What can you say of it?"), (names[1], text))]


def svit(root, form="svit.json"):
    """SVIT's dialogues in its own form or in LLaVA's; returned as written."""
    if form.startswith("SVIT"):
        records = [dict(id=str(n), image=f"vg/VG_100K{'_2' * (n % 2)}/{n}.jpg", conversations=turns(
            said, ("human", "gpt"), "<image>\n")) for n, said in SAID.items()]
        records.append(dict(id="7", conversations=turns(["No image."], ("human", "gpt"))))
    else:
        records = [dict(image_id=n, conversations=[
            dict(topic="all", content=turns([text])) for text in said]) for n, said in SAID.items()]
    write(root / form, records)
    return records


def pope(root, setting="random", first=1, names="COCO_val2014_{:012d}.jpg", nos=("skis", "oven")):
    """Lines of JSON (returned as records): for each image two present nouns, two absent ones."""
    records = []
    for n, some in SHOWN.items():
        absent = [noun for noun in nos if noun not in {name for name, _ in some}]
        for yes, no in zip(dict(some), absent):
            for noun, label in ((yes, "yes"), (no, "no")):
                article = "an" if noun[0] in "aeiou" else "a"
                records.append(dict(question_id=first + len(records), image=names.format(n),
                                    label=label, text=f"Is there {article} {noun} in the image?"))
    write(root / f"coco_pope_{setting}.json", "".join(json.dumps(r) + "\n" for r in records))
    return records


TABLE = [
    dict(image="a.jpg", question="Is there a dog in the image?", answer="yes"),
    dict(image="a.jpg", question="Is there a cat in the image?", answer="No."),
    dict(image="sub/b.png", question="What colour is the bus?", answer="red",
         options="Red|blue|green", noun="bus", context="User: Who waits?\nAssistant: Some people."
         "\nUser: And the bus?\nAssistant: It is red."),
    dict(image="c.jpg", question="Is it raining?", answer="yes",
         context="The street is wet. A man holds an umbrella."),
]


def table(root, form="csv"):
    """TABLE as a file, with its photographs: EXIF rotation, a palette, CMYK."""
    import pandas as pd

    photograph(root / "a.jpg", 1, exif=ROTATED)
    photograph(root / "sub/b.png", 2)
    Image.open(root / "sub/b.png").convert("P").save(root / "sub/b.png")
    photograph(root / "c.jpg", 3)
    Image.open(root / "c.jpg").convert("CMYK").save(root / "c.jpg")
    path = root / f"questions.{form}"
    rows = pd.DataFrame(TABLE)
    rows.to_csv(path, index=False) if form == "csv" else rows.to_parquet(path)
    return path
