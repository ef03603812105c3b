"""F5 on rows whose truth is built in, and what its figures draw of it."""

import numpy as np
import pandas as pd
import pytest
from drawn import assert_drawn, labels, legend, points, ticks, upright
from made_rows import DOUBLINGS, LENGTHS, PAIR, asked, one_question
from scipy import special
from scipy import stats as scipy_stats

from vdp_utils import figures, stats
from vdp_utils.attention.tokens import Kind
from vdp_utils.errors import VDPError
from vdp_utils.figures import style
from vdp_utils.findings import attention as f5, priors as f3
from vdp_utils.sources import scenes
from vdp_utils.sources.samples import presence_samples

LAYERS, HEADS = 3, 2
TEMPLATE, IMAGE, QUESTION = 20, 100, 12  # tokens


def attended(image_share, images=12, kinds=PAIR, lengths=LENGTHS, noise=0.1, seed=0, **more):
    """Rows in which the answer position's attention on the image is what `image_share` says.

    `image_share(kind, layer, length)` is a layer's share; of the rest the context gets what is
    due to its tokens. `noise` is the spread of the share's logarithm between rows.
    """
    rng, tables = np.random.default_rng(seed), []
    for kind in kinds:
        for length in lengths:
            rows = asked(images, 2, context_kind=kind, context_length=length, image="own",
                         template_tokens=TEMPLATE, image_tokens=IMAGE, context_tokens=length)
            rows["question_tokens"] = QUESTION + rng.integers(0, 3, len(rows))
            maps, heads = [], []
            for row in rows.itertuples():
                share = np.array([image_share(kind, layer, length) for layer in range(LAYERS)])
                share = np.minimum(share * np.exp(noise * rng.normal(size=LAYERS)), 0.99)
                counts = np.array([TEMPLATE, 0, length, row.question_tokens])
                layers = (1 - share)[:, None] * counts / counts.sum()
                layers[:, Kind.IMAGE] = share
                maps.append(layers.ravel().astype(np.float16))
                heads.append((share[:, None] * [0.3, 0.9]).ravel().astype(np.float16))
            tables.append(rows.assign(attention=maps, head_image=heads))
    return pd.concat(tables, ignore_index=True).assign(**more)


def uniform(kind, layer, length):
    """What attention that is the same on each token puts on the image."""
    return IMAGE / (TEMPLATE + IMAGE + length + QUESTION + 1)


def leaving(kind, layer, length):
    """Attention that leaves the image faster than uniform attention would."""
    return uniform(kind, layer, length) * 2.0 ** (-layer - DOUBLINGS[length] / 6)


def faintly_leaving(kind, layer, length):
    return 0.1 * leaving(kind, layer, length)


def holding(kind, layer, length):
    return 0.1 * (layer + 1)


def coming(kind, layer, length):
    return 0.02 * 2.0 ** (DOUBLINGS[length] / 4)


def in_one_layer(changing, steady, where=1):
    return lambda kind, layer, length: (changing if layer == where else steady)(
        kind, layer, length)


def in_one_kind(changing, steady):
    return lambda kind, layer, length: (changing if kind == "other_images" else steady)(
        kind, layer, length)


def test_f5_s_shares_are_by_layer_in_the_order_of_kinds_and_add_up():
    rows = attended(leaving)[:2]
    first = np.array([[0.1, 0.2, 0.3, 0.4], [0.5, 0.25, 0.125, 0.125], [0, 1, 0, 0]])
    maps = [first.ravel().astype(np.float16), first[::-1].ravel().astype(np.float16)]
    rows = rows.assign(attention=maps)
    layers = f5.by_layer(rows)
    assert layers["layer"].tolist() == [0, 1, 2] * 2
    assert layers["question_id"].tolist() == ["0"] * 3 + ["1"] * 3
    shares = layers[["mass_template", "mass_image", "mass_context", "mass_question"]]
    np.testing.assert_allclose(shares, [*first, *first[::-1]], atol=1e-3)
    assert [int(kind) for kind in f5.NAMES] == [1, 2, 3, 0]
    for kind, name in f5.NAMES.items():
        assert kind.name.lower() == name
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-3)
    whole = f5.by_layer(attended(leaving))
    assert len(whole) == LAYERS * 2 * 12 * 2 * len(LENGTHS)
    np.testing.assert_allclose(whole.filter(like="mass_").sum(axis=1), 1, atol=2e-3)


