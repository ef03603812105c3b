"""The study on one's own LVLM and photographs, from folders to figures, without a hub."""

import copy
import re

import numpy as np
import own_models
import pytest
from replay import code, play

from vdp_utils import stats
from vdp_utils.attention.tokens import Kind, written
from vdp_utils.lvlm import prompts
from vdp_utils.lvlm.load import load_lvlm
from vdp_utils.measuring import ResultStore
from vdp_utils.measuring.measure import (condition, kinds_of, map_sample, measure, measure_sample,
                                         prefix_of)
from vdp_utils.paths import ROOT
from vdp_utils.sources import one_pair, open_source
from vdp_utils.sources.dialogues import LEAD_AT_START

MODELS = tuple(own_models.BUILDERS)
every_model = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(scope="module")
def folders(make_tokenizer, tmp_path_factory):
    """{name: a model's folder}"""
    found = {name: tmp_path_factory.mktemp("models") / name for name in MODELS}
    for name, build in own_models.BUILDERS.items():
        found[name].mkdir()
        build(found[name], make_tokenizer())
    return found


@pytest.fixture(scope="module")
def lvlms(folders):
    return {name: load_lvlm(folder) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def album(tmp_path_factory):
    """A folder of photographs, and what was drawn on them."""
    root = tmp_path_factory.mktemp("album") / "coco"
    return root, own_models.photographs(root, 12)


@pytest.fixture(scope="module")
def source(album):
    return open_source("coco", album[0])


def test_boxes_lie_where_things_were_drawn_whatever_the_file(source, album):
    _, drawn = album
    assert not source.skipped and set(source.kept) == set(drawn)
    for key, (size, nouns) in drawn.items():
        photo = source.kept[key]
        assert photo.readable and photo.image().size == size == photo.size
        assert set(photo.counts) == set(nouns)
        for noun, boxes in nouns.items():
            found = [item.box for item in photo.items if item.noun == noun]
            np.testing.assert_allclose(sorted(found), sorted(
                (x, y, x + w, y + h) for x, y, w, h in boxes))
            area = sum(w * h for *_, w, h in boxes) / np.prod(size)
            assert photo.share(noun) == pytest.approx(area)
    white = np.asarray([np.asarray(photo.image(), int)[-8:, -8:].min() for photo in source.photos])
    assert (white > 235).all()  # what is drawn lies up and left of it, as the boxes say


@every_model
@pytest.mark.parametrize("length", [0, 100])
def test_prompts_have_the_processor_s_tokens_and_exact_lengths(lvlms, source, name, length):
    lvlm = lvlms[name]
    for sample in source.presence_samples("evaluation", 1 if name == "smolvlm" else 4):
        one = condition(lvlm, "misleading", length)
        prefix, question = prefix_of(lvlm, sample, one), sample.questions[0]
        whole = prompts.join(prefix, prompts.asking(lvlm, question))
        counts = np.bincount(whole.kinds, minlength=len(Kind))
        assert counts[Kind.IMAGE] == own_models.IMAGE_TOKENS[name](*sample.image().size)
        assert counts[Kind.CONTEXT] == length
        decode, asked = lvlm.tokenizer.decode, LEAD_AT_START + question.text
        assert decode(whole.input_ids[whole.kinds == Kind.QUESTION]) == asked
        told = decode(whole.input_ids[whole.kinds == Kind.CONTEXT])
        turn = [{"type": "image"}, {"type": "text", "text": told + asked}]
        text = written(lvlm.processor, [{"role": "user", "content": turn}])
        ids = lvlm.processor(text=text, images=[sample.image()], return_tensors="pt").input_ids[0]
        if length == 0:  # else the context begins amid a word
            assert whole.input_ids.tolist() == ids.tolist()
        assert decode(whole.input_ids).endswith(text[-60:])
        rest = {key: value for key, value in prefix.images.items() if "type_ids" not in key}
        again = prompts.opening(lvlm, sample.image()).images
        assert rest and all((again[key] == value).all() for key, value in rest.items())


@every_model
def test_a_shared_prefix_changes_nothing(lvlms, source, name):
    """So positions, and what says which tokens are the image's, are right in both ways."""
    lvlm = lvlms[name]
    (sample,) = source.presence_samples("evaluation", 1, 1)
    for image in ("own", "text_middle"):
        one = condition(lvlm, "other_images", 60, image)
        rows = [measure_sample(lvlm, sample, one, share) for share in (True, False)]
        for mine, theirs in zip(*rows, strict=True):
            np.testing.assert_allclose(mine["log_likelihoods"], theirs["log_likelihoods"],
                                       atol=1e-4)
            np.testing.assert_allclose(mine["attention"], theirs["attention"], atol=2e-3)
            assert mine["context_tokens"] == theirs["context_tokens"] == 60


@every_model
def test_the_image_counts_and_is_looked_at_where_it_is(lvlms, source, name):
    lvlm, (sample,) = lvlms[name], one_pair(source.presence_samples("evaluation", 1))
    own, swapped = (measure_sample(lvlm, sample, condition(lvlm, "other_images", 20, image))[0]
                    for image in ("own", "swapped"))
    assert np.abs(np.subtract(own["log_likelihoods"], swapped["log_likelihoods"])).max() > 1e-6
    maps = np.stack([row["map_image"] for row in map_sample(
        lvlm, sample, condition(lvlm, "other_images", 20))]).astype(float)
    maps = maps.reshape(-1, 4, 10, 10)
    share = own["attention"].reshape(4, -1)[:, Kind.IMAGE].astype(float)
    if name != "smolvlm":  # whose map is of the last view alone
        np.testing.assert_allclose(maps[0].sum((1, 2)), share, rtol=0.03)
    assert (maps >= 0).all() and maps.sum() > 0
    width, height = sample.image().size
    cut = (maps.sum((0, 1, 3)) == 0).sum(), (maps.sum((0, 1, 2)) == 0).sum()  # rows, columns
    if name == "llava" and width != height:
        assert cut[width > height] >= 1 and cut[height > width] == 0
    else:
        assert cut == (0, 0)


@pytest.mark.parametrize("name", ["llava", "qwen", pytest.param("smolvlm",
                                                                marks=pytest.mark.weekly)])
def test_a_stopped_run_goes_on(lvlms, source, tmp_path, name):
    """Every image is measured once, and the rows are those of a run without a stop."""
    lvlm, samples = lvlms[name], source.presence_samples("evaluation", 3, 1)
    one, done = condition(lvlm, "misleading", 30), []

    def each(lvlm, sample, one):
        if len(done) == 2 and "stopped" not in done:
            done.append("stopped")
            raise KeyboardInterrupt
        done.append(sample.image_id)
        return measure_sample(lvlm, sample, one)

    with pytest.raises(KeyboardInterrupt):
        measure(lvlm, samples, [one], ResultStore(tmp_path / "a"), "t", each=each)
    rows = measure(lvlm, samples, [one], ResultStore(tmp_path / "a"), "t", each=each)
    whole = measure(lvlm, samples, [one], ResultStore(tmp_path / "b"), "t")
    assert done == [samples[0].image_id, samples[1].image_id, "stopped", samples[2].image_id]
    assert list(rows["key"]) == list(whole["key"])
    np.testing.assert_allclose(np.stack(rows["log_likelihoods"]), np.stack(
        whole["log_likelihoods"]), atol=1e-5)
    shares = {(s.image_id, n): s.picture.share(n) for s in samples for n in s.asked}
    for row in rows.itertuples():
        assert row.target_share == pytest.approx(shares[row.image_id, row.nouns])
        kinds = kinds_of(lvlm, prompts.opening(lvlm, next(
            s for s in samples if s.image_id == row.image_id).image()))[0]
        assert row.image_tokens == int((kinds == Kind.IMAGE).sum())


def studied(path, folder, root, out, monkeypatch):
    """Runs a notebook in smoke profile on one's own; what was saved."""
    monkeypatch.setattr(stats, "RESAMPLES", 199)
    given = dict(PROFILE="smoke", MODEL=str(folder), DATA="coco", DATA_ROOT=str(root),
                 RESULTS=str(out / "rows"), FIGURES=str(out / "figures"))
    assert len(list(play(path, **given))) == len(code(path))
    names = re.findall(r'figures\.save\(\w+, \w+, "(\w+)"\)',
                       "".join(cell.source for cell in code(path)))
    (figures,) = (out / "figures").iterdir()
    (rows,) = (out / "rows").iterdir()
    assert figures.name == rows.name and re.fullmatch(r"coco-[0-9a-f]{12}", rows.name)
    saved = {path.name for path in figures.iterdir()}
    assert {f"{name}.{form}" for name in names for form in ("png", "pdf")} <= saved
    return {path.name for path in rows.iterdir()}


def notebooks():
    return [path for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
            if "DATA_ROOT" in path.read_text()]


def test_a_notebook_runs_unchanged_on_one_s_own_model_and_photographs(folders, album, tmp_path,
                                                                      monkeypatch):
    path = ROOT / "notebooks/01_long_context_decline.ipynb"
    assert "F1_F5_presence" in studied(path, folders["qwen"], album[0], tmp_path, monkeypatch)


@pytest.mark.weekly
@every_model
def test_every_notebook_runs_so(base_tokenizer, tmp_path, monkeypatch, name):
    """Under a real tokenizer, to which an answer is one token; SmolVLM with fewer tiles."""
    own_models.photographs(tmp_path / "coco", 36)
    (tmp_path / name).mkdir()
    own_models.BUILDERS[name](tmp_path / name, copy.deepcopy(base_tokenizer),
                              **dict(edge=1024) if name == "smolvlm" else {})
    assert len(notebooks()) > 9
    for path in notebooks():
        studied(path, tmp_path / name, tmp_path / "coco", tmp_path / "out", monkeypatch)
