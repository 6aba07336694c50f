"""The fixtures are in `tests/`. Pytest loads plugins only from the `conftest.py` of the root."""

pytest_plugins = ["tests.programs", "tests.fixtures", "tests.browser", "tests.cluster"]