def test_f5_s_preference_is_the_log_ratio_to_uniform_attention():
    rows = attended(holding, lengths=(0, 868), images=2, noise=0)
    rows["question_tokens"] = 12  # so the image has 100 tokens of 132, and of 1000
    layers = f5.by_layer(rows).groupby(["context_length", "layer"])["prefers_image"].first()
    for length, total in ((0, 132), (868, 1000)):
        for layer in range(LAYERS):
            expected = np.log2(0.1 * (layer + 1) / (100 / total))
            assert layers[length, layer] == pytest.approx(expected, abs=2e-3)
    context = f5.by_layer(rows)
    assert context[context["context_length"] == 0]["prefers_context"].isna().all()
    far = context[context["context_length"] == 868]
    assert far["prefers_context"].to_numpy() == pytest.approx(
        np.log2(far["mass_context"] / 0.868))


@pytest.mark.parametrize("length", [0, 1, 64, 4096, 100_000])
def test_f5_s_preference_is_0_under_uniform_attention_whatever_the_length(length):
    rows = attended(uniform, lengths=(length,), images=3)
    counts = rows[["template_tokens", "image_tokens", "context_tokens",
                   "question_tokens"]].to_numpy()
    even = counts / counts.sum(1, keepdims=True)
    rows["attention"] = list(np.tile(even, LAYERS).astype(np.float16))
    layers = f5.by_layer(rows)
    assert layers["prefers_image"].to_numpy() == pytest.approx(0, abs=2e-3)
    if length:
        assert layers["prefers_context"].to_numpy() == pytest.approx(0, abs=2e-3)


@pytest.mark.parametrize("share, expected", [
    (leaving, "reproduced"),
    (uniform, "partly"),  # there is more text, and no preference changes
    (holding, "contradicted"),  # as much as ever, among ever more text: it is preferred more
    (coming, "contradicted"),
    (in_one_layer(holding, leaving), "partly"),  # one layer does not follow
    (in_one_layer(uniform, leaving), "partly"),
    (in_one_kind(leaving, uniform), "partly"),
    (in_one_layer(faintly_leaving, coming), "partly")])  # in one layer only
def test_f5_finds_the_move_that_is_built_in(share, expected):
    layers = f5.by_layer(attended(share))
    table = f5.tests(layers)
    verdict = f5.verdict(table, layers)
    assert verdict.verdict == expected and verdict.finding == "F5"
    assert (verdict.rule, verdict.n) == (f5.RULE, 12) and "from 0 to 4096" in verdict.effect
    mass = layers.groupby(["context_kind", "context_length"])["mass_image"].mean()
    assert {kind: one.value for kind, one in verdict.estimates.items()} == pytest.approx(
        {kind: mass[kind, 0] - mass[kind, 4096] for kind in PAIR})


def test_f5_s_tests_are_the_falls_by_kind_layer_and_measure():
    """A share that falls by 0.01, 0.02, 0.03 with each doubling."""
    layers = f5.by_layer(attended(
        lambda kind, layer, length: 0.6 - 0.01 * (layer + 1) * DOUBLINGS[length], noise=0.01))
    table = f5.tests(layers)
    assert list(zip(table["context_kind"], table["layer"], table["measure"])) == [
        (kind, layer, name) for kind in sorted(PAIR) for layer in range(LAYERS)
        for name in ("share", "preference")]
    share = table[table["measure"] == "share"]
    assert share["effect"].to_numpy() == pytest.approx([0.01, 0.02, 0.03] * 2, abs=1e-3)
    assert (share["low"] <= share["effect"]).all() and (share["effect"] <= share["high"]).all()
    assert table["p_holm"].to_numpy() == pytest.approx(12 * 2 / 1000)
    prefers = layers.groupby(["context_kind", "layer", "context_length"])["prefers_image"].mean()
    for line in table[table["measure"] == "preference"].itertuples():
        found = prefers[line.context_kind, line.layer]
        slope = np.polyfit([DOUBLINGS[n] for n in found.index], found, 1)[0]
        assert line.effect == pytest.approx(-slope)
    assert stats.speaks(share).eq("for").all()


