"""Which context tokens matter: one small function per strategy, from recorded quantities to scores.

A strategy takes `Evidence` of one prompt and returns a score for every token it may drop, float
(n,); the lowest go. To add one, write one function with `@strategy(...)`: `needs` says what has to
be recorded, `drops` which kinds of token it may drop.
"""

import difflib
import math
import re
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn import functional as F

from vdp_utils.attention.recording import LayerRecord
from vdp_utils.attention.tokens import Kind, sentences
from vdp_utils.errors import VDPError

QUERY_SETS = ("all", "question", "last")
REDUCTIONS = {"max": lambda x: x.amax(0), "mean": lambda x: x.mean(0)}


@dataclass
class Evidence:
    """What is known of one prompt of L tokens at the scoring layer; fields not needed are empty.

    `accumulated[set]` is (heads, L); `keys`, `values` (key-value heads, L, width) and `queries`
    (heads, L, width) are post-rotary; `log_probs` (L,) is log p(token | all before it) and
    `asked_log_probs` the same with the question put before the context; `pieces` the tokens' texts.
    """

    kinds: torch.Tensor  # (L,)
    real: torch.Tensor  # bool (L,), False at padding
    candidates: torch.Tensor  # (n,) positions of the tokens that may be dropped
    count: int = 0  # how many of them stay
    heads: str = "max"
    query_set: str = "all"
    window: int = 16
    seed: int = 0
    accumulated: dict[str, torch.Tensor] = field(default_factory=dict)
    keys: torch.Tensor | None = None
    values: torch.Tensor | None = None
    queries: torch.Tensor | None = None
    log_probs: torch.Tensor | None = None
    asked_log_probs: torch.Tensor | None = None
    pieces: list[str] | None = None
    evidence: torch.Tensor | None = None  # (L,): how well each bears on the question

    def recorded(self, found: LayerRecord, row: int) -> None:
        """Take in what a layer recorded of a batch's `row`."""
        self.accumulated = {name: x[row] for name, x in found.accumulated.items()}
        if found.states is not None:
            self.queries, self.keys, self.values = (x[row] for x in found.states)

    @property
    def order(self) -> torch.Tensor:
        """0, 1, ... n-1: the candidates' place among themselves."""
        return torch.arange(len(self.candidates), device=self.candidates.device)


@dataclass(frozen=True)
class Strategy:
    """A scoring function, what it needs recorded, and the kinds of token it may drop."""

    name: str
    score: callable
    needs: frozenset[str]
    drops: frozenset[Kind]


STRATEGIES: dict[str, Strategy] = {}


def strategy(*needs: str, drops=(Kind.CONTEXT,)):
    """Register a function `Evidence -> (n,) scores` under its name."""
    def register(function):
        STRATEGIES[function.__name__] = Strategy(function.__name__, function, frozenset(needs),
                                                 frozenset(drops))
        return function
    return register


def find_strategy(name: str) -> Strategy:
    """VDPError with the nearest names for a strategy that there is not."""
    if name not in STRATEGIES:
        near = difflib.get_close_matches(name, STRATEGIES) or sorted(STRATEGIES)
        raise VDPError(f"unknown strategy {name!r}: did you mean {' or '.join(near)}?")
    return STRATEGIES[name]


def _at(evidence: Evidence, query_set: str) -> torch.Tensor:
    """The candidates' accumulated attention over a query set, heads reduced: (n,)."""
    return REDUCTIONS[evidence.heads](evidence.accumulated[query_set][:, evidence.candidates])


@strategy("query_set")
def accumulated(e: Evidence):
    """Accumulated attention, max_h sum_i A_h[i, j]: the paper's rule (Zhou et al., arXiv
    2410.19732); heads and query set as chosen."""
    return _at(e, e.query_set)


@strategy("query_set")
def inverse(e: Evidence):
    """-accumulated: keeps what is attended to least. A control that must be worst."""
    return -_at(e, e.query_set)


@strategy("query_set")
def accumulated_normalised(e: Evidence):
    """max_h mean_i A_h[i, j] over the queries that can see j: removes the start's head start."""
    asking = e.real & (e.kinds == Kind.QUESTION) if e.query_set == "question" else e.real
    after = asking.flip(0).cumsum(0).flip(0).clamp(min=1)
    after = torch.ones_like(after) if e.query_set == "last" else after
    return _at(e, e.query_set) / after[e.candidates]


@strategy("all")
def h2o(e: Evidence):
    """sum_h sum_i A_h[i, j], but half of what stays are the latest tokens (H2O, Zhang et al.,
    arXiv 2306.14048)."""
    scores = e.accumulated["all"][:, e.candidates].sum(0)
    latest = e.order >= len(e.order) - e.count // 2
    return torch.where(latest, scores.max() + 1, scores)


@strategy("window")
def snapkv(e: Evidence):
    """Attention from the last `window` queries, heads' mean, average-pooled by 5 over the tokens
    before them; what stands among the last `window` stays (SnapKV, Li et al., arXiv 2404.14469)."""
    scores = e.accumulated["window"].mean(0)
    pooled, before = torch.full_like(scores, scores.max() + 1), e.real.nonzero()[:-e.window, 0]
    if len(before):
        pooled[before] = F.avg_pool1d(scores[before][None], 5, stride=1, padding=2)[0]
    return pooled[e.candidates]


@strategy("last")
def last_token(e: Evidence):
    """mean_h A_h[last, j]: FastV's rule (Chen et al., arXiv 2403.06764) on the text."""
    return e.accumulated["last"][:, e.candidates].mean(0)


