"""`vdp train`: the embedded LVLM's recipe from its first stage to stored weights, resumably."""

from pathlib import Path

import torch

from vdp_utils.lvlm.load import LVLM, MODELS, build_embedded
from vdp_utils.lvlm.names import SIZES
from vdp_utils.training.dialogue import (add_lora, export, load_export, train_answers,
                                         train_projector)
from vdp_utils.training.loop import DEVICE, load_stage
from vdp_utils.training.packing import NAMING_QUESTIONS, ORACLE_QUESTIONS
from vdp_utils.training.tower import train_tower

# stage -> share of the minutes
SHARES = {"tower": 0.2, "projector": 0.15, "oracle": 0.25, "naming": 0.2, "joint": 0.2}


def train(size="s", minutes=70.0, state="build/training", start_from=None):
    """Train the embedded LVLM of a size into data/models/<size>, going on where a run stopped.

    `minutes` are for all stages together. `state` is the folder for what is needed to go on; tower
    and projector there are shared by all sizes. With `start_from`, the same size or a smaller one
    whose decoder then grows, only the last stage runs, from that one's stored weights.
    """
    torch.manual_seed(0)
    shared, own = Path(state), Path(state) / size
    shares = {"further": 1.0} if start_from else SHARES
    minutes = {stage: share * minutes for stage, share in shares.items()}
    stage = list(shares)[-1]
    log, shared_log = own / f"{stage}.csv", shared / "log.csv"
    layers = SIZES[size]
    model, processor = build_embedded(layers)
    lvlm = LVLM(f"embedded-{size}", "in training", model.to(DEVICE), processor)
    tower = model.model.vision_tower
    tower.set_attn_implementation("eager")  # faster than SDPA for 101 tokens on a CPU
    folder = MODELS / size
    if start_from:
        add_lora(model)
        load_export(lvlm, MODELS / start_from)
    else:
        train_tower(shared, minutes["tower"], shared_log, tower)
        add_lora(model)
        train_projector(shared, minutes["projector"], shared_log, lvlm)
        train_answers(own, "oracle", minutes["oracle"], log, lvlm, {"decoder": 1e-3}, oracle=True,
                      questions=ORACLE_QUESTIONS, batch=8)
        load_stage(shared, "projector", {"tower": tower,
                                         "projector": model.model.multi_modal_projector})
        train_answers(own, "naming", minutes["naming"], log, lvlm, {"decoder": 1e-3},
                      questions=NAMING_QUESTIONS, batch=32)
    train_answers(own, stage, minutes[stage], log, lvlm,
                  {"decoder": 3e-4, "projector": 2e-4, "tower": 5e-5})
    export(lvlm, layers, folder)
    before = MODELS / start_from / "training_log.csv" if start_from else shared_log
    (folder / "training_log.csv").write_text(
        before.read_text() + "".join(log.read_text().splitlines(keepends=True)[1:]))
