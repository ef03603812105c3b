"""Photographs keep the promises of `Picture`, and nothing said gives an asked noun away."""

import os
import re
from itertools import islice
from pathlib import Path

import albums
import numpy as np
import pytest
from PIL import Image, ImageCms

from vdp_utils.errors import VDPError
from vdp_utils.sources import dialogues, photographs, scenes, words
from vdp_utils.sources.photographs import open_source, union
from vdp_utils.sources.pictures import open_image
from vdp_utils.sources.samples import one_pair

REAL = os.environ.get("VDP_PHOTOGRAPHS")  # a folder of COCO's photographs and annotations


@pytest.fixture
def coco(tmp_path):
    albums.coco(tmp_path)
    return open_source("coco", tmp_path)


def by_number(source, number):
    return source.kept[str(number)]


def test_counts_shares_and_positions_are_those_of_the_boxes(coco):
    kitchen, dogs, surfer = (by_number(coco, n) for n in (2, 3, 1))
    assert kitchen.counts == {"refrigerator": 1, "oven": 1, "cup": 2}
    assert kitchen.share("cup") == pytest.approx(50 / 4800) and kitchen.share("dog") == 0
    assert dogs.share("dog") == pytest.approx((900 + 400 - 200) / 4800)  # they overlap
    assert np.isnan(surfer.counts["person"]) and surfer.counts["bird"] == 1  # a crowd of people
    assert surfer.share("person") == pytest.approx((80 * 20 + 20 * 20) / 4800)
    rng = np.random.default_rng(0)
    for photo in coco.photos:
        for kind in ("position", "relation", "counting"):
            question = dialogues.ask(photo, kind, rng)
            assert not (question and photo is surfer and "person" in question.nouns)
    assert "There is a person." in dialogues.describe(surfer, rng)
    assert "There are two cups." in dialogues.describe(kitchen, rng)
    assert coco.photos[0].frequency("bird") == 2


def test_union_of_boxes_is_that_of_their_pixels():
    rng = np.random.default_rng(0)
    for _ in range(20):
        corners = np.sort(rng.integers(0, 30, (5, 2, 2)), axis=1)  # (x, y) of two corners each
        boxes = [(*low, *high) for low, high in corners if (low < high).all()]
        grid = np.zeros((30, 30))
        for x0, y0, x1, y1 in boxes:
            grid[y0:y1, x0:x1] = 1
        assert not boxes or union(boxes) == grid.sum()


def test_no_other_picture_has_its_seed(coco, tmp_path):
    again = open_source("coco", tmp_path)
    assert [p.seed for p in again.photos] == [p.seed for p in coco.photos]
    streams = {stream for stream, *_ in scenes.SPLITS.values()}
    assert len({p.seed for p in coco.photos}) == len(albums.SHOWN)
    assert {p.seed[0] for p in coco.photos}.isdisjoint(streams)
    albums.genome(tmp_path)
    other = open_source("visual-genome", tmp_path)
    assert {p.seed for p in coco.photos}.isdisjoint(p.seed for p in other.photos)
    assert coco.digest == again.digest != other.digest


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA"])
def test_any_mode_is_shown_as_rgb(tmp_path, mode):
    path = tmp_path / f"x.{'jpg' if mode in ('L', 'CMYK') else 'png'}"
    image = Image.new("RGB", (8, 6), (200, 200, 200))
    image.convert(mode, palette=Image.Palette.ADAPTIVE).save(path)
    image = open_image(path)
    assert image.mode == "RGB" and image.size == (8, 6)
    assert np.abs(np.asarray(image, int) - 200).max() < 6


def test_missing_and_broken_images_are_named(tmp_path):
    grey = Image.new("L", (5, 4), 7)
    assert open_image(grey).getpixel((0, 0)) == (7, 7, 7)
    with pytest.raises(VDPError, match="gone.png does not exist: check the path"):
        open_image(tmp_path / "gone.png")
    path = tmp_path / "corrupt.png"
    albums.photograph(path)
    whole = path.read_bytes()
    for content in (b"no image at all", whole[:4000], b""):
        path.write_bytes(content)
        with pytest.raises(VDPError, match="corrupt.png cannot be read.*replace the file"):
            open_image(path)
    with pytest.raises(VDPError, match="cannot be read"):
        open_image(tmp_path)


def pixel(path, image, **options):
    """The colour of an image's first pixel after it was stored."""
    image.save(path, **options)
    return open_image(path).getpixel((0, 0))


