"""Running a notebook: what it is given, what is kept, and what is said when it cannot be run."""

import contextlib
import os
import sys
import tempfile

import nbformat
import papermill
import pytest

from vdp_utils.commands.run import run
from vdp_utils.errors import VDPError

TELL = """
import os, sys
from ipykernel.connect import get_connection_info
print(PROFILE, N, os.path.basename(os.getcwd()), '"transport": "ipc"' in get_connection_info())
print("progress", file=sys.stderr)
"""
BARS = """
import vdp_utils
from tqdm.auto import trange
for _ in trange(3, delay=0): pass
print(sorted(name for name in globals() if name in ("os", "sys", "tqdm")))
"""


def write_notebook(path, *cells, **parameters):
    """A notebook with the parameters PROFILE, MODEL, RESULTS, N and others, and these cells."""
    values = dict(PROFILE="full", MODEL="embedded-s", RESULTS="", N=1) | parameters
    first = nbformat.v4.new_code_cell(
        "\n".join(f"{name} = {value!r}" for name, value in values.items()),
        metadata={"tags": ["parameters"]})
    nb = nbformat.v4.new_notebook(cells=[first, *map(nbformat.v4.new_code_cell, cells)])
    nb.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path.parent.mkdir(exist_ok=True)
    nbformat.write(nb, path)
    return path


def printed(path):
    cells = nbformat.read(path, 4).cells
    outputs = [out for cell in cells for out in cell.get("outputs", ())]
    return "".join(out["text"] for out in outputs if "text" in out)


@pytest.fixture
def given(monkeypatch):
    """What papermill would be given, without a kernel."""
    class NotRun(Exception):
        pass

    found = {}

    def execute(*arguments, **options):
        found.update(options)
        raise NotRun

    monkeypatch.setattr(papermill, "execute_notebook", execute)

    def parameters(notebook, **values):
        with contextlib.suppress(NotRun):
            run(notebook, notebook.with_name("out.ipynb"), values)
        return found.pop("parameters")

    return parameters


# ---- what is run, and what is kept


def test_it_ends_with_a_sentence_where_the_data_lack_something(tmp_path, capfd):
    notebook, output = tmp_path / "notebooks/a.ipynb", tmp_path / "a.ipynb"
    write_notebook(notebook, "print('first')", "from vdp_utils.errors import Lacking\nprint('half')"
                   "\nraise Lacking('no boxes: give some')", "print('never')")
    run(notebook, output)
    assert printed(output) == ("first\nhalf\n"
                               "It ends here, for what the data lack: no boxes: give some\n")
    cells = nbformat.read(output, 4).cells
    assert len(cells) == 4 and [cell.execution_count for cell in cells] == [1, 2, 3, None]
    assert not output.with_suffix(".partial.ipynb").exists()
    assert "papermill" not in output.read_text()
    assert "It ends here" in capfd.readouterr().out


def test_data_are_looked_for_before_anything_runs(given, tmp_path, monkeypatch):
    notebook = write_notebook(tmp_path / "a.ipynb", DATA="scenes", DATA_ROOT="")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "2017").mkdir()
    found = given(notebook, DATA="coco", DATA_ROOT="2017")
    assert found == {"DATA": "coco", "DATA_ROOT": str(tmp_path / "2017")}
    for wrong, said in ((dict(DATA="cocoa"), "unknown data 'cocoa'"),
                        (dict(DATA="coco"), "data coco: give the folder"),
                        (dict(DATA="coco", DATA_ROOT="x"), "data coco: there is no .*x, give the")):
        with pytest.raises(VDPError, match=said):
            given(notebook, **wrong)


def test_a_notebook_is_run_in_its_folder_over_ipc_and_kept_free_of_run_details(tmp_path, capfd):
    notebook, output = tmp_path / "notebooks/a.ipynb", tmp_path / "out {N} {b}/a.ipynb"
    write_notebook(notebook, TELL)
    run(notebook, output, {"PROFILE": "quick", "N": [1, 2]})
    assert printed(output) == "quick [1, 2] notebooks True\n"
    said = capfd.readouterr()
    assert "progress" in said.err
    first, last = said.out.splitlines()
    assert first == "a: started"
    assert last.startswith("a: done in 0.") and last.endswith(f" minutes, see {output}")
    assert os.listdir(output.parent) == ["a.ipynb"]
    text = output.read_text()
    assert "papermill" not in text and str(tmp_path) not in text and "progress\n" not in text


def test_in_place_twice_gives_the_same_bytes_and_a_failure_leaves_them(tmp_path, capsys):
    notebook, partial = tmp_path / "a.ipynb", tmp_path / "a.partial.ipynb"
    write_notebook(notebook, "import os; print(N)", "assert not os.path.exists('fail')")
    run(notebook, notebook)
    first = notebook.read_bytes()
    (tmp_path / "fail").touch()
    with pytest.raises(VDPError, match=f"a.ipynb failed .* see {partial}"):
        run(notebook, notebook)
    assert notebook.read_bytes() == first and "AssertionError" in partial.read_text()
    assert "AssertionError" in capsys.readouterr().err
    (tmp_path / "fail").unlink()
    run(notebook, notebook)
    assert notebook.read_bytes() == first and not partial.exists()


