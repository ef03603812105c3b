"""A second kind of picture, made here, goes through everything that asks or measures."""

import ast
import dataclasses
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from matplotlib import pyplot as plt
from PIL import Image

import vdp_utils
from vdp_utils import figures
from vdp_utils.attention.tokens import Kind
from vdp_utils.errors import VDPError
from vdp_utils.findings import proportion
from vdp_utils.lvlm import prompts
from vdp_utils.measuring import pruned
from vdp_utils.measuring.measure import condition, map_sample, measure
from vdp_utils.measuring.scoring import answer
from vdp_utils.measuring.store import ResultStore
from vdp_utils.sources import dialogues, scenes
from vdp_utils.sources.pictures import Item, Picture
from vdp_utils.sources.samples import PICTURES, Sample, ask_presence

SAID = (("What is the weather like?", "It is windy."), ("Is there a dog?", "Yes, a dog."),
        ("What stands on the table?", "A cup and a lamp."), ("Who is there?", "A person."))


@dataclasses.dataclass(frozen=True)
class Photo(Picture):
    """Noise of its own size, with boxes of its own: no theme, no texture, no split."""

    number: int
    size: tuple[int, int]
    boxes: tuple[tuple[str, tuple[int, int, int, int]], ...]
    caption = "a photograph"

    @property
    def image_id(self):
        return f"{self.number:012d}"

    @property
    def seed(self):
        return (77, self.number)

    @property
    def items(self):
        return [Item(noun, box, self.size) for noun, box in self.boxes]

    def share(self, noun):
        return sum(i.share for i in self.items if i.noun == noun)

    def absent(self, rng, avoid=()):
        pool = [n for n in ("dog", "cup", "lamp", "person", "skis", "bus", "oven")
                if n not in self.counts and n not in avoid]
        return pool[rng.integers(len(pool))]

    def frequency(self, noun):
        return sum(noun in photo.counts for photo in PHOTOS)

    def image(self):
        noise = np.random.default_rng(self.number).integers(0, 256, (*self.size[::-1], 3))
        return Image.fromarray(noise.astype(np.uint8))

    def swap(self, avoid):
        return next(p for p in PHOTOS if p != self and set(avoid).isdisjoint(p.counts))

    def other(self, rng):
        return PHOTOS[rng.integers(len(PHOTOS))]

    def dialogue(self, rng, turns, avoid=()):
        free = [pair for pair in SAID if not any(n in " ".join(pair).lower() for n in avoid)]
        some = [free[rng.integers(len(free))] for _ in range(turns)]
        return {"image_id": self.number, "conversations": [
            {"from": who, "value": text} for pair in some for who, text in zip(("user", "gpt"),
                                                                               pair)]}


PHOTOS = (
    Photo(139, (90, 60), (("dog", (0, 0, 30, 30)), ("cup", (60, 40, 90, 60)))),
    Photo(285, (64, 120), (("person", (0, 0, 60, 110)), ("skis", (4, 100, 60, 120)),
                           ("skis", (4, 80, 60, 100)))),
    Photo(632, (200, 48), (("oven", (10, 5, 90, 40)), ("person", (120, 8, 140, 48)))),
    Photo(724, (80, 80), (("bench", (0, 40, 80, 80)),)),
)


@pytest.fixture(scope="module")
def samples():
    return [ask_presence(photo) for photo in PHOTOS]


def test_presence_questions_are_balanced_and_true(samples):
    for photo, sample in zip(PHOTOS, samples):
        assert sample == ask_presence(photo)
        answers = Counter(q.answer for q in sample.questions)
        assert answers["Yes"] == answers["No"] == min(3, len(photo.counts))
        assert all(sample.asked[n] == (n in photo.counts) for q in sample.questions
                   for n in q.nouns)
    among = ask_presence(PHOTOS[1], among=("skis", "bus"))
    assert among.asked == {"skis": True, "bus": False}


@pytest.mark.parametrize("kind, asked, right", [
    ("position", r".*(dog|cup).*", {"dog": "top left", "cup": "bottom right"}),
    ("relation", r".* (dog|cup) .* (?:dog|cup)\?", {"dog": "Yes", "cup": "No"}),
    ("counting", r".*(dog|cup)s.*", {"dog": "one", "cup": "one"})])
def test_other_questions_read_the_boxes(kind, asked, right):
    rng = np.random.default_rng(0)
    for _ in range(20):
        question = dialogues.ask(PHOTOS[0], kind, rng)
        assert question.answer == right[re.fullmatch(asked, question.text)[1]]
    assert dialogues.ask(PHOTOS[1], "counting", rng, avoid=["person"]).answer == "two"
    named = dialogues.ask(PHOTOS[1], "naming", rng)
    assert named.answer == "a person, a skis" and named.nouns == ("person", "skis")


def test_every_image_of_a_sample_has_the_picture_s_own_size(samples):
    for photo, sample in zip(PHOTOS, samples):
        own, blank, swapped = map(sample.image, PICTURES)
        assert own.size == blank.size == swapped.size == photo.size
        assert {image.mode for image in (own, blank, swapped)} == {"RGB"}
        assert blank.getextrema() == ((128, 128),) * 3
        other = photo.swap(sample.asked)
        assert set(sample.asked).isdisjoint(other.counts)
        assert swapped == other.image().resize(photo.size) and swapped != own


