"""`vdp plan`: the rows that notebooks measure, cut into shards that take about as long each.

What is to be measured is said by the notebooks' own calls of `measure`. Here they run without what
notebooks make of the rows, and rows that several notebooks use are asked for once.
"""

import ast
import json
import math
import time
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import papermill
import pyarrow as pa
from tqdm import tqdm

from vdp_utils.commands.run import checked, read
from vdp_utils.errors import VDPError
from vdp_utils.lvlm.load import LVLM, load_lvlm
from vdp_utils.measuring import pruned
from vdp_utils.measuring.measure import Condition, measure
from vdp_utils.measuring.placed import placed_times_sample
from vdp_utils.measuring.store import ResultStore, condition_hash
from vdp_utils.sources.samples import Sample

TIMED = (pruned.times_sample, placed_times_sample)  # these compare times: all of one machine


@dataclass
class Task:
    """One sample under one condition, and the names of the notebooks that use its rows."""

    lvlm: LVLM
    sample: Sample
    condition: Condition
    store: ResultStore
    table: tuple[str, str]  # finding and condition hash: where its rows are stored
    each: Any
    notebooks: set[str] = field(default_factory=set)

    @property
    def keys(self) -> list[str]:
        return self.condition.keys(self.sample)


def run(some: list[Task]) -> pd.DataFrame:
    """The rows of tasks that differ in nothing but their samples, as `measure` gives them."""
    first = some[0]
    return measure(first.lvlm, [task.sample for task in some], [first.condition], first.store,
                   first.table[0], each=first.each)


def tasks_of(notebooks, parameters: dict) -> list[Task]:
    """What notebooks (paths) measure with these parameters, in order, each task once.

    A notebook gets those of the parameters that it has. Times are left out: the notebooks measure
    them. VDPError for what `vdp run` refuses, and for a notebook that is not plain Python.
    """
    found: dict[tuple, Task] = {}
    load = cache(load_lvlm)
    for notebook in map(Path, notebooks):
        def note(lvlm, samples, conditions, store, finding, recompute=False, each=None,
                 name=notebook.stem):
            for one in conditions if each not in TIMED else ():
                table = finding, condition_hash(one)
                for sample in samples:
                    task = Task(lvlm, sample, one, store, table, each)
                    found.setdefault((*table, *task.keys), task).notebooks.add(name)

        try:
            exec(_measuring(notebook, parameters), {"_measure": note, "_load_lvlm": load})
        except NameError as error:
            raise VDPError(f"{notebook} needs rows before it can say what to measure ({error}): "
                           "run it whole") from error
    return list(found.values())


def _measuring(notebook: Path, parameters: dict):
    """A notebook's calls of `measure` and the lines that they need, compiled.

    Their `measure` is called `_measure`, and their `load_lvlm` `_load_lvlm`.
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
    kept, needed = [], set()
    for line in reversed(lines):
        names = [node for node in ast.walk(line) if isinstance(node, ast.Name)]
        for node in names:
            node.id = f"_{node.id}" if node.id in ("measure", "load_lvlm") else node.id
        calls = [node for node in ast.walk(line) if isinstance(node, ast.Call)
                 and isinstance(node.func, ast.Name) and node.func.id == "_measure"]
        bound = {node.id for node in names if isinstance(node.ctx, ast.Store)} | {
            node.asname or node.name for node in getattr(line, "names", ())}
        if calls:  # what is made of its rows is for the notebook
            line = ast.Module([ast.Expr(call) for call in calls], [])
        elif not bound & needed:
            continue
        kept[:0] = line.body if calls else [line]
        needed |= {node.id for node in ast.walk(line) if isinstance(node, ast.Name)}
    return compile(ast.fix_missing_locations(ast.Module(kept, [])), str(notebook), "exec")


def plan(output: Path, minutes: float, notebooks: list[Path], parameters: dict) -> None:
    """Cut what is missing into shards of about `minutes` each, and write and print the plan.

    What a row takes is measured here, at the shortest and the longest context of each table. The
    plan at `output`, JSON, holds `bounds` (the first task of each shard, and their number), for
    each notebook the shards that it needs, and what `vdp shard` is to be told again.
    """
    found, stored = tasks_of(notebooks, parameters), {}
    seconds, size = np.zeros(len(found)), np.zeros(len(found))
    groups = defaultdict(list)
    for number, task in enumerate(found):
        if task.table not in stored:
            stored[task.table] = task.store.done(task.table[0], task.condition)
        if not stored[task.table].issuperset(task.keys):
            groups[task.table[0]].append(number)
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
    for ends in (some[:2], some[-1:]):  # the very first also warms up
        for task in ends:
            started = time.perf_counter()
            rows = run([task])
            took = time.perf_counter() - started
        found.append((task.condition.context_length, took / len(rows),
                      pa.Table.from_pandas(rows).nbytes / len(rows)))
    return tuple(map(list, zip(*found)))
