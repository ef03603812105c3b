"""How figures are kept."""

import pandas as pd
from matplotlib import pyplot as plt

from vdp_utils import figures
from vdp_utils.findings import KINDS, decline


def test_a_figure_is_saved_as_png_and_pdf_the_same_each_time(tmp_path):
    summary = pd.DataFrame(
        dict(context_kind=kind, context_length=length, measure=measure, value=value,
             low=value - 0.1, high=value + 0.1, n_images=40, n_rows=160)
        for kind in KINDS for measure in decline.MEASURES
        for length, value in ((0, 0.9), (256, 0.8), (1024, 0.6)))
    for folder in ("a", "b/c"):
        figure = figures.decline(summary, 512, "embedded-s")
        figures.save(figure, tmp_path / folder, "fig")
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["fig.pdf", "fig.png"]
    for name in names:
        data = (tmp_path / "a" / name).read_bytes()
        assert data == (tmp_path / "b/c" / name).read_bytes()
        assert data.startswith({"fig.pdf": b"%PDF", "fig.png": b"\x89PNG"}[name])
        assert b"CreationDate" not in data and len(data) > 5_000
    plt.close("all")
