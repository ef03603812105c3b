"""`vdp plan` and `vdp shard`: the rows that notebooks measure, whatever the number of shards."""

import itertools
import json
import re
import time

import nbformat
import numpy as np
import pandas as pd
import pytest

from vdp_utils import paths
from vdp_utils.commands import plan as planning
from vdp_utils.commands.plan import plan, tasks_of
from vdp_utils.commands.shard import shard
from vdp_utils.errors import VDPError
from vdp_utils.measuring import measure as measuring
from vdp_utils.measuring import placed

NOTEBOOKS = sorted((paths.ROOT / "notebooks").glob("[0-9]*[a-z].ipynb"))
PARAMETERS = 'MODEL = "embedded-s"\nRESULTS = ""\nIMAGES = 4'
USES = """
from vdp_utils.lvlm.load import load_lvlm
from vdp_utils.measuring import ResultStore, pruned
from vdp_utils.measuring.measure import map_sample, measure, presence_conditions
from vdp_utils.measuring.placed import placed_condition, placed_sample
from vdp_utils.sources.samples import one_pair, presence_samples
store = ResultStore(RESULTS)
lvlm = load_lvlm(MODEL)
samples = presence_samples("evaluation", IMAGES)
conditions = presence_conditions(lvlm, ["misleading", "other_images"], (0, 40))
"""
FIRST = USES + """
rows = measure(lvlm, samples, conditions, store, "F1")
print(rows["correct"].mean() / len(rows))
some = [placed_condition(lvlm, "misleading", 40, "near", rate=rate) for rate in (0, 0.5)]
print(measure(lvlm, one_pair(samples), some, store, "D1", each=placed_sample).describe())
"""
SECOND = USES + """
conditions = presence_conditions(lvlm, ["misleading"], (40, 80))
rows = measure(lvlm, samples, conditions, store, "F1", True)
for few in (samples[:1], samples[1:2]):
    maps = measure(lvlm, few, conditions[:1], store, "F5", each=map_sample).assign(model=1)
timed = [pruned.answer_condition(lvlm, "misleading", 40, (0.5,))]
times = measure(lvlm, samples, timed, store, "F9_times", each=pruned.times_sample)
"""


def notebook(path, code):
    first = nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
    nb = nbformat.v4.new_notebook(cells=[first, nbformat.v4.new_code_cell(code)])
    nb.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nb, path)
    return path


@pytest.fixture
def notebooks(tmp_path, tiny, monkeypatch):
    """Two that share rows; a sample's are made up, under a clock that each look moves by 1 s."""
    ticks = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))
    monkeypatch.setattr(planning, "load_lvlm", lambda *options: tiny)

    def rows(lvlm, sample, one):
        return [dict(key=key, margin=len(key) / 7, text=f"{key} after {one.context_length}")
                for key in one.keys(sample)]

    for module, name in ((measuring, "measure_sample"), (measuring, "map_sample"),
                         (placed, "placed_sample")):
        monkeypatch.setattr(module, name, rows)
    return [notebook(tmp_path / f"{name}.ipynb", code)
            for name, code in (("first", FIRST), ("second", SECOND))]


def planned(tmp_path, notebooks, minutes, results="rows"):
    """The plan's path and what stands in it."""
    path = tmp_path / f"plan-{results}.json"
    plan(path, minutes, notebooks, dict(RESULTS=str(tmp_path / results)))
    return path, json.loads(path.read_text())


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*")}


def test_the_committed_rows_are_all_that_the_notebooks_measure(tmp_path, monkeypatch):
    """So the calls that are read out of each notebook are its own."""
    monkeypatch.setattr(planning, "_measured", lambda missing: pytest.fail(str(missing[:3])))
    plan(tmp_path / "plan.json", 1, NOTEBOOKS, dict(PROFILE="full"))
    about = json.loads((tmp_path / "plan.json").read_text())
    assert about["bounds"][0] > 20_000 and not any(about["needs"].values())
    assert about["said"].endswith("for 0 missing rows")


def test_any_number_of_shards_gives_the_bytes_of_one_run(tmp_path, notebooks):
    for task in tasks_of(notebooks, dict(RESULTS=str(tmp_path / "whole"))).values():
        planning.run([task])
    whole = files(tmp_path / "whole")
    seconds = len(planned(tmp_path, notebooks, 1 / 60, "timed")[1]["bounds"]) - 1
    for count in (1, 3, 7):
        name = f"rows-{count}"
        path, about = planned(tmp_path, notebooks, seconds / 60 / count + 1e-6, name)
        assert len(about["bounds"]) == count + 1
        for number in reversed(range(count)):
            shard(path, number)
        assert files(tmp_path / name) == whole
        assert planned(tmp_path, notebooks, 1, name)[1]["needs"] == {"first": [], "second": []}


