"""D1 on made-up rows whose truth is built in: losses to distance, to text, or to both together."""

import numpy as np
import pandas as pd
import pytest

from vdp_utils import figures, findings
from vdp_utils.attention.tokens import Kind
from vdp_utils.findings import distance
from vdp_utils.findings.distance import HARMLESS, KINDS, SMALLEST, labelled
from vdp_utils.lvlm.prompts import BESIDE

IMAGES, LENGTHS = 24, (512, 2048)


def made(to_distance=0.0, to_text=0.0, to_both=0.0, images=("own", "text", "swapped", BESIDE)):
    """Rows in which a share of the images is lost to distance, to text, and to both at once."""
    lines = []

    def add(image, kind, length, placement="plain", places=0, rate=0.0, positions="compact"):
        far = placement == "gap" or length and placement == "plain"
        text = length and rate < 0.9
        lost = to_distance * bool(far) + to_text * bool(text) + to_both * bool(far and text)
        share = 0.4 / (1 + bool(far))
        attention = np.zeros((2, len(Kind)))
        attention[:, Kind.IMAGE], attention[:, Kind.QUESTION] = share, 1 - share
        for number in range(IMAGES):
            for question in range(2):
                right = number >= round(lost * IMAGES) or question == 0
                yes = (question == 0) == right and image != "swapped"
                lines.append(dict(
                    image_id=f"i{number:02d}", question_id=str(question), image=image,
                    answer=("yes", "no")[question], predicted=("no", "yes")[yes], correct=right,
                    margin=1.0 if right else -1.0, context_kind=kind, context_length=length,
                    placement=placement, places=places, rate=rate, positions=positions,
                    log_likelihoods=[-0.1, -3.0] if yes else [-3.0, -0.1],
                    attention=attention.ravel().astype(np.float16),
                    ttft_s=0.5 if rate else 1.0, plain_ttft_s=1.0))

    for image in images:
        add(image, "other_images", 0)
        for length in LENGTHS:
            add(image, "other_images", 0, "gap", length)
            for kind in KINDS:
                add(image, kind, length)
                add(image, kind, length, "near")
                add(image, kind, length, "squeezed", 512)
                for rate in distance.RATES:
                    add(image, kind, length, rate=rate)
                    add(image, kind, length, "near", rate=rate)
                add(image, kind, length, rate=0.5, positions="kept")
    return pd.DataFrame(lines)


@pytest.fixture(scope="module")
def by_distance():
    return made(to_distance=0.5)


def judged(rows):
    table = distance.tests(rows)
    return distance.verdict(table, rows), table


def test_a_loss_to_distance_is_told_from_one_to_text(by_distance):
    verdict, table = judged(by_distance)
    assert verdict.verdict == "reproduced" and verdict.n == IMAGES
    assert set(table["text"]) == set(HARMLESS) and len(table) == len(HARMLESS) * len(LENGTHS)
    assert table["effect"].tolist() == pytest.approx([0.125] * len(table))
    assert table["near"].tolist() == pytest.approx([0.25] * len(table))
    assert verdict.estimates["misleading"].value == pytest.approx(0.25)  # shown, not judged
    verdict, table = judged(made(to_text=0.5))
    assert verdict.verdict == "contradicted"
    assert table["effect"].tolist() == pytest.approx([-0.125] * len(table))


def test_where_nothing_is_lost_nothing_counts():
    verdict, table = judged(made())
    assert verdict.verdict == "inconclusive" and set(table["limit"]) == {"no cost"}
    assert "0.05" in distance.RULE and SMALLEST == 0.05


@pytest.mark.parametrize("made_of, expected", [
    (dict(to_distance=0.5), (-0.25, 0, -0.25, 0)), (dict(to_text=0.25), (0, -0.125, -0.125, 0)),
    (dict(to_distance=0.25, to_text=0.25), (-0.125, -0.125, -0.25, 0)),
    (dict(to_both=0.5), (0, 0, -0.25, -0.25))])
