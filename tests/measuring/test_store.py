import errno
import json
import os
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import vdp_utils
from vdp_utils.errors import VDPError
from vdp_utils.measuring import store as store_module
from vdp_utils.measuring.store import ResultStore, condition_hash

REPOSITORY = Path(vdp_utils.__file__).parents[1]


@dataclass(frozen=True)
class Condition:
    model: str = "embedded-s"
    length: int = 256
    rate: float = 0.5
    layers: tuple[int, ...] = (1, 2)
    cue: str | None = None


CONDITION = Condition()


def row(number, **changes):
    return {
        "key": f"s{number:03d}/q",
        "image_id": f"s{number:03d}",
        "correct": number % 3 == 0,
        "context_length": number,
        "margin": number / 7,
        "target_share": None if number % 2 else 0.25,
        **changes,
    }


def rows(start, stop):
    return [row(number) for number in range(start, stop)]


def parts(store):
    return sorted(store.folder("F1", CONDITION).glob("part-*"))


@pytest.fixture
def store(tmp_path):
    return ResultStore(tmp_path / "results", flush_seconds=0)


def in_parts(store, *bounds):
    for start, stop in zip(bounds, bounds[1:], strict=False):
        store.append("F1", CONDITION, rows(start, stop))
    return store


# ---- conditions


def test_hash_is_fixed_for_all_machines():
    assert condition_hash(CONDITION) == "1504c47d810c3328"


@pytest.mark.parametrize(
    "change",
    [{"model": "m"}, {"length": 257}, {"rate": 0.25}, {"layers": (2, 1)}, {"cue": ""}],
    ids=lambda change: next(iter(change)),
)
def test_hash_changes_with_every_field(change):
    assert condition_hash(replace(CONDITION, **change)) != condition_hash(CONDITION)


def test_equal_conditions_have_equal_hashes():
    assert condition_hash(Condition(rate=0)) == condition_hash(Condition(rate=0.0))
    assert condition_hash({"a": 1, "b": (2,)}) == condition_hash({"b": [2], "a": 1})


def test_condition_file_is_the_condition(store):
    in_parts(store, 0, 1)
    folder = store.folder("F1", CONDITION)
    fields = json.loads((folder / "condition.json").read_text())
    assert fields["layers"] == [1, 2] and fields["rate"] == 0.5
    assert condition_hash(fields) == folder.name


@pytest.mark.parametrize("value", [float("nan"), {1: 2}, object(), Path("x")])
def test_hash_refuses_what_json_cannot_hold(value):
    with pytest.raises(VDPError, match="condition.odd"):
        condition_hash({"odd": value})


# ---- rows in, rows out


def test_read_returns_what_was_appended_sorted_by_key(store):
    store.append("F1", CONDITION, rows(5, 9)[::-1])
    store.append("F1", CONDITION, pd.DataFrame(rows(0, 5)).sample(frac=1, random_state=0))
    expected = pd.DataFrame(rows(0, 9)).astype({"target_share": float})
    got = store.read("F1", CONDITION)
    pd.testing.assert_frame_equal(got[expected.columns], expected)
    assert store.done("F1", CONDITION) == set(expected["key"])


def test_conditions_and_findings_do_not_mix(store):
    in_parts(store, 0, 2)
    assert store.done("F2", CONDITION) == set()
    other = store.read("F1", replace(CONDITION, length=1))
    assert other.empty and list(other.columns) == ["key"]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_float_width_is_kept(store, dtype):
    values = np.array([1 / 3, np.pi], dtype=dtype)
    store.append("F1", CONDITION, [{"key": str(i), "x": x} for i, x in enumerate(values)])
    store.compact("F1", CONDITION)
    got = store.read("F1", CONDITION)["x"]
    assert got.dtype == dtype and (got.to_numpy() == values).all()


def test_first_of_two_measurements_stays_also_after_compaction(store):
    store.append("F1", CONDITION, [row(1, margin=1.0)])
    store.append("F1", CONDITION, [row(1, margin=2.0), row(2)])
    for _ in range(2):
        got = store.read("F1", CONDITION)
        assert list(got["key"]) == ["s001/q", "s002/q"] and got["margin"][0] == 1.0
        store.compact("F1", CONDITION)
        store.append("F1", CONDITION, [row(1, margin=0.0)])


