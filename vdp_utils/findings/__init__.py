"""What each notebook asks of its rows, one module a finding, all with the same face.

`RULE` is how the verdict falls, written before the run; `summary(rows)` is what the figure shows;
`tests(rows)` is what the rule looks at; `verdict(...)` applies it. This file holds what they share.
"""

import json
from pathlib import Path

import pandas as pd

from vdp_utils.paths import slug
from vdp_utils.stats import Estimate, Verdict

PRESENCE = "F1_F5_presence"  # the table of rows that findings F1 to F5 share
KINDS = ("same_image", "other_images", "misleading")
NEUTRAL_AND_MISLEADING = ("other_images", "misleading")  # where every kind would cost too much
NEAR = 1024  # context tokens up to which further controls are measured, for the same reason


def as_text(summary: pd.DataFrame, measure: str, column: str = "context_kind",
            index: str = "context_length") -> pd.DataFrame:
    """A summary's measure as text with intervals: one line an `index`, one column a `column`."""
    part = summary[summary["measure"] == measure]
    texts = [str(Estimate(*line)) for line in part[list(Estimate.__match_args__)].to_numpy()]
    return part.assign(text=texts).pivot(index=index, columns=column,
                                         values="text").fillna("")


def save_verdict(verdict: Verdict, folder: str | Path, model: str, dtype="float32") -> None:
    """Write a model's verdict to `folder/<finding>_<model>_verdict.json`, for the README's table.

    It holds the model's name too, which `paths.slug` puts in the file's own name, and the dtype
    of its weights, a torch dtype or its name, where that is not float32.
    """
    row = verdict.to_row() | {"model": model}
    name = str(dtype).removeprefix("torch.")
    if name != "float32":
        row["dtype"] = name
    path = Path(folder) / f"{verdict.finding}_{slug(model)}_verdict.json"
    path.write_text(json.dumps(row, indent=2) + "\n")
