"""`vdp held-out`: what the embedded LVLM can see, for its model card."""

from vdp_utils.lvlm.load import MODELS, load_lvlm
from vdp_utils.measuring.store import ResultStore
from vdp_utils.training import evaluate


def held_out(size="s", questions=500, results="build/results/held_out"):
    """Write data/models/<size>/held_out.csv, with intervals over images, and print it in Markdown.

    Every skill is asked `questions` questions or a few more. Resumable: rows are in `results`.
    """
    table = evaluate.held_out(load_lvlm(f"embedded-{size}"), questions, ResultStore(results))
    table.to_csv(MODELS / size / "held_out.csv", index=False)
    print(evaluate.markdown(table))
