"""`vdp sources` and `vdp probe --data`: what lies in a folder, and a model asked about it."""

import json

import albums
import pytest
from typer.testing import CliRunner

from vdp_utils import stats
from vdp_utils.commands import probe, sources
from vdp_utils.commands.__main__ import app
from vdp_utils.errors import VDPError
from vdp_utils.lvlm.load import load_tokenizer


@pytest.fixture
def listed(make_tokenizer, monkeypatch):
    """Runs `vdp sources`; returns its tables as {first cell: the others}, and the tokenizer."""
    tokenizer, named = make_tokenizer(), []
    monkeypatch.setattr(sources, "load_tokenizer", lambda name: named.append(name) or tokenizer)

    def run(*given):
        done = CliRunner().invoke(app, ["sources", *map(str, given)], catch_exceptions=False)
        lines = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if "|" in line]
        cells = {name.strip(): [one.strip() for one in rest] for name, *rest in lines}
        return cells, tokenizer, named

    return run


def test_it_counts_what_is_there_and_what_was_left_out(listed, tmp_path):
    _, captions = albums.coco(tmp_path)
    (tmp_path / "val2017/000000000004.jpg").unlink()
    cells, tokenizer, named = listed("coco", tmp_path, "--model", "a/b")
    assert named == ["a/b"]
    assert cells["records: instances_val2017.json annotations"] == ["19"]
    assert cells["photographs found"] == ["5"] and cells["photographs missing"] == ["1"]
    assert cells["photographs to ask: counting"] == ["5"]
    assert cells["photographs to ask: presence"] == ["5"]
    assert cells["image that is missing"] == ["1", str(tmp_path / "val2017/000000000004.jpg")]
    said = [one["caption"] for one in captions["annotations"] if one["image_id"] != 4]
    least = sum(len(tokenizer(" ".join(text.split())).input_ids) for text in said)
    (all_of_it,), (mean,) = (cells[f"tokens of talk about {what}"] for what in (
        "other images (a/b)", "one photograph, mean (a/b)"))
    total = int(all_of_it.removeprefix("about "))
    assert least < total < 3 * least and abs(total / 5 - int(mean)) < 1


def test_it_counts_a_table_s_own_questions_and_the_talk_of_others(listed, tmp_path):
    path = albums.table(tmp_path)
    cells, _, named = listed("table+scenes", path)
    assert named == ["embedded-s"]
    for kind, questions, photographs in (("presence", 2, 2), ("own", 2, 2)):
        assert cells[f"questions in the files: {kind}"] == [str(questions)]
        assert cells[f"photographs to ask: {kind}"] == [str(photographs)]  # one is asked yes or no
    assert cells["tokens of talk about other images (embedded-s)"] == ["without end, of scenes"]
    with pytest.raises(VDPError, match="scenes lie in no folder: choose one of table"):
        sources.sources("scenes", tmp_path)


def test_probe_asks_about_photographs(uneven, monkeypatch, tmp_path):
    monkeypatch.setattr(stats, "RESAMPLES", 99)
    monkeypatch.setattr(probe, "load_lvlm", lambda *options: uneven)
    albums.coco(tmp_path)

    def ask(*more):
        done = CliRunner().invoke(app, [
            "probe", "a/b", "--data", "coco", "--data-root", str(tmp_path), "--out",
            str(tmp_path / "out"), "--length", "32", "--json", *more], catch_exceptions=False)
        return json.loads(done.stdout)

    found = ask()
    assert found["images"] == 6 and found["data"] == "coco"  # of 24: there are no more
    assert set(line["n_images"] for line in found["accuracy"]) == {6}
    assert (tmp_path / "out").joinpath(found["figure"]).is_file()
    text = tmp_path / "annotations/captions_val2017.json"
    text.write_text(text.read_text().replace("lamp", "vase"))
    assert ask("--images", "2")["figure"] != found["figure"]  # rows of other records apart


def test_probe_reads_the_files_before_it_loads_the_model(monkeypatch):
    monkeypatch.setattr(probe, "load_lvlm", lambda *options: 1 / 0)
    with pytest.raises(VDPError, match="data coco: give the folder"):
        probe.probe("a/b", data="coco")


def test_a_folder_s_tokenizer_is_loaded_without_its_model(make_tokenizer, tmp_path):
    make_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    text = "Is there a dog?"
    assert load_tokenizer(str(tmp_path))(text).input_ids == make_tokenizer()(text).input_ids
    with pytest.raises(VDPError, match="neither a folder nor a hub id"):
        load_tokenizer("nothing")
