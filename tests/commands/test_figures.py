"""Figures from stored rows: of one model and dtype each, left out where its rows are missing."""

import json

import pytest
from matplotlib import pyplot as plt

from vdp_utils import paths, stats
from vdp_utils.commands import figures
from vdp_utils.errors import VDPError
from vdp_utils.findings import OTHER_AND_MISLEADING, PRESENCE, distance
from vdp_utils.sources.samples import presence_samples

LENGTHS = (0, 512, 2048)  # those whose curves F4 draws
OF_PRESENCE = (figures.f1, figures.f2, figures.f3, figures.f4, figures.f5, figures.f5_cause)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(stats, "RESAMPLES", 199)
    yield
    plt.close("all")


def as_other(folder, images, tables=(PRESENCE,), **changed):
    """Committed rows of size S about six scenes, stored in `folder` as if they were M's."""
    small = figures.Stored(paths.results("full"), "embedded-s")
    other = figures.Stored(folder, "embedded-m")
    name = dict(model="embedded-m", revision=other.revision) | changed
    asked = {sample.image_id for sample in presence_samples("evaluation", 6)}
    for table, one in ((name, one) for name in tables for one in small.conditions[name]):
        if (one["image"] in images and one["context_length"] in LENGTHS
                and one["context_kind"] in OTHER_AND_MISLEADING):
            rows = small.store.read(table, one)
            other.store.append(table, one | name, rows[rows["image_id"].isin(asked)])
    return other


def test_a_model_is_drawn_from_rows_with_and_without_image_and_as_text(tmp_path):
    other = as_other(tmp_path, ("own", "text", "none"))
    drawn = dict(pair for part in OF_PRESENCE[:-1] for pair in part(other))
    assert list(drawn) == ["fig01_long_context_decline", "fig02_text_only_control",
                           "fig03_prior_consistency", "fig04_target_proportion",
                           "fig05_attention_distribution"]
    for figure in drawn.values():
        assert figure.get_suptitle().startswith("embedded-m: ")
    assert len(drawn["fig02_text_only_control"].axes) == 2  # one per kind, none of places
    (legend,) = drawn["fig03_prior_consistency"].legends
    assert not [text for text in legend.get_texts() if "swapped" in text.get_text()]


@pytest.mark.parametrize("images, changed, lacking", [
    ((), {}, ["", "", "", "", "", ""]),
    (("own", "none"), {}, [None, " with the images text", None, None, None,
                           " with the images swapped"]),
    (("text",), {}, [" with the images own", " with the images own",
                      " with the images none, own", " with the images own",
                      " with the images own", " with the images none, own, swapped"]),
    (("own", "text", "none"), {"revision": "of other weights"}, ["", "", "", "", "", ""]),
    (("own", "text", "none"), {"model": "embedded-s"}, ["", "", "", "", "", ""])])
def test_missing_rows_of_a_model_are_named(tmp_path, images, changed, lacking):
    other = as_other(tmp_path, images, **changed)
    for part, which in zip(OF_PRESENCE, lacking):
        if which is not None:
            with pytest.raises(VDPError, match=f"no rows of {PRESENCE}{which} for embedded-m in .*"
                               "make study PROFILE=full MODEL=embedded-m"):
                next(part(other))


def test_d1_wants_swapped_images_which_f10_s_rows_lack(tmp_path):
    other = as_other(tmp_path, ("own", "text"), (distance.ROWS,))
    with pytest.raises(VDPError, match=f"{distance.ROWS} with the images swapped for embedded-m"):
        next(figures.d1(other))


def test_models_are_drawn_beside_the_default_one(tmp_path, monkeypatch):
    monkeypatch.setattr(figures.sizes, "OTHERS", ("embedded-m",))
    default, images = figures.Stored(tmp_path, "embedded-s"), ("own", "text", "swapped")
    as_other(tmp_path, images, figures.sizes.EACH, model="embedded-s", revision=default.revision)
    with pytest.raises(VDPError, match="no rows of .* for embedded-m in .*MODEL=embedded-m"):
        next(figures.f10(default))
    as_other(tmp_path, images, figures.sizes.EACH)
    drawn = dict(figures.f10(default))
    assert list(drawn) == ["fig10_side_by_side", "fig10_depth_or_training", "fig10_pruning_gain"]
    assert len(drawn["fig10_side_by_side"].axes) == 8  # one kind is not among these rows
    for figure in drawn.values():
        assert "6 images" in figure.get_suptitle()