@strategy("states")
def key_norm(e: Evidence):
    """-mean_h ||k_j||: keys of small norm draw attention (Devoto et al., arXiv 2406.11430)."""
    return -e.keys[:, e.candidates].float().norm(dim=-1).mean(0)


@strategy("states")
def expected_attention(e: Evidence):
    """E_q[exp(q k_j / sqrt(d))] ||v_j||, q normal with the queries' mean and covariance
    (Devoto et al., arXiv 2510.00636; here with the prompt's own rotary queries)."""
    groups, width = len(e.queries) // len(e.keys), e.keys.shape[-1]
    queries = e.queries[:, e.real].float()
    mean = queries.mean(1)
    centred = queries - mean[:, None]
    covariance = centred.transpose(1, 2) @ centred / queries.shape[1]
    keys = e.keys.float().repeat_interleave(groups, 0)
    logits = (keys @ mean[..., None])[..., 0] / width ** 0.5
    logits = logits + ((keys @ covariance) * keys).sum(-1) / (2 * width)
    logits = logits.masked_fill(~e.real, -torch.inf)
    chances = logits.softmax(-1).unflatten(0, (-1, groups)).mean(1)
    return (chances * e.values.float().norm(dim=-1)).mean(0)[e.candidates]


@strategy("query_set")
def debiased(e: Evidence):
    """accumulated minus its trend over positions, a cubic fitted to its logarithm."""
    scores = _at(e, e.query_set).clamp(min=1e-12).log()
    x = np.linspace(-1, 1, len(scores))
    trend = np.polynomial.Polynomial.fit(x, scores.cpu().numpy(), min(3, len(scores) - 1))(x)
    return scores - torch.as_tensor(trend, dtype=scores.dtype, device=scores.device)


@strategy()
def random(e: Evidence):
    """Uniform, from `seed`: any gain over it is due to the choice of tokens."""
    return torch.from_numpy(np.random.default_rng((e.seed, len(e.candidates))).random(
        len(e.candidates))).to(e.candidates.device)


@strategy("pieces")
def random_sentences(e: Evidence):
    """Uniform over sentences, from `seed`: whole sentences stay together."""
    split = sentences(e.pieces, e.candidates.tolist())
    values = np.random.default_rng((e.seed, len(e.candidates))).random(len(split))
    return _by_sentence(e, split, values)


@strategy()
def recency(e: Evidence):
    """Position: the tokens nearest to the question stay."""
    return e.order.float()


@strategy()
def head(e: Evidence):
    """-position: the first tokens stay."""
    return -e.order.float()


@strategy()
def streaming(e: Evidence):
    """The first 4 and the last n - 4 (StreamingLLM, Xiao et al., arXiv 2309.17453)."""
    return torch.where(e.order < 4, len(e.order), e.order).float()


@strategy("log_probs")
def perplexity(e: Evidence):
    """-log p(x_j | x_<j): what the model could have guessed goes (LLMLingua, Jiang et al.,
    arXiv 2310.05736)."""
    return -e.log_probs[e.candidates]


@strategy("log_probs", "asked_log_probs")
def contrastive_perplexity(e: Evidence):
    """log p(x_j | question, x_<j) - log p(x_j | x_<j): what the question makes likelier stays
    (LongLLMLingua, Jiang et al., arXiv 2310.06839)."""
    return (e.asked_log_probs - e.log_probs)[e.candidates]


@strategy("pieces")
def bm25(e: Evidence):
    """Okapi BM25 of each sentence for the question's words, k1 = 1.5, b = 0.75 (Robertson and
    Zaragoza, 2009)."""
    def words(places):
        return re.findall(r"\w+", "".join(e.pieces[i] for i in places).lower())

    split = sentences(e.pieces, e.candidates.tolist())
    documents = [words(sentence) for sentence in split]
    mean_length = max(1.0, np.mean([len(d) for d in documents]))
    scores = np.zeros(len(documents))
    for word in set(words((e.kinds == Kind.QUESTION).nonzero()[:, 0].tolist())):
        counts = np.array([d.count(word) for d in documents])
        holding = (counts > 0).sum()
        weight = math.log(1 + (len(documents) - holding + 0.5) / (holding + 0.5))
        lengths = np.array([len(d) for d in documents]) / mean_length
        scores += weight * counts * 2.5 / (counts + 1.5 * (0.25 + 0.75 * lengths))
    return _by_sentence(e, split, scores)


@strategy("evidence")
def oracle(e: Evidence):
    """The tokens that bear best on the question stay, of equal ones the latest: an upper bound."""
    return e.evidence[e.candidates].float() * len(e.order) + e.order


@strategy("last", drops=(Kind.IMAGE,))
def fastv_visual(e: Evidence):
    """FastV's rule on the image (Chen et al., arXiv 2403.06764): a rate of the image's tokens."""
    return e.accumulated["last"][:, e.candidates].mean(0)


@strategy("query_set", drops=(Kind.IMAGE,))
def text_first(e: Evidence):
    """LOOK-M's order (Wan et al., arXiv 2406.18139), text before image: a rate of the image's
    tokens, by accumulated attention."""
    return _at(e, e.query_set)


def _by_sentence(e: Evidence, split: list[list[int]], values) -> torch.Tensor:
    """Sentence values spread to tokens; in a tie between sentences the later is kept whole."""
    ranks = np.lexsort((np.arange(len(values)), values)).argsort()
    return torch.from_numpy(np.repeat(ranks, [len(sentence) for sentence in split])).to(
        e.candidates.device, torch.float64)