def test_what_is_transparent_lies_on_white(tmp_path):
    """The colour hidden under it is often black, and no viewer shows it."""
    png = tmp_path / "x.png"
    for mode, hidden, seen in (("RGBA", (9, 0, 0, 0), 255), ("LA", (9, 0), 255),
                               ("RGBA", (55, 55, 55, 128), 155), ("LA", (55, 255), 55)):
        found = pixel(png, Image.new(mode, (4, 3), hidden))
        assert np.abs(np.subtract(found, seen)).max() <= 1, (mode, hidden)
    grey, colour = Image.new("L", (4, 3), 7), Image.new("RGB", (4, 3), (7, 8, 9))
    assert pixel(png, grey, transparency=7) == (255,) * 3 != pixel(png, grey)
    assert pixel(png, colour, transparency=(7, 8, 9)) == (255,) * 3
    palette = grey.convert("RGB").quantize(2)
    assert pixel(tmp_path / "x.gif", palette, transparency=palette.getpixel((0, 0))) == (255,) * 3
    assert open_image(Image.new("RGBA", (4, 3))).getpixel((0, 0)) == (255,) * 3


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_16_bits_of_grey_span_black_to_white(tmp_path, kind):
    deep = np.array([[0, 300, 20_000, 65_535]], np.uint16)
    Image.fromarray(deep).save(tmp_path / f"x.{kind}")
    for image in (tmp_path / f"x.{kind}", deep):
        assert np.asarray(open_image(image))[0, :, 1].tolist() == [0, 1, 78, 255]
    for wrong in (deep.astype(np.int32), deep / np.float32(9)):
        Image.fromarray(wrong).save(tmp_path / "x.tiff")
        with pytest.raises(VDPError, match="x.tiff .*whose white is not known: store 8 or 16 bits"):
            open_image(tmp_path / "x.tiff")