def test_figures_without_rows_are_left_out_but_for_the_default_model_s(tmp_path, monkeypatch):
    as_other(tmp_path, ("own",))
    parts = (figures.f1, figures.f2, figures.f4)
    drawn = figures.draw(tmp_path, tmp_path / "out", "embedded-m", parts)
    names = ["fig01_long_context_decline", "fig04_target_proportion"]
    assert drawn == [tmp_path / "out" / name for name in names]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        f"{name}.{kind}" for name in names for kind in ("png", "pdf"))
    monkeypatch.setattr(paths, "MODEL", "embedded-m")
    with pytest.raises(VDPError, match="no rows of .* with the images text"):
        figures.draw(tmp_path, tmp_path / "out", "embedded-m", parts)


def test_a_model_of_which_nothing_is_stored_is_refused(tmp_path):
    with pytest.raises(VDPError, match="nothing to draw of embedded-m in .*full MODEL=embedded-m"):
        figures.figures(tmp_path, tmp_path / "out", ["embedded-m"])
    assert not (tmp_path / "out").exists()


def test_all_models_with_a_verdict_are_drawn_each_in_its_folder(tmp_path, monkeypatch):
    calls, benches = [], []
    monkeypatch.setattr(figures, "ProcessPoolExecutor", Here)
    monkeypatch.setattr(figures.bench, "draw", lambda tables, folder: benches.append(folder))
    monkeypatch.setattr(figures, "draw",
                        lambda *task: calls.append(task) or [task[1] / "fig"])
    for model in ("a/b", "embedded-s"):
        verdict = tmp_path / f"F1_{paths.slug(model)}_verdict.json"
        verdict.write_text(json.dumps(dict(model=model)))
    figures.figures(tmp_path, tmp_path / "out")
    assert {task[1:3] for task in calls} == {(tmp_path / "out", "embedded-s"),
                                             (tmp_path / "out" / "a-b", "a/b")}
    assert [task[2] for task in calls if task[3] is figures.OF_TABLES] == ["embedded-s"]
    assert len(calls) == 5
    calls.clear()
    assert figures.figures(tmp_path, tmp_path / "out", ["a/b"]) == 2 * [tmp_path / "out/a-b/fig"]
    assert {task[2] for task in calls} == {"a/b"} and benches == [tmp_path / "out"]


class Here:
    """A pool that works in this process."""

    def __init__(self, workers):
        self.map = map

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


def dtypes_of(folder, *dtypes):
    """M's rows, stored in each of some dtypes."""
    for dtype in dtypes:
        other = as_other(folder, ("own",), dtype=dtype)
    return figures.Stored(folder, other.model)


@pytest.mark.parametrize("dtypes, taken", [
    (("float32",), "float32"), (("bfloat16",), "bfloat16"), (("bfloat16", "float32"), "float32")])
def test_dtypes_are_not_mixed(tmp_path, dtypes, taken):
    stored = dtypes_of(tmp_path, *dtypes)
    assert {one["dtype"] for one in stored.conditions[PRESENCE]} == {taken}
    rows = stored.own()
    assert not rows.duplicated(["key", "context_kind", "context_length"]).any()
    assert len(stored.conditions[PRESENCE]) == len(LENGTHS) * len(OTHER_AND_MISLEADING)


@pytest.mark.parametrize("dtypes, changed", [
    (("bfloat16", "float16"), {}), (("float32",), {"attention": "eager"})])
def test_versions_that_would_be_mixed_are_refused(tmp_path, dtypes, changed):
    stored = dtypes_of(tmp_path, *dtypes)
    if changed:
        as_other(tmp_path, ("own",), **changed)
    with pytest.raises(VDPError, match="rows of embedded-m in several versions .*; .*--results"):
        stored.own()


def test_a_model_that_is_not_embedded_is_drawn_from_whatever_weights_it_had(tmp_path):
    as_other(tmp_path, ("own",), model="org/name", revision="abc")
    stored = figures.Stored(tmp_path, "org/name")
    ((name, figure),) = figures.f1(stored)
    assert stored.trained is None and figure.get_suptitle().startswith("org/name: ")
