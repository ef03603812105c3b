"""`vdp dataset`: questions about images behind contexts of exact lengths, written for others."""

import base64
import csv
import os
import tempfile
from collections import Counter
from io import BytesIO
from pathlib import Path
from string import ascii_uppercase

import jinja2
import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow.parquet import ParquetWriter
from tqdm import tqdm

from vdp_utils.errors import VDPError
from vdp_utils.findings import KINDS
from vdp_utils.lvlm import prompts
from vdp_utils.lvlm.load import load_tokenizer
from vdp_utils.sources.dialogues import LEAD_AT_START, check_context_kind
from vdp_utils.sources.photographs import open_source

CARD, TABLE, TSV = "README.md", "test.parquet", "vlmevalkit.tsv"
TSV_COLUMNS = ("index", "image", "question", "answer", "category", "l2-category")
PNG = b"\x89PNG"  # what its files begin with
PAGE = Path(__file__).with_name("dataset.md.j2")  # the words of the card
TOGETHER = 16  # images of one row group, in which equal images and contexts are stored once
TEXTS = pa.list_(pa.string())
COLUMNS = pa.schema(dict(
    image=pa.struct(dict(bytes=pa.binary(), path=pa.string())), question=pa.string(),
    answer=pa.string(), options=TEXTS, context=pa.string(), context_kind=pa.string(),
    context_length=pa.int32(), context_ids=pa.list_(pa.int32()), target_share=pa.float64(),
    question_kind=pa.string(), noun=TEXTS, image_id=pa.string(), question_id=pa.string(),
    objects=pa.list_(pa.struct(dict(noun=pa.string(), box=pa.list_(pa.float64())))),
    width=pa.int32(), height=pa.int32(), tokenizer=pa.string()))


def dataset(data: str, root, out, model="embedded-s", images=100, pairs=3, kinds=KINDS,
            lengths=(512, 2048), questions="presence", seed=0):
    """Write the files CARD, TABLE and TSV to the folder `out`, whole or not at all.

    Each question stands in one line without a context and in one for each of `kinds` and
    `lengths`, in tokens of the model's tokenizer; a kind is left out for images without one. The
    same arguments give the same files. The images are those of `open_source(data, root)`.
    """
    kinds, lengths, out = list(dict.fromkeys(kinds)), sorted(set(lengths)), Path(out)
    for kind in kinds:
        check_context_kind(kind)
    if out.exists() and (not out.is_dir() or set(os.listdir(out)) - {CARD, TABLE, TSV}):
        raise VDPError(f"{out} holds other things than a set: give a new folder")
    source, tokenizer = open_source(data, root), load_tokenizer(model)
    samples = (source.presence_samples("evaluation", images, pairs) if questions == "presence" else
               source.question_samples("evaluation", images, questions, 2 * pairs))
    left, counts = {}, Counter()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f"{out.name}-") as folder:
            folder = Path(folder)
            with (ParquetWriter(folder / TABLE, COLUMNS, compression="zstd",
                                dictionary_pagesize_limit=2**30) as table,
                  open(folder / TSV, "w", encoding="utf-8", newline="") as tsv):
                lines = csv.writer(tsv, delimiter="\t", lineterminator="\n")
                letters = _letters(samples)
                lines.writerow([*TSV_COLUMNS, *letters])
                for at in tqdm(range(0, len(samples), TOGETHER), desc=str(out)):
                    rows = []
                    for sample in samples[at:at + TOGETHER]:
                        mine = rows_of(sample, tokenizer, model, kinds, lengths, seed, left)
                        lines.writerows(_lines(mine, counts.total(), letters))
                        counts.update((row["context_kind"], row["context_length"]) for row in mine)
                        rows += mine
                    table.write_table(pa.Table.from_pylist(rows, COLUMNS))
            (folder / CARD).write_text(jinja2.Template(PAGE.read_text(), keep_trailing_newline=True)
                                       .render(data=data, model=model, seed=seed, counts=counts,
                                               questions=questions, images=len(samples),
                                               columns=COLUMNS, left=left), encoding="utf-8")
            out.mkdir(exist_ok=True)
            for name in (CARD, TABLE, TSV):
                os.replace(folder / name, out / name)
    except OSError as error:
        raise VDPError(f"{out} cannot be written ({error}): give a folder on a disk with room"
                       ) from error
    print(f"{out}: {counts.total()} lines about {len(samples)} images")
    for kind, (n, why) in left.items():
        print(f"left out for {n} of {len(samples)} images: {kind} contexts ({why})")


def rows_of(sample, tokenizer, model: str, kinds, lengths, seed: int, left: dict) -> list[dict]:
    """A sample's lines of the table. `left` counts by kind where there is no context, and why."""
    picture, contexts = sample.picture, {("", 0): np.zeros(0, np.int64)}
    for kind in kinds:
        if why := picture.untold(kind, sample.asked):
            n, first = left.get(kind, (0, why))
            left[kind] = n + 1, first
            continue
        longest = prompts.context(tokenizer, kind, sample, lengths[-1], seed)
        contexts |= {(kind, length): longest[len(longest) - length:] for length in lengths}
    content, objects = encoded(picture), [
        dict(noun=item.noun, box=[x, y, x1 - x, y1 - y])
        for item in picture.items for x, y, x1, y1 in [item.box]]
    objects += [dict(noun=noun, box=None) for noun in picture.counts
                if noun not in {item.noun for item in picture.items}]
    size = picture.items[0].size if picture.items else picture.image().size
    form = "png" if content.startswith(PNG) else "jpg"
    image = dict(bytes=content, path=f"{sample.image_id}.{form}")
    return [dict(
        image=image, question=question.text, answer=question.answer, options=question.options,
        context=tokenizer.decode(ids), context_kind=kind, context_length=length, context_ids=ids,
        target_share=picture.share(question.nouns[0]) if question.nouns else None,
        question_kind=question.kind, noun=question.nouns, image_id=sample.image_id,
        question_id=str(number), objects=objects, width=size[0], height=size[1],
        tokenizer=model) for (kind, length), ids in contexts.items()
        for number, question in enumerate(sample.questions)]


def encoded(picture) -> bytes:
    """The file's own bytes where every program shows them alike; else a PNG of what is seen."""
    seen, path, buffer = picture.image(), getattr(picture, "path", None), BytesIO()
    if path:
        with Image.open(path) as file:
            plain = file.format in ("JPEG", "PNG") and file.getexif().get(0x0112, 1) == 1
            if plain and file.mode == "RGB" and np.array_equal(np.asarray(file), np.asarray(seen)):
                return path.read_bytes()
    seen.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _letters(samples) -> str:
    """The option columns of the TSV: none where all is answered by yes or no."""
    options = {question.options for sample in samples for question in sample.questions}
    return ascii_uppercase[:max(map(len, options)) * (options != {("Yes", "No")})]


def _lines(rows: list[dict], index: int, letters: str):
    """VLMEvalKit's lines of one image: all but the first name the one that has the image."""
    first = index
    for row in rows:
        image = base64.b64encode(row["image"]["bytes"]).decode() if index == first else first
        options, answer = row["options"] if letters else (), row["answer"]
        yield [index, image, row["context"] + LEAD_AT_START + row["question"],
               letters[options.index(answer)] if letters else answer,
               row["context_kind"] or "none", row["context_length"],
               *options, *[""] * (len(letters) - len(options))]
        index += 1
