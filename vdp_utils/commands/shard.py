"""`vdp shard`: measure one shard of a plan."""

import json
import time
from itertools import groupby
from pathlib import Path

from tqdm import tqdm

from vdp_utils.commands.plan import run, tasks_of
from vdp_utils.errors import VDPError


def shard(plan: Path, number: int) -> None:
    """Measure what the store lacks of shard `number`, counted from 0; stopped, it goes on there.

    VDPError for a plan that is none or is not of these notebooks, and for a shard not in it.
    """
    began = time.monotonic()
    try:
        about = json.loads(plan.read_text())
        bounds, told = about["bounds"], (about["notebooks"], about["parameters"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VDPError(f"{plan} is no plan ({error!r}): make it with vdp plan") from error
    if not 0 <= number < len(bounds) - 1:
        raise VDPError(f"{plan} has no shard {number}: it has {len(bounds) - 1}, from 0")
    found = list(tasks_of(*told).values())
    if len(found) != bounds[-1]:
        raise VDPError(f"{plan} is of {bounds[-1]} tasks, and the notebooks have {len(found)} now: "
                       "make it again with vdp plan")
    mine = found[bounds[number]:bounds[number + 1]]
    same = groupby(mine, lambda task: (task.finding, task.condition))
    for _, some in tqdm(same, desc=f"shard {number}"):
        run(list(some))
    print(f"shard {number}: {len(mine)} tasks in {(time.monotonic() - began) / 60:.1f} minutes")
