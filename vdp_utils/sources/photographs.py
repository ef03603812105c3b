"""Photographs of released or own files: their boxes, questions, and what was said of them.

A reader (`coco.py`, ...) fills a `Source` from the files under a data root. A file that is broken
is a VDPError; a record that is, or a photograph that is not there, is left out and counted.
"""

import hashlib
import heapq
import math
import os
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from vdp_utils.errors import VDPError
from vdp_utils.sources import coco, pictures, pope, samples, scenes, svit, table, visual_genome
from vdp_utils.sources.dialogues import Question
from vdp_utils.sources.pictures import Item
from vdp_utils.sources.words import naming, plain

STREAM = 7  # of seeds: scenes have the lower ones
KEPT = 5_000  # photographs of a source that are kept, those with the smallest hashes of their ids
MOST = 500  # boxes, turns and questions that are kept of one photograph
SHAPE = 0.02  # by this share width to height may differ between a file and what its boxes are for
FOLDERS = ("", "images/", "coco/", "coco/images/", "vg/", "vg/images/", "raw/")  # of images
DEEPEST = 1_000  # levels of JSON: what parses it pays for each with memory
MALFORMED = (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError)


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
    questions: dict[str, Question] = field(default_factory=dict)

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
        if self.items and abs(width * self.size[1] / (height * self.size[0]) - 1) > SHAPE:
            self.source.skip("image of another shape than its boxes", self.path)
            return False
        return True

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
        raise VDPError(f"{self.image_id}: {self.source.name} has no photograph without "
                       f"{', '.join(avoid)}: ask about fewer nouns, or give more photographs")

    def other(self, rng) -> pictures.Picture:
        """Another photograph of which something was said, or a scene: see `Source.others`."""
        if self.source.others is None:
            return scenes.compose("context", int(rng.integers(2**31)))
        talk = self.source.others.talk
        at = int(rng.integers(max(1, len(talk))))
        for photo in talk[at:at + 2] + talk[:1]:
            if photo is not self:
                return photo
        raise VDPError(f"{self.source.name} in {self.source.root} holds no talk about other "
                       f"images: add one, such as {self.source.name}+svit or "
                       f"{self.source.name}+scenes")

    def dialogue(self, rng, turns: int, avoid=()) -> dict:
        """Up to `turns` of what was said, each once, that name none of `avoid` or its kin."""
        banned = naming(avoid)
        free = [turn for turn in self.turns if not banned.search("\n".join(turn))]
        said = [free[i] for i in rng.permutation(len(free))[:turns]]
        return {"image_id": self.image_id, "conversations": [
            {"from": who, "value": text} for turn in said for who, text in zip(("user", "gpt"),
                                                                               turn)]}

    # ---- what readers call

    def add_box(self, noun: str, box, where, crowd: bool = False) -> None:
        """A box (x, y, width, height) in pixels, clamped. A crowd's is of a number not known."""
        x, y, w, h = map(float, box)
        if not math.isfinite(x + y + w + h):
            raise ValueError(f"box {box}")
        width, height = self.size
        left, right = (min(max(edge, 0.0), width) for edge in (x, x + w))
        top, bottom = (min(max(edge, 0.0), height) for edge in (y, y + h))
        item = Item(noun, (left, top, right, bottom), self.size)
        if crowd or not (left < right and top < bottom):
            self.nouns[noun] = None
        if not (left < right and top < bottom):
            self.source.skip("box that is empty or outside its image", where)
        elif item in self.items:
            self.source.skip("repeated box", where)
        elif len(self.items) == MOST:
            self.source.skip(f"box beyond the first {MOST} of an image", where)
        else:
            self.items.append(item)

    def add_turn(self, question: str, answer: str, where) -> None:
        """What a person, then a model or an annotator said of it, without control tokens."""
        turn = plain(question), plain(answer)
        if not all(turn) or "message is empty" in turn[1].lower():  # so in some of SVIT's
            self.source.skip("empty turn", where)
        elif turn in self.turns:
            self.source.skip("repeated turn", where)
        elif len(self.turns) == MOST:
            self.source.skip(f"turn beyond the first {MOST} of an image", where)
        else:
            self.turns.append(turn)

    def add_question(self, question: Question, where) -> None:
        """A question of the file's own; equal texts are one question."""
        question = replace(question, text=plain(question.text))
        if not question.text:
            raise ValueError("a question of no words")
        known = self.questions.setdefault(question.text, question)
        if known.answer != question.answer:
            self.source.skip("second answer to a question", where)
        elif known is not question:
            self.source.skip("repeated question", where)
        elif len(self.questions) > MOST:
            del self.questions[question.text]
            self.source.skip(f"question beyond the first {MOST} of an image", where)
        elif question.kind != "presence" or question.answer == "Yes":
            self.nouns.update(dict.fromkeys(question.nouns))