def test_a_run_that_is_not_the_committed_one_says_so_where_its_words_are_another_s(tmp_path):
    notebook, output = tmp_path / "notebooks/a.ipynb", tmp_path / "b.ipynb"
    source = write_notebook(notebook, TELL, "print('save_verdict(verdict)')")
    count = len(nbformat.read(source, 4).cells)
    for _ in range(2):  # and not twice, where it runs in place
        run(source, output, {"PROFILE": "smoke", "N": 1})
        cells, source = nbformat.read(output, 4).cells, output
        notes = [n for n, cell in enumerate(cells) if "Tables, figures and verdict" in cell.source]
        assert len(cells) == count + 3 and notes[0] == 1  # and the parameters that are injected
        assert "save_verdict(" in cells[notes[1] - 1].source
        assert "verdict are of PROFILE = 'smoke'.**" in cells[1].source
    run(notebook, output, {"PROFILE": "full"})
    assert len(nbformat.read(output, 4).cells) == count + 1


def test_a_run_that_is_stopped_is_a_sentence(tmp_path, capsys):
    notebook = write_notebook(tmp_path / "a.ipynb", "raise KeyboardInterrupt")
    with pytest.raises(SystemExit, match="^a: stopped; what it measured is kept, and the same"):
        run(notebook, tmp_path / "b.ipynb")
    assert not (tmp_path / "b.ipynb").exists() and capsys.readouterr().err == ""


def test_the_output_is_in_build_by_default(tmp_path, monkeypatch):
    write_notebook(tmp_path / "notebooks/a.ipynb", "print(N)")
    monkeypatch.chdir(tmp_path)
    run("notebooks/a.ipynb")
    assert printed(tmp_path / "build/a.ipynb") == "1\n"


def test_an_error_of_the_study_is_its_sentence_alone(tmp_path, capsys):
    notebook = write_notebook(tmp_path / "a.ipynb", "from vdp_utils.errors import VDPError",
                              "raise VDPError('no such kind: choose one')")
    with pytest.raises(VDPError, match="a.ipynb: no such kind: choose one$"):
        run(notebook, tmp_path / "b.ipynb")
    assert capsys.readouterr().err == ""


def test_a_kernel_that_dies_is_tried_once_more(tmp_path):
    notebook = write_notebook(
        tmp_path / "a.ipynb", "import os, pathlib",
        "if not pathlib.Path('died').exists(): pathlib.Path('died').touch(); os._exit(1)",
        "print('lives')")
    run(notebook, tmp_path / "b.ipynb")
    assert printed(tmp_path / "b.ipynb") == "lives\n"
    write_notebook(notebook, "import os; os._exit(1)")
    with pytest.raises(VDPError, match="could not be run to its end .*died.* memory"):
        run(notebook, tmp_path / "b.ipynb")


