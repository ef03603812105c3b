"""Photographs of released or own files: their boxes, questions, and what was said of them.

A reader (`coco.py`, ...) fills a `Source` from the files under a data root. A file that is broken
is a VDPError; a record that is, or a photograph that is not there, is left out and counted.
"""

import hashlib
import heapq
import math
import tempfile
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from vdp_utils.errors import Lacking, VDPError
from vdp_utils.sources import (coco, dialogues, pictures, pope, samples, scenes, svit, table,
                               visual_genome)
from vdp_utils.sources.dialogues import Question
from vdp_utils.sources.files import Files
from vdp_utils.sources.pictures import Item
from vdp_utils.sources.words import naming, plain

ORDERS = {"evaluation": 1, "validation": -1}  # splits from either end: they meet if few are there
STREAM = 7  # of seeds: scenes have the lower ones
KEPT = 5_000  # photographs of a source that are kept, those with the smallest hashes of their ids
MOST = 500  # boxes, turns and questions that are kept of one photograph
SHAPE = 0.02  # by this share width to height may differ between a file and what its boxes are for


@dataclass(eq=False)
class Photograph(pictures.Picture):
    """One photograph. `nouns` are shown too, but without a box or in a number not known.

    Boxes and the file's pixels, as the file's EXIF rotation shows them, have one shape.
    """

    image_id: str
    path: Path | None
    seed: tuple[int, int]
    source: "Source" = field(repr=False)
    size: tuple[int, int] | None = None  # width, height that the boxes are given in
    items: list[Item] = field(default_factory=list)
    nouns: dict[str, None] = field(default_factory=dict)
    turns: list[tuple[str, str]] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    contexts: dict[str, tuple[str, np.ndarray]] = field(default_factory=dict)  # by kind
    _untold: dict[tuple, str] = field(default_factory=dict, repr=False)

    @property
    def caption(self) -> str:
        return self.image_id

    @property
    def dialogue_turns(self) -> int:
        return max(1, len(self.turns))

    @cached_property
    def counts(self) -> dict[str, float]:
        """How often each noun stands in it, largest object first; nan where that is not known."""
        return super().counts | dict.fromkeys(self.nouns, math.nan)

    @cached_property
    def readable(self) -> bool:
        """Whether its file is an image, of the shape its boxes are for. Where not, that counts."""
        try:
            width, height = self.image().size
        except VDPError as error:
            self.source.skip("image that cannot be read", error)
            return False
        fits = not self.items or abs(
            width * self.size[1] / (height * self.size[0]) - 1) <= SHAPE
        if not fits:
            self.source.skip("image of another shape than its boxes", self.path)
        return fits

    def share(self, noun: str) -> float:
        """Share of the image that the union of the noun's boxes fills; nan where none is known."""
        boxes = [item.box for item in self.items if item.noun == noun]
        if not boxes:
            return math.nan if noun in self.nouns else 0.0
        return min(1.0, union(boxes) / math.prod(self.size))

    def absent(self, rng, avoid=()) -> str:
        """A noun that it lacks, the likelier the more photographs show it beside nouns of this one.

        Any noun where none stands beside them. None that what was said of it names, nor a word akin
        to one it shows. VDPError where that leaves none.
        """
        shown, said = naming(self.counts), " ".join(map(" ".join, self.turns))
        beside = sum((self.source.beside[noun] for noun in self.counts), Counter())
        for weights in (beside, dict.fromkeys(self.source.beside, 1)):
            pool = [noun for noun in sorted(weights) if noun not in avoid
                    and not shown.search(noun) and not naming([noun]).search(said)]
            if pool:
                share = np.array([weights[noun] for noun in pool], dtype=float)
                return pool[rng.choice(len(pool), p=share / share.sum())]
        raise VDPError(f"{self.image_id}: {self.source.name} knows no noun that it lacks: give a "
                       "source of more photographs or nouns")

    def frequency(self, noun: str) -> int:
        """How many photographs that the source keeps show the noun."""
        return sum(noun in photo.counts for photo in self.source.photos)

    def image(self) -> Image.Image:
        """RGB, its EXIF rotation applied. VDPError where it cannot be read."""
        return pictures.open_image(self.path)

    def swap(self, avoid) -> "Photograph":
        """The next photograph of the source that shows none of `avoid`, nor what is akin to it."""
        photos, banned = self.source.photos, naming(avoid)
        at = photos.index(self)
        for photo in photos[at + 1:] + photos[:at]:
            if not banned.search("\n".join(photo.counts)) and photo.readable:
                return photo
        raise Lacking(f"{self.image_id}: {self.source.name} has no photograph without "
                      f"{', '.join(avoid)}: ask about fewer nouns, or give more photographs")

    def other(self, rng) -> "Photograph | Told":
        """Another photograph of which something was said, or a scene: see `Source.others`."""
        if self.source.others is None:
            return Told(scenes.compose("context", int(rng.integers(2**31))))
        talk = self.source.others.talk
        at = int(rng.integers(max(1, len(talk))))
        for photo in talk[at:at + 2] + talk[:1]:
            if photo is not self:
                return photo
        raise Lacking(f"{self.source.name} in {self.source.root} holds no talk about other "
                      f"images: add one, such as {self.source.name}+svit or "
                      f"{self.source.name}+scenes")

    def dialogue(self, rng, turns: int, avoid=()) -> dict:
        """Up to `turns` of what was said, each once, that name none of `avoid` or its kin."""
        free = tactful(self.turns, avoid)
        return record_of(self.image_id, [free[i] for i in rng.permutation(len(free))[:turns]])

    def ready_context(self, kind: str) -> tuple[str, np.ndarray] | None:
        """See `Picture.ready_context`."""
        return self.contexts.get(kind)

    def untold(self, kind: str, asked, swapped: bool = False) -> str:
        """See `Picture.untold`."""
        key = kind, tuple(asked), swapped
        if key not in self._untold:
            self._untold[key] = ""
            try:
                self.ready_context(kind) or next(dialogues.context_blocks(kind, self, asked, 0))
                swapped and self.swap(asked)
            except VDPError as error:
                self._untold[key] = str(error)
        return self._untold[key]

    # ---- what readers call

    def add_box(self, noun: str, box, where, crowd: bool = False) -> None:
        """A box (x, y, width, height) in pixels, clamped. A crowd's is of a number not known."""
        x, y, w, h = map(float, box)
        if not math.isfinite(x + y + w + h):
            raise ValueError(f"box {box}")
        left, right, top, bottom = (min(max(edge, 0.0), limit) for edge, limit in zip(
            (x, x + w, y, y + h), np.repeat(self.size, 2).tolist()))
        seen = left < right and top < bottom
        if crowd or not seen:
            self.nouns[noun] = None
        if seen:
            self._add(self.items, Item(noun, (left, top, right, bottom), self.size), "box", where)
        else:
            self.source.skip("box that is empty or outside its image", where)

    def add_turn(self, question: str, answer: str, where) -> None:
        """What a person, then a model or an annotator said of it, without control tokens."""
        turn = plain(question), plain(answer)
        if all(turn) and "message is empty" not in turn[1].lower():  # so in some of SVIT's
            self._add(self.turns, turn, "turn", where)
        else:
            self.source.skip("empty turn", where)

    def add_question(self, question: Question, where) -> None:
        """A question of the file's own. What it is about counts as shown, but by an answer no."""
        question = replace(question, text=plain(question.text))
        if not question.text:
            raise ValueError("a question of no words")
        if any(known.text == question.text and known != question for known in self.questions):
            self.source.skip("second answer to a question", where)
            return
        self._add(self.questions, question, "question", where)
        if question.kind != "presence" or question.answer == "Yes":
            boxed = {item.noun for item in self.items}
            self.nouns |= dict.fromkeys(noun for noun in question.nouns if noun not in boxed)

    def add_context(self, kind: str, text: str, ids, where) -> None:
        """A context of a kind as it stands in the file; of those that end alike the longest."""
        dialogues.check_context_kind(kind)
        new = text, np.asarray(ids, dtype=np.uint32)
        short, long = sorted([new, self.contexts.get(kind, new)], key=lambda one: len(one[0]))
        at = len(long[1]) - len(short[1])
        if long[0].endswith(short[0]) or len(short[1]) and (long[1][at:] == short[1]).all():
            self.contexts[kind] = long
        else:
            self.source.skip("context that does not end as the others of its kind", where)

    def _add(self, known: list, one, what: str, where) -> None:
        if one in known or len(known) == MOST:
            reason = "repeated" if one in known else f"more than {MOST} of an image:"
            self.source.skip(f"{reason} {what}", where)
        else:
            known.append(one)


