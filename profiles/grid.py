"""What the whole study takes with larger models: `python profiles/grid.py` prints README's tables.

From the notebooks' own conditions, the shapes of models, and the intervals of the stored rows.
"""

import math
from pathlib import Path

import pandas as pd
from transformers import LlamaConfig

from vdp_utils import findings, paths
from vdp_utils.commands.plan import tasks_of
from vdp_utils.findings import decline, recovery
from vdp_utils.measuring import timing
from vdp_utils.measuring.store import ResultStore

IMAGE, WORDS = 576, 40  # tokens of an image, and of a question with its part of the template
# Of one GPU in bfloat16: operations a second, and seconds that a row takes for each layer however
# small its prompt, both as one H100 had them; bytes a second, assumed.
SPEED, LEAST, BANDWIDTH = 400e12, 0.0022, 2e12
MINUTES = 60  # of a job
SOURCES = ("COCO", "SVIT")  # each as many images as there are scenes, by the same notebooks
MMDU = dict(turns=1645, tokens=8200, images=3.8, conditions=2, reply=512)  # released: means, most


def prefill_tokens(task, image: int = IMAGE) -> float:
    """Tokens that go through the decoder for the rows of a task, those of replies left out."""
    one, rows = task.condition, len(task.keys)
    whole = image + one.context_length + WORDS
    if hasattr(one, "history"):  # turn by turn: half of four pictures and of what is told by then
        return rows * (2 * image + rows / 2 * (one.context_length + 2 * WORDS))
    if hasattr(one, "prunings"):  # each question whole, and what each pruning leaves of it
        kept = [whole - pruning.rate * one.context_length for pruning in one.prunings]
        return rows / len(kept) * sum(kept)
    if hasattr(one, "rates"):
        return rows * sum(whole - rate * one.context_length for rate in (0, *one.rates))
    if getattr(one, "rate", 0):  # scored, then run again without what is dropped
        return rows * (2 * whole - one.rate * one.context_length)
    return whole + rows * WORDS  # the questions share one prefix


def row_bytes(task, layers: int, heads: int) -> float:
    """Stored bytes of a row: text and numbers, and attention by layer, before compression."""
    wide = {findings.PRESENCE: 4 + heads, "F5_maps": IMAGE, "F6_examples": IMAGE, "F8_masses": 150}
    return 400 + 2 * layers * wide.get(task.finding, 4)


def grid(tasks) -> pd.DataFrame:
    """Jobs, GPU hours, storage and memory by model and source."""
    lines = []
    for model, shape in timing.SHAPES.items():
        config = LlamaConfig(**shape)
        layers, heads = config.num_hidden_layers, config.num_attention_heads
        parameters = timing.expected(config, 1)["parameters"]
        study = (sum(map(prefill_tokens, tasks)), sum(len(task.keys) for task in tasks),
                 sum(len(task.keys) * row_bytes(task, layers, heads) for task in tasks))
        prompt = MMDU["tokens"] / 2 + MMDU["images"] / 2 * IMAGE  # of a turn, on average
        asked = MMDU["turns"] * MMDU["conditions"]
        parts = {source: (*study, 0) for source in SOURCES}
        parts["MMDU"] = asked * prompt, asked, asked * 3000, asked * MMDU["reply"]
        longest = max(MMDU["tokens"] * 2.2, 4096) + 20 * IMAGE
        for source, (tokens, rows, size, replied) in parts.items():
            hours = (2 * parameters * tokens / SPEED + replied * 2 * parameters / BANDWIDTH
                     + rows * LEAST * layers) / 3600
            cost = timing.expected(config, int(longest) if source == "MMDU" else 4096 + IMAGE)
            needs = cost["weights"] + cost["cache"] + cost["working"]
            lines.append((model, source, rows, round(tokens / 1e6), round(hours, 1),
                          math.ceil(hours * 60 / MINUTES), round(size / 1e6), round(needs / 2**30)))
    return pd.DataFrame(lines, columns=["model", "source", "rows", "million tokens", "GPU hours",
                                        f"jobs of {MINUTES} minutes", "MB at most", "GiB of GPU"])


def widths(root: Path, model: str = paths.MODEL, counts=(25, 50, 100)) -> pd.DataFrame:
    """Half of the intervals' mean width for F1's and F6's cells, by the number of images.

    Measured on the first of the stored images, and beyond them as the root of their number has it.
    """
    lines, tables = [], {name: stored(root, table, model) for name, table in (
        ("F1", findings.PRESENCE), ("F6", recovery.PRUNED))}
    tables["F1"] = tables["F1"][tables["F1"]["image"] == "own"]
    for count in (*counts, 200, 400, 1000):
        few, line = min(count, counts[-1]), [count]
        for rows, finding in zip(tables.values(), (decline, recovery)):
            first = sorted(rows["image_id"].unique())[:few]
            found = finding.tests(rows[rows["image_id"].isin(first)])
            line.append(((found["high"] - found["low"]).mean() / 2 * (few / count) ** 0.5).round(3))
        lines.append((*line, "measured" if count == few else "extrapolated"))
    return pd.DataFrame(lines, columns=["images", "F1: +-", "F6: +-", ""])


def stored(root: Path, table: str, model: str) -> pd.DataFrame:
    """All stored rows of a table and model."""
    store = ResultStore(root)
    return pd.concat([store.read(table, one) for one in store.conditions(table)
                      if one["model"] == model])


def as_markdown(table: pd.DataFrame) -> str:
    """Lines of a table, as they stand in README.md."""
    lines = [table.columns, ["---"] * len(table.columns), *table.to_numpy()]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def main() -> str:
    """Both tables."""
    notebooks = sorted((paths.ROOT / "notebooks").glob("[0-9]*[a-z].ipynb"))
    tasks = [task for task in tasks_of(notebooks, {"PROFILE": "full"}).values()
             if task.condition.model == paths.MODEL]
    return f"{as_markdown(grid(tasks))}\n\n{as_markdown(widths(paths.results('full')))}"


if __name__ == "__main__":
    print(main())
