"""Router weight norm (RWN of MC-Suite, arXiv:2504.05586)."""

from typing import Literal

from jaxtyping import Float, Float64
from torch import Tensor


def score(router: Float[Tensor, "E D"], *, keep: Literal["high", "low"] = "high") -> Float64[Tensor, "E"]:
    """Euclidean length of an expert's row of the router, negated if `keep` is low; higher = keep.

        S[e] = ||router[e, :]||_2

    Biases, of the logits or of the choice alone, do not count. The paper leaves open which end to drop; keeping the
    large ones is our choice.

    Good for a baseline that reads a few megabytes of a checkpoint: a long row can win tokens, but says nothing of what
    the expert does with them.
    """
    norms = router.double().norm(dim=-1)
    return {"high": norms, "low": -norms}[keep]