def test_clear_forgets_rows(store):
    in_parts(store, 0, 2).clear("F1", CONDITION)
    assert store.read("F1", CONDITION).empty
    store.append("F1", CONDITION, [{"key": "a", "new": 1}])
    assert list(store.read("F1", CONDITION).columns) == ["key", "new"]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([{"x": 1}], "no 'key'"),
        ([{"key": 1}], "not a text column"),
        ([{"key": "a"}, {"key": None}], "no key"),
        ([{"key": "a"}, {"key": "a"}], r"twice, e.g. \['a'\]"),
        ([{"key": "a", "x": 1}, {"key": "b"}], r"columns \['x'\]"),
        ([{"key": "a", "x": 1}, {"key": "b", "x": "text"}], "cannot be stored"),
        ([{"key": "a", "x": object()}], "cannot be stored"),
    ],
)
def test_append_refuses(store, bad, message):
    with pytest.raises(VDPError, match=message):
        store.append("F1", CONDITION, bad)
    assert parts(store) == []


@pytest.mark.parametrize("changed", [row(3, margin="high"), row(3, extra=1)])
@pytest.mark.parametrize("fresh", [True, False])
def test_append_refuses_other_columns_than_stored(store, changed, fresh):
    in_parts(store, 0, 2)
    writer = ResultStore(store.root) if fresh else store
    with pytest.raises(VDPError, match="extra|margin"):
        writer.append("F1", CONDITION, [changed])
    assert len(store.read("F1", CONDITION)) == 2


def test_root_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(VDPError, match="file.*choose a writable root"):
        ResultStore(tmp_path / "file").append("F1", CONDITION, rows(0, 1))


@pytest.mark.parametrize("finding", ["", "../F1", "a/b", "."])
def test_finding_must_be_a_plain_name(store, finding):
    with pytest.raises(VDPError, match="finding"):
        store.read(finding, CONDITION)


# ---- damage


def truncate(path):
    path.write_bytes(path.read_bytes()[:-20])


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def add_foreign_text(path):
    path.with_name("part-notes.parquet").write_text("not rows")


def add_foreign_parquet(path):
    frame = pd.DataFrame({"key": ["s099/q"], "margin": [1.0]})
    frame.to_parquet(path.with_name("part-1.parquet"))


def add_other_columns(path):
    store_module._write_part(path.parent, "0", pa.table({"key": ["s099/q"], "x": [1]}))


def add_other_types(path):
    store_module._write_part(path.parent, "0", store_module._table([row(99, margin="high")]))


def add_no_key(path):
    store_module._write_part(path.parent, "0", pa.table({"x": [1] * 99}))


def add_text_with_checksum(path):
    name = f"part-0-{store_module._checksum(b'text')}.parquet"
    path.with_name(name).write_bytes(b"text")


@pytest.mark.parametrize(
    ("damage", "lost"),
    [
        (truncate, 2),
        (flip_a_bit, 2),
        (add_foreign_text, 0),
        (add_foreign_parquet, 0),
        (add_other_columns, 0),
        (add_other_types, 0),
        (add_no_key, 0),
        (add_text_with_checksum, 0),
    ],
)
def test_unsound_part_is_set_aside_with_a_warning(store, damage, lost):
    in_parts(store, 0, 2, 4)
    before = parts(store)
    damage(before[0])
    suspect = before[0] if lost else (set(parts(store)) - set(before)).pop()
    with pytest.warns(UserWarning, match=f"{suspect.name}.*measured again"):
        got = store.read("F1", CONDITION)
    assert list(got["key"]) == [r["key"] for r in rows(lost, 4)]
    assert suspect.with_name(suspect.name + ".broken").exists() and not suspect.exists()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = store.collect("F1", CONDITION, tasks_for(range(4), []))
    assert len(again) == 4


