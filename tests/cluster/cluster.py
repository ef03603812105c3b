"""The study on a real Slurm, on this one machine: `make test-cluster`.

Needs root on Debian or Ubuntu: packages slurmctld, slurmd, slurm-client and munge are installed
where they are missing, and /etc/slurm/slurm.conf is replaced while the tests run (Slurm's plugin
for job steps reads no other). Takes about a quarter of an hour.
"""

import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from vdp_utils.measuring.store import ResultStore

ROOT = Path(__file__).resolve().parents[2]
CONFIG = Path("/etc/slurm/slurm.conf")
PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
NAMES = ("01_long_context_decline", "08_theory_checks")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}


def wait(condition, seconds, every=0.3):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"waited {seconds} s for {condition.__doc__}"
        time.sleep(every)


def says(*command):
    return subprocess.run(command, stdout=subprocess.PIPE, text=True).stdout


class Slurm:
    """A controller and two nodes, each in a process namespace: to kill it kills what it runs."""

    def __init__(self, folder):
        self.folder, self.running = folder, {}
        for name in ("state", "node1", "node2"):
            (folder / name).mkdir(parents=True)
        CONFIG.parent.mkdir(exist_ok=True)
        text = Path(__file__).with_name("slurm.conf").read_text()
        CONFIG.write_text(text.replace("HOST", platform.node()).replace("DIR", str(folder)))
        if not says("pidof", "munged"):
            subprocess.run(["install", "-d", "-o", "munge", "-g", "munge", "-m", "0755",
                            "/run/munge"], check=True)
            self.start("munged", "setpriv", "--reuid", "munge", "--regid", "munge",
                       "--init-groups", "munged", "--foreground")
        self.start("slurmctld", "slurmctld", "-D", "-i")
        self.node("node1")
        self.node("node2")
        self.until_idle(2)

    def start(self, name, *command):
        with open(self.folder / f"{name}.out", "a") as out:
            self.running[name] = subprocess.Popen(command, stdout=out, stderr=out,
                                                  start_new_session=True, env=ENVIRONMENT)

    def node(self, name):
        self.start(name, "unshare", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "sh",
                   "-c", f"slurmd -D -N {name}; :")

    def kill(self, name):
        self.running[name].send_signal(signal.SIGKILL)
        self.running.pop(name).wait()

    def until_idle(self, count):
        def idle():
            """idle nodes"""
            return says("sinfo", "-h", "-N", "-o", "%T").split().count("idle") == count
        wait(idle, 60)

    def stop(self):
        subprocess.run(["scancel", "--user", "root"])
        for name in list(self.running):
            self.kill(name)


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    if os.geteuid() or not shutil.which("apt-get"):
        pytest.fail("these tests need root on Debian or Ubuntu")
    if not all(map(shutil.which, ("slurmctld", "slurmd", "sbatch", "munged"))):
        subprocess.run(["apt-get", "update", "-q"], check=True)
        subprocess.run(["apt-get", "install", "-qy", "--no-install-recommends", *PACKAGES],
                       check=True)
    before = CONFIG.read_bytes() if CONFIG.exists() else None
    found = None
    try:
        found = Slurm(tmp_path_factory.mktemp("slurm"))
        yield found
    finally:
        if found:
            found.stop()
        CONFIG.unlink()
        if before is not None:
            CONFIG.write_bytes(before)


@pytest.fixture(scope="session")
def copy(tmp_path_factory):
    """A function that makes a working copy of the study, without build/."""
    def make(name):
        folder = tmp_path_factory.mktemp(name)
        listed = says("git", "-C", str(ROOT), "ls-files", "Snakefile", "notebooks", "vdp_utils",
                      "profiles", "data/models", "data/bench").split()
        for path in listed:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, folder / path)
        return folder
    return make


def snakemake(folder, *options, minutes=0.75, wait=True, **settings):
    """Snakemake with the profile, as far as it fits here; its process, ended if `wait`."""
    settings = dict(slurm_partition="main", mem_mb=1500, runtime=30) | settings
    command = [sys.executable, "-m", "snakemake", "--profile", "profiles/slurm", "--cores", "1",
               "--default-resources", *(f"{name}={value}" for name, value in settings.items()),
               "--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "3",
               "--slurm-keep-successful-logs", "--config", "profile=quick", f"minutes={minutes}",
               *options, "--", *(f"build/quick/{name}.ipynb" for name in NAMES)]
    log = open(folder / "snakemake.log", "a")
    process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log,
                               env=ENVIRONMENT | {"PYTHONPATH": str(folder)})
    if wait:
        assert process.wait(1500) == 0, (folder / "snakemake.log").read_text()[-3000:]
    return process


@pytest.fixture(scope="session")
def local(copy):
    """The rows of the two notebooks, run here one after the other."""
    folder = copy("local")
    for name in NAMES:
        subprocess.run([sys.executable, "-m", "vdp_utils.commands", "run",
                        f"notebooks/{name}.ipynb", "-p", "PROFILE", "quick"], cwd=folder,
                       env=ENVIRONMENT | {"PYTHONPATH": str(folder)}, check=True)
    return rows(folder)


def rows(folder):
    """{finding/condition hash: its rows, but for how long they took}."""
    store, found = ResultStore(folder / "build/results/quick"), {}
    for path in sorted(Path(store.root).glob("*/*/condition.json")):
        parts = sorted(path.parent.glob("part-*"))
        table = pd.concat(map(pd.read_parquet, parts)) if parts else pd.DataFrame()
        assert not parts or table["key"].is_unique
        found["/".join(path.parts[-3:-1])] = table.drop(columns="seconds", errors="ignore")
    return found


def assert_same(folder, local):
    """All rows of a local run are there, to the bit; the plan's timing may have left more."""
    found = rows(folder)
    for name, table in local.items():
        pd.testing.assert_frame_equal(found[name], table, check_exact=True)
    assert not list((folder / "build/results").rglob("*.broken"))
    assert all((folder / f"build/quick/{name}.ipynb").exists() for name in NAMES)


def stored(folder):
    return sum(map(len, rows(folder).values()))


def running(node):
    return says("squeue", "-h", "-w", node, "-t", "R", "-o", "%i").split()


def test_a_node_that_dies_costs_nothing_but_time(slurm, copy, local):
    folder = copy("node")
    process = snakemake(folder, wait=False)

    def at_work():
        """a shard on node 2"""
        done = list((folder / "build/quick/shards").glob("*.done"))
        return done and running("node2")
    wait(at_work, 600)
    slurm.kill("node2")
    assert process.wait(1200) == 0, (folder / "snakemake.log").read_text()[-3000:]
    assert_same(folder, local)
    completed = (slurm.folder / "jobcomp.log").read_text()
    assert re.search("JobState=NODE_FAIL.* NodeList=node2 ", completed)
    assert re.search("JobState=COMPLETED.* NodeList=node1 ", completed)
    assert "Trying to restart job" in (folder / "snakemake.log").read_text()
    slurm.node("node2")
    slurm.until_idle(2)
