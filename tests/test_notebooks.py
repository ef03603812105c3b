"""The notebooks: their form, their stored outputs, and that they still say the same."""

import ast
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import papermill
import pandas as pd
import pytest
from PIL import Image

from vdp_utils import paths
from vdp_utils.commands import redraw
from vdp_utils.commands.run import run as run_notebook
from vdp_utils.errors import VDPError
from vdp_utils.findings import PRESENCE, concentration, cost, ranking, recovery
from vdp_utils.lvlm import load
from vdp_utils.measuring.store import ResultStore

ROOT = Path(__file__).resolve().parents[1]
PATHS = sorted(path for path in (ROOT / "notebooks").glob("[0-9]*.ipynb")
               if not path.name.endswith(".partial.ipynb"))  # what a stopped run leaves
MEASURING = [path for path in PATHS if "RESULTS" in path.read_text()]
PLACES = re.compile(r"/(home|root|work|tmp|Users|usr|opt|var|mnt)/|[A-Z]:\\|\.venv|site-packages")

TABLES = {"cost.TIMES": cost.TIMES, "ranking.STRATEGIES": ranking.STRATEGIES,  # 09 reads others too
          "findings.PRESENCE": PRESENCE, "concentration.MASSES": concentration.MASSES,
          "recovery.PRUNED": recovery.PRUNED}

every = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
measuring = pytest.mark.parametrize("path", MEASURING, ids=lambda path: path.stem)


def code(path):
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]


def tags(cell):
    return cell.metadata.get("tags", [])


def table(path):
    """The table of rows that a notebook's verdict rests on."""
    return next(TABLES[word] for word in TABLES if word in path.read_text())


def names(source, context):
    """The names that a piece of code reads (ast.Load) or gives a value to (ast.Store)."""
    return {node.id for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Name) and isinstance(node.ctx, context)}


# ---- form


def test_the_study_runs_every_notebook_in_order():
    listed = re.search(r"NOTEBOOKS = (\[.*?\])", (ROOT / "Snakefile").read_text(), re.S).group(1)
    assert ast.literal_eval(listed) == [path.stem for path in PATHS]


@every
def test_it_opens_with_one_sentence_and_tells_its_limits(path):
    notebook = nbformat.read(path, 4)
    assert notebook.metadata.kernelspec.name == "python3"
    first = notebook.cells[0]
    title = first.source.splitlines()[0]
    assert first.cell_type == "markdown" and re.fullmatch(r"# [A-Z][^.!?#]{15,}", title)
    text = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    (limits,) = [part for part in text if "## What this does not show" in part]
    assert len(limits.split("## What this does not show")[1].split()) > 20
    titles = [line for part in text for line in part.splitlines() if line.startswith("# ")]
    assert titles == [title]


@every
def test_one_cell_holds_the_parameters_before_all_that_depends_on_them(path):
    cells = code(path)
    (at,) = [n for n, cell in enumerate(cells) if "parameters" in tags(cell)]
    found = {}
    for line in ast.parse(cells[at].source).body:
        assert isinstance(line, ast.Assign) and len(line.targets) == 1
        found[line.targets[0].id] = ast.literal_eval(line.value)
    assert found["PROFILE"] == "full" and found["FIGURES"] == found.get("RESULTS", "") == ""
    assert found["MODEL"] == "embedded-s" and not found.get("RECOMPUTE")
    assert path not in MEASURING or (found["DEVICE"], found["DTYPE"]) == ("cpu", "float32")
    assert all(name.isupper() for name in found)
    late = set(found).union(*(names(cell.source, ast.Store) for cell in cells[at:]))
    for cell in cells[:at]:
        assert names(cell.source, ast.Load).isdisjoint(late)
    for cell in cells[at + 1:]:
        assert names(cell.source, ast.Store).isdisjoint(found)
    used = set().union(*(names(cell.source, ast.Load) for cell in cells[at + 1:]))
    assert set(found) <= used  # a parameter that nothing reads would promise something


@every
def test_code_cells_are_short_and_plain(path):
    sources = [cell.source for cell in code(path)]
    lengths = [len(source.splitlines()) for source in sources]
    assert statistics.median(lengths) <= 6 and max(lengths) <= 8, lengths
    for source in sources:
        tree = ast.parse(source)  # fails at ! and %
        for node in ast.walk(tree):
            assert not isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef))
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not re.match(r"/|~|[A-Za-z]:\\", node.value), node.value


@every
def test_it_was_executed_once_from_top_to_bottom(path):
    cells = code(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        for output in cell.outputs:
            assert output.output_type != "error" and output.get("name") != "stderr"
            texts = [output.get("text", "")] + [
                str(data) for kind, data in output.get("data", {}).items()
                if not kind.startswith("image/")]
            for text in texts:
                assert not PLACES.search(text) and str(Path.home()) not in text, text
    assert sum(bool(cell.outputs) for cell in cells) > 2
    assert "injected-parameters" not in path.read_text() and "papermill" not in path.read_text()


# ---- the stored outputs still come out


def study(folder):
    """A copy of the study in which nothing that is committed can be written to."""
    for name in ("vdp_utils", "notebooks", "data/results"):
        shutil.copytree(ROOT / name, folder / name,
                        ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints",
                                                      "*.partial.ipynb"))
    for name in ("data/models", "data/bench"):
        (folder / name).symlink_to(ROOT / name, target_is_directory=True)
    return folder


