"""Expert weight norm (EWN of MC-Suite, arXiv:2504.05586)."""

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from moeprune.weights import power_sums


def score(experts: Iterable[Sequence[Tensor]], *, keep: Literal["high", "low"] = "high") -> Float64[Tensor, "E"]:
    """Euclidean length of all weights of an expert together, negated if `keep` is low; higher = keep.

        S[e] = sqrt(sum w^2)

    The paper leaves open which end to drop; keeping the large ones is our choice. An expert whose weights are all zero
    scores minus infinity.

    Good for a baseline that costs nothing: no data, one pass over the weights. Not for models whose experts are scaled
    elsewhere, by a norm or a learned factor.
    """
    norms = torch.stack(
        [torch.stack([power_sums(matrix)[1] for matrix in matrices]).sum().sqrt() for matrices in experts]
    )
    return {"high": norms, "low": -norms}[keep].where(norms > 0, -torch.inf)
