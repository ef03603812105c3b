"""The statements of finding F8 as functions: what dropping keys does to one softmax.

`weights` (..., n) are attention weights of one query and head, non-negative, summing to 1; `kept`
is bool (n,) or (..., n). Queries and keys are held fixed, so dropping the set P = ~kept means
taking its weights out and normalising again:

    w'_j = w_j / (1 - mass(P)) for kept j, and 0 else.                                          (1)

Proof of (1): w_j = exp(s_j) / sum_i exp(s_i). Leaving P out of the sum divides it by
(sum over kept of exp(s_i)) / (sum of all exp(s_i)) = 1 - mass(P).

(a) If P holds no image token, the image's mass is multiplied by 1/(1 - mass(P)) >= 1: in that
    layer, for every query and head, it never falls, whatever rule chose P.
(b) If no dropped weight exceeds a kept one, w' majorises w: each sum of the k largest is at least
    as large as before, since it is multiplied by 1/(1 - mass(P)) >= 1 for k up to the number kept,
    and 1 after. So every Schur-concave measure (entropy) cannot rise and every Schur-convex one
    (largest weight, Gini index, inverse participation ratio) cannot fall (Marshall and Olkin,
    1979). Dropping other tokens can raise the entropy: drop the largest of (0.9, 0.05, 0.05).
(c) With v on the image and context weights c_1 <= ... <= c_n, dropping any m context tokens leaves
    v / (1 - (c_1 + ... + c_m)) <= v' <= v / (1 - (c_{n-m+1} + ... + c_n)); dropping the lowest m
    leaves v' <= v / (1 - m/n sum(c)), as the m lowest are at most m/n of the sum.
"""

import torch

from vdp_utils.errors import VDPError


def renormalised(weights: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Weights (..., n) after dropping what is not `kept`, by (1). VDPError if nothing is left."""
    stays = weights * kept
    total = stays.sum(-1, keepdim=True)
    if bool((total <= 0).any()):
        raise VDPError("a query keeps no weight: keep at least one token that it attends to")
    return stays / total


def predicted_mass(mass: torch.Tensor, dropped: torch.Tensor) -> torch.Tensor:
    """Mass of a kept set after a set of mass `dropped` is gone: mass / (1 - dropped), (a)."""
    return mass / (1 - dropped)


def mass_bounds(visual: torch.Tensor, context: torch.Tensor, count: int):
    """(c): least and largest visual mass (...,) after `count` of `context` (..., n) are dropped."""
    ascending = context.sort(-1).values
    low, high = ascending[..., :count].sum(-1), ascending[..., context.shape[-1] - count:].sum(-1)
    return predicted_mass(visual, low), predicted_mass(visual, high)


def lowest_go(weights: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Whether no dropped weight exceeds a kept one: the premise of (b), bool (...,)."""
    kept = kept.expand(weights.shape)
    return (weights.masked_fill(kept, -torch.inf).amax(-1)
            <= weights.masked_fill(~kept, torch.inf).amin(-1))


def majorises(new: torch.Tensor, old: torch.Tensor, slack: float = 1e-6) -> torch.Tensor:
    """Whether every sum of the k largest of `new` is at least that of `old`, bool (...,)."""
    sums = (x.sort(-1, descending=True).values.cumsum(-1) for x in (new, old))
    more, less = sums
    return (more >= less - slack).all(-1)


def entropy(weights: torch.Tensor) -> torch.Tensor:
    """Shannon entropy in nats; falls as attention concentrates."""
    return -torch.special.xlogy(weights, weights).sum(-1)


def counter_example() -> torch.Tensor:
    """Causal attention (2 heads, 6 queries, 6 keys): the head-maximum rule spreads one head.

    Keys 0 to 4 are context. The rule drops key 4, whose largest column sum over heads is the
    lowest; yet the last query of head 1 has nearly all its weight there, and spreads over the rest.
    """
    uniform = torch.ones(6, 6, dtype=torch.float64).tril()
    uniform = uniform / uniform.sum(-1, keepdim=True)
    own = torch.eye(6, dtype=torch.float64)
    own[4] = own[3]  # key 4 gets nothing from its own query
    own[5] = torch.tensor([0.02, 0.02, 0.02, 0.02, 0.90, 0.02])
    return torch.stack([uniform, own])
