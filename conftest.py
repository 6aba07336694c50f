"""The fixtures are in `tests/fixtures.py`; pytest finds only a `conftest.py` for the tests beside and below it."""

pytest_plugins = ["tests.fixtures"]
