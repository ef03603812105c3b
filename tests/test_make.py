"""make, CI and the workflows: what they run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from vdp_utils.paths import slug

ROOT = Path(__file__).resolve().parents[1]


def make(*arguments):
    """What make prints, free of the variables of a make that runs these tests."""
    ours = ("MAKEFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "VENV", "PROFILE", "PYTHON", "MODEL",
            "DATA", "DATA_ROOT", "DEVICE", "DTYPE")
    env = {name: value for name, value in os.environ.items() if name not in ours}
    return subprocess.check_output(["make", *arguments], cwd=ROOT, env=env, text=True)


def recipe(*targets):
    """The commands that make would run."""
    return make("--dry-run", *targets)


def test_make_targets_run_what_they_say():
    assert "--config profile=quick model='embedded-s'" in recipe("study")
    assert "Now read the notebooks in build/quick;" in recipe("study")
    full = recipe("study", "PROFILE=full")
    assert "--config profile=full" in full and "read the notebooks in notebooks;" in full
    other = recipe("study", "PROFILE=full", "MODEL=owner/name")
    assert "model='owner/name'" in other and f"build/full/{slug('owner/name')};" in other
    own = recipe("study", "MODEL=owner/name", "DATA=pope+svit", "DATA_ROOT=/my/data",
                 "DEVICE=cuda", "DTYPE=bfloat16", "PROFILE=full")
    assert "data='pope+svit' data_root='/my/data' device=cuda dtype=bfloat16" in own
    assert f"build/full/owner-name/{slug('pope+svit/my/data')}/bfloat16;" in own
    assert "read the notebooks in build/full;" in recipe("study", "PROFILE=full", "DEVICE=cuda")
    assert ".venv/bin/vdp figures" in recipe("figures")
    tests = "TQDM_DISABLE=1 .venv/bin/python -m pytest -q -n 2 --dist worksteal tests"
    assert tests in recipe("test")
    assert "-m pytest -q tests -m weekly" in recipe("weekly")
    assert ".venv/bin/vdp bench --profile full" in recipe("bench", "PROFILE=full")
    assert "VENV" not in recipe("clean") and ".venv" not in recipe("clean")
    for target in re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)[0].split():
        assert f"make {target}\t" in make("help")


@pytest.mark.parametrize("target, command", [
    ("baselines", "-m vdp_utils.commands baselines --profile quick"),
    ("oldest", "-m pytest -q tests/attention")])
def test_other_versions_run_in_an_environment_of_their_own(target, command):
    commands = recipe(target)
    assert f"-m venv build/{target}" in commands and f"requirements-{target}.lock" in commands
    assert f"PYTHONPATH=. build/{target}/bin/python {command}" in commands


def test_a_pack_holds_wheels_and_a_model_that_is_not_in_the_repository():
    assert "hf download" not in recipe("pack") and "'.[study,cluster]'" in recipe("pack")
    packed = recipe("pack", "MODEL=owner/name")
    assert "hf download 'owner/name' --local-dir 'build/models/owner/name'" in packed
    assert packed.rstrip().endswith("build/pack \\\n\t'build/models/owner/name'")


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
        (command,) = [step["run"] for step in job["steps"] if "run" in step]
        lock = "requirements-oldest" if command == "make oldest" else "requirements"
        assert f"hashFiles('{lock}.lock')" in used["actions/cache"]["key"]
        assert recipe(*command.split()[1:]) and command.split()[0] == "make"


def test_every_change_is_tested_and_the_rest_is_weekly():
    on = {path.stem: yaml.safe_load(path.read_text())[True] for path in WORKFLOWS}  # "on" is True
    assert set(on["test"]) == {"push", "pull_request"} and "schedule" in on["study"]
    commands = {path.stem: re.findall("run: (.*)", path.read_text()) for path in WORKFLOWS}
    assert commands["test"] == ["make test"]
    assert commands["study"] == ["make study PROFILE=quick", "make weekly", "make oldest",
                                 "make test-cluster"]


def test_ruff_finds_nothing():
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--output-format=concise", "."],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