@pytest.mark.parametrize("kind", ["same_image", "other_images", "misleading"])
def test_contexts_are_made_of_its_own_dialogues(tiny, samples, kind):
    said = {text for pair in SAID for text in pair}
    for sample in samples:
        for length in (0, 1, 200):
            assert len(prompts.context(tiny.tokenizer, kind, sample, length)) == length
        ids = prompts.context(tiny.tokenizer, kind, sample, 600)
        lines = tiny.tokenizer.decode(ids).splitlines()[1:]  # the first is cut
        told = [re.sub("|".join(dialogues.NOT_SHOWN), "", line.partition(": ")[2]).strip()
                for line in lines]
        strange = [line for line in told if line not in said]
        absent = [noun for noun, present in sample.asked.items() if not present]
        assert bool(strange) == (kind == "misleading")
        assert all(any(noun in line for noun in absent) for line in strange)


def test_prompts_hold_its_image_or_its_words(tiny, samples):
    for sample in samples:
        for image in prompts.IMAGES:
            prefix = prompts.shared_prefix(tiny, sample, "other_images", 150, image=image)
            kinds = Counter(prefix.kinds.tolist())
            assert (kinds[Kind.CONTEXT] == 150) == (image != prompts.BESIDE)
            assert (kinds[Kind.IMAGE] == 100) == (image in (*PICTURES, prompts.BESIDE))
            words = tiny.tokenizer.decode(prefix.input_ids[prefix.kinds == Kind.IMAGE])
            for noun in sample.picture.counts if image in prompts.PLACES else ():
                assert noun in words


def test_it_is_measured_pruned_and_mapped(tiny, samples, tmp_path):
    store = ResultStore(tmp_path)
    conditions = [condition(tiny, "misleading", 60, image) for image in (*PICTURES, "none", "text")]
    rows = measure(tiny, samples, conditions, store, "F")
    assert len(rows) == 5 * sum(len(sample.questions) for sample in samples)
    by_id = {sample.image_id: sample.picture for sample in samples}
    for row in rows.itertuples():
        assert row.target_share == by_id[row.image_id].share(row.nouns)
        assert (row.target_share > 0) == (row.answer == "yes")
    yes = proportion.yes_questions(rows[rows["image"] == "own"], samples)
    for name, value in (("objects", [len(by_id[i].items) for i in yes["image_id"]]),
                        ("frequency", [PHOTOS[0].frequency(n) for n in yes["nouns"]])):
        assert yes[name].tolist() == value
    half = [pruned.pruned_condition(tiny, "same_image", 60, (0.5,))]
    masses = measure(tiny, samples, half, store, "P", each=pruned.masses_sample)
    assert set(masses["image_id"]) == set(by_id) and (masses["after"].str.len() == 2).all()
    maps = measure(tiny, samples, [condition(tiny, "same_image", 0)], store, "M", each=map_sample)
    assert set(maps["image_id"]) == set(by_id)


def test_the_room_for_context_is_that_beside_its_own_image(tiny, samples, monkeypatch):
    """As under a processor that gives a larger image more tokens."""
    opening, sample = prompts.opening, samples[2]

    def by_size(lvlm, image):
        start = opening(lvlm, image)
        more = image.width // 10 if image else 0
        return prompts.join(start, prompts._part([lvlm.image_token_id] * more, Kind.IMAGE))

    monkeypatch.setattr(prompts, "opening", by_size)
    room = 9_000 - len(by_size(tiny, sample.image())) - prompts.QUESTION_ROOM
    longest = prompts.shared_prefix(tiny, sample, "same_image", room)
    assert len(longest) == 9_000 - prompts.QUESTION_ROOM
    prompts.shared_prefix(tiny, samples[1], "same_image", room + 1)  # a narrower image leaves more
    with pytest.raises(VDPError, match=f"{room + 1} does not fit 'tiny'.* 0 to {room} "):
        prompts.shared_prefix(tiny, sample, "same_image", room + 1)
    with pytest.raises(VDPError, match=f"does not fit 'tiny'.* 0 to {room} "):
        answer(tiny, sample.image(), "What?", "word " * room)


def test_figures_draw_it_in_its_own_size(samples):
    gallery = figures.gallery(samples)
    for axes, sample in zip(gallery.axes, samples):
        width, height = sample.picture.size
        assert axes.get_images()[0].get_extent() == [0, width, height, 0]
        assert axes.get_title() == "a photograph"
        for text, item in zip(axes.texts, sample.picture.items):
            x, y = text.get_position()
            assert text.get_text() == item.noun and 0 <= y <= height and x < width
    plt.close(gallery)


def test_what_asks_and_measures_knows_no_kind_of_picture():
    """Only the embedded model is built for synthetic scenes: for their size."""
    root, known = Path(vdp_utils.__file__).parent, set()
    for wing in ("lvlm", "measuring", "findings", "figures"):
        for path in (root / wing).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not isinstance(node, (ast.Import, ast.ImportFrom)):
                    continue
                names = [alias.name for alias in node.names]
                if isinstance(node, ast.ImportFrom):
                    names = [f"{node.module}.{name}" for name in names]
                if any(name.startswith("vdp_utils.sources.scenes") for name in names):
                    known.add(path.relative_to(root).as_posix())
    assert known == {"lvlm/load.py"}


def test_synthetic_scenes_have_what_a_picture_has():
    scene, rng = scenes.compose("evaluation", 0), np.random.default_rng(0)
    photo = PHOTOS[0]
    wanted = {name for name in dir(photo) if not name.startswith("_")} - {"number", "boxes", "size"}
    assert wanted <= {name for name in dir(scene)}
    assert scene.image().size == (scenes.SIZE, scenes.SIZE)
    assert scene.absent(rng, scenes.THEMES[scene.theme]) not in scene.counts
    assert scene.swap(["cow"]) == scene.swap(["cow"]) != scene
    assert Sample(scene, ()).image_id == scene.image_id == "evaluation-000000"
