"""The fewest experts a router can work with, found by trying."""

import pytest

from moeprune.errors import BadInput
from moeprune.routing import Routing


def works(routing: Routing, keep: int) -> bool:
    """Whether groups are equal, each has two experts to be ranked by, and the allowed ones hold top-k experts."""
    if keep % routing.groups or keep > routing.experts:
        return False
    size = keep // routing.groups
    return size * routing.top_groups >= routing.top_k and (routing.groups == 1 or size >= 2)


ROUTINGS = [
    Routing(8, 2),
    Routing(64, 8),
    Routing(8, 2, 2, 1),
    Routing(8, 3, 2, 1),
    Routing(64, 8, 8, 4),
    Routing(256, 8, 8, 4),
    Routing(64, 6, 8, 3),
    Routing(16, 1, 4, 4),
]


@pytest.mark.parametrize("routing", ROUTINGS, ids=str)
def test_check_accepts_exactly_the_numbers_that_work(routing):
    def accepted(keep: int) -> bool:
        try:
            routing.check(keep)
        except BadInput:
            return False
        return True

    for keep in range(0, routing.experts + 3):
        assert accepted(keep) == works(routing, keep), keep


@pytest.mark.parametrize("routing", ROUTINGS, ids=str)
def test_least_is_the_smallest_number_that_works(routing):
    assert routing.least == min(keep for keep in range(1, routing.experts + 1) if works(routing, keep))


def test_check_names_the_nearest_ratio_and_number():
    with pytest.raises(BadInput, match=r"keep at least 8, a ratio of at most 0\.875"):
        Routing(64, 8).check(7)
    with pytest.raises(BadInput, match="nearest number that can is 48"):
        Routing(64, 8, 8, 4).check(50)
