"""Measured rows on disk: parquet parts, atomic, keyed, resumable.

    root/<finding>/<condition hash>/condition.json
                                    part-<stamp>-<sha256 of its bytes>.parquet

A row is a flat dict (or a DataFrame's line) with a `key`, a string that is unique within one
condition, e.g. "<sample_id>/<question_id>". A part appears whole or not at all, its name carries
the checksum of its bytes, and its stamp is the time of writing in nanoseconds, or 0 once parts
have been compacted into one. Several processes may write to one condition at the same time.

Where two parts hold the same key, the part whose name comes first wins: the row that was there
first may have been read and reported already, so it must not change under its readers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import platform
import re
import time
import uuid
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from vdp_utils.errors import VDPError

DAY = 24 * 3600  # seconds
Rows = Sequence[Mapping[str, Any]] | pd.DataFrame
Task = tuple[Sequence[str], Callable[[], Sequence[Mapping[str, Any]]]]


def condition_hash(condition: Any) -> str:
    """Return 16 hex digits that name `condition`, a dataclass instance or a dict of JSON values.

    Equal conditions have equal hashes on every machine; any changed field changes the hash.
    Raises VDPError for a field that JSON cannot hold.
    """
    text = json.dumps(_fields(condition), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclasses.dataclass
class ResultStore:
    """Rows by finding and condition under the folder `root`, made at the first append.

    `collect` writes what it has measured every `flush_seconds` seconds.
    """

    root: str | Path
    flush_seconds: float = 2.0

    def __post_init__(self) -> None:
        self._schemas: dict[Path, pa.Schema] = {}

    def folder(self, finding: str, condition: Any) -> Path:
        """Return the folder of one condition's rows, which need not exist."""
        if not re.fullmatch(r"\w[\w.-]*", finding):
            raise VDPError(f"finding {finding!r} cannot name a folder: use letters, digits, '_-.'")
        return Path(self.root) / finding / condition_hash(condition)

    def append(self, finding: str, condition: Any, rows: Rows) -> None:
        """Write `rows` as one part, whole or not at all; no rows, no part.

        Raises VDPError for rows without a usable key, with other columns or types than the
        condition's stored rows, and for a folder that cannot be written.
        """
        if len(rows) == 0:
            return
        folder = self.folder(finding, condition)
        table = _table(rows)
        if folder not in self._schemas:
            _prepare(folder, condition)
            stored = _load(folder)
            self._schemas[folder] = next(iter(stored.values())).schema if stored else table.schema
        known = self._schemas[folder]
        if table.schema != known:
            odd = set(table.schema) ^ set(known)
            raise VDPError(
                f"rows for {folder} differ from its stored rows in the columns "
                f"{sorted({f'{field.name} ({field.type})' for field in odd})}: give every row the "
                "same columns and types, or change the condition (its code version) for new ones")
        _write_part(folder, str(time.time_ns()), table)

    def done(self, finding: str, condition: Any) -> set[str]:
        """Return the keys of all stored rows."""
        parts = _load(self.folder(finding, condition)).values()
        return {key for table in parts for key in table["key"].to_pylist()}

    def read(self, finding: str, condition: Any) -> pd.DataFrame:
        """Return all stored rows, each key once, sorted by key; empty when there are none."""
        parts = _load(self.folder(finding, condition))
        if not parts:
            return pd.DataFrame({"key": pd.Series(dtype="str")})
        return _merge(parts.values()).to_pandas()

    def conditions(self, finding: str) -> list[dict[str, Any]]:
        """Return the conditions of a finding that have a folder, as JSON values."""
        paths = sorted((Path(self.root) / finding).glob("*/condition.json"))
        return [json.loads(path.read_text(encoding="utf-8")) for path in paths]

    def compact(self, finding: str, condition: Any) -> None:
        """Merge all parts into one. The same rows give the same file, byte for byte.

        The merged part is on disk before the others go, so a crash leaves at worst rows that are
        stored twice and read once.
        """
        folder = self.folder(finding, condition)
        _sweep(folder)
        parts = _load(folder)
        if not parts or (len(parts) == 1 and next(iter(parts)).name.startswith("part-0-")):
            return
        merged = _write_part(folder, "0", _merge(parts.values()))
        for path in parts:
            if path != merged:
                path.unlink(missing_ok=True)

    def clear(self, finding: str, condition: Any) -> None:
        """Forget the condition's rows, so that they are measured again."""
        for path in self.folder(finding, condition).glob("part-*.parquet"):
            path.unlink(missing_ok=True)
        self._schemas.pop(self.folder(finding, condition), None)

    def collect(self, finding: str, condition: Any, tasks: Iterable[Task],
                progress: str | None = None) -> pd.DataFrame:
        """Run the tasks that are not done yet and return the rows of all of them, sorted by key.

        A task is (keys, thunk): `thunk()` returns one row for each key. A task whose keys are all
        stored is skipped. A thunk whose `at_once` is above 1 is run beside so many others by its
        `together(thunks)`, which returns the rows of each. What has been measured is written every
        `flush_seconds`, and also when a task raises, so a run that was stopped goes on where it
        was. `progress` labels the progress bar (default: the finding); TQDM_DISABLE=1 turns it off.
        """
        done, wanted, pending, waiting = self.done(finding, condition), set(), [], []
        flushed = time.monotonic()

        def run():
            nonlocal pending, flushed
            thunks = [thunk for _, thunk in waiting]
            found = thunks[0].together(thunks) if thunks[1:] else [thunk() for thunk in thunks]
            for (keys, _), rows in zip(waiting, found, strict=True):
                _check_answer(keys, rows)
                pending += [row for row in rows if row["key"] not in done]
                done.update(keys)
            waiting.clear()
            if time.monotonic() - flushed >= self.flush_seconds:
                batch, pending = pending, []
                self.append(finding, condition, batch)
                flushed = time.monotonic()

        try:
            for keys, thunk in tqdm(tasks, desc=progress or finding, leave=False):
                wanted.update(keys)
                if not done.issuperset(keys):
                    waiting.append((keys, thunk))
                    if len(waiting) >= getattr(thunk, "at_once", 1):
                        run()
            run()
        finally:
            self.append(finding, condition, pending)
        self.compact(finding, condition)
        rows = self.read(finding, condition)
        return rows[rows["key"].isin(wanted)].reset_index(drop=True)


