"""Files of others under a data root: what is broken in them is named, or left out and counted."""

import os
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from vdp_utils.errors import VDPError

FOLDERS = ("", "images/", "coco/", "coco/images/", "vg/", "vg/images/", "raw/")  # of images
DEEPEST = 1_000  # levels of JSON: what parses it pays for each with memory
MALFORMED = (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError)


class Files:
    """A data root, a folder or one file in it, and what was read from there.

    `records` counts what was read, by file and part; `skipped` what was left out, by reason, and
    `first` says where each reason was met first.
    """

    def __init__(self, root):
        root = Path(os.path.abspath(root))
        self.file = root if root.is_file() else None
        self.root = root.parent if self.file else root
        self.records, self.skipped, self.first = Counter(), Counter(), {}

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
        return sorted({path for pattern in patterns for depth in ("", "*/", "*/*/", "*/*/*/")
                       for path in self.root.glob(depth + pattern) if path.is_file()})

    def has_folder(self, name: str) -> bool:
        """Whether images may lie in a folder of this name."""
        return any((self.root / folder / name).is_dir() for folder in FOLDERS)

    def image(self, names) -> Path | None:
        """The first of the files that is there, in the root or a folder of FOLDERS, or None."""
        for path in (self.root / folder / name for name in names for folder in FOLDERS):
            path = Path(os.path.normpath(path))
            if not path.is_relative_to(self.root):
                self.skip("path that leaves the data root", path)
                return None
            if os.path.isfile(path):
                if path.stat().st_size:
                    return path
                self.skip("image of no bytes", path)
                return None
        self.skip("image that is missing", self.root / names[0])
        return None

    def read(self, path: Path, part: str = "item"):
        """Yield (where, record) of a JSON list, of lines of JSON, or of a list inside an object.

        `part` is ijson's prefix: `item` for a list or lines, `images.item` for one of an object.
        One record at a time is in memory. VDPError for a file that is not whole, or not of JSON.
        """
        import ijson

        label, number = f"{path.name} {part.removesuffix('item').rstrip('.')}".strip(), 0
        try:
            with open(path, "rb") as file:
                head = file.read(1_000)
                mark = 3 * head.startswith(b"\xef\xbb\xbf")  # a byte-order mark
                file.seek(mark)
                first, alone = head[mark:].lstrip()[:1], part == "item"
                if first not in ([b"[", b"{"] if alone else [b"{"]):
                    raise VDPError(f"{path}: {'a list' if alone else 'an object'} of records "
                                   "should stand here as JSON in UTF-8: get the file again")
                lines = alone and first == b"{"
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


class _Shallow:
    """A file to parse, refused where it opens DEEPEST levels within one block."""

    def __init__(self, file, path):
        self.file, self.path = file, path

    def read(self, size: int) -> bytes:
        block = self.file.read(size)
        codes = np.frombuffer(b" " + block, np.uint8) | 32  # "[" as "{", "]" as "}"
        depth = np.cumsum((codes == 123).astype(int) - (codes == 125))
        if (depth - np.minimum.accumulate(depth)).max() > DEEPEST:
            raise VDPError(f"{self.path}: more than {DEEPEST} levels deep: get the file again")
        return block
