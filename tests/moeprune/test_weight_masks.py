"""Weight masks as text, and the words for patterns."""

import json
from decimal import Decimal

import pytest

from moeprune.errors import BadInput
from moeprune.weight_masks import NOfM, Unstructured, WeightMask, parse_pattern

MASK = WeightMask("b" * 64, "moe_pruner", "2:4", ("1" * 64, "2" * 64), "as_printed")


def test_weight_mask_is_the_documented_text():
    assert MASK.to_json() == (
        '{"format": "moeprune-weights/1", "base": "' + "b" * 64 + '", "criterion": "moe_pruner", "pattern": "2:4", '
        '"statistics": ["' + "1" * 64 + '", "' + "2" * 64 + '"], "order": "as_printed"}\n'
    )


@pytest.mark.parametrize("pattern", ["2:4", "0.5", "0"])
@pytest.mark.parametrize("order", ["as_printed", "sequential"])
def test_weight_mask_read_back_is_the_one_written(pattern, order):
    mask = WeightMask("b", "wanda", pattern, (), order)
    assert WeightMask.from_json(mask.to_json()) == mask


def test_equal_patterns_written_differently_are_equal_bytes():
    texts = {WeightMask("b", "wanda", pattern, ("s",), "sequential").to_json() for pattern in ("0.5", "0.50", "5e-1")}
    assert len(texts) == 1
    unlike = json.dumps(json.loads(texts.copy().pop()) | {"pattern": "0.500"})
    assert {WeightMask.from_json(unlike).to_json()} == texts


@pytest.mark.parametrize(
    "damage",
    [
        {"format": "moeprune-mask/1"},
        {"format": None},
        {"base": ""},
        {"base": 7},
        {"criterion": None},
        {"pattern": "4:2"},
        {"pattern": 0.5},
        {"statistics": "1" * 64},
        {"statistics": [1]},
        {"statistics": [""]},
        {"order": "as-printed"},
        {"order": ["sequential"]},
        {"extra": "word"},
    ],
    ids=str,
)
def test_damaged_weight_mask_is_refused_in_one_line(damage):
    with pytest.raises(BadInput) as error:
        WeightMask.from_json(json.dumps(json.loads(MASK.to_json()) | damage))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("missing", ["format", "base", "criterion", "pattern", "statistics", "order"])
def test_weight_mask_that_lacks_a_field_is_refused(missing):
    content = json.loads(MASK.to_json())
    del content[missing]
    with pytest.raises(BadInput, match="weight mask"):
        WeightMask.from_json(json.dumps(content))


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '"moeprune-weights/1"'])
def test_text_that_is_no_weight_mask_is_refused(text):
    with pytest.raises(BadInput, match="weight mask"):
        WeightMask.from_json(text)


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("0.5", Unstructured(Decimal("0.5"))),
        ("0", Unstructured(Decimal(0))),
        ("0.999", Unstructured(Decimal("0.999"))),
        ("2:4", NOfM(2, 4)),
        ("1:4", NOfM(1, 4)),
        ("16:32", NOfM(16, 32)),
    ],
)
def test_pattern_is_read_and_written(text, pattern):
    assert parse_pattern(text) == pattern and str(pattern) == text


@pytest.mark.parametrize(
    "text", ["", "1", "1.5", "-0.1", "nan", "inf", "half", "50%", "4:4", "0:4", "4:2", "-2:4", "2:", "2:4:8", "2.5:4"]
)
def test_word_that_is_no_pattern_is_refused(text):
    with pytest.raises(BadInput, match=r"mask\.sparsity"):
        parse_pattern(text)


def test_fraction_zeroed_is_rounded_down_in_exact_decimals():
    assert [parse_pattern("0.29").blocks(inputs)[1] for inputs in (100, 99, 3)] == [29, 28, 0]