def _fields(condition: Any) -> dict[str, Any]:
    """Return the condition as JSON values; Python-equal numbers become one (0.0 is 0)."""

    def plain(value: Any, name: str) -> Any:
        if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            return {key: plain(inner, f"{name}.{key}") for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(inner, name) for inner in value]
        if isinstance(value, float) and math.isfinite(value):
            return int(value) if value.is_integer() else value
        if value is None or isinstance(value, (str, int)):
            return value
        raise VDPError(f"{name} = {value!r} cannot be part of a condition: use text, finite "
                       "numbers, true/false, None, and lists or str-keyed dicts of these")

    if dataclasses.is_dataclass(condition) and not isinstance(condition, type):
        condition = dataclasses.asdict(condition)
    if not isinstance(condition, Mapping):
        raise VDPError(f"condition {condition!r} is neither a dataclass instance nor a dict")
    return plain(condition, "condition")


def _check_answer(keys: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    got = [row.get("key") for row in rows]
    if Counter(got) != Counter(keys):
        raise VDPError(
            f"a task's rows do not match its keys (missing {list(set(keys) - set(got))[:5]}, not "
            f"asked for or doubled {list(Counter(got) - Counter(keys))[:5]}): return one row a key")


def _table(rows: Rows) -> pa.Table:
    """Return checked rows sorted by key, `key` first and the other columns by name."""
    try:
        if isinstance(rows, pd.DataFrame):
            table = pa.Table.from_pandas(rows, preserve_index=False)
        else:
            for row in rows:
                if row.keys() != rows[0].keys():
                    odd = sorted(map(str, row.keys() ^ rows[0].keys()))
                    raise VDPError(f"rows differ in the columns {odd}: give all rows the same")
            # from_pandas: NaN and None are both stored as missing, as they are for a DataFrame.
            table = pa.table({name: pa.array([row[name] for row in rows], from_pandas=True)
                              for name in rows[0]})
        if "key" not in table.column_names:
            raise VDPError(f"rows have no 'key' among their columns {table.column_names}: add one")
        names = sorted(table.column_names, key=lambda name: (name != "key", name))
        types = [_stored_type(table.schema.field(name).type) for name in names]
        table = table.select(names).cast(pa.schema(list(zip(names, types, strict=True))))
    except pa.ArrowException as error:
        raise VDPError(f"rows cannot be stored ({error}): use text, numbers and booleans"
                       ) from error
    problem = _key_problem(table)
    if problem:
        raise VDPError(f"rows cannot be stored: {problem}; give each row its own text as key")
    return table.sort_by("key")


def _stored_type(given: pa.DataType) -> pa.DataType:
    """One type for all spellings of the same thing, so that parts of one condition agree."""
    if pa.types.is_dictionary(given):
        given = given.value_type
    if pa.types.is_large_string(given) or pa.types.is_string_view(given):
        return pa.string()
    if pa.types.is_null(given):  # nothing but None: in these rows, a number that is missing
        return pa.float64()
    return pa.int64() if pa.types.is_integer(given) else given


def _key_problem(table: pa.Table) -> str:
    """Return what is wrong with the table's keys, '' if nothing."""
    if "key" not in table.column_names or table.schema.field("key").type != pa.string():
        return "'key' is not a text column"
    keys = Counter(table["key"].to_pylist())
    if None in keys or "" in keys:
        return "a row has no key"
    twice = [key for key, count in keys.items() if count > 1]
    return f"keys occur twice, e.g. {twice[:5]}" if twice else ""


def _merge(tables: Iterable[pa.Table]) -> pa.Table:
    """Return the rows of parts given in name order: the first of each key, sorted by key."""
    table = pa.concat_tables(tables)
    first = ~pd.Series(table["key"].to_pylist()).duplicated()
    return table.filter(pa.array(first)).sort_by("key")


def _load(folder: Path) -> dict[Path, pa.Table]:
    """Return the folder's sound parts in name order, all of one schema; set aside the others."""
    while True:
        try:
            read = {path: _read_part(path) for path in sorted(folder.glob("part-*.parquet"))}
            break
        except FileNotFoundError:  # another process has just compacted it away: look again
            continue
        except OSError as error:
            raise VDPError(f"cannot read {folder} ({error}): check its permissions") from error
    sound = {path: table for path, table in read.items() if isinstance(table, pa.Table)}
    rows_by_schema: Counter[pa.Schema] = Counter()
    for table in sound.values():
        rows_by_schema[table.schema] += table.num_rows
    for path, table in read.items():
        if path not in sound:
            _set_aside(path, table)
        elif table.schema != rows_by_schema.most_common(1)[0][0]:
            _set_aside(path, "its columns are not those of most rows beside it")
            del sound[path]
    return sound


def _read_part(path: Path) -> pa.Table | str:
    """Return a part's rows, or why it is not a sound part."""
    data = path.read_bytes()
    if path.stem.rpartition("-")[2] != _checksum(data):
        return "its bytes do not match the checksum in its name"
    try:
        table = pq.ParquetFile(pa.BufferReader(data)).read()
    except pa.ArrowException as error:
        return f"it is not a parquet file: {error}"
    return _key_problem(table) or table


def _set_aside(path: Path, reason: str) -> None:
    warnings.warn(f"{path} is not used and set aside as {path.name}.broken ({reason}); the rows it "
                  "held will be measured again", stacklevel=4)
    with contextlib.suppress(OSError):  # read-only, or another process was faster
        path.rename(path.with_name(path.name + ".broken"))


def _checksum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _prepare(folder: Path, condition: Any) -> None:
    """Make the folder with its condition.json and tidy up after dead writers."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VDPError(f"cannot make {folder} ({error}): choose a writable root") from error
    text = json.dumps(_fields(condition), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    path = folder / "condition.json"
    if not path.exists() or path.read_bytes() != text.encode():
        _write(path, text.encode())
    _sweep(folder)


def _write_part(folder: Path, stamp: str, table: pa.Table) -> Path:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    data = sink.getvalue().to_pybytes()
    path = folder / f"part-{stamp}-{_checksum(data)}.parquet"
    _write(path, data)
    return path


def _write(path: Path, data: bytes) -> None:
    """Put `data` at `path` so that a crash leaves the old file or the new one, never a piece."""
    temp = path.with_name(f".{_host()}-{os.getpid()}-{uuid.uuid4().hex}.tmp")
    try:
        with open(temp, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temp, path)
        if os.name == "posix":  # the new name must be on disk before anything it replaces goes
            descriptor = os.open(path.parent, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
    except OSError as error:
        raise VDPError(f"cannot write {path} ({error}): choose a writable root") from error
    finally:
        with contextlib.suppress(OSError):
            temp.unlink(missing_ok=True)


def _sweep(folder: Path) -> None:
    """Remove the temporary files of writers that are gone."""
    for temp in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):  # gone meanwhile
            if _abandoned(temp):
                temp.unlink()


def _host() -> str:
    """This machine, and this container on it: where a process id means something."""
    try:
        return f"{platform.node()}.{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:  # not Linux
        return platform.node()


def _abandoned(temp: Path) -> bool:
    """Say whether nobody can be writing `temp`: its process is gone, or it is a day older than what
    was last written beside it, both by the clock of the disk: those of nodes may differ."""
    host, _, pid = temp.name[1:].rpartition("-")[0].rpartition("-")
    if os.name == "posix" and host == _host() and pid.isdecimal():
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            return True
    return temp.parent.stat().st_mtime - temp.stat().st_mtime > DAY
