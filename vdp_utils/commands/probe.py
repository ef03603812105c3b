"""`vdp probe`: does a model lose the image to the text or to the distance, and what helps?"""

import json
import sys
import textwrap
from functools import partial
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from vdp_utils import figures
from vdp_utils.figures.probe import probe as draw
from vdp_utils.findings import probe as finding
from vdp_utils.lvlm.load import load_lvlm
from vdp_utils.lvlm.names import check_names
from vdp_utils.measuring.measure import measure, usable
from vdp_utils.measuring.placed import placed_sample
from vdp_utils.measuring.store import ResultStore
from vdp_utils.measuring.timing import DEVICE
from vdp_utils.paths import ROOT, slug
from vdp_utils.sources.photographs import open_source
from vdp_utils.stats import Estimate


def probe(model: str, images=24, lengths=(2048,), device=None, dtype="auto", out=None,
          as_json=False, data="scenes", data_root=None):
    """Measure what `out` lacks, draw probe.png and .pdf there, and print a table and sentences.

    `images` have one yes- and one no-question each; they are those of `open_source(data,
    data_root)`, or all of them where there are fewer. `out` is build/probe/<model> by default, and
    for photographs the folder <data>-<digest of their records> in it. Printed is Markdown, or,
    `as_json`, one JSON object.
    """
    check_names(model, device, dtype)
    source, out = open_source(data, data_root), Path(out or ROOT / "build" / "probe" / slug(model))
    samples = source.presence_samples("evaluation", images, 1)
    if data != "scenes":
        out /= source.subfolder
    lvlm = load_lvlm(model, device or DEVICE, dtype)
    store = ResultStore(out / "rows")
    samples, conditions = usable(samples, finding.conditions(lvlm, lengths),
                                 partial(print, file=sys.stderr))
    rows = pd.concat([measure(lvlm, samples, [one], store, finding.PROBE, each=placed_sample)
                      for one in tqdm(conditions, desc=lvlm.name)])
    table, tests = finding.summary(rows), finding.tests(rows)
    bare = Estimate(*table.loc[table["length"] == 0, list(Estimate.__match_args__)].iloc[0])
    said = finding.sentences(tests, bare, lvlm.name)
    figures.save(draw(table, lvlm.name), out, "probe")
    if as_json:
        print(json.dumps(dict(
            model=lvlm.name, revision=lvlm.revision, dtype=str(lvlm.dtype), data=data,
            images=len(samples),
            accuracy=table.to_dict("records"), differences=tests.to_dict("records"),
            sentences=said, figure=str(out / "probe.png")), indent=2))
        return
    of = "images" if data == "scenes" else f"images of {data}"
    print(f"{lvlm.name}, {len(samples)} {of}, balanced accuracy [95 % interval]",
          f"\n{as_text(table)}\n", sep="\n")
    print(*(textwrap.fill(one, 118) for one in said), f"\nFigure: {out / 'probe.png'}", sep="\n")


def as_text(table: pd.DataFrame) -> str:
    """A `summary` as a Markdown table: one line a length and text, one column a setting."""
    cells = [f"{line.value:.2f} [{line.low:.2f}, {line.high:.2f}]" for line in table.itertuples()]
    names = [f"{line.length}: {finding.TEXTS[line.text]}" for line in table.itertuples()]
    wide = table.assign(cell=cells, name=names).pivot(index="name", columns="setting",
                                                      values="cell").fillna("")
    wide = wide.loc[list(dict.fromkeys(names)), list(dict.fromkeys(table["setting"]))]
    return aligned([["tokens: text", *wide.columns], *wide.reset_index().to_numpy().tolist()])


def aligned(lines: list[list[str]]) -> str:
    """Lines of cells, the first of them names, as a Markdown table."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    lines = [lines[0], ["-" * width for width in widths], *lines[1:]]
    return "\n".join("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths))
                     + " |" for line in lines)
