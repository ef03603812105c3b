"""Every strategy against its formula in plain numpy, and what all of them have in common."""

import math
import re
from fractions import Fraction

import numpy as np
import pytest
import torch
from architectures import BUILDERS, build, prompt
from hypothesis import given, settings
from hypothesis import strategies as st
from test_recording import batched, eager_maps, run, two

from vdp_utils.attention import strategies
from vdp_utils.attention.kept import keep, kept_count
from vdp_utils.attention.pruner import ContextPruner
from vdp_utils.attention.recording import record
from vdp_utils.attention.strategies import STRATEGIES, Evidence, find_strategy
from vdp_utils.attention.tokens import Kind, token_kinds
from vdp_utils.attention.modes import MODES
from vdp_utils.errors import VDPError

LENGTH, HEADS, KV_HEADS, WIDTH = 40, 4, 2, 8
WORDS = ["The", " fox", " sleeps", ".", " It", " rains", " on", " the", " hill", "!", " A", " red",
         " bird", "?", " Where", " is", " the", " Fox", "\n", " Bread", " and", " salt", ".", " no",
         " end"]



@pytest.fixture
def evidence():
    """Random evidence of a prompt: 3 pads, 4 image tokens, 25 of context, 6 asking, 2 of end."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    kinds = torch.tensor([Kind.TEMPLATE] * 3 + [Kind.IMAGE] * 4 + [Kind.CONTEXT] * 25
                         + [Kind.QUESTION] * 6 + [Kind.TEMPLATE] * 2)
    asks = [" Does", " the", " fox", " eat", " bread", "?"]
    return Evidence(
        kinds, torch.arange(LENGTH) >= 3, torch.arange(7, 32),
        accumulated={name: draw(HEADS, LENGTH).exp()
                  for name in ("all", "question", "last", "window")},
        keys=draw(KV_HEADS, LENGTH, WIDTH), values=draw(KV_HEADS, LENGTH, WIDTH),
        queries=draw(HEADS, LENGTH, WIDTH), log_probs=-draw(LENGTH).exp(),
        asked_log_probs=-draw(LENGTH).exp(), evidence=draw(LENGTH) > 1,
        pieces=["<pad>"] * 3 + ["<image>"] * 4 + WORDS + asks + ["<end>", "\n"])


def scored(name, e):
    return STRATEGIES[name].score(e).double().numpy()


def close(name, e, wanted):
    got = scored(name, e)
    assert got.shape == (25,) and np.allclose(got, wanted, rtol=1e-5, atol=1e-6)


def numbers(tensor):
    return tensor.double().numpy()


# ---- each against its formula


@pytest.mark.parametrize("heads, reduce", [("max", np.max), ("mean", np.mean)])
@pytest.mark.parametrize("query_set", ["all", "question", "last"])
def test_accumulated_inverse_and_text_first_use_the_heads_and_queries_asked(
        evidence, heads, reduce, query_set):
    evidence.heads, evidence.query_set = heads, query_set
    wanted = reduce(numbers(evidence.accumulated[query_set])[:, 7:32], 0)
    close("accumulated", evidence, wanted)
    close("inverse", evidence, -wanted)
    close("text_first", evidence, wanted)


def test_accumulated_normalised_is_the_mean_over_the_queries_that_see_a_token(evidence):
    seeing = np.array([LENGTH - j for j in range(7, 32)])
    close("accumulated_normalised", evidence,
          numbers(evidence.accumulated["all"])[:, 7:32].max(0) / seeing)
    evidence.real = torch.arange(LENGTH) < 36
    close("accumulated_normalised", evidence,
          numbers(evidence.accumulated["all"])[:, 7:32].max(0) / (seeing - 4))


def test_accumulated_normalised_counts_the_queries_of_its_set(evidence):
    evidence.query_set = "question"
    close("accumulated_normalised", evidence,
          numbers(evidence.accumulated["question"])[:, 7:32].max(0)
          / 6)


def test_attention_strategies_equal_their_formulas(evidence):
    accumulated = {name: numbers(x) for name, x in evidence.accumulated.items()}
    close("h2o", evidence, accumulated["all"][:, 7:32].sum(0))
    evidence.count = 9  # of which the latest 4 stay in any case
    assert (scored("h2o", evidence)[-4:] > accumulated["all"][:, 7:32].sum(0).max()).all()
    assert np.allclose(scored("h2o", evidence)[:-4], accumulated["all"][:, 7:28].sum(0))
    close("last_token", evidence, accumulated["last"][:, 7:32].mean(0))
    close("fastv_visual", evidence, accumulated["last"][:, 7:32].mean(0))


def test_snapkv_pools_over_the_tokens_before_its_window_and_keeps_the_window(evidence):
    mean, before = numbers(evidence.accumulated["window"]).mean(0), LENGTH - evidence.window
    padded = np.pad(mean[:before], 2)
    wanted = [padded[j:j + 5].mean() if j < before else mean.max() + 1 for j in range(7, 32)]
    close("snapkv", evidence, wanted)
    evidence.window = LENGTH  # nothing stands before it
    close("snapkv", evidence, [mean.max() + 1] * 25)


def test_key_norm_equals_its_formula(evidence):
    close("key_norm", evidence,
          -np.linalg.norm(numbers(evidence.keys)[:, 7:32], axis=-1).mean(0))


def test_expected_attention_equals_its_formula(evidence):
    queries, keys = numbers(evidence.queries)[:, 3:], numbers(evidence.keys)
    norms = np.linalg.norm(numbers(evidence.values), axis=-1)
    total = np.zeros((KV_HEADS, LENGTH))
    for h in range(HEADS):
        mean = queries[h].mean(0)
        covariance = np.cov(queries[h].T, bias=True)
        k = keys[h // 2]
        weight = np.exp(k @ mean / math.sqrt(WIDTH)
                        + np.einsum("ja,ab,jb->j", k, covariance, k) / (2 * WIDTH))
        weight[:3] = 0
        total[h // 2] += weight / weight.sum() / 2
    close("expected_attention", evidence, (total * norms).mean(0)[7:32])


def test_expected_attention_foretells_the_attention_of_normal_queries():
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(1, 12, WIDTH, generator=generator)
    queries = torch.randn(1, 200_000, WIDTH, generator=generator) * 0.7 + 0.3
    chances = (queries @ keys[0].T * WIDTH ** -0.5).exp().mean(1)[0]
    few = queries[:, :12]
    few = (few - few.mean(1)) @ torch.linalg.inv(torch.linalg.cholesky(
        torch.cov(few[0].T, correction=0))).T * 0.7 + 0.3
    e = Evidence(torch.full((12,), int(Kind.CONTEXT)), torch.ones(12, dtype=torch.bool),
                 torch.arange(12), queries=few, keys=keys,
                 values=torch.ones(1, 12, 1))
    assert np.allclose(scored("expected_attention", e), chances / chances.sum(), atol=2e-3)


def test_debiased_is_what_a_cubic_leaves_of_the_logarithm(evidence):
    logs, x = np.log(numbers(evidence.accumulated["all"])[:, 7:32].max(0)), np.arange(25)
    close("debiased", evidence, logs - np.polyval(np.polyfit(x, logs, 3), x))
    trend = torch.exp(torch.linspace(3, -2, LENGTH))
    level = evidence.accumulated["all"] / evidence.accumulated["all"] * trend
    evidence.accumulated["all"] = level
    assert abs(scored("debiased", evidence)).max() < 1e-4
    for n in range(1, 5):
        evidence.candidates = torch.arange(7, 7 + n)
        if n > 1:
            assert np.isfinite(scored("debiased", evidence)).all()


def test_places_equal_their_formulas(evidence):
    close("recency", evidence, range(25))
    close("head", evidence, [-i for i in range(25)])
    for count in range(26):
        first = list(range(min(4, count)))
        wanted = first + list(range(25 - count + len(first), 25))
        assert keep(STRATEGIES["streaming"].score(evidence), count).tolist() == wanted


def test_perplexities_equal_their_formulas(evidence):
    before, asked = numbers(evidence.log_probs), numbers(evidence.asked_log_probs)
    close("perplexity", evidence, -before[7:32])
    close("contrastive_perplexity", evidence, (asked - before)[7:32])


@pytest.mark.parametrize("graded", [False, True])
def test_the_oracle_keeps_the_best_evidence_and_then_the_latest(evidence, graded):
    if graded:
        evidence.evidence = evidence.evidence.long() - (torch.arange(LENGTH) % 3 == 0).long()
    marked = evidence.evidence[7:32].tolist()
    assert len(set(marked)) == (3 if graded else 2)
    order = sorted(range(25), key=lambda i: (marked[i], i), reverse=True)
    for count in range(26):
        got = keep(STRATEGIES["oracle"].score(evidence), count)
        assert got.tolist() == sorted(order[:count])


SENTENCES = [0] * 4 + [1] * 6 + [2] * 4 + [3] * 5 + [4] * 4 + [5] * 2


def test_bm25_equals_its_formula_and_keeps_sentences_together(evidence):
    texts = ["".join(w for w, n in zip(WORDS, SENTENCES) if n == i).lower() for i in range(6)]
    documents = [re.findall(r"\w+", text) for text in texts]
    mean = sum(map(len, documents)) / 6
    wanted = []
    for document in documents:
        total = 0
        for word in {"does", "the", "fox", "eat", "bread"}:
            holding, count = sum(word in d for d in documents), document.count(word)
            idf = math.log(1 + (6 - holding + 0.5) / (holding + 0.5))
            total += idf * count * 2.5 / (count + 1.5 * (0.25 + 0.75 * len(document) / mean))
        wanted.append(total)
    order = sorted(range(6), key=lambda i: (wanted[i], i))
    assert {order[-1], order[-2], order[-3]} == {0, 3, 4} and wanted[2] == wanted[5] == 0
    assert scored("bm25", evidence).tolist() == [order.index(n) for n in SENTENCES]


@pytest.mark.parametrize("name", ["bm25", "random_sentences"])
def test_at_most_one_sentence_is_cut(evidence, name):
    for count in range(26):
        kept = keep(STRATEGIES[name].score(evidence), count).tolist()
        shares = [sum(SENTENCES[i] == n for i in kept) / SENTENCES.count(n) for n in range(6)]
        assert sum(0 < share < 1 for share in shares) <= 1
        cut = [n for n in range(6) if 0 < shares[n] < 1]
        for n in cut:
            own = [i for i in range(25) if SENTENCES[i] == n]
            assert [i for i in own if i in kept] == own[:round(shares[n] * len(own))]


@pytest.mark.parametrize("name", ["random", "random_sentences"])
def test_random_choices_repeat_with_the_seed_only(evidence, name):
    first = scored(name, evidence)
    assert np.array_equal(first, scored(name, evidence))
    orders = set()
    for seed in range(20):
        evidence.seed = seed
        orders.add(tuple(scored(name, evidence)))
    assert len(orders) >= 19
    torch.manual_seed(1), np.random.seed(1)
    evidence.seed = 0
    assert np.array_equal(first, scored(name, evidence))


def test_random_keeps_every_token_equally_often(evidence):
    kept = np.zeros(25)
    for seed in range(2_000):
        evidence.seed = seed
        kept[keep(STRATEGIES["random"].score(evidence), 10)] += 1
    assert abs(kept / 2_000 - 0.4).max() < 5 * math.sqrt(0.24 / 2_000)


# ---- the budget


@pytest.mark.parametrize("digits", [1, 2, 3])
def test_the_budget_is_exact(digits):
    top = 10 ** digits
    for step in range(0, top, 1 if digits < 3 else 7):
        for n in [*range(0, 200), 999, 1_000, 8_192, 100_000]:
            wanted = math.ceil((1 - Fraction(step, top)) * n)
            assert kept_count(n, step / top) == wanted


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 63), st.integers(1, 64))
def test_the_budget_is_exact_for_any_fraction(n, numerator, denominator):
    rate = Fraction(numerator % denominator, denominator)
    assert kept_count(n, float(rate)) == math.ceil((1 - rate) * n)


@pytest.mark.parametrize("rate", [-1e-9, 1, 1.5, math.nan, math.inf, -math.inf])
def test_a_rate_outside_is_refused(rate):
    with pytest.raises(VDPError, match=r"give a share of the context in \[0, 1\)"):
        kept_count(10, rate)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(-3, 3), max_size=30), st.integers(0, 30))
def test_of_equal_scores_the_earlier_are_kept(scores, count):
    count = min(count, len(scores))
    wanted = sorted(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:count])
    assert keep(torch.tensor(scores, dtype=torch.float32), count).tolist() == wanted


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_scores_that_are_no_numbers_are_refused(value):
    with pytest.raises(VDPError, match="importance scores hold NaN or infinity"):
        keep(torch.tensor([1.0, value, 2.0]), 2)


def test_an_unknown_strategy_is_refused_with_the_nearest_names():
    for wrong, near in (("acumulated", "accumulated"), ("snapKV", "snapkv"), ("h20", "h2o")):
        with pytest.raises(VDPError, match=f"unknown strategy '{wrong}': did you mean .*{near}"):
            find_strategy(wrong)
    with pytest.raises(VDPError) as error:
        find_strategy("#")
    assert all(name in str(error.value) for name in STRATEGIES)


def test_a_strategy_is_added_by_one_function(monkeypatch):
    monkeypatch.setattr(strategies, "STRATEGIES", dict(STRATEGIES))

    @strategies.strategy("all", drops=(Kind.IMAGE,))
    def mine(e):
        return e.order.float()

    found = find_strategy("mine")
    assert found.name == "mine" and found.needs == {"all"} and found.drops == {Kind.IMAGE}
    assert mine in [one.score for one in strategies.STRATEGIES.values()]


# ---- in a model


TEXT = ("It rained. The bus was late! A red fox sat on the hill. Nobody came, and the shop was "
        "closed. Bread and salt were gone. The end of it all was near.\nIs there a red fox?")


@pytest.fixture(scope="module")
def words(tiny):
    """A prompt of the tiny LVLM with an image, its kinds, and the evidence for the oracle."""
    from PIL import Image

    text = tiny.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": TEXT}]}],
        add_generation_prompt=True, tokenize=False)
    inputs = dict(tiny.processor(images=Image.new("RGB", (160, 160), "red"), text=text,
                                 return_tensors="pt"))
    kinds = token_kinds(inputs["input_ids"], tiny.processor, tiny.image_token_id)
    marked = torch.zeros_like(kinds, dtype=torch.bool)
    marked[0, (kinds[0] == Kind.CONTEXT).nonzero()[:, 0][20:25]] = True
    return inputs, kinds, marked


@pytest.mark.parametrize("name, mode", [
    (name, mode) for name in STRATEGIES for mode in MODES])
def test_every_strategy_drops_as_many_tokens(tiny, words, name, mode):
    inputs, kinds, marked = words
    lost = Kind.IMAGE if name in ("fastv_visual", "text_first") else Kind.CONTEXT
    with ContextPruner(0.3, name, mode, layer=0, processor=tiny.processor,
                       evidence=marked)(tiny.model) as pruner:
        run(tiny.model, inputs)
    assert pruner.kept.index.shape[1] == kinds.shape[1] - math.floor(
        0.3 * int((kinds == lost).sum()))
    gone = set(range(kinds.shape[1])) - set(pruner.kept.index[0].tolist())
    assert {int(kinds[0, i]) for i in gone} == {lost}


@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen3_vl"])
def test_inverse_keeps_less_attention_than_random_and_random_less_than_accumulated(name):
    model, images = build(name)
    inputs, kinds = prompt(name, images)
    accumulated = eager_maps(model, inputs)[1][0].sum(1).amax(0)
    mass = {}
    for strategy in ("inverse", "random", "accumulated"):
        masses = []
        for seed in range(3 if strategy == "random" else 1):
            with ContextPruner(0.5, strategy, layer=1, kinds=kinds, seed=seed)(model) as pruner:
                run(model, inputs)
            masses.append(float(accumulated[pruner.kept.index[0]].sum()))
        mass[strategy] = np.array(masses)
    assert (mass["inverse"] < mass["random"]).all() and (mass["random"] < mass["accumulated"]).all()


@pytest.mark.parametrize("name", ["h2o", "snapkv", "last_token", "key_norm"])
def test_recorded_evidence_gives_the_formulas_of_the_maps(name):
    model, images = build("llava")
    prompts = two("llava", images)
    inputs, kinds, places = batched(prompts, "left")
    with ContextPruner(0.5, name, layer=1, kinds=kinds)(model) as pruner:
        run(model, inputs)
    for (alone, row_kinds), place, index, real in zip(prompts, places, pruner.kept.index,
                                                      pruner.kept.real):
        maps = eager_maps(model, alone)[1][0]
        with record(model, key_norms=True, layers=[1]) as found:
            run(model, alone)
        window = np.full(maps.shape[-1], np.inf)
        window[:-16] = np.convolve(maps[:, -16:, :-16].sum(1).mean(0), np.ones(5), "same")
        context = (row_kinds[0] == Kind.CONTEXT).nonzero()[:, 0]
        latest = torch.arange(maps.shape[-1]) > context[-1] - len(context) // 4
        scores = dict(h2o=maps.sum((0, 1)) + 1e6 * latest, snapkv=torch.tensor(window),
                      last_token=maps[:, -1].mean(0),
                      key_norm=-found[1].key_norms[0].mean(0))[name]
        wanted = context[scores[context].argsort(descending=True)[:len(context) // 2]]
        left = place[(row_kinds[0] != Kind.CONTEXT).nonzero()[:, 0]]
        assert index[real].tolist() == sorted([*left.tolist(), *place[wanted].tolist()])


def log_probs(model, inputs, kinds):
    """The `log_probs` of the evidence that a strategy of that need is handed."""
    found = {}
    score = STRATEGIES["perplexity"].score

    def spy(e):
        found["e"] = e
        return score(e)

    object.__setattr__(STRATEGIES["perplexity"], "score", spy)
    try:
        with ContextPruner(0.5, "perplexity", "evict", kinds=kinds)(model):
            run(model, inputs)
    finally:
        object.__setattr__(STRATEGIES["perplexity"], "score", score)
    return found["e"].log_probs


CAUSAL = [name for name in BUILDERS if name not in ("gemma3", "paligemma")]
@pytest.mark.parametrize("name", CAUSAL)
def test_log_probabilities_equal_those_of_a_plain_pass(name):
    model, images = build(name)
    inputs, kinds = prompt(name, images)
    logits = run(model, inputs).logits[0].log_softmax(-1)
    got, ids = log_probs(model, inputs, kinds), inputs["input_ids"][0]
    for at, kind in enumerate(kinds[0]):
        wanted = float(logits[at - 1, ids[at]]) if kind == Kind.CONTEXT else 0
        assert float(got[at]) == pytest.approx(wanted, abs=1e-5)


def test_asked_log_probabilities_are_those_of_the_question_put_first():
    model, images = build("llava")
    inputs, kinds = prompt("llava", images)
    ids = inputs["input_ids"]
    turned = torch.cat([ids[:, :7], ids[:, 47:53], ids[:, 7:47]], 1)
    logits = run(model, dict(images, input_ids=turned)).logits[0].log_softmax(-1)
    plain = run(model, inputs).logits[0].log_softmax(-1)
    gain = torch.stack([logits[i + 5, ids[0, i]] - plain[i - 1, ids[0, i]] for i in range(7, 47)])
    with ContextPruner(0.5, "contrastive_perplexity", "evict", kinds=kinds)(model) as pruner:
        run(model, inputs)
    best = (7 + gain.topk(20).indices).tolist()
    assert set(pruner.kept.index[0].tolist()) == {*range(7), *range(47, 55), *best}


@pytest.mark.parametrize("side", ["left", "right"])
def test_questions_are_put_first_in_each_row_of_a_batch_with_deep_image_features(side):
    model, images = build("qwen3_vl")
    prompts = two("qwen3_vl", images)
    inputs, kinds, places = batched(prompts, side)
    with ContextPruner(0.5, "contrastive_perplexity", "evict", kinds=kinds)(model) as pruner:
        run(model, inputs)
    rows = zip(prompts, places, pruner.log_probs, pruner.kept.index, pruner.kept.real)
    for (alone, row_kinds), place, found, index, real in rows:
        with ContextPruner(0.5, "contrastive_perplexity", "evict", kinds=row_kinds)(model) as one:
            run(model, alone)
        assert torch.equal(index[real], place[one.kept.index[0]])
        for got, wanted in zip(found, one.log_probs[0]):
            assert torch.allclose(got[place], wanted, atol=1e-5)


def test_a_prompt_without_a_question_has_none_to_put_first():
    model, images = build("llava")
    inputs, kinds = prompt("llava", images)
    kinds[kinds == Kind.QUESTION] = int(Kind.TEMPLATE)
    with pytest.raises(VDPError, match="puts the question first: the prompt has none"):
        with ContextPruner(0.5, "contrastive_perplexity", "evict", kinds=kinds)(model):
            run(model, inputs)


def test_padding_changes_no_log_probability():
    model, images = build("llava")
    prompts = two("llava", images)
    for side in ("left", "right"):
        inputs, kinds, places = batched(prompts, side)
        with ContextPruner(0.5, "perplexity", "evict", kinds=kinds)(model) as pruner:
            run(model, inputs)
        rows = zip(prompts, places, pruner.kept.index.clone(), pruner.kept.real.clone())
        for (alone, row_kinds), place, index, real in rows:
            with ContextPruner(0.5, "perplexity", "evict", kinds=row_kinds)(model) as one:
                run(model, alone)
            assert torch.equal(index[real], place[one.kept.index[0]])
