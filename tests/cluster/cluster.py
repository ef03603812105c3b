"""The study on a real Slurm, on this one machine: `make test-cluster`.

Needs root on Debian or Ubuntu: packages slurmctld, slurmd, slurm-client, munge and faketime are
installed where they are missing, and /etc/slurm/slurm.conf is replaced while the tests run (Slurm's
plugin for job steps reads no other).
"""

import json
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
PACKAGES = {"slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client",
            "munged": "munge", "faketime": "faketime"}  # by a command of theirs
SHARDS = 5  # about
NAMES = ("08_theory_checks", "11_scaling_law")
PROCESSES: list[subprocess.Popen] = []  # Snakemake's, which end with the tests
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
        for process in PROCESSES:
            process.kill()
        subprocess.run(["scancel", "--user", "root"])
        for name in list(self.running):
            self.kill(name)


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    if os.geteuid() or not shutil.which("apt-get"):
        pytest.fail("these tests need root on Debian or Ubuntu")
    if not all(map(shutil.which, PACKAGES)):
        subprocess.run(["apt-get", "update", "-q"], check=True)
        subprocess.run(["apt-get", "install", "-qy", "--no-install-recommends",
                        *PACKAGES.values()], check=True)
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
    """A function that makes a working copy of the study with two notebooks, without build/."""
    def make(name):
        folder = tmp_path_factory.mktemp(name)
        listed = says("git", "-C", str(ROOT), "ls-files", "Snakefile", "notebooks", "vdp_utils",
                      "profiles", "data/models", "data/bench").split()
        for path in listed:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, folder / path)
        listed = re.compile(r"^NOTEBOOKS = \[.*?^\]", re.M | re.S)
        (folder / "Snakefile").write_text(listed.sub(
            f"NOTEBOOKS = {list(NAMES)}", (ROOT / "Snakefile").read_text()))
        return folder
    return make


def snakemake(folder, *options, minutes=1.0):
    """Snakemake with the profile, as far as it fits here: its running process."""
    command = [sys.executable, "-m", "snakemake", "--profile", "profiles/slurm", "--cores", "1",
               "--default-resources", "slurm_partition=main", "mem_mb=1500", "runtime=60",
               "--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "3",
               "--slurm-keep-successful-logs", "--config", "profile=quick",
               f"minutes={minutes:.2f}", *options]
    with open(folder / "snakemake.log", "a") as log:
        PROCESSES.append(subprocess.Popen(command, cwd=folder, stdout=log, stderr=log,
                                          env=ENVIRONMENT | {"PYTHONPATH": str(folder)}))
    return PROCESSES[-1]


def log(folder):
    return (folder / "snakemake.log").read_text()


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


def assert_same(folder, local, whole=True):
    """What is stored is what a local run stored, to the bit; `whole`: all of it is there."""
    found = rows(folder)
    for name, table in local.items():
        part = found.get(name, table[:0])
        mine = table if whole else table[table["key"].isin(part.get("key", []))]
        pd.testing.assert_frame_equal(part.sort_values("key", ignore_index=True),
                                      mine.reset_index(drop=True), check_exact=True)
    assert not list((folder / "build/results").rglob("*.broken"))


def stored(folder):
    return sum(map(len, rows(folder).values()))


def running(node):
    return says("squeue", "-h", "-w", node, "-t", "R", "-o", "%i").split()


def ended(slurm, job):
    """How a job ended, "" while it has not."""
    lines = (slurm.folder / "jobcomp.log").read_text()
    found = re.search(rf"JobId={job} .*JobState=(\w+)", lines)
    return found[1] if found else ""


