"""What README and model card say is what was measured, and README's code runs."""

import json
import re

import pandas as pd
import pytest

from vdp_utils.lvlm.load import MODELS, embedded_folder
from vdp_utils.paths import ROOT
from vdp_utils.sources.samples import presence_samples
from vdp_utils.stats import VERDICTS

README = (ROOT / "README.md").read_text()
VERDICT_FILES = sorted((ROOT / "data" / "results").glob("*_verdict.json"))
SIZES = {"embedded-s": "S", "embedded-m": "M"}
FINDINGS = [*(f"F{number}" for number in range(1, 13)), "D1"]


def claims():
    """{finding: {column: cell}} of the table of claims."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in README.splitlines()
             if re.match(r"\| ([FD]\d+ )?\| (?!\|)", line)]
    header, *rows = lines
    return {row[0]: dict(zip(header, row, strict=True)) for row in rows}


def test_the_first_command_comes_within_ten_lines():
    assert "make study" in "\n".join(README.splitlines()[:10])
    assert "make test" in "\n".join(README.splitlines()[:10])


def test_it_is_short():
    lines = README.splitlines()
    assert len(lines) <= 150
    assert [line for line in lines if len(line) > 120 and not line.startswith("|")] == []


def test_some_finding_has_a_verdict():
    assert VERDICT_FILES


@pytest.mark.parametrize("path", VERDICT_FILES, ids=lambda p: p.stem)
def test_the_claim_table_holds_the_verdicts(path):
    verdict = json.loads(path.read_text())
    assert "dtype" not in verdict  # float32
    assert path.name == f"{verdict['finding']}_{verdict['model']}_verdict.json"
    row, size = claims()[verdict["finding"]], SIZES[verdict["model"]]
    assert row[f"verdict {size}"] == verdict["verdict"] in VERDICTS
    assert (row[size], row["images"]) == (verdict["estimate [95 %]"], verdict["images"])


def test_what_has_no_verdict_is_open_at_each_size():
    judged = [json.loads(path.read_text()) for path in VERDICT_FILES]
    decided = {(verdict["finding"], verdict["model"]) for verdict in judged}
    assert list(claims()) == FINDINGS
    for finding, row in claims().items():
        for model, size in SIZES.items():
            (column,) = [name for name in row if name.split(", ")[0] == size]
            if (finding, model) not in decided:
                assert (row[column], row[f"verdict {column}"]) == ("", "open")


def test_the_numbers_of_the_answer_are_those_of_the_notebooks():
    answer = re.search(r"## The answer.*?(?=\n!\[)", README, re.S).group()
    notebooks = "".join(path.read_text() for path in (ROOT / "notebooks").glob("*.ipynb"))
    stored = set(re.findall(r"\d\.\d{3}(?!\d)", notebooks))
    said = re.findall(r"\d\.\d+", answer)
    assert len(said) > 10 and [number for number in said if number not in stored] == []


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    local = [link for link in links if not link.startswith("http")]
    assert local and [link for link in local if not (ROOT / link).exists()] == []


LARGE = "llava-hf/llava-1.5-7b-hf"
SMALLER = [[('device="cuda", dtype="bfloat16"', 'device="cpu"'), ("(0, 512, 2048)", "(0, 16)"),
            ('"evaluation", 100', '"evaluation", 4')], [("max_new_tokens=20", "max_new_tokens=2")]]


@pytest.mark.parametrize("number, smaller", list(enumerate(SMALLER)), ids=["measure", "prune"])
def test_its_code_runs_as_it_stands(number, smaller, tmp_path, monkeypatch, capsys):
    """With the embedded LVLM in the large one's place, and less of everything."""
    code = re.findall(r"```python\n(.*?)```", README, re.S)[number]
    folder = embedded_folder(MODELS / "s")
    for old, new in [(LARGE, folder.as_posix()), *smaller]:
        assert code.count(old) == 1, old
        code = code.replace(old, new)
    monkeypatch.chdir(tmp_path)
    presence_samples("evaluation", 1)[0].image().save("photo.jpg")
    (tmp_path / "dialogue.txt").write_text("Is there a cat?\nYes, there is a cat.")
    exec(code, {})
    assert capsys.readouterr().out


@pytest.mark.parametrize("path", sorted(MODELS.glob("*/held_out.csv")), ids=lambda p: p.parent.name)
def test_the_model_card_holds_the_held_out_results(path):
    card = (MODELS / "README.md").read_text()
    for line in pd.read_csv(path).itertuples():
        wanted = (f"| {line.skill} | {line.setting} | {line.measure} | {line.value:.3f} "
                  f"[{line.low:.3f}, {line.high:.3f}] | {line.n_images} | {line.n_rows} |")
        assert wanted in card, wanted
