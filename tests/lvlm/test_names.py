"""Names that cannot be right are refused without loading anything."""

import subprocess
import sys

import pytest

from vdp_utils.errors import VDPError
from vdp_utils.lvlm.names import check_names


@pytest.mark.parametrize("name", ["embedded-s", "embedded-m", "embedded-l", "embedded-s-far",
                                  "embedded-s-short-seed1", "org/name-1.5_x"])
def test_names_that_may_be_right_pass(name):
    check_names(name)


@pytest.mark.parametrize("name", ["embedded-xl", "embedded-", "embedded-S", "embedded-s-",
                                  "embedded-s-fra"])
def test_an_unknown_size_is_refused(name):
    with pytest.raises(VDPError, match=f"unknown size '{name}'.*embedded-s, embedded-m, embedded"):
        check_names(name)


@pytest.mark.parametrize("name", ["", "smolvlm", "not a name", "org/", "/name", "org/na me",
                                  "org/-name", "a/b/c", "~/llava", "./llava", "models\\llava",
                                  "C:llava"])
def test_what_is_neither_a_folder_nor_a_hub_id_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(VDPError) as raised:
        check_names(name)
    assert str(raised.value).startswith(f"model {name!r} cannot be loaded (")
    assert "a folder written by save_pretrained, or a hub id" in str(raised.value)


def test_a_folder_needs_a_config(tmp_path, monkeypatch):
    folder = tmp_path / "org" / "llava"
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for name in (str(folder), "org/llava", "./org/llava"):  # a folder goes before a hub id
        with pytest.raises(VDPError, match="no folder with a config.json"):
            check_names(name)
    (folder / "config.json").write_text("{}")
    for name in (str(folder), "org/llava", "./org/llava"):
        check_names(name)
    with pytest.raises(VDPError, match="neither a folder nor a hub id"):
        check_names("llava")
    check_names("llava", folder=tmp_path / "org")


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:1", "mps", "auto"])
def test_devices_that_may_be_there_pass(device):
    check_names(device=device)


@pytest.mark.parametrize("device", ["gpu", "CUDA", "cuda:", "cuda:x", "cuda1", "cpu:0", "", 0])
def test_an_unknown_device_is_refused(device):
    with pytest.raises(VDPError, match=f"unknown device '{device}': choose cpu, cuda, cuda:N, mps"):
        check_names(device=device)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "auto"])
def test_known_dtypes_pass(dtype):
    check_names(dtype=dtype)


@pytest.mark.parametrize("dtype, meant", [
    ("bf16", "bfloat16"), ("fp16", "float16"), ("fp32", "float32"), ("torch.bfloat16", "bfloat16"),
    ("Float32", "float32")])
def test_a_dtype_s_other_names_are_refused_with_the_one_meant(dtype, meant):
    with pytest.raises(VDPError, match=rf"unknown dtype '{dtype}': did you mean {meant}\? choose"):
        check_names(dtype=dtype)


@pytest.mark.parametrize("dtype", ["half", "int4", "", 16])
def test_an_unknown_dtype_is_refused(dtype):
    with pytest.raises(VDPError, match=f"unknown dtype '{dtype}': choose one of float32, bfloat16"):
        check_names(dtype=dtype)


def test_names_are_checked_without_loading_torch():
    """A notebook's parameters are checked before its kernel starts: that must be quick."""
    script = ("import sys; from vdp_utils.lvlm.names import check_names; check_names('embedded-s');"
              "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))")
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
