"""Seed lists."""

from __future__ import annotations

import pytest

from fastdiff.cli.arguments import parse_seeds


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("5", [5]),
        ("0-3", [0, 1, 2, 3]),
        ("1,5,7-9", [1, 5, 7, 8, 9]),
        ("3, 1-2, 3", [3, 1, 2, 3]),
        ("4-4", [4]),
        (str(2**63 - 1), [2**63 - 1]),
    ],
)
def test_seed_lists(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        *(
            (text, "expected numbers and ranges")
            for text in ("", "a", "1-", "-1", "1,,2", "1-2-3", "1.5", "0:3", "1 2")
        ),
        ("9-7", "the range 9-7 runs backwards"),
        (str(2**63), r"below 2\^63"),
        ("0-1000000", "at most 1,000,000"),
        ("0-999999,7", "at most 1,000,000"),
    ],
)
def test_bad_seed_lists(text, wanted):
    with pytest.raises(ValueError, match=wanted):
        parse_seeds(text)