def test_f5_judges_each_measure_by_its_own_smallest_effect_of_interest():
    layers = f5.by_layer(attended(leaving))
    table = f5.tests(layers).assign(effect=0.0, p_holm=1.0, low=-0.04)
    small = table.assign(high=table["measure"].map({"share": 0.004, "preference": 0.04}))
    assert f5.verdict(small, layers).verdict == "not reproduced"
    assert f5.verdict(small.assign(high=0.04), layers).verdict == "inconclusive"


@pytest.mark.parametrize("name", ["share", "preference"])
def test_f5_asks_for_share_and_preference_in_every_layer_of_every_kind(name):
    layers = f5.by_layer(attended(leaving))
    table = f5.tests(layers)
    assert f5.verdict(table, layers).verdict == "reproduced"
    for line in table.index[table["measure"] == name][::2]:
        unsure, rising = table.copy(), table.copy()
        unsure.loc[line, "p_holm"] = 0.06
        rising.loc[line, "effect"] *= -1
        for other in (unsure, rising):
            assert f5.verdict(other, layers).verdict == "partly"


def test_f5_s_summary_is_over_layers_and_leaves_out_what_is_not_there():
    layers = f5.by_layer(attended(leaving))
    summary = f5.summary(layers)
    measures = [f"attention on {name}" for name in f5.NAMES.values()]
    assert set(summary["measure"]) == {*measures, "preference for image", "preference for context"}
    for (kind, length), part in summary.groupby(["context_kind", "context_length"]):
        mine = layers[(layers["context_kind"] == kind) & (layers["context_length"] == length)]
        found = part.set_index("measure")
        assert ("preference for context" in found.index) == (length > 0)
        assert found.loc[measures, "value"].sum() == pytest.approx(1, abs=2e-3)
        assert found.loc["attention on image", "value"] == pytest.approx(mine["mass_image"].mean())
        assert found.loc["preference for image", "value"] == pytest.approx(
            mine["prefers_image"].mean())
        assert (found["n_images"] == 12).all() and (found["n_rows"] == 12 * 2 * LAYERS).all()


def test_f5_s_heat_and_heads_are_means_by_length():
    rows = attended(leaving, kinds=("other_images",), noise=0.2)
    layers = f5.by_layer(rows)
    heat, heads = f5.heat(layers, "mass_image"), f5.heads(rows)
    assert heat.shape == (LAYERS, len(LENGTHS)) and list(heat.columns) == list(LENGTHS)
    assert len(heads) == LAYERS * HEADS * len(LENGTHS)
    wide = heads.set_index(["context_length", "layer", "head"])["mass"]
    for length in LENGTHS:
        part = rows[rows["context_length"] == length]
        maps = np.mean([np.asarray(x, float).reshape(LAYERS, HEADS) for x in part["head_image"]],
                       axis=0)
        for layer in range(LAYERS):
            mean = layers[(layers["context_length"] == length) & (layers["layer"] == layer)]
            assert heat.loc[layer, length] == pytest.approx(mean["mass_image"].mean())
            assert wide[length, layer].to_numpy() == pytest.approx(maps[layer])
            assert wide[length, layer, 1] == pytest.approx(3 * wide[length, layer, 0], rel=2e-3)


# ---- attention and what the image decides


