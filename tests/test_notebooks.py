"""The notebooks: their form, their stored outputs, and that they still say the same."""

import ast
import dataclasses
import functools
import inspect
import itertools
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
from replay import code, play, shown, tags

from vdp_utils import figures as drawing
from vdp_utils import paths, stats
from vdp_utils.commands import bench, figures
from vdp_utils.commands.run import run as run_notebook
from vdp_utils.errors import VDPError
from vdp_utils.findings import (PRESENCE, concentration, cost, distance, law, mmdu, models,
                                proportion, ranking, recovery)
from vdp_utils.lvlm import load, prompts
from vdp_utils.measuring.store import ResultStore

ROOT = Path(__file__).resolve().parents[1]
PATHS = sorted(path for path in (ROOT / "notebooks").glob("[0-9]*.ipynb")
               if not path.name.endswith(".partial.ipynb"))  # what a stopped run leaves
MEASURING = [path for path in PATHS if "RESULTS" in path.read_text()]
PLACES = re.compile(r"/(home|root|work|tmp|Users|usr|opt|var|mnt)/|[A-Z]:\\|\.venv|site-packages")

TABLES = {"cost.TIMES": cost.TIMES, "ranking.STRATEGIES": ranking.STRATEGIES,  # 09 reads others too
          "findings.PRESENCE": PRESENCE, "concentration.MASSES": concentration.MASSES,
          "recovery.PRUNED": recovery.PRUNED, "mmdu.DIALOGUES": mmdu.DIALOGUES,
          "law.LAW": law.LAW, "distance.ROWS": distance.ROWS,
          "models.measured": PRESENCE}  # 10 compares models

every = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
measuring = pytest.mark.parametrize("path", MEASURING, ids=lambda path: path.stem)


def files_of(names):
    """The files of the figures of these names."""
    assert names
    return {f"{name}.{kind}" for name in names for kind in ("png", "pdf")}


def saved(path):
    """The files of the figures that a notebook saves."""
    return files_of(re.findall(r'figures\.save\(\w+, \w+, "(\w+)"\)',
                               "".join(cell.source for cell in code(path))))


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
    assert path.stem[:2] in ("00", "12") or (found["DATA"], found["DATA_ROOT"]) == ("scenes", "")
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
    most = [10 if "parameters" in tags(cell) else 8 for cell in code(path)]
    assert statistics.median(lengths) <= 6 and all(map(int.__le__, lengths, most)), lengths
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


def rows_of(folder):
    """{path: bytes} of what was measured and judged."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*")
            if path.is_file()}


def same_pictures(made, kept):
    """Whether the pixels agree, with room for another machine's rounding."""
    for path in made.rglob("*.png"):
        name = path.relative_to(made)
        one, other = (np.asarray(Image.open(folder / name).convert("RGB"), dtype=float)
                      for folder in (made, kept))
        assert one.shape == other.shape and np.abs(one - other).mean() < 0.5, name


@every
def test_nbval_finds_the_stored_outputs_again_and_nothing_is_measured(path, tmp_path):
    """Strictly, in a kernel; the figures come from the committed rows too."""
    folder = study(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--color=no", "-p",
         "nbval.plugin", "--nbval", "--nbval-current-env", "--nbval-cell-timeout=600",
         f"notebooks/{path.name}"],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(folder), "TQDM_DISABLE": "1",
                         "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout[-5000:]
    cells = code(path)
    assert f"{len(cells)} passed" in done.stdout
    assert "skipped" not in done.stdout and "xfail" not in done.stdout
    assert sum(compared(cell) and bool(cell.outputs) for cell in cells) >= 3
    assert rows_of(folder / "data/results") == rows_of(ROOT / "data/results")
    assert {made.name for made in (folder / "figures").iterdir()} == saved(path)
    same_pictures(folder / "figures", ROOT / "figures")


def committed(model=paths.MODEL):
    """The files of a model's committed figures, but for the benchmark's."""
    return {path.name for path in paths.figures("full", model=model).glob("fig*.*")}


