import hashlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from vdp_utils.errors import VDPError
from vdp_utils.paths import ROOT
from vdp_utils.sources import scenes
from vdp_utils.sources.scenes import GLYPHS, HELD_OUT_NOUNS, HELD_OUT_TEXTURES, SIZE, SPLITS

SEEN = [split for split in SPLITS if not split.startswith("evaluation_")]
PINNED = [(split, index) for split in SPLITS for index in (0, 7)]
PINNED_HASH = "b5ed140b67055d038e123633883b0fb6656d7b9aca295835de2909f7ea939247"
# Mean red, green and blue of each pinned scene: rasterisers may differ by a level, so not a hash.
PINNED_COLOURS = [
    (180.7, 189.0, 161.3), (175.3, 178.3, 164.6), (191.7, 193.6, 192.1), (175.3, 159.1, 167.0),
    (202.6, 210.7, 195.3), (140.2, 142.6, 130.3), (150.1, 154.8, 132.3), (194.8, 180.5, 174.9),
    (133.8, 140.8, 137.5), (211.5, 193.8, 174.6), (174.6, 180.6, 165.7), (167.4, 166.3, 139.0),
]


@pytest.fixture(scope="module")
def composed():
    """Split -> its first 300 scenes."""
    return {split: [scenes.compose(split, n) for n in range(300)] for split in SPLITS}


def annotation_hash():
    """SHA-256 of the pinned scenes' annotation, as JSON."""
    found = [[s.image_id, s.theme, s.texture, s.seed, [[i.noun, i.box] for i in s.items]]
             for s in (scenes.compose(*where) for where in PINNED)]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def test_at_least_a_hundred_nouns_in_one_theme_each():
    listed = [noun for nouns in scenes.THEMES.values() for noun in nouns]
    assert len(listed) == len(set(listed)) == len(GLYPHS) >= 100
    assert len(set(GLYPHS.values())) == len(GLYPHS)  # no picture has two names
    assert set(scenes.NOUNS) == set(GLYPHS) - set(HELD_OUT_NOUNS)
    assert all(re.fullmatch("[a-z]+", noun) for noun in GLYPHS)


@pytest.mark.parametrize("noun", GLYPHS)
def test_glyph_renders_and_fills_its_crop(noun):
    image = scenes.glyph(noun)
    alpha = np.asarray(image.getchannel("A"))
    assert image.mode == "RGBA" and 60 < max(image.size) <= 288
    assert (alpha > 128).mean() > 0.1
    for edge in (alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]):
        assert edge.max() > 40


def test_unknown_noun_and_unknown_split_are_named():
    with pytest.raises(VDPError, match="unknown noun 'unicorn'.*GLYPHS"):
        scenes.glyph("unicorn")
    with pytest.raises(VDPError, match="unknown split 'test'.*evaluation"):
        scenes.compose("test", 0)


def test_scenes_hold_one_to_eight_objects_of_every_number(composed):
    for found in composed.values():
        counts = [len(scene.items) for scene in found]
        assert set(counts) == set(range(1, 9))
        assert np.bincount(counts).max() < 0.25 * len(found)
        assert max(max(scene.counts.values()) for scene in found) <= 4


def test_shares_are_spread_between_one_and_forty_percent(composed):
    for found in composed.values():
        shares = np.array([item.share for scene in found for item in scene.items])
        assert scenes.MIN_SHARE == 0.01 and shares.min() >= 0.01
        assert scenes.MAX_SHARE == 0.40 and shares.max() <= 0.405
        low, middle, high = np.quantile(shares, [0.1, 0.5, 0.9])
        assert low < 0.03 and 0.05 < middle < 0.10 and high > 0.15
        assert shares.max() > 0.3


def test_no_object_exceeds_forty_percent_by_rounding():
    found = [scenes.compose(split, n) for split, n in (("train", 923), ("evaluation", 1311))]
    assert max(item.share for scene in found for item in scene.items) <= scenes.MAX_SHARE


def test_boxes_lie_in_the_image_and_never_overlap(composed):
    for scene in sum(composed.values(), []):
        for x0, y0, x1, y1 in (item.box for item in scene.items):
            assert 0 <= x0 < x1 <= SIZE and 0 <= y0 < y1 <= SIZE
        for p, q in combinations(scene.items, 2):
            apart = (p.box[2] <= q.box[0] or q.box[2] <= p.box[0]
                     or p.box[3] <= q.box[1] or q.box[3] <= p.box[1])
            assert apart, scene.image_id


def test_center_share_and_counts_follow_from_the_boxes():
    items = (scenes.Item("cow", (0, 0, 40, 80)), scenes.Item("pig", (80, 80, 160, 160)),
             scenes.Item("cow", (40, 120, 60, 160)))
    scene = scenes.Scene("x", "farm", "plain", (1, 0), items)
    assert items[0].center == (0.125, 0.25)
    assert items[0].share == 0.125
    assert scene.counts == {"pig": 1, "cow": 2} and list(scene.counts) == ["pig", "cow"]
    assert scene.share("cow") == 0.125 + 0.03125 and scene.share("goat") == 0


