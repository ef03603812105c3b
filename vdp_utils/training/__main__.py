"""`python -m vdp_utils.training --size S --minutes N`: train the embedded LVLM, resumably."""

import argparse
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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m vdp_utils.training", description=__doc__)
    parser.add_argument("--size", default="S", type=str.lower, choices=SIZES)
    parser.add_argument("--minutes", default=70.0, type=float, help="in all, for all stages")
    parser.add_argument("--state", default="build/training", type=Path,
                        help="folder for what is needed to resume; tower and projector are "
                        "shared by all sizes")
    parser.add_argument("--start-from", type=str.lower, choices=SIZES, metavar="SIZE",
                        help="only the last stage, from the stored weights of this size or of a "
                        "smaller one, whose decoder then grows")
    options = parser.parse_args()
    torch.manual_seed(0)
    shared, own = options.state, options.state / options.size
    start = options.start_from
    shares = {"further": 1.0} if start else SHARES
    minutes = {stage: share * options.minutes for stage, share in shares.items()}
    stage = list(shares)[-1]
    log, shared_log = own / f"{stage}.csv", shared / "log.csv"
    layers = SIZES[options.size]
    model, processor = build_embedded(layers)
    lvlm = LVLM(f"embedded-{options.size}", "in training", model.to(DEVICE), processor)
    tower = model.model.vision_tower
    tower.set_attn_implementation("eager")  # faster than SDPA for 101 tokens on a CPU
    folder = MODELS / options.size
    if start:
        add_lora(model)
        load_export(lvlm, MODELS / start)
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
    before = MODELS / start / "training_log.csv" if start else shared_log
    (folder / "training_log.csv").write_text(
        before.read_text() + "".join(log.read_text().splitlines(keepends=True)[1:]))


if __name__ == "__main__":
    main()
