"""What `make study` runs: which notebooks, when again, and what it prints meanwhile."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import grimp
import nbformat
import pytest

from vdp_utils.commands.inputs import PACKAGE, files_of
from vdp_utils.paths import slug

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(path for path in (ROOT / "notebooks").glob("[0-9]*.ipynb")
                   if not path.name.endswith(".partial.ipynb"))
NAMES = ast.literal_eval(re.search(r"NOTEBOOKS = (\[.*?\])", (ROOT / "Snakefile").read_text(),
                                   re.S).group(1))
STAND_IN = """
import json, pathlib, sys
with open("calls", "a") as calls:
    print(*sys.argv[1:], file=calls)
if pathlib.Path("fail").exists():
    sys.exit("error: boom")
if sys.argv[1] == "run":
    pathlib.Path(sys.argv[3]).write_text("executed")
if sys.argv[1] == "plan":
    names = [pathlib.Path(name).stem for name in sys.argv[4:] if name.endswith(".ipynb")]
    needs = {name: [0, 7] * (name[:2] == "01") + [7] * (name[:2] == "02") for name in names}
    pathlib.Path(sys.argv[2]).write_text(json.dumps(dict(said="2 jobs", needs=needs)))
"""


def snakemake(folder, *arguments, **config):
    """The exit code and the output of Snakemake with the Makefile's options, but for --quiet."""
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    options = re.search(r"^SNAKEMAKE = .* --cores \S+ (.*) --quiet", makefile, re.M).group(1)
    settings = [f"{name}={value}" for name, value in config.items()]
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--cores", "1", *options.split(),
         *(["--config", *settings] if settings else []), *arguments],
        cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return done.returncode, done.stdout