def nbval(folder, *options):
    """Exit code and output of nbval, strict, on notebooks of a copy."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--color=no", "--nbval",
         "--nbval-current-env", "--nbval-cell-timeout=600", *options],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(folder), "TQDM_DISABLE": "1"},
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return done.returncode, done.stdout


def rows_of(folder):
    """{path: bytes} of what was measured and judged."""
    root = folder / "data/results"
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*")
            if path.is_file()}


@pytest.fixture(scope="module")
def replayed(tmp_path_factory):
    folder = study(tmp_path_factory.mktemp("study"))
    return folder, *nbval(folder, "notebooks")


def test_nbval_finds_the_stored_outputs_again(replayed):
    _, exit_code, output = replayed
    assert exit_code == 0, output[-5000:]
    cells = [cell for path in PATHS for cell in code(path)]
    assert f"{len(cells)} passed" in output and "skipped" not in output and "xfail" not in output
    compared = [cell for cell in cells if "nbval-ignore-output" not in tags(cell) and cell.outputs]
    assert len(compared) >= 3 * len(PATHS)


def test_nothing_was_measured_again(replayed):
    assert rows_of(replayed[0]) == rows_of(ROOT)


def same_pictures(made, kept):
    """Whether the pixels agree, with room for another machine's rounding."""
    for path in made.rglob("*.png"):
        name = path.relative_to(made)
        one, other = (np.asarray(Image.open(folder / name).convert("RGB"), dtype=float)
                      for folder in (made, kept))
        assert one.shape == other.shape and np.abs(one - other).mean() < 0.5, name


def test_the_committed_figures_come_from_the_committed_rows(replayed):
    made, kept = replayed[0] / "figures", ROOT / "figures"
    names = {path.name for path in kept.glob("*.*") if not path.name.startswith("bench_")}
    assert {path.name for path in made.iterdir()} == names
    same_pictures(made, kept)


def test_figures_are_drawn_again_without_a_model(tmp_path, monkeypatch):
    """All of them, of every model, by one command, from what is stored, in about a minute."""
    monkeypatch.setattr(load, "load_lvlm", None)
    monkeypatch.setattr(load, "embedded_folder", None)
    started = time.monotonic()
    redraw.redraw(paths.results("full"), tmp_path)
    assert time.monotonic() - started < 180  # a slow machine may take thrice as long
    assert {path.relative_to(tmp_path) for path in tmp_path.rglob("*")} == {
        path.relative_to(ROOT / "figures") for path in (ROOT / "figures").rglob("*")}
    same_pictures(tmp_path, ROOT / "figures")


@measuring
def test_a_changed_number_in_a_stored_table_is_noticed(replayed, path, tmp_path):
    """Of three rows a condition: the right answer made wrong, every list of numbers turned."""
    assert replayed[1] == 0  # else what fails below may be something else
    folder = study(tmp_path)
    script = """
import sys
from vdp_utils.measuring.store import ResultStore
store = ResultStore("data/results")
for one in store.conditions(sys.argv[1]):
    rows = store.read(sys.argv[1], one)
    for at in (rows.index[rows["correct"]] if "correct" in rows else rows.index)[:3]:
        if "correct" in rows:
            rows.at[at, "correct"] = False
            rows.at[at, "predicted"] = {"yes": "no", "no": "yes"}[rows.at[at, "predicted"]]
        for name in {"log_likelihoods", "attention", "after"} & set(rows):
            rows.at[at, name] = rows.at[at, name][::-1]
        for name in {"first_token_s"} & set(rows):
            rows.at[at, name] *= 3
    store.clear(sys.argv[1], one)
    store.append(sys.argv[1], one, rows)
"""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    subprocess.run([sys.executable, "-c", script, table(path)], cwd=folder, env=environment,
                   check=True)
    exit_code, output = nbval(folder, "-x", f"notebooks/{path.name}")
    assert exit_code == 1 and "Cell outputs differ" in output, output[-5000:]


# ---- they run under other parameters


@every
def test_it_runs_in_seconds_into_folders_of_one_s_own(path, tmp_path, monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    kept = {name: (ROOT / name).stat().st_mtime_ns for name in ("data/results", "figures")
            if (ROOT / name).exists()}
    given = {"PROFILE": "smoke", "FIGURES": str(tmp_path / "pictures")}
    if path in MEASURING:
        given["RESULTS"] = str(tmp_path / "rows")
    run_notebook(path, tmp_path / "out.ipynb", given)
    saved = re.findall(r'figures\.save\(\w+, \w+, "(\w+)"\)', "".join(c.source for c in code(path)))
    assert saved and sorted(p.name for p in (tmp_path / "pictures").iterdir()) == sorted(
        f"{name}.{kind}" for name in saved for kind in ("png", "pdf"))
    if path in MEASURING:
        parts = [pd.read_parquet(part) for part in
                 (tmp_path / "rows" / table(path)).rglob("part-*.parquet")]
        rows = pd.concat(parts)
        assert len(rows) and rows["image_id"].nunique() <= 10
        store = ResultStore(tmp_path / "rows")
        assert {one["model"] for one in store.conditions(table(path))} == {"embedded-s"}
        verdicts = [json.loads(p.read_text()) for p in (tmp_path / "rows").glob("*_verdict.json")]
        assert {verdict["model"] for verdict in verdicts} == {"embedded-s"}
    counts = [cell.execution_count for cell in code(tmp_path / "out.ipynb")]
    assert counts == list(range(1, len(counts) + 1))
    assert kept == {name: (ROOT / name).stat().st_mtime_ns for name in kept}


@every
def test_an_unknown_parameter_is_refused(path, tmp_path):
    with pytest.raises(VDPError, match="no parameter PROFIL: it takes PROFILE"):
        run_notebook(path, tmp_path / "out.ipynb", {"PROFIL": "smoke"})
    assert list(papermill.inspect_notebook(path))[0] == "PROFILE"
    assert not (tmp_path / "out.ipynb").exists()