def causes(images=15, kinds=PAIR, lengths=(0, 1024), seed=0):
    """Rows of every image whose answers move with attention in layer 0, against it in layer 1.

    Layer 2's attention is the same for all rows. Only that of the sample's own image counts.
    """
    rng, lines = np.random.default_rng(seed), []
    for kind in kinds:
        for length in lengths:
            moves = rng.permutation(np.linspace(0.1, 4, 2 * images))
            for place, move in enumerate(moves):
                odds = dict(own=0.0, none=0.2, blank=0.1, swapped=move)
                mine = one_question({name: special.expit(x - 0.5) for name, x in odds.items()},
                                    f"i{place // 2:02d}", str(place % 2),
                                    ("yes", "no")[place % 2], kind, length)
                for row in mine:
                    # As KL grows with the move, so does layer 0's share, if it is the own image.
                    share = move / 10 if row["image"] == "own" else 0.5 - move / 10
                    maps = np.zeros((LAYERS, len(Kind)))
                    maps[:, Kind.IMAGE] = [0.3 + share, 0.5 - share / 2, 0.25]
                    maps[:, Kind.TEMPLATE] = 1 - maps[:, Kind.IMAGE]
                    lines.append(row | dict(
                        attention=maps.ravel().astype(np.float16), template_tokens=TEMPLATE,
                        image_tokens=IMAGE, context_tokens=length, question_tokens=QUESTION))
    return pd.DataFrame(lines)


@pytest.fixture(scope="module")
def correlations():
    return f5.against_cause(causes(lengths=(0, 256, 512, 1024)))


def test_f5_correlates_the_own_image_s_attention_with_the_answer_s_move(correlations):
    table = correlations.set_index(["context_kind", "context_length", "layer"])
    assert len(table) == 2 * 4 * (LAYERS + 1)
    for kind in PAIR:
        for length in (0, 256, 512, 1024):
            found = table.loc[(kind, length)]
            assert found["value"].to_dict() == pytest.approx(
                {"0": 1, "1": -1, "2": 0, "mean": 1}, abs=1e-3)
            assert (found["n_images"] == 15).all() and (found["n_rows"] == 30).all()


def test_f5_s_correlation_is_spearman_s_over_questions_of_one_kind_and_length():
    rows = causes()
    rng = np.random.default_rng(0)
    for at in rows.index[rows["image"] == "swapped"]:
        yes = special.expit(rng.normal())
        rows.at[at, "log_likelihoods"] = [np.log(yes), np.log(1 - yes)]
    found = f5.against_cause(rows).set_index(["context_kind", "context_length", "layer"])
    pairs = f3.pairs(rows).set_index(f3.KEYS)
    layers = f5.by_layer(rows[rows["image"] == "own"]).set_index(f3.KEYS)
    for (kind, length, layer), line in found.iterrows():
        part = layers if layer == "mean" else layers[layers["layer"] == int(layer)]
        mass = part.groupby(f3.KEYS)["mass_image"].mean()
        mass = mass[mass.index.get_level_values("context_kind") == kind]
        mass = mass[mass.index.get_level_values("context_length") == length]
        moved = pairs["kl_swapped"].loc[mass.index].astype(float)
        if layer != "2":
            expected = scipy_stats.spearmanr(mass, moved).statistic
            assert line["value"] == pytest.approx(expected) and abs(expected) < 0.9
        assert line["low"] <= line["value"] <= line["high"]
    blank = f5.against_cause(rows, "blank")  # another image's move is another number
    assert not np.allclose(blank["value"], found["value"])


@pytest.mark.parametrize("lacking", ["swapped", "blank"])
def test_f5_refuses_to_say_what_a_missing_image_decides(lacking):
    rows = causes(images=3)
    with pytest.raises(VDPError, match=rf"lack the image '{lacking}'"):
        f5.against_cause(rows[rows["image"] != lacking], lacking)