@pytest.fixture(scope="session")
def swept(slurm, copy):
    """The folder of a sweep of which Snakemake, and then a node, was killed."""
    folder = copy("swept")
    first = snakemake(folder, "--until", "plan")

    def planning():
        """the job that plans"""
        return running("node1") + running("node2")
    wait(planning, 300)
    first.kill()  # as a power cut would
    first.wait()
    assert snakemake(folder).wait(100) == 1
    assert "caused by a kill signal or a power loss" in log(folder) and "--unlock" in log(folder)
    subprocess.run(["scancel", "--user", "root"], check=True)
    assert snakemake(folder, "--unlock").wait(100) == 0
    assert snakemake(folder, "--until", "plan").wait(1200) == 0, log(folder)[-3000:]
    plan = folder / "build/quick/plan.json"
    hours = float(re.search(r"([\d.]+) hours", json.loads(plan.read_text())["said"])[1])
    plan.unlink()  # the next takes longer shards on a slower machine
    process = snakemake(folder, minutes=max(hours * 60 / SHARDS, 0.5))

    def at_work():
        """a shard on node 2, after another has ended"""
        assert process.poll() is None, log(folder)[-3000:]
        done = list((folder / "build/quick/shards").glob("*.done"))
        return done and running("node2")
    wait(at_work, 2400)
    slurm.kill("node2")
    assert process.wait(1800) == 0, log(folder)[-3000:]
    slurm.node("node2")
    slurm.until_idle(2)
    return folder


def test_a_lock_left_behind_and_a_node_that_dies_cost_nothing_but_time(slurm, swept, local):
    assert_same(swept, local)
    assert all((swept / f"build/quick/{name}.ipynb").exists() for name in NAMES)
    completed = (slurm.folder / "jobcomp.log").read_text()
    assert re.search("JobState=NODE_FAIL.* NodeList=node2 ", completed)
    assert re.search("JobState=COMPLETED.* NodeList=node1 ", completed)
    assert "Trying to restart job" in log(swept)


@pytest.fixture
def shard(swept, copy):
    """A fresh folder, the command of a shard of the plan, and how to give Slurm it and the next:
    together they take longer than a time limit of a minute, which Slurm heeds within two."""
    folder = copy("shard")
    shutil.copy(swept / "build/quick/plan.json", folder)
    numbers = json.loads((folder / "plan.json").read_text())["needs"][NAMES[1]][:2]
    command, following = (f"{sys.executable} -m vdp_utils.commands shard plan.json {number}"
                          for number in numbers)

    def submit(*options, before=""):
        out = subprocess.run(["sbatch", "--parsable", "--no-requeue", *options, "--wrap",
                              f"{before} {command} && {following}"], cwd=folder, check=True,
                             text=True, stdout=subprocess.PIPE,
                             env=ENVIRONMENT | {"PYTHONPATH": str(folder)})
        return out.stdout.strip()
    return folder, command, submit


def test_cut_off_by_its_time_limit_then_twice_at_once_and_two_days_apart(slurm, shard, local):
    folder, _, submit = shard
    job = submit("--time=1", before="sleep 25;")

    def cut_off():
        """a job cut off"""
        return ended(slurm, job)
    wait(cut_off, 240)
    assert ended(slurm, job) == "TIMEOUT"
    kept = stored(folder)
    assert kept
    assert_same(folder, local, whole=False)
    jobs = [submit("-w", "node1"), submit("-w", "node2", before="faketime -f -2d")]

    def both_ended():
        """two jobs on one condition"""
        return all(ended(slurm, one) for one in jobs)
    wait(both_ended, 900)
    assert [ended(slurm, one) for one in jobs] == ["COMPLETED"] * 2, says(
        "sh", "-c", f"tail -n 5 {folder}/slurm-*.out")
    assert stored(folder) > kept
    assert_same(folder, local, whole=False)


def test_a_full_disk_is_one_sentence_and_more_room_is_all_it_takes(shard, local):
    folder, command, _ = shard
    (folder / "build/results").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48k", "none", folder / "build/results"],
                   check=True)
    try:
        def run():
            return subprocess.run(command.split(), cwd=folder, text=True, capture_output=True,
                                  env=ENVIRONMENT | {"PYTHONPATH": str(folder)})
        done = run()
        said = done.stderr.splitlines()[-1]
        assert done.returncode == 1 and said.startswith("error: cannot write ")
        assert "No space left on device" in said and "Traceback" not in done.stderr
        assert_same(folder, local, whole=False)
        kept = stored(folder)
        subprocess.run(["mount", "-o", "remount,size=64m", folder / "build/results"], check=True)
        assert run().returncode == 0 and stored(folder) > kept
        assert_same(folder, local, whole=False)
    finally:
        subprocess.run(["umount", folder / "build/results"])