@dataclass(frozen=True)
class Told:
    """A scene that is only talked about, naming no kin of the nouns to avoid either."""

    scene: scenes.Scene

    @property
    def image_id(self) -> str:
        return self.scene.image_id

    def dialogue(self, rng, turns: int, avoid=()) -> dict:
        """See `Photograph.dialogue`."""
        record = self.scene.dialogue(rng, turns, avoid)
        said = [turn["value"] for turn in record["conversations"]]
        free = tactful(list(zip(said[::2], said[1::2])), avoid)
        return record_of(self.image_id, free)


def record_of(image_id: str, turns) -> dict:
    """Turns in the SVIT schema."""
    return {"image_id": image_id, "conversations": [
        {"from": who, "value": text} for turn in turns
        for who, text in zip(("user", "gpt"), turn)]}


def tactful(turns, avoid) -> list:
    """The turns that name none of `avoid`, nor what is akin to it."""
    banned = naming(avoid)
    return [turn for turn in turns if not banned.search("\n".join(turn))]


class Source(Files):
    """The photographs under a data root, in an order of no meaning.

    `others` is the source whose talk contexts about other images are made of, None for scenes. With
    `need_images` False photographs are kept for what was said of them, and not looked for.
    """

    def __init__(self, name: str, root, need_images: bool = True):
        super().__init__(root)
        self.name, self.need_images = name, need_images
        self.others: Source | None = self
        self.found: dict[str, bool] = {}  # of every photograph that a record names
        self.kept: dict[str, Photograph] = {}
        self._ranks: list[tuple[int, str]] = []
        self._folder: tempfile.TemporaryDirectory | None = None

    @cached_property
    def photos(self) -> list[Photograph]:
        """All that are kept, by the hash of their ids."""
        return sorted(self.kept.values(), key=lambda photo: photo.seed)

    @cached_property
    def talk(self) -> list[Photograph]:
        """Those of which something was said."""
        return [photo for photo in self.photos if photo.turns]

    @cached_property
    def beside(self) -> dict[str, Counter]:
        """Noun -> how many photographs show it and each other noun."""
        found: dict[str, Counter] = {}
        for photo in self.photos:
            for noun in photo.counts:
                found.setdefault(noun, Counter()).update(photo.counts.keys() - {noun})
        return found

    @property
    def subfolder(self) -> str:
        """Of rows and figures, so that those of other records are apart."""
        return f"{self.name}-{self.digest}"

    @cached_property
    def digest(self) -> str:
        """What tells equally named sources with other records apart."""
        said = [photo.turns for photo in self.others.talk] if self.others else []
        facts = [(p.image_id, p.items, list(p.nouns), p.turns, p.questions,
                  [(kind, text) for kind, (text, _) in p.contexts.items()]) for p in self.photos]
        return hashlib.sha256(ascii((facts, said)).encode()).hexdigest()[:12]

    # ---- samples, as `samples` makes them of scenes

    def presence_samples(self, split: str, count: int, pairs: int = 3,
                         held_out: bool = False) -> list[samples.Sample]:
        """`count` photographs, or all there are, each with the questions of `presence`."""
        return self._samples(split, count, "presence",
                             lambda photo: self.presence(photo, pairs, held_out))

    def question_samples(self, split: str, count: int, kind: str,
                         per_image: int = 3) -> list[samples.Sample]:
        """`count` photographs, or all there are, each with the questions of `questions`."""
        return self._samples(split, count, kind,
                             lambda photo: self.questions(photo, kind, per_image))

    def presence(self, photo: Photograph, pairs: int = 3, held_out: bool = False) -> samples.Sample:
        """A photograph with up to `pairs` yes- and as many no-questions.

        Those of the file's own yes-no questions where it has any questions: a table may have more
        of one answer, and lists not all that is shown. Else as `samples.ask_presence`.
        """
        if not photo.questions:
            return samples.ask_presence(photo, pairs, held_out)
        rng = np.random.default_rng((*photo.seed, 2))
        own = [q for q in photo.questions if q.options == ("Yes", "No")]
        own = [own[i] for i in rng.permutation(len(own))]
        more = [q for answer in ("Yes", "No")
                for q in [q for q in own if q.answer == answer][pairs:]]
        return samples.Sample(photo, tuple(q for q in own if q not in more))

    def questions(self, photo: Photograph, kind: str, most: int = 3) -> samples.Sample:
        """A photograph with up to `most` questions of a kind: its file's, or read from its boxes.

        Kind `own`: what a table asks that is no presence question.
        """
        own = [q for q in photo.questions if q.kind == kind][:most]
        if own or kind == "own" or kind == "presence" and photo.questions:
            return samples.Sample(photo, tuple(own))
        return samples.drawn(photo, kind, most)

    def _samples(self, split: str, count: int, kind: str, ask) -> list[samples.Sample]:
        if split not in ORDERS:
            raise VDPError(f"{self.name} has no split {split!r}: photographs have but "
                           f"{', '.join(ORDERS)}")

        def asked():
            for photo in self.photos[::ORDERS[split]]:
                try:
                    sample = ask(photo)
                except VDPError as error:  # such as a photograph that shows every noun there is
                    self.skip(f"photograph without questions of kind {kind}", error)
                    continue
                if sample.questions and photo.readable:
                    yield sample

        found = list(islice(asked(), count))
        if not found:
            raise Lacking(f"{self.name} in {self.root} has no photograph with questions of kind "
                          f"{kind}: see `vdp sources {self.name} {self.root}`")
        return found

    # ---- what readers call

    def known(self, image_id, where=None) -> Photograph | None:
        """The photograph of an id, if it is kept; an id that no record listed counts."""
        if (key := identity(image_id)) not in self.found and where:
            self.skip("record of an image that is not listed", where)
        return self.kept.get(key)

    def photo(self, image_id, *names: str, size=None, content: bytes = b"") -> Photograph | None:
        """The photograph of an id in the first of the files `names`; None where it is not kept.

        `content` stands for a file where a table holds its bytes.
        """
        key = identity(image_id)
        if key not in self.found:
            if size and min(size := tuple(map(int, size))) < 1:
                raise ValueError(f"size {size}")
            path = self._file(content) if content else (
                self.image(names) if self.need_images else None)
            self.found[key] = path is not None
            if path or not self.need_images:
                digest = hashlib.sha256(ascii((self.name, key)).encode()).digest()
                rank = int.from_bytes(digest[:8], "big")
                self.kept[key] = Photograph(f"{self.name}-{key}", path, (STREAM, rank), self, size)
                heapq.heappush(self._ranks, (-rank, key))
            if len(self._ranks) > KEPT:
                del self.kept[heapq.heappop(self._ranks)[1]]
        return self.kept.get(key)

    def _file(self, content: bytes) -> Path:
        """A file of an image's bytes, in a folder that goes when this source does."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="vdp-")
        path = Path(self._folder.name, hashlib.sha256(content).hexdigest())
        path.write_bytes(content)
        return path


READERS = {"table": table, "coco": coco, "visual-genome": visual_genome, "svit": svit, "pope": pope,
           **{f"pope-{setting}": pope for setting in pope.SETTINGS}}


def check_data(data: str, root=None, folder="") -> None:
    """VDPError for what `open_source` cannot know or find; a relative `root` is one in `folder`."""
    name, plus, talk = data.partition("+")
    if data != "scenes" and (name not in READERS or plus and talk not in (*READERS, "scenes")):
        raise VDPError(f"unknown data {data!r}: choose scenes or one of {', '.join(READERS)}, and "
                       "for talk about other images one more after a +, such as pope+svit")
    if data != "scenes" and not (root and Path(folder, root).exists()):
        raise VDPError(f"data {data}: " + (f"there is no {root}, give" if root else "give") +
                       " the folder that its files lie in (DATA_ROOT, --data-root)")


def open_source(data: str, root=None):
    """What makes samples: `samples` for the synthetic scenes, else a `Source` of files in `root`.

    `data` is `scenes` or a name of READERS, and may name after a + whose talk contexts about other
    images are made of: `pope+svit`, `table+scenes`. `root` is a folder, or a table's file. Both
    kinds have presence_samples(split, count, pairs, held_out) and question_samples(split, count,
    kind, per_image). VDPError for a name or folder that is not there and for files that are broken
    or lacking.
    """
    check_data(data, root)
    if data == "scenes":
        return samples
    name, plus, talk = data.partition("+")
    source = Source(name, root)
    if plus:
        source.others = Source(talk, root, need_images=False) if talk in READERS else None
    for one in filter(None, dict.fromkeys([source, source.others])):
        READERS[one.name].read(one)
        if not one.kept:
            why = "; ".join(f"{n} x {what}, first {one.first[what]}"
                            for what, n in one.skipped.most_common())
            raise VDPError(f"{one.name} in {one.root} has no usable photograph: {why or 'none'}")
    return source


def identity(image_id) -> str:
    """An id as text: 139, "139" and "000000000139" are one. TypeError for what is no id."""
    if isinstance(image_id, bool) or not isinstance(image_id, (int, str)) or image_id == "":
        raise TypeError(f"id {ascii(image_id)[:40]}")
    text = str(image_id).strip()
    return (text.lstrip("0") or "0") if text.isdigit() else text


def union(boxes) -> float:
    """The area that boxes (x0, y0, x1, y1) cover together."""
    edges = np.array(boxes)
    xs, ys = np.unique(edges[:, ::2]), np.unique(edges[:, 1::2])
    covered = np.zeros((len(ys) - 1, len(xs) - 1))
    for x0, y0, x1, y1 in boxes:
        covered[np.searchsorted(ys, y0):np.searchsorted(ys, y1),
                np.searchsorted(xs, x0):np.searchsorted(xs, x1)] = 1
    return float(np.diff(ys) @ covered @ np.diff(xs))
