"""`vdp`: a table of contents, options that reach their functions, errors of one sentence."""

import os
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vdp_utils import commands, paths
from vdp_utils.commands.__main__ import app, main
from vdp_utils.errors import VDPError

COMMANDS = ("run", "plan", "shard", "figures", "bench", "baselines", "probe", "sources", "dataset",
            "train", "held-out")
FOR_OTHERS = {"__init__", "__main__", "inputs"}  # modules that are no command
HEAVY = {"torch", "transformers", "numpy", "pandas", "matplotlib", "papermill", "snakemake"}


def vdp(*arguments):
    return subprocess.run([sys.executable, "-m", "vdp_utils.commands", *arguments],
                          cwd=paths.ROOT, capture_output=True, text=True)


def module_of(command):
    return command.replace("-", "_")


def test_help_is_a_table_of_contents():
    said = CliRunner().invoke(app, ["--help"]).output
    listed = said.split("Commands:\n")[1].splitlines()
    assert [line.split()[0] for line in listed] == list(COMMANDS)
    assert all(line.endswith(".") and "..." not in line and len(line) < 80 for line in listed)
    assert CliRunner().invoke(app, []).output == said


def test_every_module_is_a_command():
    there = {path.stem for path in Path(commands.__file__).parent.glob("*.py")}
    assert {module_of(command) for command in COMMANDS} == there - FOR_OTHERS


def test_help_waits_for_nothing_heavy():
    script = ("import runpy, sys; sys.argv = ['vdp', '--help']\n"
              "try: runpy.run_module('vdp_utils.commands', run_name='__main__')\n"
              f"except SystemExit: print(sorted(set(sys.modules) & {HEAVY}))")
    before = os.times()
    done = subprocess.run([sys.executable, "-c", script], cwd=paths.ROOT, capture_output=True,
                          text=True)
    after = os.times()
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr
    took = (after.children_user - before.children_user
            + after.children_system - before.children_system)
    assert took < 1  # seconds of the processor: others may be at work here


@pytest.mark.parametrize("command, given, wanted", [
    ("run", "a.ipynb", (Path("a.ipynb"), None, {})),
    ("run", "a.ipynb b.ipynb -p N 1 -p MODEL a/b",
     (Path("a.ipynb"), Path("b.ipynb"), {"N": "1", "MODEL": "a/b"})),
    ("plan", "p.json 2.5 a.ipynb b.ipynb -p N 1",
     (Path("p.json"), 2.5, [Path("a.ipynb"), Path("b.ipynb")], {"N": "1"})),
    ("shard", "p.json 3", (Path("p.json"), 3)),
    ("figures", "--output x --model embedded-m",
     (paths.results("full"), Path("x"), ["embedded-m"])),
    ("bench", "--profile full --length 64 --length 128 --part pruning_wide --repeats 2",
     ("full", [64, 128], ["pruning_wide"], 2)),
    ("bench", "", ("quick", [], [], 5)),
    ("baselines", "", ("quick", [1024, 2048], 5)),
    ("probe", "a/b --images 4 --length 64 --device cuda --dtype bfloat16 --out o --json",
     ("a/b", 4, [64], "cuda", "bfloat16", Path("o"), True, "scenes", None)),
    ("probe", "a/b --data pope+svit --data-root r",
     ("a/b", 24, [2048], None, "auto", None, False, "pope+svit", Path("r"))),
    ("sources", "coco r --model a/b", ("coco", Path("r"), "a/b")),
    ("dataset", "coco r o --images 5 --pairs 2 --kind prose --length 9 --seed 4 --questions own "
     "--model a/b", ("coco", Path("r"), Path("o"), "a/b", 5, 2, ["prose"], [9], "own", 4)),
    ("dataset", "scenes - o", ("scenes", Path("-"), Path("o"), "embedded-s", 100, 3, [
        "same_image", "other_images", "misleading"], [512, 2048], "presence", 0)),
    ("train", "--size M --minutes 3 --start-from S",
     ("m", 3, Path("build/training"), "S", None, 750, 0, False)),
    ("train", "--instrument far --start-from s --steps 9 --seed 2 --export",
     ("s", 70, Path("build/training"), "s", "far", 9, 2, True)),
    ("train", "", ("s", 70, Path("build/training"), None, None, 750, 0, False)),
    ("held-out", "--questions 20", ("s", 20, Path("build/results/held_out"), None)),
    ("held-out", "--weights w", ("s", 500, Path("build/results/held_out"), Path("w"))),
])
def test_options_reach_the_module_s_function(monkeypatch, command, given, wanted):
    calls, module = [], import_module(f"vdp_utils.commands.{module_of(command)}")
    monkeypatch.setattr(module, module_of(command), lambda *options: calls.append(options) or [])
    result = CliRunner().invoke(app, [command, *given.split()], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    ((found),) = calls
    assert tuple(list(x) if isinstance(x, tuple) else x for x in found) == wanted


@pytest.mark.parametrize("given", ["run", "run a.ipynb -p N", "bench --profile slow", "nothing",
                                   "train --size X", "held-out --questions 0", "run a b c",
                                   "plan p.json 0 a.ipynb", "plan p.json 5"])
def test_wrong_options_are_refused_as_typer_does(given):
    result = CliRunner().invoke(app, given.split())
    assert result.exit_code == 2 and "Error: " in result.stderr


def test_an_error_of_the_study_is_one_sentence_and_exit_code_one(monkeypatch):
    done = vdp("run", "nothing.ipynb")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == "error: there is no notebook nothing.ipynb: check its path\n"


def test_any_other_error_is_a_fault_and_keeps_its_traceback(monkeypatch):
    def fail(*options):
        raise ZeroDivisionError

    monkeypatch.setattr("vdp_utils.commands.run.run", fail)
    monkeypatch.setattr(sys, "argv", ["vdp", "run", "a.ipynb"])
    with pytest.raises(ZeroDivisionError):
        main()


def test_kvpress_is_not_expected_here(monkeypatch):
    from vdp_utils.commands.baselines import baselines

    with pytest.raises(VDPError, match="kvpress is not installed here: run make baselines"):
        baselines()


def test_the_script_is_installed():
    project = tomllib.loads((paths.ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"vdp": "vdp_utils.commands.__main__:main"}
    script = Path(sys.executable).with_name("vdp")  # if it is missing: make env
    done = subprocess.run([script, "run", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("Usage: vdp run ")
