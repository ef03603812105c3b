"""What README and model card say is what was measured."""

import json
import re

import pandas as pd
import pytest

from vdp_utils import bench
from vdp_utils.lvlm import MODELS
from vdp_utils.paths import ROOT
from vdp_utils.paths import bench as bench_folder
from vdp_utils.stats import VERDICTS

README = (ROOT / "README.md").read_text()
VERDICT_FILES = sorted((ROOT / "data" / "results").glob("F*_verdict.json"))


def test_the_first_command_comes_within_ten_lines():
    assert "make study" in "\n".join(README.splitlines()[:10])
    assert "make test" in "\n".join(README.splitlines()[:10])


def test_some_finding_has_a_verdict():
    assert VERDICT_FILES


@pytest.mark.parametrize("path", VERDICT_FILES, ids=lambda p: p.stem)
def test_the_claim_table_holds_the_verdicts(path):
    verdict = json.loads(path.read_text())
    (row,) = [line for line in README.splitlines() if line.startswith(f"| {verdict['finding']} |")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[-1] == verdict["verdict"] in VERDICTS
    assert verdict["estimate [95 %]"] in cells[-2] and verdict["images"] in cells[-2]


def test_findings_without_a_verdict_are_open():
    rows = re.findall(r"^\| (F\d+) \|.*\| ([^|]+) \|$", README, flags=re.MULTILINE)
    decided = {json.loads(p.read_text())["finding"] for p in VERDICT_FILES}
    assert len(rows) == 12
    assert {f for f, verdict in rows if verdict != "open"} == decided


def test_the_costs_are_those_of_the_benchmark():
    report = bench.report(bench.tables_of(bench_folder("full")))
    lines = [line for line in report.splitlines() if line.startswith("|")]
    assert len(lines) > 3 and [line for line in lines if line not in README.splitlines()] == []


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    local = [link for link in links if not link.startswith("http")]
    assert local and [link for link in local if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("path", sorted(MODELS.glob("*/held_out.csv")), ids=lambda p: p.parent.name)
def test_the_model_card_holds_the_held_out_results(path):
    card = (MODELS / "README.md").read_text()
    for line in pd.read_csv(path).itertuples():
        wanted = (f"| {line.skill} | {line.setting} | {line.measure} | {line.value:.3f} "
                  f"[{line.low:.3f}, {line.high:.3f}] | {line.n_images} | {line.n_rows} |")
        assert wanted in card, wanted
