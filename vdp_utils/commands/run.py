"""`vdp run`: one notebook with papermill, so that a failed run never replaces a good notebook."""

import ast
import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import papermill
from papermill.cli import _resolve_type  # what `papermill -p` makes of a text; not public
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from vdp_utils.errors import Lacking, VDPError
from vdp_utils.lvlm.names import check_names
from vdp_utils.sources.photographs import check_data

PATHS = ("RESULTS", "FIGURES", "BENCHMARK", "DATA_ROOT")  # parameters: folders or files
NAMES = ("MODEL", "DEVICE", "DTYPE")  # parameters that `check_names` knows
ABOUT, NOTE = ("PROFILE", "MODEL", "DATA"), "of-this-run"  # what makes other rows; ids of cells
LONGEST = 70  # bytes of a folder for sockets, whose paths may be 104 to 108 long
# The kernel's first line: it is not Jupyter's own, even if this process is. Progress bars that end
# leave no line in the terminal, and there are none where nobody watches.
START = "import os; os.environ.pop('JPY_SESSION_NAME', None); os.environ.update({}); del os"
WATCHED, UNWATCHED = {"TQDM_LEAVE": "", "TQDM_DELAY": "1"}, {"TQDM_DISABLE": "1"}


def run(notebook, output=None, parameters=None):
    """Execute `notebook` in its own folder and put the result at `output` (both paths).

    `output` is build/<the notebook's name> by default, and may be `notebook` itself. While it
    runs, and after a failure, the cells so far are in `<output>.partial.ipynb`; `output` is
    replaced only when every cell has succeeded, or all up to one whose data are Lacking: the
    notebook then ends with that sentence. Relative paths among the parameters are the
    caller's. Prints a line at the start and one at the end; progress bars go to stderr.

    Raises VDPError for a notebook that cannot be read, an output that cannot be written, a
    parameter that is not there or cannot be right (papermill would only warn, or find out late),
    and when a cell fails.
    """
    began, notebook = time.monotonic(), Path(notebook)
    output = Path(output or Path("build") / notebook.name)
    source = read(notebook)
    parameters = checked(notebook, source, parameters or {})
    partial, lacking = _partial(output), ""
    stopped = f"{notebook.stem}: stopped; what it measured is kept, and the same command goes on"
    print(f"{notebook.stem}: started", flush=True)
    try:
        try:
            executed = _execute(source, partial, notebook, parameters)
        except RuntimeError:  # a kernel that did not start, or died; what it measured is stored
            executed = _execute(source, partial, notebook, parameters)
        except PapermillExecutionError as error:
            if error.ename != Lacking.__name__:
                raise
            lacking = f"It ends here, for what the data lack: {error.evalue}"
            executed = _ended(read(partial), lacking)
        executed = without_run_details(with_note(executed, source, parameters))
        nbformat.write(executed, partial)
        os.replace(partial, output)
    except KeyboardInterrupt:
        sys.exit(stopped)
    except PapermillExecutionError as error:
        if error.ename == KeyboardInterrupt.__name__:
            sys.exit(stopped)
        if error.ename == VDPError.__name__:
            raise VDPError(f"{notebook}: {error.evalue}") from error
        print(error, file=sys.stderr)
        raise VDPError(f"{notebook} failed in the cell shown above; see {partial}") from error
    except (RuntimeError, OSError) as error:
        raise VDPError(f"{notebook} could not be run to its end ({error}): check that memory and "
                       "disk suffice") from error
    minutes = (time.monotonic() - began) / 60
    print(f"{notebook.stem}: done in {minutes:.1f} minutes, see {output}", *lacking.splitlines(),
          sep="\n  ", flush=True)


def _execute(source, partial, notebook, parameters):
    """The executed notebook; its cells so far are in `partial` all the time.

    Kernels talk over IPC sockets, since TCP ports picked at the same time collide now and then.
    """
    start = START.format(WATCHED if sys.stderr.isatty() else UNWATCHED)
    with tempfile.TemporaryDirectory(prefix="vdp-", dir=_folder_of_sockets()) as sockets:
        kernel = {"transport": "ipc", "connection_file": f"{sockets}/kernel.json"}
        return papermill.execute_notebook(
            source,
            str(partial.resolve()).replace("{", "{{").replace("}", "}}"),  # it fills in {NAME}
            parameters=parameters,
            kernel_name="python3",
            progress_bar=False,  # of cells, nearly all of whose time is in one
            cwd=notebook.resolve().parent,
            start_timeout=180,
            iopub_timeout=60,  # nbclient's 4 s is too short on a loaded machine
            stderr_file=sys.stderr,
            record_timing=False,
            extra_arguments=[f"--IPKernelApp.exec_lines={start}",
                             "--IPKernelApp.log_level=50"],  # silent where it is stopped
            config=Config(KernelManager=kernel),
        )


