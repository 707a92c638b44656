"""How often chunks count in replicates."""

import pytest
import torch

from moeprune.errors import BadInput
from moeprune.replicates import bootstrap, halves, leave_one_out, once, random_orders, stacked, subsets


def test_bootstrap_rows_add_up_to_the_chunks_and_are_multiples_of_a_draw():
    for weight, size in zip(bootstrap([5, 2, 16], 200, seed=1), [5, 2, 16], strict=True):
        assert weight.shape == (200, size) and weight.dtype == torch.float64
        torch.testing.assert_close(weight.sum(1), torch.full((200,), float(size)).double())
        draws = weight * (size - 1) / size
        torch.testing.assert_close(draws, draws.round(), atol=1e-12, rtol=0)


def test_bootstrap_variance_of_a_sum_is_the_unbiased_one():
    # Var of sum x_c over independent draws of C chunks is C s^2, s^2 with C - 1 in the denominator.
    x = torch.tensor([1.0, 4.0, 9.0, 16.0], dtype=torch.float64)
    sums = bootstrap([4], 200_000, seed=0)[0] @ x
    assert float(sums.mean()) == pytest.approx(30, rel=0.003)
    assert float(sums.var()) == pytest.approx(4 * float(x.var()), rel=0.015)


def test_bootstrap_is_the_same_for_a_seed_and_independent_between_corpora():
    one, other = bootstrap([8, 8], 500, seed=3)
    assert torch.equal(one, bootstrap([8], 500, seed=3)[0]) and not torch.equal(one, other)
    assert not torch.equal(one, bootstrap([8], 500, seed=4)[0])
    both = torch.corrcoef(torch.stack([one[:, 0], other[:, 0]]))
    assert abs(float(both[0, 1])) < 0.15


def test_leave_one_out_worked_example():
    first, second = leave_one_out([2, 3])
    assert first.tolist() == [[0, 2], [2, 0], [1, 1], [1, 1], [1, 1]]
    assert second.tolist() == [[1, 1, 1], [1, 1, 1], [0, 1.5, 1.5], [1.5, 0, 1.5], [1.5, 1.5, 0]]


def test_halves_share_no_chunk_and_have_half_of_each_corpus():
    first, second = halves([7, 4], 50, seed=0)
    for one, other, size in zip(first, second, [7, 4], strict=True):
        assert not ((one > 0) & (other > 0)).any()
        assert ((one > 0).sum(1) == size // 2).all() and ((other > 0).sum(1) == size // 2).all()
        torch.testing.assert_close(one.sum(1), torch.full((50,), float(size)).double())
        assert ((one > 0).double().mean(0) - size // 2 / size).abs().max() < 0.25  # no chunk is favoured


def test_subsets_of_an_order_grow_into_each_other():
    orders = random_orders([9], 20, seed=0)
    small, large = (subsets(orders, [size], [0])[0] > 0 for size in (2, 5))
    after = subsets(orders, [3], [2])[0] > 0
    assert torch.equal(small | after, large) and not (small & after).any()


def test_stacked_replicates_are_found_again():
    kinds = {"a": bootstrap([3, 4], 5, 0), "b": once([3, 4]), "c": leave_one_out([3, 4])}
    whole, rows = stacked(kinds)
    assert [matrix.shape for matrix in whole] == [(13, 3), (13, 4)]
    for name, matrices in kinds.items():
        for matrix, part in zip(whole, matrices, strict=True):
            assert torch.equal(matrix[rows[name]], part)


@pytest.mark.parametrize(
    "make", [lambda sizes: bootstrap(sizes, 3, 0), leave_one_out, lambda sizes: halves(sizes, 3, 0)]
)
def test_one_chunk_cannot_be_resampled(make):
    with pytest.raises(BadInput, match=r"calibrate\.chunks: .* set it to 2 or more"):
        make([4, 1])