def test_progress_bars_are_text_and_none_where_nobody_watches(tmp_path, capfd, monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.setenv("JPY_SESSION_NAME", "run from a notebook")
    notebook, output = write_notebook(tmp_path / "a.ipynb", BARS), tmp_path / "b.ipynb"
    run(notebook, output)
    assert printed(output) == "[]\n" and capfd.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    run(notebook, output)
    assert printed(output) == "[]\n" and "| 0/3" in capfd.readouterr().err
    assert "widget" not in output.read_text()


def test_progress_bars_are_widgets_in_jupyter_only(tmp_path, monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    notebook, output = write_notebook(tmp_path / "a.ipynb", BARS), tmp_path / "b.ipynb"
    for session, found in ((None, False), ("notebooks/a.ipynb", True)):
        if session:
            monkeypatch.setenv("JPY_SESSION_NAME", session)
        papermill.execute_notebook(notebook, output, progress_bar=False)
        assert ("widget-view" in output.read_text()) == found
        assert "Warning" not in output.read_text()


@pytest.mark.parametrize("length", [70, 130])
def test_a_long_temporary_folder_is_no_hindrance(tmp_path_factory, monkeypatch, length):
    folder = tmp_path_factory.mktemp("a", numbered=True)
    long = tempfile.mkdtemp(dir="/tmp", prefix="x" * max(1, length - len("/tmp/") - 8))
    notebook = write_notebook(folder / "a.ipynb", "print(N)")
    monkeypatch.setattr(tempfile, "tempdir", long)
    try:
        run(notebook, folder / "b.ipynb")
    finally:
        os.rmdir(long)
    assert printed(folder / "b.ipynb") == "1\n"


# ---- parameters


@pytest.mark.parametrize("text, value", [
    ("2", 2), ("0.5", 0.5), ("True", True), ("None", None), ("", ""), ("no", "no"),
    ("2026-11-25", "2026-11-25"), ("12:30:00", "12:30:00"), ("null", "null"), ("a: b", "a: b"),
    ("[1, 2]", "[1, 2]"), ("true", "true")])
def test_values_are_read_as_papermill_reads_them(tmp_path, given, text, value):
    found = given(write_notebook(tmp_path / "a.ipynb"), N=text)
    assert found == {"N": value} and type(found["N"]) is type(value)


def test_paths_are_those_of_the_caller_and_stay_text(tmp_path, given, monkeypatch):
    notebook = write_notebook(tmp_path / "notebooks/a.ipynb", BENCHMARK="")
    monkeypatch.chdir(tmp_path)
    assert given(notebook, RESULTS="build/x") == {"RESULTS": f"{tmp_path}/build/x"}
    assert given(notebook, RESULTS="2026") == {"RESULTS": f"{tmp_path}/2026"}
    assert given(notebook, RESULTS="") == {"RESULTS": ""}
    assert given(notebook, BENCHMARK="m/b.json") == {"BENCHMARK": f"{tmp_path}/m/b.json"}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/config.json").touch()
    assert given(notebook, MODEL="mine") == {"MODEL": f"{tmp_path}/mine"}
    assert given(notebook, MODEL="owner/name") == {"MODEL": "owner/name"}


def test_names_that_cannot_be_right_are_refused_before_a_kernel_starts(tmp_path, given):
    notebook = write_notebook(tmp_path / "a.ipynb", DEVICE="cpu", DTYPE="float32")
    assert given(notebook, DEVICE="cuda:1") == {"DEVICE": "cuda:1"}
    for name, wrong in dict(MODEL="embedded-x", DEVICE="gpu", DTYPE="bf16").items():
        with pytest.raises(VDPError, match=f"unknown .*{wrong}"):
            given(notebook, **{name: wrong})
    with pytest.raises(VDPError, match="unknown device 'tpu'"):  # its own default
        given(write_notebook(notebook, DEVICE="tpu"))
    assert sorted(os.listdir(tmp_path)) == ["a.ipynb", "out.partial.ipynb"]  # of what was tried


def test_the_models_that_join_are_checked_before_anything_runs(tmp_path):
    path = write_notebook(tmp_path / "a.ipynb", OTHERS="")
    with pytest.raises(VDPError, match="unknown size 'embedded-x'"):
        run(path, tmp_path / "out.ipynb", {"OTHERS": "embedded-s-far embedded-x"})


def test_unknown_parameters_are_refused(tmp_path):
    notebook = write_notebook(tmp_path / "a.ipynb")
    with pytest.raises(VDPError, match="no parameter PROFIL: it takes PROFILE, MODEL, RESULTS, N"):
        run(notebook, tmp_path / "b.ipynb", {"PROFIL": "quick"})
    assert os.listdir(tmp_path) == ["a.ipynb"]


# ---- what cannot be read or written


def broken(text):
    """A notebook's text as a merge leaves it."""
    lines = text.splitlines()
    return "\n".join([*lines[:3], "<<<<<<< HEAD", *lines[3:5], "=======", *lines[5:]])


@pytest.mark.parametrize("spoil, reason", [
    (lambda text: b"", "it is empty"), (lambda text: b" \n", "it is empty"),
    (lambda text: broken(text).encode(), "conflict markers"),
    (lambda text: text.encode("utf-16"), "nbformat says: 'utf-8' codec"),
    (lambda text: text[:-20].encode(), "nbformat says"),
    (lambda text: b"version https://git-lfs.github.com/spec/v1\n", "does not appear to be JSON"),
    (lambda text: b"[]", "nbformat says"), (lambda text: b"{}", "nbformat says"),
    (lambda text: b'{"nbformat": 4, "nbformat_minor": 5, "metadata": {}}', "nbformat says")])
def test_what_is_no_notebook_is_named(tmp_path, spoil, reason):
    notebook = write_notebook(tmp_path / "a.ipynb")
    notebook.write_bytes(spoil(notebook.read_text()))
    with pytest.raises(VDPError, match=f"a.ipynb is not a notebook .*{reason}.*restore it") as one:
        run(notebook, tmp_path / "b.ipynb")
    assert "\n" not in str(one.value) and os.listdir(tmp_path) == ["a.ipynb"]


def test_a_byte_order_mark_does_no_harm(tmp_path):
    notebook = write_notebook(tmp_path / "a.ipynb", "print(N)")
    notebook.write_text(notebook.read_text(), encoding="utf-8-sig")
    run(notebook, notebook)
    assert printed(notebook) == "1\n"


def test_a_missing_notebook_is_named(tmp_path):
    for missing in ("c.ipynb", "."):
        with pytest.raises(VDPError, match="there is no notebook"):
            run(tmp_path / missing, tmp_path / "d.ipynb")


def test_an_output_that_cannot_be_written_is_refused_before_any_cell_runs(tmp_path):
    notebook = write_notebook(tmp_path / "a.ipynb", "open('ran', 'w')")
    for folder in ("folder.ipynb", "b.partial.ipynb"):
        (tmp_path / folder).mkdir()
    for output, said in {"folder.ipynb": "not a name for", "": "not a name for", "page.html":
                         "not a name for", "a.ipynb/b.ipynb": "cannot be written",
                         "b.ipynb": "cannot be written"}.items():
        with pytest.raises(VDPError, match=said):
            run(notebook, tmp_path / output)
    assert not (tmp_path / "ran").exists()