def test_temporary_files_of_the_dead_go_and_of_the_living_stay(store, monkeypatch):
    """Also where this clock is a week fast, and in a container that has the host's name."""
    in_parts(store, 0, 1)
    folder = store.folder("F1", CONDITION)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host, now = store_module._host(), time.time
    assert host != os.uname().nodename or sys.platform != "linux"  # the container is in it
    monkeypatch.setattr(time, "time", lambda: now() + 7 * store_module.DAY)
    names = {
        "dead": f".{host}-{dead.pid}-0.tmp",
        "alive": f".{host}-{os.getpid()}-0.tmp",
        "elsewhere": ".other-host-1-0.tmp",
        "in another container": f".{os.uname().nodename}.1-{dead.pid}-0.tmp",
        "elsewhere, long ago": ".other-host-2-0.tmp",
    }
    for name in names.values():
        (folder / name).write_bytes(parts(store)[0].read_bytes()[:100])
    os.utime(folder / names["elsewhere, long ago"], (0, 0))
    assert len(store.read("F1", CONDITION)) == 1
    ResultStore(store.root).append("F1", CONDITION, rows(1, 2))
    left = {label for label, name in names.items() if (folder / name).exists()}
    assert left == {"alive", "elsewhere", "in another container"}


@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, "No space left on device"),
                                   OSError(errno.EDQUOT, "Disk quota exceeded")])
def test_a_full_disk_is_one_sentence_and_costs_only_what_was_not_written(tmp_path, monkeypatch,
                                                                         fault):
    store, run, sync = ResultStore(tmp_path, flush_seconds=0), [], os.fsync

    def thunk(number):
        run.append(number)
        return [row(number)]

    tasks = [([row(number)["key"]], lambda number=number: thunk(number)) for number in range(9)]

    def full(descriptor):
        if len(run) > 4:
            raise fault
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(VDPError, match=f"cannot write .*{fault.strerror}.*writable root"):
        store.collect("F1", CONDITION, tasks)
    monkeypatch.undo()
    assert sorted(store.done("F1", CONDITION)) == [row(number)["key"] for number in range(4)]
    assert len(store.collect("F1", CONDITION, tasks)) == 9
    assert run == [0, 1, 2, 3, 4, 4, 5, 6, 7, 8] and not list(tmp_path.rglob(".*.tmp"))


@pytest.mark.parametrize("skew", [-3600, 3600])
def test_clocks_that_differ_change_no_row_that_was_read(store, monkeypatch, skew):
    """A node an hour off writes other values for the same keys: what was read before stays."""
    whole, now = store.collect("F1", CONDITION, [([row(0)["key"]], lambda: [row(0)])]), time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + skew * 10**9)
    store.append("F1", CONDITION, [row(0, margin=-1.0), row(1)])
    found = store.read("F1", CONDITION)
    pd.testing.assert_frame_equal(found[:1], whole)
    assert found["key"].tolist() == [row(0)["key"], row(1)["key"]]


# ---- compaction


def test_compaction_gives_the_same_bytes_for_the_same_rows(tmp_path):
    seen = set()
    for number, bounds in enumerate([(0, 50), (0, 7, 20, 50), (0, *range(1, 50), 50)]):
        store = in_parts(ResultStore(tmp_path / str(number)), *bounds)
        store.compact("F1", CONDITION)
        (part,) = parts(store)
        seen.add((part.name, part.read_bytes()))
        store.compact("F1", CONDITION)
        assert parts(store) == [part]
    assert len(seen) == 1
    assert pq.ParquetFile(part).metadata.row_group(0).column(0).compression == "ZSTD"


@pytest.mark.parametrize("operation", ["fsync", "replace", "unlink"])
def test_compaction_may_stop_before_any_step(store, monkeypatch, operation):
    expected = in_parts(store, 0, 2, 4, 6).read("F1", CONDITION)
    real, crashes = getattr(os, operation), 0

    class Crash(BaseException):
        pass

    for survived in range(9):
        calls = iter(range(99))

        def crashing(*args, calls=calls, survived=survived, **kwargs):
            if next(calls) == survived:
                raise Crash
            return real(*args, **kwargs)

        monkeypatch.setattr(os, operation, crashing)
        try:
            store.compact("F1", CONDITION)
        except Crash:
            crashes += 1
        monkeypatch.undo()
        pd.testing.assert_frame_equal(store.read("F1", CONDITION), expected)
        assert store.done("F1", CONDITION) == set(expected["key"])
    store.compact("F1", CONDITION)
    assert crashes >= 1 and len(parts(store)) == 1