def test_every_committed_figure_is_a_notebook_s_and_is_drawn_again_by_a_part():
    assert committed() == set().union(*map(saved, PATHS))
    for model in figures.models(paths.results("full")):
        assert committed(model) and committed(model) <= set().union(*map(drawn_by, PARTS))


# ---- figures without a notebook

PARTS = (*itertools.chain(*figures.OF_ROWS), *figures.OF_TABLES)


def drawn_by(part):
    """The files of the figures that a part of `figures` draws."""
    return files_of(re.findall(r'yield "(\w+)"', inspect.getsource(part)))


@pytest.mark.parametrize("model, part", [
    (model, part) for model in figures.models(paths.results("full")) for part in PARTS
    if drawn_by(part) & committed(model)], ids=lambda one: getattr(one, "__name__", one))
def test_figures_are_drawn_again_without_a_model(model, part, tmp_path, monkeypatch):
    monkeypatch.setattr(load, "load_lvlm", None)
    monkeypatch.setattr(load, "embedded_folder", None)
    figures.draw(paths.results("full"), tmp_path, model, [part])
    assert {path.name for path in tmp_path.iterdir()} == drawn_by(part) & committed(model)
    same_pictures(tmp_path, paths.figures("full", model=model))


def test_the_benchmark_s_figures_are_drawn_again(tmp_path):
    bench.draw(bench.tables_of(paths.bench("full")), tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {path.name for path in (ROOT / "figures").glob("bench_*")}
    same_pictures(tmp_path, ROOT / "figures")


@pytest.mark.weekly  # each is drawn by the tests above
def test_one_command_draws_all_figures_in_about_a_minute(tmp_path, monkeypatch):
    monkeypatch.setattr(load, "load_lvlm", None)
    monkeypatch.setattr(load, "embedded_folder", None)
    started = time.monotonic()
    figures.figures(paths.results("full"), tmp_path)
    assert time.monotonic() - started < 180  # a slow machine may take thrice as long
    assert {path.relative_to(tmp_path) for path in tmp_path.rglob("*")} == {
        path.relative_to(ROOT / "figures") for path in (ROOT / "figures").rglob("*")}
    same_pictures(tmp_path, ROOT / "figures")


# ---- run in this process, where the same is proven without a kernel


@pytest.fixture(scope="module", autouse=True)
def loaded_once():
    """Notebooks that run in this process share their models."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load, "load_lvlm", functools.cache(load.load_lvlm))
        yield


@pytest.fixture
def few_resamples(monkeypatch):
    """Where it does not matter how exact an interval is."""
    for module, number in ((stats, 199), (law, 199), (proportion, 49)):
        monkeypatch.setattr(module, "RESAMPLES", number)


def compared(cell):
    """Whether nbval compares what the cell shows."""
    return "nbval-ignore-output" not in tags(cell)


def change(store, finding):
    """Of three rows a condition: the right answer made wrong, every list of numbers turned."""
    for one in store.conditions(finding):
        rows = store.read(finding, one)
        right = rows["correct"].eq(True) & rows["predicted"].isin(["yes", "no"]) if (
            "correct" in rows) else rows.index == rows.index
        for at in rows.index[right][:3]:
            if "correct" in rows:
                rows.at[at, "correct"] = rows["correct"].dtype.type(False)
                rows.at[at, "predicted"] = {"yes": "no", "no": "yes"}[rows.at[at, "predicted"]]
            for name in {"log_likelihoods", "attention", "after"} & set(rows):
                rows.at[at, name] = rows.at[at, name][::-1]
            for name in {"ttft_s"} & set(rows):
                rows.at[at, name] *= 3
        store.clear(finding, one)
        store.append(finding, one, rows)


def results(folder):
    """A copy of the committed rows."""
    return shutil.copytree(ROOT / "data/results", folder)


def test_a_notebook_run_in_this_process_shows_what_is_stored(tmp_path):
    """So that what follows speaks of the outputs that nbval compares."""
    (path,) = (path for path in PATHS if path.stem.startswith("02"))
    given = dict(RESULTS=str(results(tmp_path / "rows")), FIGURES=str(tmp_path / "pictures"))
    for cell, said in play(path, **given):
        assert said == shown(cell) or not compared(cell), cell.source


@measuring
def test_a_changed_number_in_a_stored_table_is_noticed(path, tmp_path, monkeypatch, few_resamples):
    """Beside a run with the table as it is, which nbval found to show what is stored."""
    monkeypatch.setattr(drawing, "save", lambda figure, *where: figure)  # nothing looks at it
    kept, changed = (results(tmp_path / name) for name in ("kept", "changed"))
    change(ResultStore(changed), table(path))
    runs = (play(path, RESULTS=str(rows), FIGURES=str(tmp_path / "pictures"))
            for rows in (kept, changed))
    assert any(said != other for (cell, said), (_, other) in zip(*runs) if compared(cell))


# ---- they run under other parameters


def smoke(path, folder):
    """The parameters of a short run into folders of one's own."""
    given = {"PROFILE": "smoke", "FIGURES": str(folder / "pictures")}
    return given | ({"RESULTS": str(folder / "rows")} if path in MEASURING else {})


def check_smoke(path, folder):
    """Every figure is saved, few images were asked about, and there is a verdict of the model."""
    assert {made.name for made in (folder / "pictures").iterdir()} == saved(path)
    if path in MEASURING:
        rows = pd.concat([pd.read_parquet(part) for part in
                          (folder / "rows" / table(path)).rglob("part-*.parquet")])
        assert len(rows) and rows["image_id"].nunique() <= 10
        store = ResultStore(folder / "rows")
        beside = set(models.OTHERS[:1]) if "models.measured" in path.read_text() else set()
        assert {one["model"] for one in store.conditions(table(path))} == {"embedded-s"} | beside
        verdicts = [json.loads(p.read_text()) for p in (folder / "rows").glob("*_verdict.json")]
        assert {verdict["model"] for verdict in verdicts} == {"embedded-s"}


@pytest.fixture
def untouched():
    """What is committed stays as it is."""
    kept = {name: (ROOT / name).stat().st_mtime_ns for name in ("data/results", "figures")}
    yield
    assert kept == {name: (ROOT / name).stat().st_mtime_ns for name in kept}


@pytest.fixture
def small(uneven, monkeypatch):
    """A model of random weights is loaded instead: nothing is asked of its answers.

    Its small vocabulary spells the options, so that they are cut to their first token.
    """
    whole = prompts.option_ids
    monkeypatch.setattr(prompts, "option_ids", lambda lvlm, option: whole(lvlm, option)[:1])
    monkeypatch.setattr(load, "load_lvlm",
                        lambda name, *given: dataclasses.replace(uneven, name=name))


@every
def test_it_runs_in_seconds_into_folders_of_one_s_own(path, tmp_path, monkeypatch, untouched,
                                                      few_resamples, small):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    assert len(list(play(path, **smoke(path, tmp_path)))) == len(code(path))
    check_smoke(path, tmp_path)


def test_papermill_runs_a_notebook_so_too(tmp_path, monkeypatch, untouched):
    (path,) = (path for path in PATHS if path.stem.startswith("02"))
    monkeypatch.setenv("TQDM_DISABLE", "1")
    run_notebook(path, tmp_path / "out.ipynb", smoke(path, tmp_path))
    check_smoke(path, tmp_path)
    counts = [cell.execution_count for cell in code(tmp_path / "out.ipynb")]
    assert counts == list(range(1, len(counts) + 1))


@every
def test_an_unknown_parameter_is_refused(path, tmp_path):
    with pytest.raises(VDPError, match="no parameter PROFIL: it takes PROFILE"):
        run_notebook(path, tmp_path / "out.ipynb", {"PROFIL": "smoke"})
    assert list(papermill.inspect_notebook(path))[0] == "PROFILE"
    assert not (tmp_path / "out.ipynb").exists()
