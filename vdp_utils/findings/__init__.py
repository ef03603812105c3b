"""What each notebook asks of its rows, one module a finding, all with the same face.

`RULE` is how the verdict falls, written before the run; `summary(rows)` is what the figure shows;
`tests(rows)` is what the rule looks at, a line a cell (`stats.SCHEME`); `verdict(...)` applies it.
This file holds what they share.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from vdp_utils import stats
from vdp_utils.paths import slug
from vdp_utils.stats import Estimate, Verdict

PRESENCE = "F1_F5_presence"  # the table of rows that findings F1 to F5 share
KINDS = ("same_image", "other_images", "misleading")
LENGTHS = (0, 128, 256, 512, 1024, 2048)  # context tokens: as far as the instrument knows text
OTHER_AND_MISLEADING = KINDS[1:]  # where every kind would cost too much
NEAR = 1024  # context tokens up to which further controls are measured, for the same reason


def as_text(summary: pd.DataFrame, measure: str, column: str = "context_kind",
            index: str = "context_length") -> pd.DataFrame:
    """A summary's measure as text with intervals: one line an `index`, one column a `column`."""
    part = summary[summary["measure"] == measure]
    texts = [str(Estimate(*line)) for line in part[list(Estimate.__match_args__)].to_numpy()]
    return part.assign(_text=texts).pivot(index=index, columns=column, values="_text").fillna("")


def estimates(cells: pd.DataFrame) -> dict[str, Estimate]:
    """The effects of `stats.family` cells by context kind, of which each has one cell."""
    return {line.context_kind: Estimate(line.effect, line.low, line.high, line.n_images,
                                        line.n_rows) for line in cells.itertuples()}


def where_it_costs(cells: pd.DataFrame, floor=False) -> pd.DataFrame:
    """A `stats.family` of the cells where the context costs something: there is enough to win back.

    `cost` is what it costs and must be above 0, `cost_p` its p-value, which comes back after Holm;
    `floor` says which cells do not count anyway.
    """
    cells = cells.assign(cost_p=stats.holm(cells["cost_p"]))
    costly = (cells["cost_p"] < stats.ALPHA) & (cells["cost"] > 0)
    return stats.family(cells.assign(limit=np.select([floor, ~costly], ["floor", "no cost"], "")))


def save_verdict(verdict: Verdict, folder: str | Path, model: str, dtype="float32") -> None:
    """Write a model's verdict to `folder/<finding>_<model>_verdict.json`, for the README's table.

    It holds the model's name too, and the dtype of its weights, a torch dtype or its name, where
    that is not float32; so does the file's own name.
    """
    row, dtype = verdict.to_row() | {"model": model}, str(dtype).removeprefix("torch.")
    if dtype != "float32":
        row["dtype"] = dtype
        model += f"-{dtype}"
    path = Path(folder) / f"{verdict.finding}_{slug(model)}_verdict.json"
    path.write_text(json.dumps(row, indent=2) + "\n")


def verdicts(folder: str | Path, finding: str) -> pd.DataFrame:
    """The stored verdicts of one finding: `estimate [95 %]` by model, verdict and what it is of."""
    lines = []
    for path in Path(folder).glob(f"{finding}_*_verdict.json"):
        row = json.loads(path.read_text())
        for named in row["estimate [95 %]"].split("; "):
            of, *estimate = named.rsplit(" ", 3)
            model = ", ".join(filter(None, (row["model"], row.get("dtype"))))
            lines.append((model, row["verdict"], of, " ".join(estimate)))
    table = pd.DataFrame(lines, columns=["model", "verdict", "of", "estimate [95 %]"])
    return table.set_index(["model", "verdict", "of"]).sort_index()
