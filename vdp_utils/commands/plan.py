"""`vdp plan`: the rows that notebooks measure, cut into shards that take about as long each.

What is to be measured is said by the notebooks' own lines. Here they run without what notebooks
make of the rows, and rows that several notebooks use are asked for once.
"""

import ast
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import papermill
import pyarrow as pa
from tqdm import tqdm

from vdp_utils.commands.run import checked, read
from vdp_utils.errors import Lacking, VDPError
from vdp_utils.findings import cost, distance
from vdp_utils.lvlm.load import load_lvlm
from vdp_utils.measuring.store import ResultStore, condition_hash

TIMES = (cost.TIMES, cost.LATE, distance.TIMES)  # compared with each other: all of one machine
OURS = ("ResultStore", "load_lvlm")  # which notebooks get from here, as _ResultStore, _load_lvlm


@dataclass
class Task:
    """One sample under one condition, and the names of the notebooks that use its rows."""

    root: Path
    finding: str
    condition: Any
    keys: list[str]
    thunk: Callable
    label: str
    notebooks: set[str] = field(default_factory=set)


def run(some: list[Task]) -> pd.DataFrame:
    """The rows of tasks of one condition, measured where they are not stored."""
    first = some[0]
    return ResultStore(first.root).collect(first.finding, first.condition, [
        (task.keys, task.thunk) for task in some], first.label)


def tasks_of(notebooks, parameters: dict) -> dict[tuple, Task]:
    """What notebooks (paths) measure with these parameters, in order, by finding, hash and keys.

    A notebook gets those of the parameters that it has. Times are left out: the notebooks measure
    them. VDPError for what `vdp run` refuses, and for a notebook that is not plain Python or has
    to see rows first.
    """
    found: dict[tuple, Task] = {}
    load = lru_cache(1)(load_lvlm)
    for notebook in map(Path, notebooks):
        class Asked(ResultStore):
            """Notes what is to be collected; measures and forgets nothing."""

            def collect(self, finding, condition, tasks, progress=None, name=notebook.stem):
                of = finding, condition_hash(condition)
                for keys, thunk in tasks if finding not in TIMES else ():
                    task = Task(Path(self.root), finding, condition, keys, thunk, progress)
                    found.setdefault((*of, *keys), task).notebooks.add(name)
                return pd.DataFrame(columns=["key"])

            def clear(self, finding, condition):
                pass

        try:
            exec(_measuring(notebook, parameters), {"_ResultStore": Asked, "_load_lvlm": load})
        except Lacking:  # the notebook will end there and say so
            continue
        except NameError as error:
            raise VDPError(f"{notebook} needs rows before it can say what to measure ({error}): "
                           "run it whole") from error
    return found


def _measuring(notebook: Path, parameters: dict):
    """The calls in a notebook to which a store is given, and the lines that they need, compiled.

    What is made of such a call's value is left out, but within loops.
    """
    source, lines = read(notebook), []
    known = papermill.inspect_notebook(source)
    given = checked(notebook, source, {name: value for name, value in parameters.items()
                                       if name in known})
    try:
        for cell in source.cells:
            if cell.cell_type == "code":
                lines += ast.parse(cell.source).body
            if "parameters" in cell.metadata.get("tags", []):
                lines += ast.parse("\n".join(f"{n} = {v!r}" for n, v in given.items())).body
    except SyntaxError as error:
        raise VDPError(f"{notebook} is not plain Python ({error}): remove what is not") from error
    stores = {name for line in lines for name in _names(line, ast.Store)
              if "ResultStore" in _names(line, ast.Load)}
    kept, needed = [], set()
    for line in reversed(lines):
        calls = [node for node in ast.walk(line) if isinstance(node, ast.Call) and stores & {
            one.id for one in node.args if isinstance(one, ast.Name)}]
        if not calls and not needed & _names(line, ast.Store):
            continue
        whole = not calls or isinstance(line, (ast.For, ast.With, ast.If))
        part = [line] if whole else [ast.Expr(call) for call in calls]
        kept[:0] = part
        needed |= set().union(*(_names(one, ast.Load) for one in part))
    tree = ast.fix_missing_locations(ast.Module(kept, []))
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in OURS:
            node.id = f"_{node.id}"
    return compile(tree, str(notebook), "exec")


