"""`vdp dataset`: what it writes, and that it is read back as the source that it was made of."""

import base64
import gc
import importlib.util
import io
import re
from pathlib import Path

import albums
import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from pyarrow import parquet
from typer.testing import CliRunner

from vdp_utils.commands import dataset, sources
from vdp_utils.commands.__main__ import app
from vdp_utils.errors import VDPError
from vdp_utils.lvlm import prompts
from vdp_utils.lvlm.load import LVLM
from vdp_utils.measuring import ResultStore
from vdp_utils.measuring.measure import condition, measure, prefix_of
from vdp_utils.paths import ROOT
from vdp_utils.sources.photographs import open_source

SAID = ("same_image", "other_images", "misleading")
EXAMPLE = ROOT / "data" / "example"  # written by these options
OPTIONS = ("--images", "4", "--pairs", "2", "--length", "128", "--length", "512")


@pytest.fixture
def write(tiny, monkeypatch, tmp_path):
    """Runs `vdp dataset` with the tiny model's tokenizer; returns its folder."""
    monkeypatch.setattr(dataset, "load_tokenizer", lambda name: tiny.tokenizer)

    def run(*given, out=tmp_path / "set"):
        CliRunner().invoke(app, ["dataset", *map(str, given[:2]), str(out), *map(str, given[2:])],
                           catch_exceptions=False)
        return out

    return run


def same_prompts(lvlm: LVLM, set_folder, source, count, pairs, prefix=""):
    """That a set's prompts are those of the source it was made of, token for token and pixel for
    pixel, of every kind that it has, at every length, also between the written ones."""
    back = open_source("table", set_folder)
    assert not back.skipped
    own = {sample.image_id: sample for sample in source.presence_samples("evaluation", count,
                                                                        pairs)}
    found = back.presence_samples("evaluation", count + 9)
    assert {s.image_id for s in found} == {f"table-{name}" for name in own} and len(own) > 1
    kinds = set()
    for sample in found:
        other = own[sample.image_id.removeprefix("table-")]
        assert set(sample.questions) == set(other.questions) and sample.asked == other.asked
        for noun in other.asked:
            np.testing.assert_allclose(sample.picture.share(noun), other.picture.share(noun))
        for kind in SAID:
            if other.picture.untold(kind, other.asked):
                assert "talk" in sample.picture.untold(kind, sample.asked)
                continue
            for length in (0, 3, 40, 64):
                kinds.add(kind)
                one = condition(lvlm, kind, length)
                mine, theirs = prefix_of(lvlm, sample, one), prefix_of(lvlm, other, one)
                np.testing.assert_array_equal(mine.input_ids, theirs.input_ids)
                np.testing.assert_array_equal(mine.kinds, theirs.kinds)
                for name in theirs.images:
                    assert (mine.images[name] == theirs.images[name]).all()
    assert kinds == set(SAID)
    return found


def test_a_set_of_scenes_is_read_back_token_for_token_and_measured(write, tiny, tmp_path):
    out = write("scenes", "-", "--images", 3, "--pairs", 1, "--length", 64, "--length", 40)
    found = same_prompts(tiny, out, open_source("scenes"), 3, 1)
    rows = measure(tiny, found, [condition(tiny, "misleading", 40)], ResultStore(tmp_path / "rows"),
                   "set")
    assert len(rows) == 6 and set(rows["context_tokens"]) == {40} and (rows["named"] > 0).any()


def test_a_set_of_photographs_is_read_back_so_too(write, tiny, tmp_path):
    albums.coco(tmp_path / "coco")
    for number, change in ((2, "L"), (3, "CMYK")):  # a PNG stands for what programs show unlike
        path = tmp_path / f"coco/val2017/{number:012d}.jpg"
        Image.open(path).convert(change).save(path)
    albums.photograph(tmp_path / f"coco/val2017/{4:012d}.jpg", 4, exif=albums.ROTATED)
    out = write("coco", tmp_path / "coco", "--length", 64)
    source = open_source("coco", tmp_path / "coco")
    same_prompts(tiny, out, source, 6, 3)
    rows = parquet.read_table(out / dataset.TABLE).to_pylist()
    files = {row["image"]["path"]: row["image"]["bytes"] for row in rows}
    assert {name: Image.open(io.BytesIO(some)).format for name, some in files.items()} == {
        f"coco-{n}.{'png' if n in (2, 3, 4) else 'jpg'}": "PNG" if n in (2, 3, 4) else "JPEG"
        for n in albums.SHOWN}


def test_every_line_has_as_many_tokens_as_it_says(write, tiny):
    out = write("scenes", "-", "--images", 2, "--length", 64, "--length", 40, "--seed", 3)
    table = pd.read_parquet(out / dataset.TABLE)
    assert (table["context_ids"].map(len) == table["context_length"]).all()
    assert (table["context_ids"].map(tiny.tokenizer.decode) == table["context"]).all()
    groups = table.groupby(["context_kind", "context_length"]).size()
    assert set(groups.index) == {("", 0), *((kind, n) for kind in SAID for n in (40, 64))}
    assert groups.nunique() == 1 and table["image_id"].nunique() == 2
    assert (table["target_share"][table["answer"] == "Yes"] > 0).all()
    assert (table["target_share"][table["answer"] == "No"] == 0).all()
    asked = table["question"] + table["question_id"]
    assert not table.assign(asked=asked).duplicated(
        ["image_id", "asked", "context_kind", "context_length"]).any()