class Source:
    """The photographs under a data root, in an order of no meaning, and what was left out.

    `records` counts what was read, by file and part; `skipped` what was left out, by reason, and
    `first` says where that was met first. `others` is the source whose talk contexts about other
    images are made of, None for scenes. With `files` False photographs are kept for what was said
    of them, and their files are not looked for.
    """

    def __init__(self, name: str, root, files: bool = True):
        root = Path(os.path.abspath(root))
        self.file = root if root.is_file() else None
        self.name, self.root, self.files = name, root.parent if self.file else root, files
        self.others: Source | None = self
        self.records, self.skipped, self.first = Counter(), Counter(), {}
        self.found: dict[str, bool] = {}  # of every photograph that a record names
        self.kept: dict[str, Photograph] = {}
        self._ranks: list[tuple[int, str]] = []

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

    @cached_property
    def digest(self) -> str:
        """What tells equally named sources with other records apart."""
        said = [photo.turns for photo in self.others.talk] if self.others else []
        facts = [(p.image_id, p.items, list(p.nouns), p.turns, p.questions) for p in self.photos]
        return hashlib.sha256(ascii((facts, said)).encode()).hexdigest()[:12]

    # ---- samples, as those of scenes in `samples`

    def presence_samples(self, split: str, count: int, pairs: int = 3,
                         held_out: bool = False) -> list[samples.Sample]:
        """`count` photographs or all there are, with up to `pairs` yes- and as many no-questions.

        A photograph's own yes-no questions, where it has some; of one answer only, where it has
        only those. Others are asked as `samples.ask_presence` does.
        """
        def ask(photo):
            yes_no = [[q for q in photo.questions.values() if q.options == ("Yes", "No")
                       and q.answer == answer] for answer in ("Yes", "No")]
            if not any(yes_no):
                return samples.ask_presence(photo, pairs, held_out)
            number, rng = min(map(len, yes_no)) or pairs, np.random.default_rng((*photo.seed, 2))
            chosen = [some[i] for some in yes_no
                      for i in rng.permutation(len(some))[:min(number, pairs)]]
            return samples.Sample(photo, tuple(chosen[i] for i in rng.permutation(len(chosen))))

        return self._samples(split, count, "presence", ask)

    def question_samples(self, split: str, count: int, kind: str,
                         per_image: int = 3) -> list[samples.Sample]:
        """`count` photographs or all that have questions of `kind`, `per_image` at most.

        Kind `own`: what a table asks that is no presence question.
        """
        def ask(photo):
            own = [q for q in photo.questions.values() if q.kind == kind][:per_image]
            if own or kind == "own":
                return samples.Sample(photo, tuple(own))
            return samples.drawn(photo, kind, per_image)

        return self._samples(split, count, kind, ask)

    def _samples(self, split: str, count: int, kind: str, ask) -> list[samples.Sample]:
        if split != "evaluation":
            raise VDPError(f"{self.name} has no split {split!r}: photographs have but 'evaluation'")

        def asked():
            for photo in self.photos:
                try:
                    sample = ask(photo)
                except VDPError as error:
                    self.skip(f"photograph without questions of kind {kind}", error)
                    continue
                if sample.questions and photo.readable:
                    yield sample

        found = list(islice(asked(), count))
        if not found:
            raise VDPError(f"{self.name} in {self.root} has no photograph with questions of kind "
                           f"{kind}: see `vdp sources {self.name} {self.root}`")
        return found

    # ---- what readers call

    def skip(self, reason: str, where) -> None:
        """Count what is left out."""
        self.skipped[reason] += 1
        self.first.setdefault(reason, str(where))

    @contextmanager
    def noting(self, where: str):
        """A record in which something lacks or is of the wrong type is left out and counted."""
        try:
            yield
        except MALFORMED as error:
            self.skip("malformed record", f"{where} ({ascii(error)[:80]})")

    def find(self, *patterns: str) -> list[Path]:
        """Files that match a pattern, up to three folders below the root."""
        found = {path for pattern in patterns for depth in ("", "*/", "*/*/", "*/*/*/")
                 for path in self.root.glob(depth + pattern) if path.is_file()}
        return sorted(found)

    def read(self, path: Path, part: str = "item"):
        """Yield (where, record) of a JSON list, of lines of JSON, or of a list inside an object.

        `part` is ijson's prefix: `item` for a list or lines, `images.item` for one of an object.
        One record at a time is in memory. VDPError for a file that is not whole, or not of JSON.
        """
        import ijson

        label, number = f"{path.name} {part.removesuffix('item').rstrip('.')}".strip(), 0
        try:
            with open(path, "rb") as file:
                start = 3 * (file.read(3) == b"\xef\xbb\xbf")  # a byte-order mark
                file.seek(start)
                opening = next((byte for byte in iter(lambda: file.read(1), b"")
                                if not byte.isspace()), b"")
                file.seek(start)
                lines = opening == b"{" and part == "item"
                if opening != (b"[" if part == "item" else b"{") and not lines:
                    raise VDPError(f"{path}: {'a list' if part == 'item' else 'an object'} of "
                                   "records should stand here as JSON in UTF-8: get it again")
                for number, record in enumerate(ijson.items(
                        _Shallow(file, path), "" if lines else part, use_float=True,
                        multiple_values=lines), 1):
                    self.records[label] += 1
                    yield f"{path.name}, {part} {number}", record
        except (OSError, ijson.JSONError) as error:
            why = str(error).strip().split("\n")[0]
            raise VDPError(f"{path}, {part} {number + 1}: not whole, or no JSON in UTF-8 ({why}): "
                           "get the file again") from error
        if not number:
            raise VDPError(f"{path}: there is no {part}: is this the file as it was released?")

    def has_folder(self, name: str) -> bool:
        """Whether photographs may lie in a folder of this name."""
        return any((self.root / folder / name).is_dir() for folder in FOLDERS)

    def known(self, image_id, where=None) -> Photograph | None:
        """The photograph of an id, if it is kept; an id that no record listed counts."""
        if (key := identity(image_id)) not in self.found and where:
            self.skip("record of an image that is not listed", where)
        return self.kept.get(key)

    def photo(self, image_id, *names: str, size=None) -> Photograph | None:
        """The photograph of an id in the first of the files `names`; None where it is not kept."""
        key = identity(image_id)
        if key not in self.found:
            if size and min(size := tuple(map(int, size))) < 1:
                raise ValueError(f"size {size}")
            path = self.image_path(names) if self.files else None
            self.found[key] = path is not None
            if path or not self.files:
                self._keep(key, path, size)
        return self.kept.get(key)

    def _keep(self, key: str, path: Path | None, size) -> None:
        digest = hashlib.sha256(ascii((self.name, key)).encode()).digest()
        rank = int.from_bytes(digest[:8], "big")
        self.kept[key] = Photograph(f"{self.name}-{key}", path, (STREAM, rank), self, size)
        heapq.heappush(self._ranks, (-rank, key))
        if len(self._ranks) > KEPT:
            del self.kept[heapq.heappop(self._ranks)[1]]

    def image_path(self, names) -> Path | None:
        """The first of the files that is there, in the root or a folder of FOLDERS; or None."""
        for name in (folder + name for name in names for folder in FOLDERS):
            path = Path(os.path.normpath(self.root / name))
            if not path.is_relative_to(self.root):
                self.skip("path that leaves the data root", name)
                return None
            try:
                if path.is_file():
                    if path.stat().st_size:
                        return path
                    self.skip("image of no bytes", path)
                    return None
            except OSError:  # such as a name too long
                continue
        self.skip("image that is missing", self.root / (*names, "")[0])
        return None


