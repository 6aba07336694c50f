"""What one measurement yields, and how the rounds of a run are summed up."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from typing import TypeVar


@dataclass(frozen=True)
class Sample:
    """What wrk measured: requests per second, latency in ms, and µs of CPU per request."""

    rps: float
    p50: float
    p99: float
    cpu: float
    """Used by the server."""
    db_cpu: float
    """Used by MongoDB."""


@dataclass(frozen=True)
class Latency:
    """What an open loop measured: requests per second, and ms from when each request was due to its answer."""

    offered: float
    answered: float
    p50: float
    p99: float

    @property
    def saturated(self) -> bool:
        """Whether the server fell behind, so that its queue grew for as long as the load lasted."""
        return self.answered < 0.95 * self.offered or self.p99 > 1000


@dataclass(frozen=True)
class Drain:
    """What it took to send some e-mails. CPU in µs and MongoDB's commands are per e-mail."""

    emails: float
    seconds: float
    rate: float
    cpu: float
    sink_cpu: float
    db_cpu: float = math.nan
    commands: float = math.nan


@dataclass(frozen=True)
class Changes:
    """What it took a process to follow some changes. CPU is in µs per change."""

    changes: float
    seconds: float
    rate: float
    cpu: float
    db_cpu: float


Figures = TypeVar("Figures", Sample, Latency, Drain, Changes)


def median(rounds: Sequence[Figures]) -> Figures:
    """Return the median of each figure."""
    return type(rounds[0])(*map(statistics.median, zip(*map(astuple, rounds), strict=True)))


def median_ratio(ones: Iterable[float], others: Iterable[float]) -> float:
    """Return the median of the rounds' ratios. Both sides of a ratio were measured within one round."""
    return statistics.median(one / other for one, other in zip(ones, others, strict=True))


def ratios(ones: Sequence[Figures], others: Sequence[Figures]) -> Figures:
    """Return for each figure the median of the rounds' ratios; NaN where there is nothing to divide by."""
    pairs = [zip(astuple(one), astuple(other), strict=True) for one, other in zip(ones, others, strict=True)]
    quotients = ([one / other if other else math.nan for one, other in pair] for pair in pairs)
    return type(ones[0])(*map(statistics.median, zip(*quotients, strict=True)))


def percentile(ordered: Sequence[float], percent: int) -> float:
    """Return a percentile of figures in ascending order."""
    return ordered[len(ordered) * percent // 100]
