"""The order of the tests. Pytest loads plugins, which have the fixtures, only from the `conftest.py` of the root."""

from __future__ import annotations

import os
import signal

import pytest

pytest_plugins = ["tests.programs", "tests.fixtures", "tests.browser", "tests.demo", "tests.engines", "tests.cluster"]

COSTLY = ("browser", "tmp_path", "mongod", "any_mongod")
"""Fixtures of tests that take long, the longest first: most tests with a folder of their own start a process."""
CASES = 3
"""If such a test has more cases, this many run everywhere, the first and the last among them; the others only in CI."""


def pytest_configure() -> None:
    """Let the processes that tests start be interrupted: a shell's background job ignores SIGINT, and so would they."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return how many processes run tests: twice as many as there are cores, as many tests wait."""
    return min(8, 2 * (os.cpu_count() or 1))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let files whose tests take long come first, so that no process has one left at the end. Thin out cases."""
    ranks: dict[str, int] = {}
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        names = getattr(item, "fixturenames", ())
        rank = next((rank for rank, name in enumerate(COSTLY) if name in names), len(COSTLY))
        ranks[item.path.name] = min(rank, ranks.get(item.path.name, rank))
        if rank < len(COSTLY):
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    items.sort(key=lambda item: ranks[item.path.name])
    for each in cases.values():
        chosen = {round(n * (len(each) - 1) / (CASES - 1)) for n in range(CASES)}
        for n, item in enumerate(each):
            if len(each) > CASES and n not in chosen:
                item.add_marker(pytest.mark.ci)