def _names(line: ast.stmt, context) -> set[str]:
    """The names that a line reads (ast.Load), or binds (ast.Store), by an import too."""
    found = {node.id for node in ast.walk(line)
             if isinstance(node, ast.Name) and isinstance(node.ctx, context)}
    if context is ast.Store:
        found |= {one.asname or one.name for one in getattr(line, "names", ())}
    return found


def plan(output: Path, minutes: float, notebooks: list[Path], parameters: dict) -> None:
    """Cut what is missing into shards of about `minutes` each, and write and print the plan.

    What a row takes is measured here, at the shortest and the longest context of each table. The
    plan at `output`, JSON, holds `bounds` (the first task of each shard, and their number), for
    each notebook the shards that it needs, and what `vdp shard` is to be told again.
    """
    found, stored = list(tasks_of(notebooks, parameters).values()), {}
    seconds, size = np.zeros(len(found)), np.zeros(len(found))
    groups = defaultdict(list)
    for number, task in enumerate(found):
        of = task.root, task.finding, task.condition
        if of not in stored:
            stored[of] = ResultStore(task.root).done(task.finding, task.condition)
        if not stored[of].issuperset(task.keys):
            groups[task.finding].append(number)
    lines = []
    for finding, numbers in tqdm(groups.items(), desc="timing", leave=False):
        lengths, *costs = _measured([found[number] for number in numbers])
        rows = np.array([len(found[number].keys) for number in numbers])
        at = [found[number].condition.context_length for number in numbers]
        seconds[numbers], size[numbers] = (rows * np.interp(at, lengths, cost) for cost in costs)
        lines.append((finding, rows.sum(), seconds[numbers].sum(), size[numbers].sum()))
    jobs = math.ceil(seconds.sum() / 60 / minutes)
    shard = np.minimum((seconds.cumsum() - seconds) / max(seconds.sum(), 1e-9) * jobs, jobs - 1
                       ).astype(int)
    needs = {Path(notebook).stem: set() for notebook in notebooks}
    for number, task in enumerate(found):
        for name in task.notebooks if seconds[number] else ():
            needs[name].add(int(shard[number]))
    table = pd.DataFrame(lines, columns=["table", "rows", "hours", "MB"])
    table = table.assign(hours=table["hours"] / 3600, MB=table["MB"] / 1e6)
    said = (f"{len(set().union(*needs.values()))} jobs of {minutes:g} minutes, "
            f"{table['hours'].sum():.2f} hours, at most {table['MB'].sum():.1f} MB, for "
            f"{table['rows'].sum()} missing rows")
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_suffix(".partial")
    partial.write_text(json.dumps(dict(
        said=said, bounds=np.searchsorted(shard, range(jobs + 1)).tolist(),
        needs={name: sorted(some) for name, some in needs.items()},
        notebooks=list(map(str, notebooks)), parameters=parameters)) + "\n")
    partial.replace(output)
    print(*([table.round(3).to_string(index=False)] if lines else []), said, sep="\n")


def _measured(some: list[Task]) -> tuple[list, list, list]:
    """The shortest and the longest context, and the seconds and bytes that a row takes there."""
    some, found = sorted(some, key=lambda task: task.condition.context_length), []
    for end in dict.fromkeys(task.condition for task in (some[0], some[-1])):
        same = [task for task in some if task.condition == end]
        at_once = getattr(same[0].thunk, "at_once", 1)
        if not found and same[at_once:]:
            run(same[:at_once])  # to warm up
            same = same[at_once:]
        started = time.perf_counter()
        rows = run(same[:at_once])
        took = time.perf_counter() - started
        found.append((end.context_length, took / len(rows),
                      pa.Table.from_pandas(rows).nbytes / len(rows)))
    return tuple(map(list, zip(*found)))
