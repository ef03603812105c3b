"""What README and model card say is what was measured."""

import json
import re

import pandas as pd
import pytest

from vdp_utils.commands import bench
from vdp_utils.lvlm.load import MODELS
from vdp_utils.paths import ROOT, bench as bench_folder
from vdp_utils.stats import VERDICTS

README = (ROOT / "README.md").read_text()
VERDICT_FILES = sorted((ROOT / "data" / "results").glob("F*_verdict.json"))
SIZES = {"embedded-s": "S", "embedded-m": "M"}
FINDINGS = [f"F{number}" for number in range(1, 13)]


def claims():
    """{finding: {column: cell}} of the table of claims."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in README.splitlines()
             if re.match(r"\| (F\d+ )?\| (?!\|)", line)]
    header, *rows = lines
    return {row[0]: dict(zip(header, row, strict=True)) for row in rows}


def test_the_first_command_comes_within_ten_lines():
    assert "make study" in "\n".join(README.splitlines()[:10])
    assert "make test" in "\n".join(README.splitlines()[:10])


def test_some_finding_has_a_verdict():
    assert VERDICT_FILES


@pytest.mark.parametrize("path", VERDICT_FILES, ids=lambda p: p.stem)
def test_the_claim_table_holds_the_verdicts(path):
    verdict = json.loads(path.read_text())
    assert path.name == f"{verdict['finding']}_{verdict['model']}_verdict.json"
    row, size = claims()[verdict["finding"]], SIZES[verdict["model"]]
    assert row[f"verdict {size}"] == verdict["verdict"] in VERDICTS
    ours = row[f"ours, size {size}"]
    assert verdict["estimate [95 %]"] in ours and f"{verdict['images']} images" in ours


def test_what_has_no_verdict_is_open_at_each_size():
    judged = [json.loads(path.read_text()) for path in VERDICT_FILES]
    decided = {(verdict["finding"], verdict["model"]) for verdict in judged}
    assert list(claims()) == FINDINGS
    for finding, row in claims().items():
        for model, size in SIZES.items():
            if (finding, model) not in decided:
                assert (row[f"ours, size {size}"], row[f"verdict {size}"]) == ("", "open")


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


def test_the_peers_score_as_is_said():
    tables = bench.tables_of(bench_folder("full"))
    scores = tables["peers_scores"]
    assert (scores.loc[scores["note"] != "own query statistics", "difference"] <= 2e-7).all()