def test_the_parts_add_up(made_of, expected):
    parts = distance.parts(made(**made_of, images=("own", "text")))
    for _, cell in parts.groupby(["image", "text", "length"]):
        found = cell.set_index("part")["effect"]
        assert found[["distance", "text", "both", "left over"]].tolist() == pytest.approx(
            list(expected), abs=1e-9)
        assert found["distance"] + found["text"] + found["left over"] == pytest.approx(
            found["both"])
    assert set(parts["image"]) == {"own", "text"}


def test_settings_are_named_one_by_one(by_distance):
    names = set(labelled(by_distance)["setting"])
    assert names == {"as it is", "near", "squeezed", "pruned 0.5", "pruned 0.9",
                     "pruned 0.5, old positions", "near, pruned 0.5", "near, pruned 0.9"}
    gap = labelled(by_distance[by_distance["placement"] == "gap"])
    assert set(gap["text"]) == {"no text"} and set(gap["length"]) == set(LENGTHS)


def test_remedies_stand_beside_the_prompt_as_it_is(by_distance):
    table = distance.remedies(by_distance).set_index(["target", "text", "length", "setting"])
    assert table.loc[("image", "misleading", 2048, "near"), "effect"] == pytest.approx(0.25)
    assert table.loc[("image", "misleading", 2048, "pruned 0.5"), "effect"] == 0
    assert set(table.index.get_level_values("target")) == {"image", "text"}


def test_attention_and_time_are_relative(by_distance):
    lost = distance.looking(by_distance)
    far = lost[lost["length"] == 2048]
    expected = np.log(0.2 / 0.8) - np.log(0.4 / 0.6)
    assert far["value"].tolist() == pytest.approx([expected] * 2, abs=1e-3)
    assert lost.loc[lost["length"] == 0, "value"].tolist() == [0, 0]
    times = distance.times(by_distance).set_index("setting")["value"]
    assert times["pruned 0.9"] == pytest.approx(0.5) and times["near"] == pytest.approx(1)


def test_its_table_has_a_column_for_each_text_and_setting(by_distance):
    own = distance.summary(by_distance).query("image == 'own'")
    table = findings.as_text(own, "balanced accuracy", ["text", "setting"], "length")
    assert table.loc[2048, ("prose", "as it is")].startswith("0.")
    assert set(KINDS) < set(table.columns.get_level_values("text"))


def test_the_exchange_shows_whether_the_image_matters(by_distance):
    summary = distance.summary(by_distance)
    flips = summary[(summary["measure"] == "flip rate, swapped") & (summary["text"] == "prose")
                    & (summary["length"] == 2048)].set_index("setting")["value"]
    # a yes-question is right behind near and as it is; a lost no-question says yes: swapped no
    assert flips["near"] == pytest.approx(0.5) and flips["as it is"] == pytest.approx(0.75)


def test_figures_say_what_was_measured(by_distance):
    summary, lost = distance.summary(by_distance), distance.looking(by_distance)
    drawn = figures.text_or_distance(summary, 512, "a model")
    assert len(drawn.axes) == 10 and "24 images" in drawn.get_suptitle()
    assert len(figures.parts(distance.parts(by_distance), "a model").axes) == 2
    cures = figures.cures(distance.remedies(by_distance), distance.times(by_distance), "a model")
    assert "near" in [label.get_text() for label in cures.axes[0].get_yticklabels()]
    assert len(figures.looking(lost, summary, "a model").axes) == 2


def test_a_source_without_text_descriptions_is_drawn_too():
    rows = made(to_distance=0.4, images=("own", "swapped"))
    summary = distance.summary(rows)
    drawn = figures.text_or_distance(summary, 512, "a model")
    assert len(drawn.axes) == len(distance.KINDS)
    assert len(figures.parts(distance.parts(rows), "a model").axes) == 1
    cures = figures.cures(distance.remedies(rows), distance.times(rows), "a model")
    assert set(distance.remedies(rows)["target"]) == {"image"} and cures.axes
    assert figures.looking(distance.looking(rows), summary, "a model").axes
