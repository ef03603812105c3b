"""What the probe says of made-up rows whose truth is built in."""

import pandas as pd
import pytest

from vdp_utils.findings import probe
from vdp_utils.findings.probe import sentences, summary
from vdp_utils.stats import balanced_accuracy

IMAGES, LENGTH = 20, 2048
SETTINGS = {"as it is": ("plain", 0.0), "near": ("near", 0.0), "pruned 0.9": ("plain", 0.9)}


def made(right):
    """Rows whose first share of images is right: {(text, setting): share}, the rest all right."""
    cells = [("none", 0, "plain", 0, 0.0, ("bare", "as it is")),
             ("none", 0, "gap", LENGTH, 0.0, ("no text", "as it is"))]
    cells += [(kind, LENGTH, placement, 0, rate, (kind, setting))
              for kind in ("other_images", "misleading")
              for setting, (placement, rate) in SETTINGS.items()]
    return pd.DataFrame(dict(
        image_id=f"i{image:02d}", question_id=str(number), answer=("yes", "no")[number],
        context_kind=kind.replace("none", "other_images"), context_length=length,
        placement=placement, places=places, rate=rate, positions="compact",
        correct=image < right.get(key, 1) * IMAGES or number == 0)
        for kind, length, placement, places, rate, key in cells
        for image in range(IMAGES) for number in range(2))


def said(rows):
    bare = balanced_accuracy(rows[(rows["context_length"] == 0) & (rows["placement"] == "plain")])
    return sentences(probe.tests(rows), bare, "a model")


def changes(rows):
    table = probe.tests(rows)
    return {(line.text, line.effect): pytest.approx(line.value) for line in table.itertuples()}


DISTANCE = {("no text", "as it is"): 0.2, ("other_images", "as it is"): 0.2,
            ("other_images", "pruned 0.9"): 0.4, ("misleading", "as it is"): 0.2}


def test_a_loss_to_distance_is_told_from_one_to_words():
    assert changes(made(DISTANCE)) == {
        ("no text", "distance"): -0.4, ("other_images", "context"): -0.4,
        ("other_images", "text"): 0,
        ("other_images", "near"): 0.4, ("other_images", "pruned 0.9"): 0.1,
        ("misleading", "context"): -0.4,
        ("misleading", "text"): 0, ("misleading", "near"): 0.4, ("misleading", "pruned 0.9"): 0.4}
    first, second, third = said(made(DISTANCE))
    assert first.startswith("With nothing before the question a model has a balanced accuracy of "
                            "1.00 [1.00, 1.00]; 2048 tokens about other images change it by "
                            "-0.40 [")
    assert second.startswith("After text about other images the loss comes from the distance, "
                             "after misleading text the loss comes from the distance: ")
    assert "other images near +0.40 [" in third and "pruned 0.9 +0.10" not in third


def test_a_loss_to_words_is_told_from_one_to_distance():
    rows = made({("misleading", "as it is"): 0.2, ("misleading", "near"): 0.2})
    first, second, third = said(rows)
    assert "other images change it by +0.00 [+0.00, +0.00] (not significant)" in first
    assert second.startswith("After text about other images nothing is lost for sure, after "
                             "misleading text the loss comes from the words: ")
    assert third.startswith("What helps or harms: after text about other images nothing "
                            "significant; after misleading text pruned 0.9 +0.40 [")
    assert "near" not in third


def test_both_parts_of_a_loss_are_named():
    rows = made({("no text", "as it is"): 0.5, ("misleading", "as it is"): 0.1})
    assert "misleading text the loss comes from the distance and the words" in said(rows)[1]


def test_where_nothing_is_significant_it_says_so():
    first, second, third = said(made({("other_images", "as it is"): 0.9}))
    assert first.count("not significant") == 2 and second.count("nothing is lost for sure") == 2
    assert third == ("What helps or harms: after text about other images nothing significant; "
                     "after misleading text nothing significant.")


def test_only_the_longest_length_is_spoken_of():
    short = made({}).assign(context_length=lambda rows: rows["context_length"].replace(LENGTH, 64),
                            places=lambda rows: rows["places"].replace(LENGTH, 64))
    short = short[(short["context_length"] > 0) | (short["placement"] == "gap")]
    both = pd.concat([made(DISTANCE), short])
    assert set(probe.tests(both)["length"]) == {64, LENGTH}
    assert "the distance, after" in said(both)[1] and "2048 tokens" in said(both)[0]


def test_accuracies_are_named_by_length_text_and_setting():
    table = summary(made(DISTANCE)).set_index(probe.BY)["value"]
    assert table[0, "no text", "as it is"] == 1 and len(table) == 8
    assert table[LENGTH, "no text", "as it is"] == pytest.approx(0.6)
    assert table[LENGTH, "other_images", "pruned 0.9"] == pytest.approx(0.7)
    assert list(table.index[:2]) == [(0, "no text", "as it is"), (LENGTH, "no text", "as it is")]
