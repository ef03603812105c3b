"""`vdp probe` from end to end, with a tiny model and few images."""

import json

import pytest
from typer.testing import CliRunner

from vdp_utils import stats
from vdp_utils.commands import probe
from vdp_utils.commands.__main__ import app
from vdp_utils.errors import VDPError


@pytest.fixture
def asked(uneven, monkeypatch, tmp_path):
    """Runs the command on a tiny model; what it prints and the options it loads with."""
    loaded = []
    monkeypatch.setattr(stats, "RESAMPLES", 99)
    monkeypatch.setattr(probe, "load_lvlm", lambda *options: loaded.append(options) or uneven)

    def run(*more):
        done = CliRunner().invoke(app, ["probe", "owner/name", "--images", "3", "--length", "32",
                                        "--length", "600", "--out", str(tmp_path), *more],
                                  catch_exceptions=False)
        return done.stdout, loaded

    return run


def test_it_prints_a_table_and_sentences_and_draws_a_figure(asked, tmp_path, monkeypatch):
    text, loaded = asked("--device", "cpu", "--dtype", "float32")
    assert loaded == [("owner/name", "cpu", "float32")]
    table = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("|")]
    assert [cell.strip() for cell in table[0]] == [
        "tokens: text", "as it is", "near", "pruned 0.5", "pruned 0.9", "squeezed"]
    filled = {line[0].strip(): sum(bool(cell.strip()) for cell in line[1:]) for line in table[2:]}
    assert filled == {
        "0: no text": 1, "32: no text": 1, "32: text about other images": 4,
        "32: misleading text": 4, "600: no text": 1, "600: text about other images": 5,
        "600: misleading text": 5}  # 32 tokens need no squeezing
    assert text.count("With nothing before the question") == text.count("What helps or harms") == 1
    assert {path.name for path in tmp_path.glob("probe.*")} == {"probe.png", "probe.pdf"}
    monkeypatch.setattr(probe, "placed_sample", lambda *_: 1 / 0)  # nothing is measured again
    assert asked()[0] == text


def test_json_is_all_that_is_printed(asked):
    found = json.loads(asked("--json")[0])
    assert found["images"] == 3 and len(found["sentences"]) == 3
    assert len(found["accuracy"]) == 21 and len(found["differences"]) == 24


def test_a_wrong_name_is_refused_before_anything_is_loaded():
    with pytest.raises(VDPError, match="neither a folder nor a hub id"):
        probe.probe("nothing")
