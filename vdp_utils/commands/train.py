"""`vdp train`: the embedded LVLM's recipe from its first stage to stored weights, resumably."""

from pathlib import Path

import torch

from vdp_utils.errors import VDPError
from vdp_utils.lvlm.load import LVLM, MODELS, build_embedded, manifest
from vdp_utils.lvlm.names import SIZES
from vdp_utils.training.dialogue import (add_lora, export, load_export, train_answers,
                                         train_projector)
from vdp_utils.training.ladder import GAPS, INSTRUMENTS, train_further
from vdp_utils.training.loop import DEVICE, load_stage
from vdp_utils.training.packing import NAMING_QUESTIONS, ORACLE_QUESTIONS
from vdp_utils.training.tower import train_tower

JOINT = {"decoder": 3e-4, "projector": 2e-4, "tower": 5e-5}  # learning rates of the last stage
# stage -> share of the minutes
SHARES = {"tower": 0.2, "projector": 0.15, "oracle": 0.25, "naming": 0.2, "joint": 0.2}


def instrument_name(size: str, instrument: str, seed: int = 0) -> str:
    """Name of an instrument's folder: the size alone is the ladder's `s`, the default."""
    parts = [size] + [instrument] * (instrument != "s") + [f"seed{seed}"] * (seed != 0)
    return "-".join(parts)


def train(size="s", minutes=70.0, state="build/training", start_from=None, instrument=None,
          steps=750, seed=0, into_models=False):
    """Train the embedded LVLM of a size into data/models/<size>, going on where a run stopped.

    `minutes` are for all stages together. `state` is the folder for what is needed to go on; tower
    and projector there are shared by all sizes. With `start_from` (the same size, a smaller one
    whose decoder then grows, or a folder of weights) only the last stage runs, from these weights:
    with `instrument`, `steps` steps of that rung of the ladder, its weights beside its state or,
    with `into_models`, in data/models.
    """
    start = start_from and (MODELS / start_from.lower() if start_from.lower() in SIZES
                            else Path(start_from))
    if instrument and not start:
        raise VDPError("an instrument is trained from stored weights: give --start-from s")
    torch.manual_seed(0)
    shared, own = Path(state), Path(state) / size
    shares = {"further": 1.0} if start else SHARES
    minutes = {stage: share * minutes for stage, share in shares.items()}
    stage = list(shares)[-1]
    log, shared_log = own / f"{stage}.csv", shared / "log.csv"
    layers = SIZES[size]
    model, processor = build_embedded(layers)
    lvlm = LVLM(f"embedded-{size}", "in training", model.to(DEVICE), processor)
    tower = model.model.vision_tower
    tower.set_attn_implementation("eager")  # faster than SDPA for 101 tokens on a CPU
    folder = MODELS / size
    if start:
        add_lora(model)
        origin = manifest(start)
        load_export(lvlm, start)
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
    more = {}
    if instrument:
        seen, own = INSTRUMENTS[instrument], shared / instrument_name(size, instrument, seed)
        log, folder = own / "distances.csv", MODELS / own.name if into_models else own
        train_further(own, seen, steps, log, lvlm, seed)
        more = dict(max_context=min(seen.images, GAPS[-1]), max_text=min(seen.text, GAPS[-1]),
                    instrument=instrument, steps=steps, seed=seed,
                    start_sha256=origin["weights_sha256"])
    else:
        train_answers(own, stage, minutes[stage], log, lvlm, JOINT)
    before = (start / "training_log.csv" if start else shared_log).read_text()
    export(lvlm, layers, folder, **more)
    (folder / "training_log.csv").write_text(
        before + "".join(log.read_text().splitlines(keepends=True)[1:]))
