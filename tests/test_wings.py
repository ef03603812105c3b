"""Wings import only from wings below them; pyproject.toml says which, import-linter looks."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LINT = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"


def lint(folder):
    """The exit code, and {contract: whether it is kept}."""
    done = subprocess.run([sys.executable, "-c", LINT], cwd=folder, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(folder)})
    found = re.findall(r"^(.+) (KEPT|BROKEN)$", done.stdout, re.M)
    assert found, done.stdout + done.stderr
    return done.returncode, {name: word == "KEPT" for name, word in found}, done.stdout


def test_every_wing_imports_only_what_it_may():
    code, kept, output = lint(ROOT)
    assert code == 0 and len(kept) == 4 and all(kept.values()), output


@pytest.fixture
def copy(tmp_path):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "vdp_utils", tmp_path / "vdp_utils",
                    ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_imports_that_are_not_allowed_are_found(copy):
    forbidden = {"errors.py": "stats", "attention/tokens.py": "stats", "sources/scenes.py": "lvlm",
                 "lvlm/load.py": "stats", "figures/style.py": "measuring.measure",
                 "findings/decline.py": "figures", "measuring/store.py": "commands"}
    for path, name in forbidden.items():
        with open(copy / "vdp_utils" / path, "a") as file:
            file.write(f"\ndef late():\n    from vdp_utils import {name.split('.')[0]}\n"
                       f"    import vdp_utils.{name}\n")
    code, kept, output = lint(copy)
    assert code == 1 and not any(kept.values()), output
    for path, name in forbidden.items():
        module = f"vdp_utils.{path.removesuffix('.py').replace('/', '.')}"
        assert f"{module} -> vdp_utils.{name}" in output, (module, output)


def test_a_new_wing_has_to_be_given_its_floor(copy):
    (copy / "vdp_utils/attic").mkdir()
    (copy / "vdp_utils/attic/__init__.py").touch()
    code, _, output = lint(copy)
    assert code == 1 and "vdp_utils.attic" in output
