"""One's own table: a CSV or parquet file of columns image, question, answer.

Optional columns: `options` (a list, or text with | between), needed unless the answer is yes or no;
`noun` (what is asked about, several with | between: no context names it); `context` (talk about
the image: lines 'User: ...' and 'Assistant: ...', or plain sentences). Images are paths under the
data root, which is the table's folder where the table itself is given.

A parquet file that `vdp dataset` wrote is such a table. It holds its images, and more columns:
`image_id`; `question_kind`; `context_kind`, of a context that is put before the question as it
stands, not talk to make contexts of; `context_ids`, its tokens; `objects` (nouns with boxes (x, y,
width, height), null where none is known, in pixels of `width` and `height`).
"""

import csv
import hashlib
import re
from dataclasses import replace
from itertools import cycle
from pathlib import Path

from vdp_utils.errors import VDPError
from vdp_utils.sources.coco import ASKS
from vdp_utils.sources.dialogues import QUESTION_KINDS, Question
from vdp_utils.sources.pope import yes_no
from vdp_utils.sources.words import noun, plain

NEEDED, OPTIONAL = ("image", "question", "answer"), ("options", "noun", "context")
OF_SETS = ("image_id", "question_kind", "context_kind", "context_ids", "objects", "width", "height")
LONGEST = 10_000_000  # characters of a cell: a context may be long


def read(source) -> None:
    """The rows of the one table there is, or that was given."""
    paths = [source.file] if source.file else source.find("*.csv", "*.parquet")
    if len(paths) != 1:
        raise VDPError(f"{source.root} holds {len(paths)} tables (.csv, .parquet): give the path "
                       "of one")
    rows = _parquet if paths[0].suffix == ".parquet" else _csv
    for number, row in enumerate(rows(paths[0]), 1):
        source.records[paths[0].name] += 1
        where = f"{paths[0].name}, row {number}"
        with source.noting(where):
            _add(source, row, where)


def _columns(path: Path, names, optional=OPTIONAL) -> list[str]:
    if lacking := set(NEEDED) - set(names or ()):
        raise VDPError(f"{path} lacks the columns {', '.join(sorted(lacking))}: name them so in "
                       "its first line")
    return [name for name in (*NEEDED, *optional) if name in names]


def _csv(path: Path):
    csv.field_size_limit(LONGEST)
    number = 0
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            columns = _columns(path, rows.fieldnames)
            for row in rows:
                number += 1
                yield {name: row[name] for name in columns}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise VDPError(f"{path}, row {number + 1}: no CSV in UTF-8 ({error}): write it again"
                       ) from error


def _parquet(path: Path):
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            columns = _columns(path, file.schema_arrow.names, OPTIONAL + OF_SETS)
            for batch in file.iter_batches(batch_size=100, columns=columns):
                yield from batch.to_pylist()
    except (OSError, UnicodeDecodeError, pyarrow.ArrowException) as error:
        raise VDPError(f"{path}: no parquet file, or a broken one ({error}): write it again"
                       ) from error


def _add(source, row: dict, where: str) -> None:
    image, content = row["image"], b""
    if isinstance(image, dict):  # as Hugging Face's tables hold images
        image, content = image.get("path"), image.get("bytes") or b""
    name = row.get("image_id") or image or content and hashlib.sha256(content).hexdigest()[:16]
    question, known = _question(source, row, where), source.known(name)
    size = (row["width"], row["height"]) if row.get("objects") else None
    photo = source.photo(name, image, size=size, content=content)
    if photo and not known:
        for one in row.get("objects") or ():
            if one["box"]:
                photo.add_box(noun(one["noun"]), one["box"], where)
            else:
                photo.nouns[noun(one["noun"])] = None
    of_a_set = row.get("context_kind") is not None  # where each question stands repeatedly
    if photo and question and not (of_a_set and question in photo.questions):
        photo.add_question(question, where)
    if photo and of_a_set:
        if row["context"]:
            photo.add_context(row["context_kind"], row["context"], row.get("context_ids") or (),
                              where)
    elif photo and row.get("context"):
        pieces = re.split(r"^(User|Assistant):", row["context"], flags=re.MULTILINE)
        said = list(zip(pieces[1::2], pieces[2::2]))
        turns = [(asked, reply) for (who, asked), (then, reply) in zip(said, said[1:])
                 if (who, then) == ("User", "Assistant")]
        sentences = re.split(r"(?<=[.!?])\s+", row["context"])
        for turn in turns or zip(cycle(ASKS), sentences):
            photo.add_turn(*turn, where)


def _question(source, row: dict, where: str) -> Question | None:
    nouns = tuple(noun(name) for name in _list(row.get("noun")))
    text, answer, options = _text(row["question"]), _text(row["answer"]), _list(row.get("options"))
    kind = row.get("question_kind")
    if kind not in (None, "own", *QUESTION_KINDS):
        raise ValueError(f"question of kind {kind}")
    known = {option.lower(): option for option in options or ("Yes", "No")}
    right = known.get(answer.lower().rstrip("."), known.get(answer.lower()))
    if known.keys() == {"yes", "no"} and right:
        question = yes_no(text, right.capitalize(), nouns)
        return replace(question, kind=kind) if kind else question
    if right and len(known) == len(options) > 1:
        return Question(kind or "own", text, right, options, nouns)
    source.skip("answer that is none of its options" if options else
                "question with neither options nor a yes-no answer", where)
    return None


def _text(value) -> str:
    if value is None or not (text := plain(str(value))):
        raise ValueError("an empty cell")
    return text


def _list(value) -> tuple[str, ...]:
    many = value.split("|") if value and isinstance(value, str) else value or ()
    return tuple(map(_text, many))