@pytest.fixture
def study(tmp_path):
    """The study with a stand-in for `vdp`, weights and tables."""
    shutil.copy(ROOT / "Snakefile", tmp_path)
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks",
                    ignore=shutil.ignore_patterns("*.partial.ipynb", ".ipynb_checkpoints"))
    shutil.copytree(ROOT / "vdp_utils", tmp_path / "vdp_utils",
                    ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "vdp_utils/commands/__main__.py").write_text(STAND_IN)
    for path in ("data/models/s/weights", "data/models/m/weights", "data/models/s-far/weights",
                 "data/bench/baselines.csv"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    return tmp_path


def calls(folder):
    return (folder / "calls").read_text().splitlines()


def due(folder, **config):
    """The names of the notebooks that would run."""
    code, output = snakemake(folder, "--dry-run", **config)
    assert code == 0, output
    return re.findall(r"^    output: build/\S*/(\w+)\.", output, re.M)


def change(folder, *paths):
    for path in paths:
        with open(folder / path, "a") as file:
            file.write("\n")


def of(*numbers):
    return [name for name in NAMES if name[:2] in numbers]


# ---- what runs


def test_the_snakefile_lists_every_notebook():
    assert NAMES == [path.stem for path in NOTEBOOKS]


def test_quick_goes_to_build_in_order_and_again_what_its_inputs_concern(study):
    code, output = snakemake(study)
    assert code == 0, output
    assert calls(study) == [f"run notebooks/{n}.ipynb build/quick/{n}.ipynb -p PROFILE quick"
                            for n in NAMES]
    change(study, "vdp_utils/commands/run.py", "data/models/m/weights")
    assert due(study) == []
    change(study, "vdp_utils/figures/priors.py", f"notebooks/{NAMES[1]}.ipynb",
           "data/bench/baselines.csv")
    assert sorted(due(study)) == of("01", "03", "09")
    change(study, "data/models/s-far/weights")
    assert sorted(due(study)) == of("01", "03", "09", "10")
    change(study, "data/models/s/weights")
    assert sorted(due(study)) == NAMES


def test_full_is_executed_in_place_with_the_default_parameters(study):
    code, output = snakemake(study, profile="full")
    assert code == 0, output
    assert calls(study) == [f"run notebooks/{n}.ipynb notebooks/{n}.ipynb" for n in NAMES]
    assert due(study, profile="full") == []


def test_another_model_has_a_folder_and_weights_of_its_own(study):
    config = dict(profile="full", model="embedded-m")
    code, output = snakemake(study, **config)
    assert code == 0, output
    assert calls(study) == [
        f"run notebooks/{n}.ipynb build/full/embedded-m/{n}.ipynb "
        "-p PROFILE full -p MODEL embedded-m" for n in NAMES]
    change(study, "data/models/s/weights")
    assert due(study, **config) == []
    change(study, "data/models/m/weights")
    assert sorted(due(study, **config)) == NAMES


def test_a_model_of_one_s_own_is_not_asked_about_the_embedded_one(study):
    assert sorted(due(study, model="owner/name")) == NAMES[1:]


def test_on_a_cluster_notebooks_wait_for_the_shards_that_the_plan_gives_them(study):
    config = dict(profile="quick", minutes="2.5")
    code, output = snakemake(study, "--until", "plan", **config)
    assert code == 0 and len(calls(study)) == 1, output
    assert calls(study)[0] == "plan build/quick/plan.json 2.5 " + " ".join(
        f"notebooks/{name}.ipynb" for name in NAMES) + " -p PROFILE quick"
    code, output = snakemake(study, "--dry-run", **config)
    assert "build/quick/plan.json: 2 jobs" in output
    assert re.search(r"^shard +2$", output, re.M) and (
        re.search(rf"^notebook +{len(NAMES)}$", output, re.M))
    code, output = snakemake(study, "--", f"build/quick/{NAMES[2]}.ipynb", **config)
    assert code == 0, output
    assert calls(study)[1:] == ["shard build/quick/plan.json 7", (
        f"run notebooks/{NAMES[2]}.ipynb build/quick/{NAMES[2]}.ipynb -p PROFILE quick")]
    change(study, "vdp_utils/measuring/measure.py")
    assert re.search(r"^plan +1$", snakemake(study, "--dry-run", **config)[1], re.M)


def test_one_s_own_data_have_a_folder_and_options_of_their_own(study):
    root = study / "my data"
    root.mkdir()
    (root / "instances_val2017.json").touch()
    config = dict(profile="full", data="coco", data_root=root, device="cuda", dtype="bfloat16")
    code, output = snakemake(study, **config)
    assert code == 0, output
    folder = f"build/full/{slug(f'coco{root}')}/bfloat16"
    names = [name for name in NAMES if name[:2] not in ("00", "12")]  # these are about scenes
    assert calls(study) == [
        f"run notebooks/{n}.ipynb {folder}/{n}.ipynb -p PROFILE full -p DATA coco "
        f"-p DATA_ROOT {root} -p DEVICE cuda -p DTYPE bfloat16 -p FIGURES {folder}/figures"
        for n in names]
    assert due(study, **config) == []
    change(study, "my data/instances_val2017.json")
    assert sorted(due(study, **config)) == names
    assert sorted(due(study, **config | dict(data_root=study))) == names


def test_a_device_is_told_to_those_that_take_one(study):
    code, output = snakemake(study, profile="full", device="cuda")
    assert code == 0, output
    own = " -p DEVICE cuda"
    assert calls(study) == [f"run notebooks/{n}.ipynb build/full/{n}.ipynb -p PROFILE full"
                            + own * (n != NAMES[0]) for n in NAMES]


def test_what_is_committed_in_float32_is_not_overwritten_in_another(study):
    for dtype in ("bfloat16", "float32"):
        made = f"build/full/{dtype}/{NAMES[1]}.ipynb"
        code, output = snakemake(study, "--", made, profile="full", dtype=dtype)
        assert code == 0, output
    first, second = calls(study)
    assert first.endswith("-p DTYPE bfloat16 -p FIGURES build/full/bfloat16/figures "
                          "-p RESULTS build/full/bfloat16/results")
    assert second.endswith("-p DTYPE float32")


# ---- what is printed


def test_with_quiet_only_the_notebooks_speak(study):
    """As make calls it: here, where the stand-in says nothing, nothing at all."""
    first, second = (f"build/smoke/{name}.ipynb" for name in NAMES[:2])
    quiet = ("--quiet", "--", first)
    assert snakemake(study, *quiet, profile="smoke") == (0, "")
    (study / "fail").touch()
    code, output = snakemake(study, "--quiet", "--", second, profile="smoke")
    lines = output.splitlines()
    assert code != 0 and lines.count("error: boom") == 1 and "CalledProcessError" not in output
    assert len(lines) < 6 and len(calls(study)) == 2 and not (study / second).exists()


@pytest.mark.parametrize("config, said", [
    (dict(profile="fast"), "unknown profile 'fast': choose one of full, quick, smoke"),
    (dict(model="embedded-x"), "unknown size 'embedded-x'"),
    (dict(data="cocoa", data_root="."), "unknown data 'cocoa': choose scenes or one of table"),
    (dict(data="coco"), "data coco: give the folder that its files lie in"),
    (dict(device="gpu"), "unknown device 'gpu': choose cpu, cuda"),
    (dict(dtype="half"), "unknown dtype 'half'")])
def test_what_cannot_be_right_is_one_sentence_before_any_notebook(study, config, said):
    code, output = snakemake(study, "--quiet", **config)
    assert code == 1 and output.startswith(f"error: {said}") and output.count("\n") == 1
    assert not (study / "calls").exists()


# ---- inputs, from imports


def used(notebook):
    return {str(path.relative_to(PACKAGE)) for path in files_of(notebook)}


def notebook_of(path, code):
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)]), path)
    return path


