"""Tables that bind tokens to experts, after some experts have left."""

import brute_force
import pytest
import torch

from moeprune.token_tables import CHUNK, rebound


def test_rebound_takes_the_most_similar_expert_that_the_token_does_not_have_yet():
    # 0 and 1 leave; 0 is most like 2, then 3; 1 is like 4. New numbers: 2 -> 0, 3 -> 1, 4 -> 2.
    router = torch.tensor([[1.0, 0.1, 0.0], [0.0, 0.0, 2.0], [5.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.1, 1.0]])
    table = torch.tensor([[2, 4], [0, 3], [0, 2], [1, 0], [0, 1], [2, 0]])
    assert rebound(table, router, (2, 3, 4)).tolist() == [[0, 2], [0, 1], [1, 0], [2, 0], [0, 2], [0, 1]]


def test_rebound_of_equally_similar_experts_takes_the_lower_number():
    router = torch.tensor([[1.0, 0.0], [2.0, 2.0], [1.0, -1.0], [4.0, 4.0]])
    assert rebound(torch.tensor([[0]]), router, (1, 2, 3)).tolist() == [[0]]
    assert rebound(torch.tensor([[0]]), router, (2, 3)).tolist() == [[0]]


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("kept", [(0, 3, 4, 9), (2, 3, 5, 6, 7, 8, 9, 11), tuple(range(12))])
def test_rebound_equals_a_plain_loop(kept, dtype):
    generator = torch.Generator().manual_seed(0)
    router = torch.randn(12, 5, generator=generator)
    table = torch.rand(CHUNK + 7, 12, generator=generator).argsort(1)[:, :4].to(dtype)
    found = rebound(table, router, kept)
    assert found.dtype == dtype
    assert torch.equal(torch.tensor(kept)[found.long()], brute_force.rebound(table, router, kept))