def test_f5_s_layers_that_lose_attention_beside_those_that_cause():
    """By hand: means over lengths; ranks agree for one kind and are opposite for the other."""
    falls = {"other_images": [0.03, 0.02, 0.01], "misleading": [0.03, 0.02, 0.01]}
    causing = {"other_images": [[0.5, 0.1], [0.4, 0.4], [0.6, 0.8]],
               "misleading": [[0.9, 0.7], [0.5, 0.1], [0.1, 0.1]]}
    table = pd.DataFrame(dict(context_kind=kind, layer=layer, measure=name, effect=effect)
                         for kind, line in falls.items() for layer, fall in enumerate(line)
                         for name, effect in (("share", fall), ("preference", 9.0)))
    found = pd.DataFrame(
        dict(context_kind=kind, context_length=length, layer=name, value=value, low=-1, high=1)
        for kind, lines in causing.items()
        for name, line in zip(["0", "1", "2", "mean"], [*lines, [7.0, 7.0]])
        for length, value in zip((0, 1024), line))
    both = f5.over_layers(table, found.sample(frac=1, random_state=0))
    assert list(both.columns) == ["context_kind", "layer", "fall_of_share", "with_cause",
                                  "rank_correlation"]
    by_kind = {kind: part.sort_values("layer") for kind, part in both.groupby("context_kind")}
    assert set(by_kind) == set(PAIR)
    for kind, part in by_kind.items():
        assert part["layer"].tolist() == ["0", "1", "2"]  # and no "mean"
        assert part["fall_of_share"].tolist() == falls[kind]
        assert part["with_cause"].to_numpy() == pytest.approx(np.mean(causing[kind], axis=1))
    assert by_kind["other_images"]["rank_correlation"].to_numpy() == pytest.approx(-1)
    assert by_kind["misleading"]["rank_correlation"].to_numpy() == pytest.approx(1)
    lacking = f5.over_layers(table, found[found["layer"] != "1"])
    assert sorted(set(lacking["layer"])) == ["0", "2"]


def test_f5_s_tests_and_correlations_go_together(correlations):
    rows = causes(lengths=(0, 256, 512, 1024))
    table = f5.tests(f5.by_layer(rows[rows["image"] == "own"]))
    both = f5.over_layers(table, correlations)
    assert len(both) == 2 * LAYERS
    assert both.loc[both["layer"] == "1", "with_cause"].to_numpy() == pytest.approx(-1, abs=1e-3)


# ---- maps


def mapped(samples, lengths, layers=2):
    """Maps of every question: the share of layer l, patch p is known."""
    lines = []
    for place, sample in enumerate(samples):
        for number, question in enumerate(sample.questions):
            for length in lengths:
                grid = np.full((layers, 100), 0.001)
                grid[:, 10 * place + number] = 0.1
                grid[0] *= 2
                lines.append(dict(
                    image_id=sample.image_id, question_id=str(number), context_kind="other_images",
                    context_length=length, question=question.text,
                    answer=question.answer.lower(), predicted="yes" if length else "no",
                    map_image=(grid / (1 + length / 1024)).ravel().astype(np.float16)))
    return pd.DataFrame(lines)


def test_f5_s_maps_are_of_each_image_s_first_yes_question():
    maps = pd.DataFrame(
        [(image, question, answer, length, f"{image}{question}{length}")
         for image, answers in (("b", "nyyn"), ("a", "ynny"), ("c", "nnnn"))
         for question, answer in enumerate(answers) for length in (0, 512)],
        columns=["image_id", "question_id", "answer", "context_length", "map_image"])
    maps = maps.assign(answer=maps["answer"].map(dict(y="yes", n="no")),
                       question_id=maps["question_id"].astype(str))
    first = f5.first_questions(maps.sample(frac=1, random_state=3))
    assert first[["image_id", "context_length", "question_id", "map_image"]].to_numpy().tolist() \
        == [["a", 0, "0", "a00"], ["a", 512, "0", "a0512"],
            ["b", 0, "1", "b10"], ["b", 512, "1", "b1512"]]
    assert set(first["answer"]) == {"yes"}


def test_f5_s_maps_are_drawn_on_their_scenes():
    samples, lengths = presence_samples("evaluation", 2, pairs=2), (0, 1024)
    maps = f5.first_questions(mapped(samples, (*lengths, 2048)))
    figure = figures.attention_maps(maps, samples, lengths, "embedded-s")
    panels = np.array(figure.axes).reshape(2, 3)
    for line, sample in zip(panels, samples):
        picture = sample.image()
        mine = maps[maps["image_id"] == sample.image_id].set_index("context_length")
        (shown,) = line[0].images
        assert np.array_equal(np.asarray(shown.get_array()), np.asarray(picture))
        assert line[0].get_title() == mine["question"].iloc[0]
        for axes, length, word, scale in zip(line[1:], lengths, ("no", "yes"), (1, 2)):
            grey, over = axes.images
            assert np.array_equal(np.asarray(grey.get_array()), np.asarray(picture.convert("L")))
            number = int(mine.loc[length, "question_id"])
            expected = np.full((10, 10), 0.01)
            expected[samples.index(sample), number] = 1  # patches go line by line
            np.testing.assert_allclose(over.get_array(), expected, atol=2e-3)
            assert over.get_extent() == [0, scenes.SIZE, scenes.SIZE, 0]
            assert over.origin == "upper" and over.get_clim() == (0, 1)
            percent = 100 * 1.5 * (0.1 + 99 * 0.001) / scale  # of all attention
            name = {0: "0", 1024: "1k"}[length]
            assert axes.get_title() == f"{name} tokens: “{word}”, {percent:.1f} %"
    assert not any(axes.axison for axes in panels.flat)
    assert "embedded-s" in figure.get_suptitle() and "attention" in figure.get_suptitle()