def test_the_same_arguments_give_the_same_files_and_another_seed_other_contexts(write, tmp_path):
    given = ("scenes", "-", "--images", 2, "--length", 40)
    first = write(*given, out=tmp_path / "a")
    again, other = write(*given, out=tmp_path / "b"), write(*given, "--seed", 1,
                                                            out=tmp_path / "c")
    for name in (dataset.CARD, dataset.TABLE, dataset.TSV):
        assert (first / name).read_bytes() == (again / name).read_bytes()
    one, two = (pd.read_parquet(folder / dataset.TABLE) for folder in (first, other))
    assert (one["question"] == two["question"]).all()
    assert (one["context"] != two["context"])[one["context_length"] > 0].all()
    assert open_source("table", first).digest != open_source("table", other).digest


def test_the_card_tells_the_columns_and_images_to_hugging_face(write):
    out = write("scenes", "-", "--images", 2, "--length", 40)
    head = yaml.safe_load((out / dataset.CARD).read_text().split("---\n")[1])
    features = {one.pop("name"): one for one in head["dataset_info"]["features"]}
    assert list(features) == parquet.read_schema(out / dataset.TABLE).names
    assert features["image"] == {"dtype": "image"}
    assert features["options"] == {"list": "string"} and features["width"] == {"dtype": "int32"}
    (config,) = head["configs"]
    assert (out / config["data_files"][0]["path"]).is_file()
    if importlib.util.find_spec("datasets"):  # a large package that nothing else here needs
        import datasets

        found = datasets.load_dataset(str(out), cache_dir=str(out.parent / "cache"))["test"]
        assert len(found[0]["context_ids"]) == found[0]["context_length"]
        assert found[0]["image"].size == (160, 160)


def vlmevalkit(path):
    """Its lines with images, as VLMEvalKit reads them: an index of another line stands for its
    image."""
    lines = pd.read_csv(path, sep="\t")
    assert not lines[["index", "image", "question", "answer", "category"]].isna().any().any()
    images = dict(zip(lines["index"].astype(str), lines["image"].astype(str)))
    for key, text in images.items():
        if len(text) <= 64:
            assert len(images[text]) > 64
            images[key] = images[text]
    return lines, [Image.open(io.BytesIO(base64.b64decode(one))) for one in images.values()]


def test_the_tsv_says_the_same_to_vlmevalkit(write, tmp_path):
    out = write("scenes", "-", "--images", 2, "--length", 40)
    rows = pd.read_parquet(out / dataset.TABLE)
    lines, images = vlmevalkit(out / dataset.TSV)
    assert list(lines) == list(dataset.TSV_COLUMNS) and set(lines["answer"]) == {"Yes", "No"}
    for line, row, image in zip(lines.itertuples(), rows.itertuples(), images, strict=True):
        assert line.question == (f"{row.context}About the image shown at the start: "
                                 f"{row.question}")
        assert (line.answer, line.category) == (row.answer, row.context_kind or "none")
        own = Image.open(io.BytesIO(row.image["bytes"]))
        assert np.array_equal(np.asarray(image), np.asarray(own))
    out = write("scenes", "-", "--questions", "position", "--images", 2, "--length", 40,
                out=tmp_path / "positions")
    rows = pd.read_parquet(out / dataset.TABLE)
    lines, _ = vlmevalkit(out / dataset.TSV)
    named = [lines.loc[at, letter] for at, letter in enumerate(lines["answer"])]
    assert named == list(rows["answer"]) and set(lines["answer"]) <= set("ABCD")
    back = open_source("table", out).question_samples("evaluation", 9, "position")
    assert {q.text for s in back for q in s.questions} == set(rows["question"])


def test_another_tokenizer_takes_the_text_and_no_more_than_there_is(write, tiny, make_tokenizer):
    """A word a token: other ids of the same text, at an exact length all the same."""
    out = write("scenes", "-", "--images", 2, "--length", 200)
    sample, words = open_source("table", out).presence_samples("evaluation", 1)[0], make_tokenizer(
        words=True)
    (text, _) = sample.picture.ready_context("other_images")
    whole = words(text, add_special_tokens=False).input_ids
    assert prompts.context(words, "other_images", sample, 20).tolist() == whole[-20:]
    for tokenizer, given in ((words, dict(length=len(whole) + 1)), (tiny.tokenizer, dict(
            length=20, seed=1)), (tiny.tokenizer, dict(length=20, misleading=2))):
        with pytest.raises(VDPError, match="has one other_images context, of .* ask for at most"):
            prompts.context(tokenizer, "other_images", sample, **given)
    assert len(prompts.context(words, "prose", sample, 30)) == 30  # which is of no image


