# Needs python3 (3.11 or later) and make; everything else is installed into .venv.
PYTHON ?= python3
SECONDS ?= 60
BIN := .venv/bin

.PHONY: help run test soak bench lint format clean
.DEFAULT_GOAL := help

help:  ## list these commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: .venv/installed  ## start the service; with no .env on an embedded MongoDB and mailbox
	@$(BIN)/python notifier.py

test: .venv/installed  ## run every test, on a real MongoDB and a real SMTP server
	$(BIN)/python -m pytest -n 2 --dist worksteal

soak: .venv/installed  ## break everything at random for SECONDS on each topology, then check every promise
	$(BIN)/python soak.py --seconds $(SECONDS)

bench: .venv/installed  ## measure everything beside what bounds it, for docs/bench.md; QUICK=1 only sees that it works
	$(BIN)/python bench.py $(if $(QUICK),--quick)

lint: .venv/installed  ## ruff and mypy, strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy *.py

format: .venv/installed  ## let ruff format the code
	$(BIN)/ruff format .

clean:  ## remove .venv and caches; the data of local runs, in .notifier/, stays
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis __pycache__

.venv/installed: requirements.txt requirements-dev.txt
	@command -v $(PYTHON) >/dev/null || { echo "python3 is missing: install Python 3.11 or later."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or later is needed; PYTHON=/path/to/it says which one to use."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo "Python's venv module is missing: on Debian and Ubuntu, apt-get install python3-venv."; exit 1; }
	@echo "Installing into .venv, once; this may take a minute ..."
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@
