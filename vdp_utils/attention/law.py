"""How much of a context to drop: laws of its length, which `findings.law` fits and compares."""

import numpy as np

from vdp_utils.errors import VDPError

HIGHEST = 0.95  # rate that any law gives
UNIT = 128  # tokens: lengths are counted in these
# the share that is kept: law -> (L, shape) to the terms whose weights are fitted, and shapes to try
LAWS = {
    "constant": (lambda x, shape: [x**0], [0]),
    "linear": (lambda x, shape: [x**0, x], [0]),
    "logarithmic": (lambda x, shape: [x**0, np.log2(x)], [0]),
    "power": (lambda x, shape: [x**-shape], np.linspace(-1, 2, 61)),
    "saturating": (lambda x, shape: [x**0, 1 / (x + shape)], 2.0 ** np.arange(-2, 7)),
    "constant number kept": (lambda x, shape: [1 / x], [0]),
}


def rate(law: str, parameters, length) -> np.ndarray:
    """The rates (n,), between 0 and HIGHEST, that a law gives for a context of `length` tokens.

    `parameters` (n, 3) are the shape and the weights of the terms; 0 where there is no second.
    """
    shape, *weights = np.asarray(parameters, dtype=float).T
    terms = LAWS[law][0](np.float64(max(length, 1)) / UNIT, shape)
    return np.clip(1 - sum(w * t for w, t in zip(weights, terms)), 0, HIGHEST)


def rate_of(model, length: int) -> float:
    """The rate for a context of `length` tokens by the law that a model's config holds.

    It is `config.vdp_pruning_law`, a dict of law, shape, first and second, as `findings.law` finds
    it. VDPError for a model without one.
    """
    found = getattr(model.config, "vdp_pruning_law", None)
    if not found:
        raise VDPError("rate='auto' needs a law, and none is known for this model: give a rate, or "
                       "fit one with notebook 11 in profile full, after which load_lvlm puts it "
                       "into model.config.vdp_pruning_law")
    return float(rate(found["law"], [[found[k] for k in ("shape", "first", "second")]], length)[0])