def read(notebook):
    """The notebook in a file. VDPError for a file that is missing or holds something else."""
    if not notebook.is_file():
        raise VDPError(f"there is no notebook {notebook}: check its path")
    text = None
    try:
        text = notebook.read_text(encoding="utf-8-sig")  # some editors write a byte-order mark
        found = nbformat.reads(text, as_version=4)
    except Exception as error:  # nbformat fails in many ways
        reason = ("it is empty" if text is not None and not text.strip() else
                  "it holds a merge's conflict markers" if "\n<<<<<<< " in f"\n{text}" else
                  f"nbformat says: {str(error).splitlines()[0]:.80}")
        raise VDPError(f"{notebook} is not a notebook ({reason}): restore it, for example with "
                       f"git checkout {notebook}") from error
    return found


def _ended(notebook, why):
    """A notebook that an error ended, with a sentence in the error's place."""
    notebook.cells = [cell for cell in notebook.cells if not any(
        tag.startswith("papermill-error") for tag in cell.metadata.get("tags", []))]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [nbformat.v4.new_output("stream", text=f"{why}\n")
                            if out.output_type == "error" else out for out in cell.outputs]
    return notebook


def with_note(notebook, source, parameters):
    """The notebook with a note where its words are of another run than its tables and figures:
    below its title, and below its verdict."""
    notebook.cells = [cell for cell in notebook.cells if not cell.id.startswith(NOTE)]
    known = papermill.inspect_notebook(source)
    other = [f"{name} = {parameters[name]!r}" for name in ABOUT if name in parameters and
             parameters[name] != ast.literal_eval(known[name]["default"])]
    if other:
        text = (f"> **Tables, figures and verdict are of {', '.join(other)}.** The title and the "
                "text tell what the committed run found.")
        at = [n for n, cell in enumerate(notebook.cells) if "save_verdict(" in cell.source]
        for number in (*reversed(at), 0):
            notebook.cells.insert(number + 1, nbformat.v4.new_markdown_cell(
                text, id=f"{NOTE}-{number}"))
    return notebook


def without_run_details(notebook):
    """The notebook less what differs from run to run: papermill's paths and times, progress bars.

    The same outputs then give the same file, so running a committed notebook again changes
    nothing. Progress bars go to stderr, which `run` shows while it runs.
    """
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        if not cell.metadata.get("tags", True):  # papermill gives every cell an empty list
            del cell.metadata["tags"]
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
    return notebook


def checked(notebook, source, parameters):
    """The parameters with texts read as papermill reads them, and folders made absolute."""
    known = papermill.inspect_notebook(source)
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        raise VDPError(
            f"{notebook} has no parameter {', '.join(unknown)}: "
            f"it takes {', '.join(known) or 'none (no cell is tagged parameters)'}"
        )
    given = {name: _value(name, value) for name, value in parameters.items()}
    for name in given.keys() & {*PATHS, "MODEL"}:
        if given[name] and (name in PATHS or os.path.isdir(given[name])):
            given[name] = os.path.abspath(given[name])
    names = {name: ast.literal_eval(known[name]["default"]) for name in NAMES if name in known}
    names |= {name: given[name] for name in NAMES if name in given}
    check_names(folder=notebook.parent, **{name.lower(): value for name, value in names.items()})
    for model in str(given.get("OTHERS", "")).split():
        check_names(model, folder=notebook.parent)
    if "DATA" in given:
        check_data(given["DATA"], given.get("DATA_ROOT"))
    return given


def _value(name, value):
    """What papermill's -p makes of a text; but a folder or a model may be called 2026."""
    read = _resolve_type(value) if isinstance(value, str) else value
    return value if name in PATHS + NAMES + ("DATA",) and read is not None else read


def _partial(output):
    """Where the cells so far are kept, tried out before any of them runs."""
    if output.is_dir() or output.suffix != ".ipynb":
        raise VDPError(f"{output} is not a name for a notebook: give a file ending in .ipynb")
    partial = output.with_suffix(".partial.ipynb")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        partial.open("a").close()
    except OSError as error:
        raise VDPError(f"{output} cannot be written ({error}): give another output") from error
    return partial


def _folder_of_sockets():
    folder = tempfile.gettempdir()
    return folder if len(os.fsencode(folder)) <= LONGEST else "/tmp"