# ---- figures


@pytest.fixture(scope="module")
def attention_tables():
    rows = attended(leaving, kinds=("other_images",))
    layers = f5.by_layer(rows)
    return (f5.summary(layers), f5.heat(layers, "mass_image"),
            f5.heat(layers, "prefers_image"), f5.heads(rows))


def test_f5_s_figure_draws_shares_preferences_layers_and_heads(attention_tables):
    summary, heat, preference, heads = attention_tables
    figure = figures.attention(*attention_tables, 1024, "embedded-s")
    panels = {axes.get_title(): axes for axes in figure.axes if axes.get_title()}
    assert list(panels) == [
        "share of attention", "share / uniform share (log2)", "each head's attention on the image",
        "image's share, by layer", "the same / uniform (log2)",
        "the most visual heads at 1024 tokens"]
    shares, prefers, where, layers, ratios, single = panels.values()

    assert len(shares.containers) == 4 and shares.get_yscale() == "log"
    for name in f5.NAMES.values():
        part = summary[(summary["measure"] == f"attention on {name}") & (summary["value"] > 0)]
        (bars,) = [bars for bars in shares.containers if bars.get_label() == name]
        _, value, low, high = points(bars)
        np.testing.assert_allclose(value, part["value"])
        np.testing.assert_allclose((low, high), (part["low"], part["high"]), atol=1e-9)
        assert shares.get_ylim()[0] < value[value > 0].min()
    assert len(prefers.containers) == 2
    for name in ("image", "context"):
        assert_drawn(prefers, name, summary[summary["measure"] == f"preference for {name}"])
    for axes in (shares, prefers):
        assert [text.get_text() for text in axes.get_legend().get_texts()] == labels(axes)
    for axes in (shares, prefers, single):
        assert axes.get_xlabel() == "context length (tokens)" and upright(axes) == [1024]
        assert ticks(axes.xaxis) == ["0", "256", "1k", "4k"]

    for axes, table in ((layers, heat), (ratios, preference)):
        (image,) = axes.images
        np.testing.assert_allclose(image.get_array(), table)
        assert image.origin == "lower"  # the first layer is the lowest
        assert ticks(axes.xaxis) == ["0", "256", "1k", "4k"]
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("context length (tokens)", "layer")
        assert image.colorbar is not None
        assert image.norm.vmin <= table.to_numpy().min() <= table.to_numpy().max() \
            <= image.norm.vmax
    assert ratios.images[0].norm(0) == pytest.approx(0.5)  # no preference is the map's middle

    wide = heads.pivot(index=["layer", "head"], columns="context_length", values="mass")
    (dots,) = where.collections
    np.testing.assert_allclose(dots.get_offsets(), wide[[0, 4096]])
    np.testing.assert_allclose(dots.get_array(), wide.index.get_level_values("layer"))
    assert (where.get_xlabel(), where.get_ylabel()) == ("at 0 context tokens", "at 4096")
    drawn = {line.get_label(): line for line in single.lines
             if line.get_label().startswith("layer")}
    assert len(drawn) == 6 == LAYERS * HEADS
    for (layer, head), line in wide.iterrows():
        found = drawn[f"layer {layer}, head {head}"]
        np.testing.assert_allclose(found.get_xydata(), list(zip(LENGTHS, line)))
    heading = figure.get_suptitle()
    assert "embedded-s" in heading and "n = 12 images" in heading and "95 %" in heading


