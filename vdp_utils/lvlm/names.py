"""Which names of models, devices and dtypes can be right, known before anything heavy is loaded."""

import difflib
import re
from pathlib import Path

from vdp_utils.errors import VDPError

SIZES = {"s": 6, "m": 12, "l": 30}  # decoder layers kept from the bottom of the base model
RUNGS = re.compile(r"short|far|start|seed\d+")  # what may follow a size: `training.ladder`
DTYPES = ("float32", "bfloat16", "float16", "auto")
DEVICE = re.compile(r"cpu|cuda(:\d+)?|mps|auto")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
PATH_LIKE = re.compile(r"[/~.]|[A-Za-z]:|.*\\|.*/.*/")
LOADABLE = ("give embedded-s, embedded-m, a folder written by save_pretrained, or a hub id you can "
            "reach (owner/name)")


def check_names(model: str | None = None, device: str | None = None, dtype: str | None = None,
                folder: str | Path = "") -> None:
    """Raise VDPError for a name that cannot be right; None is not looked at.

    Whether a hub id exists, and whether the machine has the device, is for loading to find out.
    A relative model folder is looked for in `folder`, or in the current one.
    """
    if model is not None:
        _check_model(str(model), Path(folder))
    if device is not None and not DEVICE.fullmatch(str(device)):
        raise VDPError(f"unknown device {str(device)!r}: choose cpu, cuda, cuda:N, mps or auto")
    if dtype is not None and dtype not in DTYPES:
        close = difflib.get_close_matches(str(dtype), DTYPES, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}? " if close else ""
        raise VDPError(f"unknown dtype {str(dtype)!r}: {hint}choose one of {', '.join(DTYPES)}")


def _check_model(name: str, folder: Path) -> None:
    if name.startswith("embedded-"):
        size, *rungs = name.removeprefix("embedded-").split("-")
        if size not in SIZES or not all(map(RUNGS.fullmatch, rungs)):
            raise VDPError(f"unknown size {name!r}: choose one of "
                           f"{', '.join('embedded-' + size for size in SIZES)}, or an instrument "
                           "such as embedded-s-far")
        return
    path = folder / name
    if path.is_dir() or PATH_LIKE.match(name):
        wrong = "" if (path / "config.json").is_file() else "no folder with a config.json"
    else:
        wrong = "" if HUB_ID.fullmatch(name) else "neither a folder nor a hub id"
    if wrong:
        raise VDPError(f"model {name!r} cannot be loaded ({wrong}): {LOADABLE}")