class _Shallow:
    """A file to parse, refused where it opens DEEPEST levels within one block."""

    def __init__(self, file, path):
        self.file, self.path = file, path

    def read(self, size: int) -> bytes:
        block = self.file.read(size)
        codes = np.frombuffer(block, np.uint8) | 32  # "[" as "{", "]" as "}"
        depth = np.cumsum((codes == 123).astype(int) - (codes == 125))
        if len(depth) and (depth - np.minimum.accumulate(depth)).max() > DEEPEST:
            raise VDPError(f"{self.path}: more than {DEEPEST} levels deep: get the file again")
        return block


READERS = {  # name -> (module, what it reads)
    "table": (table, "your own: one CSV or parquet file of image, question, answer"),
    "coco": (coco, "COCO's instances_*.json and captions_*.json"),
    "visual-genome": (visual_genome, "its image_data.json and objects.json"),
    "svit": (svit, "SVIT's dialogues, with Visual Genome's objects where those are there"),
    "pope": (pope, "POPE's questions, all of them; with COCO's boxes where those are there"),
    **{f"pope-{name}": (pope, f"those of POPE's {name} setting") for name in pope.SETTINGS},
}


def open_source(data: str, root=None):
    """What makes samples: `samples` for the synthetic scenes, else a `Source` of files in `root`.

    `data` is `scenes` or a name of READERS, and may name after a + whose talk contexts about other
    images are made of: `pope+svit`, `table+scenes`. `root` is a folder, or a table's file. Both
    kinds have presence_samples(split, count, pairs, held_out) and question_samples(split, count,
    kind, per_image). VDPError for a name or folder that is not there and for files that are broken
    or lacking.
    """
    if data == "scenes":
        return samples
    names = data.split("+")
    if len(names) > 2 or not {*names} <= {*READERS, *(["scenes"] if names[1:] else [])} \
            or names[0] == "scenes":
        raise VDPError(f"unknown data {data!r}: choose scenes or one of {', '.join(READERS)}, and "
                       "for talk about other images one more after a +, such as pope+svit")
    if root is None or not Path(root).exists():
        raise VDPError(f"data {data} from {root}: give the folder that its files lie in")
    source, *talk = [Source(name, root, files=not n) for n, name in enumerate(names)
                     if name != "scenes"]
    for one in (source, *talk):
        READERS[one.name][0].read(one)
        if not one.kept:
            why = "; ".join(f"{n} x {what}, first {one.first[what]}"
                            for what, n in one.skipped.most_common())
            raise VDPError(f"{one.name} in {one.root} has no usable photograph: {why or 'none'}")
    if names[1:]:
        source.others = talk[0] if talk else None
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