def test_shared_rows_are_measured_once_and_times_by_the_notebook(tmp_path, notebooks, tiny):
    found = tasks_of(notebooks, dict(RESULTS="rows", IMAGES=3)).values()
    users = [(task.finding, task.condition.context_kind, task.condition.context_length,
              "+".join(sorted(task.notebooks))) for task in found]
    assert pd.Series(users).value_counts().to_dict() == {
        ("F1", "misleading", 0, "first"): 3, ("F1", "misleading", 40, "first+second"): 3,
        ("F1", "other_images", 0, "first"): 3, ("F1", "other_images", 40, "first"): 3,
        ("D1", "misleading", 40, "first"): 6, ("F1", "misleading", 80, "second"): 3,
        ("F5", "misleading", 40, "second"): 2}
    _, about = planned(tmp_path, notebooks, 0.5)
    needs, bounds = about["needs"], about["bounds"]
    for number in range(len(bounds) - 1):
        mine = list(tasks_of(notebooks, {}).values())[bounds[number]:bounds[number + 1]]
        assert {name for name in needs if number in needs[name]} == set().union(
            *(task.notebooks for task in mine))


def test_shards_take_equally_long_by_what_rows_took(tmp_path, notebooks, monkeypatch):
    """Here 1 s a row at 0 tokens, 3 s at 80; the longest come last."""
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def run(some):
        (task,) = some
        clock[0] += len(task.keys) * (1 + task.condition.context_length / 40)
        return pd.DataFrame(dict(key=task.keys, text="ten bytes."))

    monkeypatch.setattr(planning, "run", run)
    found = tasks_of(notebooks, dict(RESULTS=str(tmp_path / "rows"))).values()
    cost = np.array([len(task.keys) * (1 + task.condition.context_length / 40) for task in found])
    _, about = planned(tmp_path, notebooks, 1)
    bounds = about["bounds"]
    assert bounds[0] == 0 and bounds[-1] == len(found) and len(bounds) - 1 == -(-cost.sum() // 60)
    took = [cost[start:stop].sum() for start, stop in zip(bounds, bounds[1:])]
    assert max(took) < 60 + cost.max() and min(took) > 60 - 2 * cost.max()
    assert about["said"].startswith(
        f"{len(took)} jobs of 1 minutes, {cost.sum() / 3600:.2f} hours, at most ")
    assert re.search(rf"{sum(len(task.keys) for task in found)} missing rows$", about["said"])


def test_a_stopped_shard_goes_on_where_it_was(tmp_path, notebooks, monkeypatch):
    path, about = planned(tmp_path, notebooks, 1e9)
    made, asked = measuring.measure_sample, []

    def measure(lvlm, sample, one):
        if len(asked) == 7:
            raise KeyboardInterrupt
        asked.append((sample.image_id, one))
        return made(lvlm, sample, one)

    monkeypatch.setattr(measuring, "measure_sample", measure)
    with pytest.raises(KeyboardInterrupt):
        shard(path, 0)
    asked.append("stopped")
    shard(path, 0)
    assert len(asked) == len(set(asked))


@pytest.mark.parametrize("change, said", [
    (lambda path, code: path.unlink(), "is no plan"),
    (lambda path, code: path.write_text("[]"), "is no plan"),
    (lambda path, code: notebook(code, FIRST.replace("(0, 40)", "(0,)")), "make it again"),
    (lambda path, code: notebook(code, "%time\n" + FIRST), "is not plain Python"),
    (lambda path, code: notebook(code, FIRST + "measure(lvlm, samples, rows, store, 'F1')"),
     "'rows' is not defined"),
    (lambda path, code: notebook(code, FIRST.replace("(0, 40)", "(0, 10_000)")), "positions")])
def test_what_does_not_fit_is_one_sentence(tmp_path, notebooks, change, said):
    path, _ = planned(tmp_path, notebooks, 1e9)
    with pytest.raises(VDPError, match="no shard 1: it has 1, from 0"):
        shard(path, 1)
    change(path, notebooks[0])
    with pytest.raises(VDPError, match=said):
        shard(path, 0)
