"""The page about clusters holds what is computed."""

import runpy
from pathlib import Path

import pytest
import yaml

PROFILES = Path(__file__).resolve().parents[1] / "profiles"


@pytest.mark.weekly
def test_the_plan_of_larger_models_is_what_is_computed():
    printed = runpy.run_path(str(PROFILES / "grid.py"))["main"]()
    for table in printed.split("\n\n"):
        assert table in (PROFILES / "README.md").read_text()


@pytest.mark.parametrize("name", ["slurm", "kubernetes"])
def test_a_profile_sends_a_lost_job_again_and_keeps_what_is_done(name):
    settings = yaml.safe_load((PROFILES / name / "config.yaml").read_text())
    assert settings["executor"] == name and settings["retries"] > 0
    assert settings["rerun-incomplete"] and settings["rerun-triggers"] == "mtime"
    assert {"gpu", "mem_mb"} <= set(settings["default-resources"])
