"""Run one notebook with papermill, so that a failed run never replaces a good notebook.

python -m vdp_utils.commands.run_notebook NOTEBOOK OUTPUT [-p NAME VALUE ...]

OUTPUT may be NOTEBOOK itself. Values are read as YAML, as papermill reads them.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import nbformat
import papermill
import yaml
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from vdp_utils.errors import VDPError


def run_notebook(notebook, output, parameters=None):
    """Execute `notebook` in its own folder and put the result at `output` (both paths).

    While it runs, and after a failure, the cells so far are in `<output>.partial.ipynb`;
    `output` itself is replaced only when every cell has succeeded. Kernels talk over IPC sockets,
    since TCP ports picked by notebooks that start at the same time collide now and then.

    Raises VDPError for a missing notebook or an unknown parameter (papermill would only warn),
    and what papermill raises when a cell fails.
    """
    notebook, output, parameters = Path(notebook), Path(output), dict(parameters or {})
    _check(notebook, parameters)
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_suffix(".partial.ipynb")
    # Not under the output's folder: a socket's path may be about 100 characters long at most.
    with tempfile.TemporaryDirectory(prefix="vdp-") as sockets:
        kernel = {"transport": "ipc", "connection_file": f"{sockets}/kernel.json"}
        executed = papermill.execute_notebook(
            notebook.resolve(),
            partial.resolve(),
            parameters=parameters,
            kernel_name="python3",
            cwd=notebook.resolve().parent,
            start_timeout=180,
            iopub_timeout=60,  # nbclient's 4 s is too short on a loaded machine
            stderr_file=sys.stderr,
            record_timing=False,
            config=Config(KernelManager=kernel),
        )
    nbformat.write(without_run_details(executed), partial)
    os.replace(partial, output)


def without_run_details(notebook):
    """The notebook less what differs from run to run: papermill's paths and times, progress bars.

    The same outputs then give the same file, so running a committed notebook again changes
    nothing. Progress bars go to stderr, which `run_notebook` shows while it runs.
    """
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        if not cell.metadata.get("tags", True):  # papermill gives every cell an empty list
            del cell.metadata["tags"]
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
    return notebook


def _check(notebook, parameters):
    if not notebook.is_file():
        raise VDPError(f"there is no notebook {notebook}: check its path")
    if not parameters:
        return
    known = papermill.inspect_notebook(notebook)
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        raise VDPError(
            f"{notebook} has no parameter {', '.join(unknown)}: "
            f"it takes {', '.join(known) or 'none (no cell is tagged parameters)'}"
        )


def main(argv=None):
    """Command line: 0 when the notebook ran, 1 when a cell failed, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m vdp_utils.commands.run_notebook")
    parser.add_argument("notebook")
    parser.add_argument("output")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    options = parser.parse_args(argv)
    # An empty value is the empty string, where YAML would say null.
    parameters = {name: yaml.safe_load(value) if value else "" for name, value in options.p}
    try:
        run_notebook(options.notebook, options.output, parameters)
    except VDPError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (PapermillExecutionError, DeadKernelError) as error:
        partial = Path(options.output).with_suffix(".partial.ipynb")
        print(f"{error}\nerror: {options.notebook} failed; see {partial}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
