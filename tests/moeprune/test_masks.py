"""How many experts stay, and masks as text."""

import json
from decimal import ROUND_FLOOR, Decimal
from fractions import Fraction

import pytest

from moeprune.errors import BadInput
from moeprune.masks import FORMAT, Mask, number_kept, ratio_kept

MASK = Mask("a" * 64, 8, {10: (0, 3, 7), 2: (1, 2, 3)})


@pytest.mark.parametrize(
    ("ratio", "experts", "kept"),
    [
        (0.29, 100, 71),  # in binary 0.29 * 100 is 28.999999999999996
        (0.57, 100, 43),
        (0.25, 64, 48),
        (0.25, 60, 45),
        (0.3, 8, 6),
        (0.999, 8, 1),
        (0.0, 8, 8),
        (1e-7, 8, 8),
    ],
)
def test_number_kept_removes_the_floor_of_the_decimal_product(ratio, experts, kept):
    assert number_kept(ratio, experts) == kept


def test_number_kept_agrees_with_exact_fractions_for_every_percentage():
    for hundredths in range(100):
        for experts in (8, 60, 64, 100, 128, 256):
            removed = Fraction(hundredths, 100) * experts
            assert number_kept(hundredths / 100, experts) == experts - removed.__floor__()
            exact = (Decimal(hundredths) / 100 * experts).to_integral_value(ROUND_FLOOR)
            assert number_kept(hundredths / 100, experts) == experts - exact


def test_mask_text_is_canonical_and_reads_back():
    text = MASK.to_json()
    assert text == Mask(MASK.base, 8, dict(reversed(MASK.kept.items()))).to_json()
    assert Mask.from_json(text) == MASK
    assert json.loads(text) == {
        "format": "moeprune-mask/1",
        "base": "a" * 64,
        "experts": 8,
        "kept": {"2": [1, 2, 3], "10": [0, 3, 7]},
    }
    assert list(json.loads(text)["kept"]) == ["2", "10"]
    assert text.endswith("}\n") and "\n" not in text[:-1]


def test_mask_removed_is_what_is_not_kept():
    assert MASK.removed(10) == (1, 2, 4, 5, 6)
    assert MASK.counts == {10: 3, 2: 3}


def test_ratio_kept_is_a_ratio_that_keeps_so_many():
    for experts in (1, 7, 8, 60, 64, 100, 128, 160, 256, 384, 512):
        for keep in range(1, experts + 1):
            ratio = ratio_kept(keep, experts)
            assert number_kept(float(ratio), experts) == keep and len(ratio) <= len("0.1234")
    assert (ratio_kept(48, 64), ratio_kept(8, 8), ratio_kept(40, 60)) == ("0.25", "0", "0.3334")


def test_mask_is_uneven_if_layers_keep_different_numbers():
    assert not MASK.uneven and Mask("b", 8, {0: (1, 2), 1: (0, 3, 4)}).uneven


GOOD = {"format": FORMAT, "base": "b", "experts": 8, "kept": {"0": [0, 1]}}


@pytest.mark.parametrize(
    "content",
    [
        "not json",
        "[]",
        "{}",
        json.dumps(GOOD | {"format": "moeprune-mask/2"}),
        json.dumps({"format": FORMAT}),
        json.dumps({key: value for key, value in GOOD.items() if key != "base"}),
        json.dumps(GOOD | {"experts": None}),
        json.dumps(GOOD | {"kept": [[0, 1]]}),
        json.dumps(GOOD | {"kept": {"first": [0, 1]}}),
        json.dumps(GOOD | {"kept": {"0": 3}}),
        json.dumps(GOOD | {"kept": {"0": ["a", "b"]}}),
        json.dumps(GOOD | {"kept": {"0": [1, 0]}}),
        json.dumps(GOOD | {"kept": {"0": [1, 1]}}),
        json.dumps(GOOD | {"kept": {"0": [0, 8]}}),
        json.dumps(GOOD | {"kept": {"0": [-1, 0]}}),
    ],
)
def test_malformed_mask_is_refused(content):
    with pytest.raises(BadInput, match="mask"):
        Mask.from_json(content)


def test_well_formed_mask_is_accepted():
    assert Mask.from_json(json.dumps(GOOD)).kept == {0: (0, 1)}