@pytest.mark.parametrize("split", SPLITS)
def test_boxes_are_exact(composed, split):
    for scene in composed[split][:25]:
        owners = np.zeros((SIZE, SIZE), dtype=int)
        image = scenes.render(scene, owners).astype(int)
        changed = (image != scenes.render(replace(scene, items=()))).any(-1)
        for number, item in enumerate(scene.items):
            x0, y0, x1, y1 = item.box
            opaque = owners == number + 1
            assert changed[y0:y1, x0:x1].mean() > 0.1
            rows, columns = np.flatnonzero(opaque.any(1)), np.flatnonzero(opaque.any(0))
            found = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            assert np.abs(np.subtract(found, item.box)).max() <= 2, (scene.image_id, item, found)
            changed[y0:y1, x0:x1] = False
        assert not changed.any(), scene.image_id


@pytest.mark.parametrize("texture", scenes.TEXTURES + HELD_OUT_TEXTURES)
def test_backgrounds_are_muted_and_unlike_each_other(texture):
    scene = scenes.Scene("x", "farm", texture, (1, 3), ())
    image = scenes.render(scene).astype(float)
    assert image.shape == (SIZE, SIZE, 3)
    assert image.mean() > 80 and image.std((0, 1)).max() < 40
    for other in set(scenes.TEXTURES + HELD_OUT_TEXTURES) - {texture}:
        assert np.abs(image - scenes.render(replace(scene, texture=other))).max() > 8


def test_scenes_are_the_same_in_a_fresh_process_and_as_pinned():
    code = "import tests.sources.test_scenes as t; print(t.annotation_hash())"
    fresh = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                           check=True, cwd=ROOT)
    assert fresh.stdout.strip() == annotation_hash() == PINNED_HASH


def test_pixels_are_as_pinned():
    images = [scenes.render(scenes.compose(*where)) for where in PINNED]
    assert all(i.dtype == np.uint8 and i.shape == (SIZE, SIZE, 3) for i in images)
    found = np.array([image.mean((0, 1)) for image in images])
    np.testing.assert_allclose(found, PINNED_COLOURS, atol=1)


def test_splits_share_no_scene(composed):
    assert len({stream for stream, _, _ in SPLITS.values()}) == len(SPLITS)
    everything = sum(composed.values(), [])
    for unique in ({s.image_id for s in everything}, {s.seed for s in everything},
                   {s.items for s in everything}):
        assert len(unique) == len(everything)


def test_held_out_nouns_and_textures_stay_in_their_splits(composed):
    nouns = {split: {n for s in found for n in s.counts} for split, found in composed.items()}
    textures = {split: {s.texture for s in found} for split, found in composed.items()}
    for split in [*SEEN, "evaluation_backgrounds"]:
        assert nouns[split] == set(scenes.NOUNS), split
    assert nouns["evaluation_nouns"] >= set(HELD_OUT_NOUNS)
    for split in [*SEEN, "evaluation_nouns"]:
        assert textures[split] == set(scenes.TEXTURES), split
    assert textures["evaluation_backgrounds"] == set(HELD_OUT_TEXTURES)
    assert {s.has_new_nouns for s in composed["evaluation_nouns"]} == {True}
    assert not any(s.has_new_nouns for split in SEEN for s in composed[split])


def test_every_scene_of_the_nouns_split_has_a_held_out_noun(composed):
    lacking = [s.image_id for s in composed["evaluation_nouns"]
               if set(HELD_OUT_NOUNS).isdisjoint(s.counts)]
    assert not lacking


@pytest.mark.parametrize("split", [*SEEN, "evaluation_backgrounds"])
def test_off_theme_rate_is_near_the_stated_one(composed, split):
    off = [scenes.THEME_OF[n] != s.theme for s in composed[split] for n in s.counts]
    assert len(off) > 800
    assert abs(np.mean(off) - scenes.OFF_THEME_RATE) < 0.04
    assert {s.theme for s in composed[split]} == set(scenes.THEMES)


def test_drawn_nouns_avoid_the_taken_and_the_held_out():
    rng = np.random.default_rng(0)
    taken = set(scenes.THEMES["farm"]) - {"cow", "goat"}
    drawn = [scenes.draw_noun(rng, "farm", taken) for _ in range(300)]
    assert taken.isdisjoint(drawn) and set(HELD_OUT_NOUNS).isdisjoint(drawn)
    assert abs(drawn.count("cow") / 300 - 0.75) < 0.1
    drawn = {scenes.draw_noun(rng, "farm", taken, held_out=True) for _ in range(300)}
    assert "goat" in drawn
    drawn = [scenes.draw_noun(rng, "farm", taken | {"cow"}) for _ in range(50)]
    assert all(scenes.THEME_OF[noun] != "farm" for noun in drawn)  # the theme has run out
