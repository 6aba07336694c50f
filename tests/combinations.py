"""Combinations of what tests vary: every pair of values everywhere, and all of them in CI."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product
from typing import Any

import pytest


def pairwise(*choices: Sequence[Any]) -> list[Any]:
    """Return all combinations as parameters of a test. Those that no pair of values needs are marked for CI."""
    rows = list(product(*(range(len(values)) for values in choices)))
    missing = set().union(*map(_pairs, rows))
    chosen = set()
    while missing:
        best = max(rows, key=lambda row: len(_pairs(row) & missing))
        chosen.add(best)
        missing -= _pairs(best)
    return [
        pytest.param(
            *(values[index] for values, index in zip(choices, row, strict=True)),
            marks=() if row in chosen else pytest.mark.ci,
        )
        for row in rows
    ]


def _pairs(row: Sequence[int]) -> set[tuple[tuple[int, int], ...]]:
    return set(combinations(enumerate(row), 2))