def test_reader_survives_a_compaction_under_way(store, monkeypatch):
    in_parts(store, 0, 2, 4)
    first, real = parts(store)[0], store_module._read_part

    def compacted_by_another(path):
        if first.exists():
            monkeypatch.setattr(store_module, "_read_part", real)
            ResultStore(store.root).compact("F1", CONDITION)
        return real(path)

    monkeypatch.setattr(store_module, "_read_part", compacted_by_another)
    assert len(store.read("F1", CONDITION)) == 4


# ---- collecting


def tasks_for(numbers, log):
    def thunk(number):
        log.append(number)
        return [row(number)]

    return [([row(number)["key"]], lambda number=number: thunk(number)) for number in numbers]


def test_collect_measures_only_what_is_missing(store):
    log = []
    in_parts(store, 0, 3)
    got = store.collect("F1", CONDITION, tasks_for(range(2, 6), log))
    assert log == [3, 4, 5]
    assert list(got["key"]) == [row(n)["key"] for n in range(2, 6)]
    assert len(store.read("F1", CONDITION)) == 6 and len(parts(store)) == 1


def test_collect_repeats_a_task_of_which_a_part_is_done_without_doubling(store):
    store.append("F1", CONDITION, [row(0, margin=9.0)])
    task = ([r["key"] for r in rows(0, 2)], lambda: rows(0, 2))
    got = store.collect("F1", CONDITION, [task])
    assert list(got["margin"]) == [9.0, 1 / 7]


@pytest.mark.parametrize("stop", [False, True])
def test_collect_runs_several_tasks_at_once_where_they_say_so(tmp_path, stop):
    store, calls = ResultStore(tmp_path, flush_seconds=0), []

    class Thunk:
        at_once = 3

        def __init__(self, number):
            self.number = number

        def __call__(self):
            return self.together([self])[0]

        def together(self, thunks):
            calls.append([thunk.number for thunk in thunks])
            if stop and len(calls) == 2:
                raise KeyboardInterrupt
            return [[row(thunk.number)] for thunk in thunks]

    in_parts(store, 1, 2)
    tasks = [([row(number)["key"]], Thunk(number)) for number in range(8)]
    if stop:
        with pytest.raises(KeyboardInterrupt):
            store.collect("F1", CONDITION, tasks)
        assert calls == [[0, 2, 3], [4, 5, 6]] and len(store.done("F1", CONDITION)) == 4
    else:
        got = store.collect("F1", CONDITION, tasks)
        assert calls == [[0, 2, 3], [4, 5, 6], [7]]
        assert list(got["key"]) == [row(n)["key"] for n in range(8)]


def test_collect_takes_tasks_that_overlap(tmp_path):
    store = ResultStore(tmp_path, flush_seconds=1e9)
    tasks = [
        ([r["key"] for r in part], lambda part=part: part) for part in (rows(0, 2), rows(1, 3))
    ]
    assert len(store.collect("F1", CONDITION, tasks)) == 3


def test_collect_keeps_what_it_has_when_a_task_fails(tmp_path):
    store = ResultStore(tmp_path, flush_seconds=1e9)

    def fail():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.collect("F1", CONDITION, [*tasks_for(range(3), []), (["x"], fail)])
    assert len(store.done("F1", CONDITION)) == 3


@pytest.mark.parametrize("flush_seconds", [0, 1e9])
def test_collect_flushes_by_time(tmp_path, flush_seconds):
    store = ResultStore(tmp_path, flush_seconds=flush_seconds)
    seen = []

    def look():
        seen.append(len(store.done("F1", CONDITION)))
        return [row(3)]

    store.collect("F1", CONDITION, [*tasks_for(range(3), []), ([row(3)["key"]], look)])
    assert seen == [3 if flush_seconds == 0 else 0]


@pytest.mark.parametrize("answer", [[], rows(1, 2), [*rows(0, 1), *rows(0, 1)]])
def test_collect_refuses_rows_that_were_not_asked_for(store, answer):
    with pytest.raises(VDPError, match="do not match its keys"):
        store.collect("F1", CONDITION, [([row(0)["key"]], lambda: answer)])


def test_finished_rows_are_read_from_a_read_only_folder(store, monkeypatch):
    store.collect("F1", CONDITION, tasks_for(range(3), []))

    def refuse(*args, **kwargs):
        raise OSError("read-only")

    for name in ("replace", "unlink", "rename", "mkdir", "fsync"):
        monkeypatch.setattr(os, name, refuse)
    assert len(store.collect("F1", CONDITION, tasks_for(range(3), []))) == 3


