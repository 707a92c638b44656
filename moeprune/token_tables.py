"""Tables that bind each token to experts without asking a router (deepseek_v4's hash layers)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

CHUNK = 4096


def rebound(table: Int[Tensor, "V K"], router: Float[Tensor, "E D"], kept: Sequence[int]) -> Int[Tensor, "V K"]:
    """The table of the experts kept, by their new numbers, ascending `kept` having numbers 0, 1, ...

    In place of an expert that goes, a token is bound to the one that stays whose row of the router has the largest
    cosine with its row, of equally similar ones the lower number, and that the token is not bound to yet; places are
    gone through from left to right. At least K experts must stay.
    """
    ids = torch.tensor(kept, device=table.device)
    rows = torch.nn.functional.normalize(router.to(table.device, torch.float64), dim=1)
    preferred = (rows @ rows[ids].T).argsort(dim=1, descending=True, stable=True)
    numbers = torch.full((len(rows),), len(ids), device=table.device)  # those that go share a number past the last
    numbers[ids] = torch.arange(len(ids), device=table.device)
    return torch.cat([_rebound(part.long(), preferred, numbers) for part in table.split(CHUNK)]).to(table.dtype)


def _rebound(
    table: Int[Tensor, "V K"], preferred: Int[Tensor, "E new"], numbers: Int[Tensor, "E"]
) -> Int[Tensor, "V K"]:
    new, last = numbers[table], preferred.shape[1]
    for place in range(table.shape[1]):
        gone = (new[:, place] == last).nonzero().flatten()
        choice = preferred[table[gone, place]]
        taken = torch.zeros(len(gone), last + 1, dtype=torch.bool, device=table.device).scatter(1, new[gone], True)
        first = (~taken.gather(1, choice)).int().argmax(dim=1, keepdim=True)
        new[gone, place] = choice.gather(1, first).flatten()
    return new