def test_a_package_that_passes_names_on_is_looked_through(tmp_path):
    path = tmp_path / "a.ipynb"
    drawing = {"figures/__init__.py", "figures/style.py", "figures/vdp.mplstyle"}
    found = used(notebook_of(path, "from vdp_utils import figures\nfigures.strategies()"))
    assert found == drawing | {"figures/ranking.py"}
    found = used(notebook_of(path, "from vdp_utils.figures import priors as draw, save\ndraw()"))
    assert found == drawing - {"figures/__init__.py"} | {"figures/priors.py"}
    found = used(notebook_of(path, "import vdp_utils.errors\nfrom vdp_utils import stats"))
    assert found == {"errors.py", "stats.py"}
    found = used(notebook_of(path, "from vdp_utils.findings import NEAR"))
    assert {"findings/__init__.py", "stats.py"} <= found and "findings/decline.py" not in found


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"cells": [{"cell_type": "code"}]}',
                                  '{"cells": [{"cell_type": "code", "source": "%time 1"}]}'])
def test_what_is_not_plain_python_depends_on_everything(tmp_path, text):
    (tmp_path / "a.ipynb").write_text(text)
    assert set(PACKAGE.rglob("*.py")) <= set(files_of(tmp_path / "a.ipynb"))


def test_all_depend_on_the_tool_and_few_on_a_figure_or_the_benchmark():
    modules = {path.stem: used(path) for path in NOTEBOOKS}

    def users(module):
        return [name for name in NAMES if module in modules[name]]

    assert users("attention/tokens.py") == users("figures/style.py") == NAMES
    assert users("figures/ranking.py") == of("07", "09") and users("figures/decline.py") == of("01")
    assert users("commands/bench.py") == of("09")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_s_inputs_are_what_can_be_reached_by_imports(path):
    """Held to another reader of imports. It follows what a package passes on: that may be more."""
    graph = grimp.build_graph("vdp_utils", cache_dir=None)
    files = {module: PACKAGE.parent.joinpath(*module.split(".")) for module in graph.modules}
    files = {module: path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
             for module, path in files.items()}
    found = set(files_of(path))
    own = {module for module, file in files.items() if file in found}
    assert len(own) > 10 and {files[module] for module in own} == {
        file for file in found if file.suffix == ".py"}
    theirs = own.union(*(graph.find_upstream_modules(module) for module in own))
    for module in theirs - own:  # only through a package's __init__
        passing = {one for one in graph.find_modules_that_directly_import(module) if one in own}
        assert all(files[one].name == "__init__.py" for one in passing), (module, passing)

