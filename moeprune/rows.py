"""The rows of one forward pass of a layer, one for each (token, slot), and sums over them per expert."""

from math import prod

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

NUMBERS = 2**27
"""Numbers in the largest temporary on an accelerator."""


class Rows:
    """One forward pass of a layer, a row for each (token, slot), sorted by expert.

    Row i is `token[i]` at `expert[i]` with the deployed `gate[i]` and the ungated `output[i]`. `counted` is 1 for a
    visit, 0 for padding and for slots that are none: zaya writes "skip" as (expert 0, gate 0), and an id from E on is
    an expert held elsewhere. Such ids sort last: they are the segment after that of the last expert.

    How many rows each has stays on the device: to be told would bring an accelerator to a halt in every layer.
    """

    def __init__(
        self,
        experts: int,
        expert: Int[Tensor, "N"],
        token: Int[Tensor, "N"],
        gate: Float[Tensor, "N"],
        output: Float[Tensor, "N D"],
        tokens: int,
        valid: Bool[Tensor, "T"] | None,
    ) -> None:
        if valid is not None and len(valid) != tokens:
            raise ValueError(f"the attention mask covers {len(valid)} positions, the experts saw {tokens}")
        self.experts, self.tokens = experts, tokens
        self.expert, self.token, self.output = expert, token, output
        self.gate = gate.double()
        self.counted = ((gate != 0) & (expert < experts)).double()
        if valid is not None:
            self.counted = self.counted * valid.to(expert.device)[token]
        self.norm = torch.linalg.vector_norm(output, dim=-1, dtype=torch.float32).double()
        numbers = torch.arange(experts + 2, device=expert.device)
        self.lengths = torch.searchsorted(expert.clamp_max(experts), numbers).diff()

    def per_expert(self, values: Float64[Tensor, "*several N"], reduce: str = "sum") -> Float64[Tensor, "*several E"]:
        """Sum or maximum of `values` over the rows of each expert."""
        several = values.shape[:-1]
        # End to end: of rows of several values a GPU gives each segment of each to a single thread, however long it is.
        found = _segments(values.flatten(), reduce, self.lengths.repeat(prod(several)))
        return found.reshape(*several, -1)[..., : self.experts]

    def weighted(self, values: Float[Tensor, "N W"], weight: Float64[Tensor, "N"]) -> Float64[Tensor, "E W"]:
        """Weighted sum of `values` over the rows of each expert."""
        if values.device.type != "cpu":
            columns = values.split(max(1, NUMBERS // max(1, len(values))), 1)
            sums = [_segments(part * weight[:, None], "sum", self.lengths) for part in columns]
            return torch.cat(sums, 1)[: self.experts]
        # On a CPU a product for each expert is ten times as fast as a segment sum over long rows, and as deterministic.
        sizes = self.lengths.tolist()
        parts = zip(weight.split(sizes)[:-1], values.split(sizes)[:-1], strict=True)
        return torch.stack([one @ part.double() for one, part in parts])

    def largest(self, values: Float[Tensor, "N"]) -> Float64[Tensor, "E"]:
        """Largest of `values` over the counted rows of each expert; -inf without any."""
        return self.per_expert(values.double().where(self.counted > 0, -torch.inf), "max")

    def moments(self, gate: Float64[Tensor, "N"]) -> Float64[Tensor, "E 3 3"]:
        """Sums of gate^a norm^c over the counted rows of each expert, a and c from 0 to 2."""
        by_gate = torch.stack([self.counted, gate * self.counted, gate.square() * self.counted])
        by_norm = torch.stack([torch.ones_like(self.norm), self.norm, self.norm.square()])
        return self.per_expert(by_gate[:, None] * by_norm).permute(2, 0, 1)

    def by_token(self, values: Float64[Tensor, "N"]) -> Float64[Tensor, "T E"]:
        """`values` as a table of tokens and experts, 0 where an expert was not chosen."""
        table = values.new_zeros(self.tokens, self.experts + 1)  # the last column takes ids of experts elsewhere
        return table.index_put_((self.token, self.expert.clamp_max(self.experts)), values)[:, : self.experts]

    def gate_ratios(self, bins: int) -> Float64[Tensor, "bins"]:
        """Histogram over tokens of their second largest gate divided by their largest, from 0 to 1.

        Tokens with fewer than two counted slots are left out.
        """
        several = self.by_token(self.counted).sum(1) > 1
        largest, second = self.by_token(self.gate * self.counted)[several].topk(2, dim=1).values.unbind(1)
        found = (second / largest * bins).long().clamp_max(bins - 1)
        return torch.bincount(found, minlength=bins).double()

    def chosen(self, probability: Float[Tensor, "T E"]) -> Float64[Tensor, "N"]:
        """The probability of each row's own expert."""
        return probability[self.token, self.expert.clamp_max(self.experts - 1)].double() * (self.expert < self.experts)

    def distance(self, probability: Float[Tensor, "T E"]) -> float:
        """How far the deployed gates are from these probabilities, up to one factor per token.

        A renormalised or scaled gate is a multiple: what is compared are a slot's parts of its token's sum. With one
        slot a token parts say nothing, so the plain distance decides.
        """

        def parts(values: Float64[Tensor, "N"]) -> Float64[Tensor, "N"]:
            return values / self.by_token(values).sum(1)[self.token].clamp_min(1e-20)

        chosen = self.chosen(probability)
        gate = self.gate * (self.expert < self.experts)
        apart = float((parts(gate) - parts(chosen)).abs().max())
        return apart + 1e-3 * float((gate - chosen).abs().mean())


def _segments(values: Float64[Tensor, "N *rest"], reduce: str, lengths: Int[Tensor, "S"]) -> Float64[Tensor, "S *rest"]:
    # What is called unsafe: lengths, which add up as they are made, are not copied from the device to be checked.
    return torch.segment_reduce(values, reduce, lengths=lengths, unsafe=True)