def test_what_cannot_be_told_is_left_out_and_said(write, tiny, monkeypatch, tmp_path, capsys):
    instances, captions = albums.coco(tmp_path / "coco")
    for one in captions["annotations"]:
        if one["image_id"] < 3:
            one["caption"] = "A person, a bird, a surfboard, an oven, a refrigerator and a cup."
    albums.write(tmp_path / "coco/annotations/captions_val2017.json", captions)
    out = write("coco", tmp_path / "coco", "--length", 40)
    table = pd.read_parquet(out / dataset.TABLE)
    kinds = table[table["context_kind"] == "same_image"]["image_id"].nunique()
    assert kinds < table["image_id"].nunique() == len(albums.SHOWN)
    monkeypatch.setattr(sources, "load_tokenizer", lambda name: tiny.tokenizer)
    capsys.readouterr()
    sources.sources("table", out)
    assert re.search(rf"photographs with a context: same_image +\| {kinds} ",
                     capsys.readouterr().out)
    card = (out / dataset.CARD).read_text()
    assert f"Left out for {6 - kinds} of the images: same_image contexts (nothing is said" in card


def test_a_folder_of_other_things_is_left_alone(write, tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set/notes.txt").write_text("mine")
    with pytest.raises(VDPError, match="holds other things than a set: give a new folder"):
        write("scenes", "-", "--length", 40)
    assert [path.name for path in (tmp_path / "set").iterdir()] == ["notes.txt"]
    with pytest.raises(VDPError, match="unknown context kind 'same'"):
        write("scenes", "-", "--kind", "same")


def test_broken_lines_of_a_set_are_counted(write, tmp_path):
    out = write("scenes", "-", "--images", 2, "--pairs", 1, "--length", 40, "--kind", "prose")
    rows = parquet.read_table(out / dataset.TABLE)
    changed = rows.to_pylist()
    assert [row["context_length"] for row in changed] == [0, 0, 40, 40] * 2
    changed[2] |= dict(context="Something else.", context_ids=[1, 2])
    changed[3] |= dict(context_kind="sung")
    changed[4] |= dict(image=None, image_id=None)
    changed[5] |= dict(question_kind="riddle")
    changed[6] |= dict(context_ids=[-1])
    parquet.write_table(rows.from_pylist(changed, rows.schema), out / dataset.TABLE)
    source = open_source("table", out)
    assert dict(source.skipped) == {"malformed record": 4}
    changed[6] |= dict(context_ids=[3, 4], context="x")
    changed[7] |= dict(context_ids=[5, 6], context="y")
    parquet.write_table(rows.from_pylist(changed, rows.schema), out / dataset.TABLE)
    source = open_source("table", out)
    assert source.skipped["context that does not end as the others of its kind"] == 1


def test_the_committed_example_is_what_the_command_writes(base_tokenizer, monkeypatch, tmp_path):
    monkeypatch.setattr(dataset, "load_tokenizer", lambda name: base_tokenizer)
    CliRunner().invoke(app, ["dataset", "scenes", "-", str(tmp_path / "set"), *OPTIONS],
                       catch_exceptions=False)
    made, kept = (folder / dataset.CARD for folder in (tmp_path / "set", EXAMPLE))
    assert made.read_text() == kept.read_text()
    tables = [parquet.read_table(folder / dataset.TABLE) for folder in (tmp_path / "set", EXAMPLE)]
    assert tables[0].drop(["image"]) == tables[1].drop(["image"])
    for one, other in zip(*(table["image"].to_pylist() for table in tables)):
        pixels = (np.asarray(Image.open(io.BytesIO(some["bytes"]))) for some in (one, other))
        assert np.array_equal(*pixels)  # compressed as another machine's library likes
    assert sum(path.stat().st_size for path in EXAMPLE.iterdir()) < 1_000_000
    assert len(vlmevalkit(EXAMPLE / dataset.TSV)[0]) == tables[0].num_rows


def test_images_in_a_table_of_one_s_own_are_taken(tmp_path):
    """As `datasets` writes them: bytes, with a path or without."""
    albums.photograph(tmp_path / "a.png", 1)
    content = (tmp_path / "a.png").read_bytes()
    rows = [dict(image=dict(bytes=content, path=path), question=f"Is it {n}?", answer="yes")
            for n, path in enumerate((None, "x.png", None))]
    pd.DataFrame(rows).to_parquet(tmp_path / "t.parquet")
    source = open_source("table", tmp_path / "t.parquet")
    assert not source.skipped and sorted(len(p.questions) for p in source.photos) == [1, 2]
    for photo in source.photos:
        assert np.array_equal(np.asarray(photo.image()), np.asarray(Image.open(tmp_path / "a.png")))
    folder = Path(source._folder.name)
    assert folder.is_dir()
    del source, photo
    gc.collect()
    assert not folder.exists()