def test_progress_bar_is_labelled_and_can_be_turned_off(store):
    script = (
        "import sys; from vdp_utils.measuring.store import ResultStore;"
        "ResultStore(sys.argv[1]).collect('F1', {}, [(['a'], lambda: [{'key': 'a'}])], 'lengths')"
    )
    shown = []
    for disable in ("", "1"):
        done = subprocess.run(
            [sys.executable, "-c", script, str(store.root)],
            cwd=REPOSITORY,
            env={**os.environ, "TQDM_DISABLE": disable},
            capture_output=True,
            text=True,
            check=True,
        )
        shown.append("lengths" in done.stderr)
    assert shown == [True, False]


# ---- killed for real

# A process of its own that starts a child by fork for every attempt, since a fork is ready at
# once where an import takes seconds, and kills it at a random moment. An attempt that ends by
# itself ends a round; the next round starts from nothing, under the next finding.
KILLED = """
import os, random, signal, sys, time, warnings
import pyarrow.parquet
from vdp_utils.measuring.store import ResultStore

mode, root, wanted, longest = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])

def row(number, question):
    return {"key": f"s{number:03d}/q{question}", "margin": number / 7 + question}

def measure(number):
    time.sleep(0.002)
    return [row(number, question) for question in range(3)]

def tasks():
    for number in range(40):
        keys = [row(number, question)["key"] for question in range(3)]
        yield keys, lambda number=number: measure(number)

def slow(operation):  # so that kills also fall between the steps of a write
    def slowed(*args, **kwargs):
        time.sleep(0.001)
        return operation(*args, **kwargs)
    return slowed

def attempt(finding, first, ready):
    warnings.simplefilter("error")
    store = ResultStore(root, flush_seconds=0)
    if mode == "compact" and first:
        for _, thunk in tasks():
            store.append(finding, {}, thunk())
    for name in ("fsync", "replace", "unlink"):
        setattr(os, name, slow(getattr(os, name)))
    os.write(ready, b"x")
    if mode == "compact":
        store.compact(finding, {})
    else:
        store.collect(finding, {}, tasks())

def killed(finding, first, delay):
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            attempt(finding, first, writing)
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writing)
    os.read(reading, 1)
    os.close(reading)
    time.sleep(delay)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the attempt failed"
    return os.WIFSIGNALED(status)

if mode == "undisturbed":
    ResultStore(root).collect("F0", {}, tasks())
    sys.exit()
rng, kills, rounds = random.Random(0), 0, 0
while kills < wanted:
    first = True
    while killed(f"F{rounds}", first, rng.uniform(0, longest)):
        kills, first = kills + 1, False
    rounds += 1
print(kills, rounds)
"""


def run_killed(mode, root, kills=0, longest=0.0):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, mode, str(root), str(kills), str(longest)],
        cwd=REPOSITORY,
        env={**os.environ, "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=100,
    )
    return [int(word) for word in done.stdout.split()]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    root = tmp_path_factory.mktemp("undisturbed")
    run_killed("undisturbed", root)
    return ResultStore(root).read("F0", {})


@pytest.mark.parametrize(("mode", "longest"), [("collect", 0.15), ("compact", 0.06)])
def test_runs_killed_at_any_moment_lose_and_double_nothing(tmp_path, undisturbed, mode, longest):
    kills, rounds = run_killed(mode, tmp_path, 20, longest)
    assert kills >= 20 and len(undisturbed) == 120
    for number in range(rounds):
        store = ResultStore(tmp_path)
        pd.testing.assert_frame_equal(store.read(f"F{number}", {}), undisturbed)
        left = sorted(path.suffix for path in store.folder(f"F{number}", {}).iterdir())
        assert left == [".json", ".parquet"]  # one compacted part, nothing temporary or broken


def test_two_writers_at_once_lose_and_double_nothing(tmp_path, undisturbed):
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", KILLED, "undisturbed", str(tmp_path), "0", "0"], cwd=REPOSITORY
        )
        for _ in range(2)
    ]
    assert [writer.wait(100) for writer in writers] == [0, 0]
    pd.testing.assert_frame_equal(ResultStore(tmp_path).read("F0", {}), undisturbed)