def test_colours_are_those_of_their_profile(tmp_path):
    def profile(name):
        return ImageCms.ImageCmsProfile(ImageCms.createProfile(name)).tobytes()

    jpg, tiff, colour = tmp_path / "x.jpg", tmp_path / "x.tiff", Image.new("RGB", (8, 8), "#c84010")
    plain = pixel(jpg, colour)
    assert pixel(jpg, colour, icc_profile=profile("sRGB")) == plain
    lab = ImageCms.profileToProfile(
        colour, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB")
    found = pixel(tiff, lab, icc_profile=profile("LAB"))
    assert np.abs(np.subtract(found, colour.getpixel((0, 0)))).max() <= 3
    swapped = bytearray(profile("sRGB").replace(b"sRGB", b"BGRs"))
    red, blue = swapped.index(b"rXYZ"), swapped.index(b"bXYZ")  # of the table of tags
    swapped[red:red + 4], swapped[blue:blue + 4] = b"bXYZ", b"rXYZ"
    swapped = bytes(swapped.replace("sRGB".encode("utf-16-be"), "BGRs".encode("utf-16-be")))
    found = pixel(jpg, colour, icc_profile=swapped)
    assert found[2] > found[0] and plain[0] > plain[2]
    for broken in (b"no profile", profile("LAB")):
        assert pixel(jpg, colour, icc_profile=broken) == plain


def test_a_broken_exif_tag_is_ignored(tmp_path):
    image = Image.new("RGB", (8, 6), (1, 2, 3))
    for exif in (b"Exif\0\0no tags", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"):
        assert pixel(tmp_path / "x.png", image, exif=exif) == (1, 2, 3)


def test_exif_rotation_is_applied(tmp_path):
    albums.photograph(tmp_path / "as_is.png", 5)
    albums.photograph(tmp_path / "turned.png", 5, exif=albums.ROTATED)
    assert Image.open(tmp_path / "turned.png").size == (60, 80)
    as_is, turned = (np.asarray(open_image(tmp_path / f"{one}.png")) for one in ("as_is", "turned"))
    np.testing.assert_array_equal(turned, as_is)


def test_a_photograph_of_another_shape_than_its_boxes_is_left_out(tmp_path):
    albums.coco(tmp_path)
    albums.photograph(tmp_path / "val2017/000000000003.jpg", 3, size=(60, 80))
    albums.photograph(tmp_path / "val2017/000000000002.jpg", 2, size=(160, 120))  # only larger
    (tmp_path / "val2017/000000000001.jpg").write_bytes(b"\xff\xd8\xff broken")
    source = open_source("coco", tmp_path)
    found = {s.image_id for s in source.presence_samples("evaluation", 10)}
    assert found == {"coco-2", "coco-4", "coco-5", "coco-6"}
    assert source.skipped == {"image of another shape than its boxes": 1,
                              "image that cannot be read": 1}


def test_presence_questions_are_balanced_and_absent_nouns_stand_beside_present_ones(coco):
    samples = coco.presence_samples("evaluation", 99)
    assert len(samples) == len(albums.SHOWN) and samples == coco.presence_samples("evaluation", 99)
    for sample in samples:
        photo = sample.picture
        answers = [q.answer for q in sample.questions]
        assert answers.count("Yes") == answers.count("No") == min(3, len(photo.counts))
        said = " ".join(" ".join(turn) for turn in photo.turns)
        for noun, present in sample.asked.items():
            assert present == (noun in photo.counts)
            if not present:
                assert not words.naming([noun]).search(said)
                assert not words.naming(photo.counts).search(noun)
    rng = np.random.default_rng(0)
    table = by_number(coco, 4)  # a car, a light, a person: beside people are surfboards and birds
    assert {table.absent(rng) for _ in range(60)} == {"surfboard", "bird"}
    assert [len(s.questions) for s in coco.presence_samples("evaluation", 2, 1)] == [2, 2]
    with pytest.raises(VDPError, match="no split 'train'.*evaluation, validation"):
        coco.presence_samples("train", 2)


def test_validation_photographs_are_others_while_there_are_enough(coco):
    first, last = (coco.presence_samples(split, 3) for split in ("evaluation", "validation"))
    assert len({sample.image_id for sample in first + last}) == 6


def test_swapped_shows_none_of_the_asked_nouns(coco):
    surfer = by_number(coco, 1)
    other = surfer.swap(["person", "bird"])
    assert other is surfer.swap(["bird", "person"]) is not surfer
    assert not {"person", "bird"} & set(other.counts)
    with pytest.raises(VDPError, match="no photograph without dog, person, .*fewer nouns"):
        surfer.swap(["dog", "person", "bird", "oven", "dining table"])


@pytest.mark.parametrize("noun, given_away, silent", [
    ("person", ["A man rides.", "Two women.", "Children play", "The surfers wait", "He waves."],
     ["A dog sleeps."]),
    ("surfboard", ["surfing in the sea", "a SURFBOARD", "Surf-board?", "the surfer"], ["a wave"]),
    ("dog", ["Puppies!", "the dog's tail", "a hotdog-eating dog", "dogs"], ["a dogma of cats"]),
    ("knife", ["sharp knives", "cutlery"], ["a spoonful"]),
    ("dining table", ["tables", "a desk", "the dining-table"], ["a stable horse"]),
    ("skis", ["a skier", "one ski", "skiing"], ["the sky is blue", "skipping"]),
    ("bus", ["buses", "a bus."], ["a busy street", "business"]),
    ("couch", ["on sofas", "couches"], ["coach"]),
    ("hot dog", ["hotdogs", "a sausage"], ["hot tea"]),
    ("cell phone", ["her phone", "smartphones"], ["a telegram"]),
    ("trees", ["a tree", "Trees."], ["the street"]),
])
def test_plurals_and_synonyms_name_a_noun(noun, given_away, silent):
    assert [text for text in given_away if not words.naming([noun]).search(text)] == []
    assert [text for text in silent if words.naming([noun]).search(text)] == []
    assert not words.naming([]).search("anything")


@pytest.mark.parametrize("kind", ["same_image", "other_images", "misleading"])
def test_contexts_name_no_asked_noun_but_to_mislead(coco, kind):
    for sample in coco.presence_samples("evaluation", 9, pairs=1):
        photo, own = sample.picture, {text for _, text in sample.picture.turns}
        every = {text for photo in coco.photos for _, text in photo.turns}
        blocks = dialogues.context_blocks(kind, photo, sample.asked, photo.seed)
        text = "".join(islice(blocks, 30))
        told = [line.partition(": ")[2] for line in text.splitlines() if line[0] == "A"]
        said = [line for line in told if line in every]
        assert said and not words.naming(sample.asked).search("\n".join(said))
        assert set(said) <= (own if kind == "same_image" else every - own)
        absent = [noun for noun, present in sample.asked.items() if not present]
        added = [line for line in told if line not in every]
        assert bool(added) == (kind == "misleading")
        assert all(absent[0] in line for line in added)


def test_talk_about_one_image_is_told_in_full_before_it_is_repeated(coco):
    photo = by_number(coco, 6)
    block = next(dialogues.context_blocks("same_image", photo, {}, 0))
    assert sorted(re.findall("Assistant: (.+)", block)) == sorted(albums.SAID[6])


def test_without_free_talk_a_context_is_refused(tmp_path, coco):
    albums.genome(tmp_path)
    source = open_source("visual-genome", tmp_path)
    words = dict.fromkeys(re.findall("[a-z]+", " ".join(albums.SAID[6]).lower()), True)
    with pytest.raises(VDPError, match="nothing is said of coco-6 that does not name one of "):
        next(dialogues.context_blocks("same_image", by_number(coco, 6), words, 0))
    with pytest.raises(VDPError, match="nothing is said of visual-genome-1: choose"):
        next(dialogues.context_blocks("same_image", by_number(source, 1), {"oven": False}, 0))
    with pytest.raises(VDPError, match=r"holds no talk about other images: .*visual-genome\+svit"):
        next(dialogues.context_blocks("other_images", by_number(source, 1), {}, 0))


def test_talk_about_other_images_may_come_from_elsewhere(tmp_path):
    albums.genome(tmp_path)
    albums.svit(tmp_path)
    albums.pope(tmp_path)
    for n in albums.SHOWN:
        albums.photograph(tmp_path / f"val2014/COCO_val2014_{n:012d}.jpg", n)
    photo = open_source("pope+svit", tmp_path).photos[0]
    text = "".join(islice(dialogues.context_blocks("other_images", photo, {"dog": False}, 0), 20))
    assert "The road is wet after the rain." in text and "puppies" not in text
    photo = open_source("pope+scenes", tmp_path).photos[0]
    for asked in ({"mug": True, "man": False}, {"sofa": False}):
        blocks = dialogues.context_blocks("other_images", photo, asked, 0)
        text = "".join(islice(blocks, 150))
        assert len(text) > 10_000 and not words.naming(asked).search(text)


@pytest.mark.parametrize("data, root, says", [
    ("flickr", ".", "unknown data 'flickr': choose scenes or one of table, coco"),
    ("scenes+coco", ".", "unknown data"), ("coco+svit+pope", ".", "unknown data"),
    ("coco", None, "data coco: give the folder"),
    ("coco", "nowhere", "data coco: there is no .*nowhere, give the folder"),
    ("coco", ".", "has no instances_"), ("svit", ".", "has none of SVIT's files"),
    ("visual-genome", ".", "lacks image_data.json"),
    ("pope-popular", ".", "no .*_pope_popular.json"),
    ("table", ".", "holds 0 tables")])
def test_what_is_not_there_is_named(tmp_path, data, root, says):
    with pytest.raises(VDPError, match=says):
        open_source(data, root and tmp_path / root)


def test_many_photographs_are_kept_in_bounded_number_whatever_their_order(tmp_path, monkeypatch):
    instances, _ = albums.coco(tmp_path)
    every = [photo.image_id for photo in open_source("coco", tmp_path).photos]
    monkeypatch.setattr(photographs, "KEPT", 3)
    few = open_source("coco", tmp_path)
    instances["images"].reverse()
    albums.write(tmp_path / "annotations/instances_val2017.json", instances)
    for source in (few, open_source("coco", tmp_path)):
        assert [photo.image_id for photo in source.photos] == every[:3]
        assert len(source.found) == 6 and not source.skipped
        assert all(photo.items for photo in source.photos)


def test_scenes_are_a_source_too():
    (sample,) = open_source("scenes").presence_samples("evaluation", 1, 1)
    assert sample.image_id == "evaluation-000000" and len(sample.questions) == 2


def test_it_is_measured_with_contexts_of_exact_length(tiny, tmp_path):
    from vdp_utils.attention.tokens import Kind
    from vdp_utils.lvlm import prompts
    from vdp_utils.measuring.measure import condition, measure
    from vdp_utils.measuring.store import ResultStore

    albums.coco(tmp_path)
    samples = open_source("coco", tmp_path).presence_samples("evaluation", 2, 1)
    for kind in dialogues.CONTEXT_KINDS:
        for sample in samples:
            prefix = prompts.shared_prefix(tiny, sample, kind, 300, image="swapped")
            assert (prefix.kinds == Kind.CONTEXT).sum() == 300
    albums.table(tmp_path / "own")
    source = open_source("table+scenes", tmp_path / "own")
    samples += source.question_samples("evaluation", 3, "own")
    rows = measure(tiny, samples, [condition(tiny, "other_images", 50)], ResultStore(tmp_path), "F")
    share = rows.set_index(["image_id", "question_id"])["target_share"]
    assert np.isnan(share["table-c.jpg", "0"])  # the table names no noun
    assert share.notna().sum() == 4 and len(rows) == 6
    assert set(rows[rows["image_id"] == "table-sub/b.png"]["options"]) == {"Red/blue/green"}
    assert len(one_pair(samples)) == 2  # a table's lack one answer


@pytest.mark.skipif(not REAL, reason="VDP_PHOTOGRAPHS names no folder of real photographs")
def test_real_photographs():
    assert Path(REAL).is_dir()
    source = open_source("coco", REAL)
    samples = source.presence_samples("evaluation", 999)
    assert len(samples) >= 0.8 * len(source.photos) and not source.skipped
    for sample in samples:
        assert sample.image().mode == "RGB"
        for noun, present in sample.asked.items():
            assert (0 < sample.picture.share(noun) <= 1) == present
        told = "".join(islice(dialogues.context_blocks(
            "other_images", sample.picture, sample.asked, sample.picture.seed), 20))
        told = re.sub("|".join(dialogues.NOT_SHOWN), "", told)
        assert not words.naming(sample.asked).search(told)