@pytest.mark.parametrize("depth, expected", [(6, [0, 1, 2, 3, 4, 5]), (12, [0, 2, 4, 6, 8, 10])])
def test_f5_s_figure_names_as_many_layers_as_there_is_room_for(attention_tables, depth, expected):
    summary, heat, preference, _ = attention_tables
    heads = pd.DataFrame(dict(layer=layer, head=0, context_length=length, mass=0.1)
                         for layer in range(depth) for length in LENGTHS)
    figure = figures.attention(summary, heat, preference, heads, None, "embedded-m")
    (dots,) = figure.axes[2].collections
    assert list(dots.colorbar.get_ticks()) == expected


def test_f5_s_most_visual_heads_are_those_that_look_most_after_a_middling_context(
        attention_tables):
    summary, heat, preference, _ = attention_tables
    middling = np.array([[0.1, 0.9, 0.3, 0.5], [0.8, 0.2, 0.7, 0.6]])
    heads = pd.DataFrame(
        dict(layer=layer, head=head, context_length=length,
             mass=mass if length == 1024 else 1 - mass)
        for (layer, head), mass in np.ndenumerate(middling) for length in LENGTHS)
    figure = figures.attention(summary, heat, preference, heads, None, "embedded-s")
    single = next(axes for axes in figure.axes
                  if axes.get_title().startswith("the most visual heads"))
    assert [text.get_text() for text in single.get_legend().get_texts()] == [
        f"layer {layer}, head {head}"
        for layer, head in ((0, 1), (1, 0), (1, 2), (1, 3), (0, 3), (0, 2))]
    assert upright(single) == []


def test_f5_s_figure_draws_the_correlations_by_layer(correlations):
    figure = figures.attention_and_cause(correlations, "embedded-s")
    assert [axes.get_title() for axes in figure.axes] == [style.KINDS[kind][0] for kind in PAIR]
    for axes, kind in zip(figure.axes, PAIR):
        assert ticks(axes.xaxis) == ["0", "1", "2", "mean"]
        assert axes.get_xlabel() == "layer"
        assert labels(axes) == [f"{n} context tokens" for n in (0, 512, 1024)]
        for length in (0, 512, 1024):
            part = correlations[(correlations["context_kind"] == kind)
                                & (correlations["context_length"] == length)]
            place = part["layer"].map({"0": 0, "1": 1, "2": 2, "mean": 3})
            assert_drawn(axes, f"{length} context tokens", part.assign(place=place), "place",
                         rtol=0, atol=0.2)
    assert figure.axes[0].get_ylabel() == "Spearman's rank correlation"
    assert legend(figure) == [f"{n} context tokens" for n in (0, 512, 1024)]
    assert "embedded-s" in figure.get_suptitle() and "n = 15 images" in figure.get_suptitle()


def test_f5_s_figure_draws_each_kind_up_to_its_own_longest_context(correlations):
    short = (correlations["context_kind"] == PAIR[1]) & (correlations["context_length"] > 512)
    figure = figures.attention_and_cause(correlations[~short], "embedded-s")
    whole, lacking = figure.axes
    assert labels(whole) == legend(figure) == [f"{n} context tokens" for n in (0, 512, 1024)]
    assert labels(lacking) == [f"{n} context tokens" for n in (0, 512)]
    assert ticks(lacking.xaxis) == ["0", "1", "2", "mean"]


def test_f5_s_layers_stand_in_their_order_also_beyond_ten():
    table = pd.DataFrame(
        dict(context_kind="other_images", context_length=length, layer=name, value=place / 20,
             low=place / 20 - 0.1, high=place / 20 + 0.1, n_images=5, n_rows=5)
        for length in LENGTHS
        for place, name in enumerate([*map(str, range(12)), "mean"])).sample(
            frac=1, random_state=0)
    (axes,) = figures.attention_and_cause(table, "embedded-s").axes
    assert ticks(axes.xaxis) == [*map(str, range(12)), "mean"]
    for bars in axes.containers:
        at, value, *_ = points(bars)
        np.testing.assert_allclose(value, np.arange(13) / 20)
        np.testing.assert_allclose(at, np.arange(13), atol=0.2)
