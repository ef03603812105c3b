"""How figures are kept."""

import pandas as pd
import pytest
from matplotlib import pyplot as plt

from vdp_utils import figures
from vdp_utils.findings import KINDS, decline


def decline_of(model):
    summary = pd.DataFrame(
        dict(context_kind=kind, context_length=length, measure=measure, value=value,
             low=value - 0.1, high=value + 0.1, n_images=40, n_rows=160)
        for kind in KINDS for measure in decline.MEASURES
        for length, value in ((0, 0.9), (256, 0.8), (1024, 0.6)))
    return figures.decline(summary, 512, model)


@pytest.mark.parametrize("model, lines", [
    ("embedded-s", 1), ("/data/models/llava-1.5-7b", 1), ("owner/" + "long-name-" * 9, 2)])
def test_a_title_names_the_model_and_is_never_cut_off(tmp_path, model, lines):
    figure = decline_of(model)
    figures.save(figure, tmp_path, "fig")
    title = figure.get_suptitle()
    assert title.replace("\n", "").startswith(model.removeprefix("/data/models/")[:30])
    assert len(title.splitlines()) == lines
    box = figure.suptitle(title).get_window_extent()
    assert 0 <= box.x0 and box.x1 <= figure.bbox.width
    plt.close("all")


def test_a_figure_is_saved_as_png_and_pdf_the_same_each_time(tmp_path):
    for folder in ("a", "b/c"):
        figures.save(decline_of("embedded-s"), tmp_path / folder, "fig")
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["fig.pdf", "fig.png"]
    for name in names:
        data = (tmp_path / "a" / name).read_bytes()
        assert data == (tmp_path / "b/c" / name).read_bytes()
        assert data.startswith({"fig.pdf": b"%PDF", "fig.png": b"\x89PNG"}[name])
        assert b"CreationDate" not in data and len(data) > 5_000
    plt.close("all")
