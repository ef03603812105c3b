"""`vdp held-out`: what the embedded LVLM can see, for its model card."""

from pathlib import Path

from vdp_utils.lvlm.load import MODELS, embedded_folder, load_lvlm
from vdp_utils.measuring.store import ResultStore
from vdp_utils.training import evaluate
from vdp_utils.training.loop import DEVICE


def held_out(size="s", questions=500, results="build/results/held_out", weights=None):
    """Write held_out.csv beside a size's weights, with intervals over images, and print it.

    `weights`: a folder of weights instead of data/models/<size>.
    Every skill is asked `questions` questions or a few more. Resumable: rows are in `results`.
    """
    folder = Path(weights or MODELS / size)
    lvlm = load_lvlm(str(embedded_folder(folder)) if weights else f"embedded-{size}", DEVICE)
    table = evaluate.held_out(lvlm, questions, ResultStore(results))
    table.to_csv(folder / "held_out.csv", index=False)
    print(evaluate.markdown(table))
