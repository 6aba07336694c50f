# Needs python3 (3.11 or later) and make; everything else is installed into .venv.
PYTHON ?= python3
SECONDS ?= 60
BIN := .venv/bin
FOLDERS := $(filter-out bench tests, $(patsubst %/__init__.py, %, $(wildcard */__init__.py))) web
MODULES := $(filter-out conftest.py test_%, $(wildcard *.py))

.PHONY: help install run test soak bench docs notifier.pyz lock audit lint format clean
.DEFAULT_GOAL := help

help:  ## list these commands
	@awk -F ':.*## ' '/^[a-z.]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(if $(DEV),.venv/dev,.venv/local)  ## install the service and its local run into .venv; DEV=1 adds what the tests need

run: .venv/local  ## start the service; without a .env on an embedded MongoDB and mailbox
	@$(BIN)/python notifier.py

test: .venv/dev examples/bell/node_modules/.package-lock.json  ## run the tests, on a real MongoDB and a real SMTP server; ALL=1 also what only CI runs, FAILED=1 what failed, one at a time
	$(BIN)/python -m pytest $(if $(FAILED),--last-failed --last-failed-no-failures none -x,-n auto --dist worksteal) $(if $(ALL),,-m "not ci" --hypothesis-profile quick)

soak: .venv/dev  ## break everything at random for SECONDS on each topology, then check every promise
	$(BIN)/python -m tests.soak --seconds $(SECONDS)

bench: .venv/dev  ## measure the service beside what bounds it, for docs/bench.md; QUICK=1 only checks that it works, PARTS="..." some of it
	$(BIN)/python -m bench $(if $(QUICK),--quick) $(PARTS)

docs: .venv/dev  ## make the tables of the documentation from the code
	$(BIN)/python docs/generate.py

notifier.pyz: .venv/dev  ## build the service as one file, for machines like this one
	@echo "Building $@; this takes half a minute ..."
	@set -e; files=$$(mktemp -d); trap 'rm -rf "$$files"' EXIT; \
		cp -r $(MODULES) $(FOLDERS) "$$files"; find "$$files" -name __pycache__ -prune -exec rm -rf {} +; \
		$(BIN)/shiv --site-packages "$$files" --entry-point notifier:run --reproducible --output-file $@ \
			--quiet --disable-pip-version-check -r requirements.txt

lint: .venv/dev  ## ruff and mypy, strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy .

format: .venv/dev  ## let ruff format the code
	$(BIN)/ruff format .

lock: .venv/lock  ## pin what requirements*.in need in requirements*.txt, with hashes; UPGRADE=1 takes the newest versions
	@for name in requirements requirements-local requirements-otel requirements-dev; do \
		echo "$$name.txt"; constraint=$$([ $$name = requirements ] || echo "-c requirements.txt"); \
		$(BIN)/uv pip compile $$name.in -o $$name.txt $$constraint --universal --python-version 3.11 --generate-hashes \
			--no-annotate --custom-compile-command "make lock" --quiet $(if $(UPGRADE),--upgrade) || exit 1; done

audit: .venv/lock  ## ask PyPI's list of known vulnerabilities about every pinned package
	$(BIN)/pip-audit --disable-pip --require-hashes -r requirements-local.txt

clean:  ## remove .venv, notifier.pyz and caches; the data of local runs, in .notifier/, stays
	rm -rf notifier.pyz .venv examples/bell/node_modules .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

# Each installs what it needs and no more: the tests' packages are three times as large as those of the local run.
# requirements*.txt have hashes, so pip refuses a package that is not the one that was locked.
.venv/local: requirements.txt requirements-local.txt | .venv
	@echo "Installing into .venv, once; this takes some seconds ..."
	@$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-local.txt
	@touch $@

.venv/dev: requirements.txt requirements-local.txt requirements-dev.txt | .venv
	@echo "Installing into .venv, once; this may take a minute ..."
	@$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@ .venv/local

.venv/lock: Makefile | .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check uv==0.13.9 pip-audit==2.10.1
	@touch $@

# The frameworks of the bell's examples. Without npm, the tests of the examples are skipped.
examples/bell/node_modules/.package-lock.json: examples/bell/package-lock.json
	@command -v npm >/dev/null || exit 0; \
		npm ci --prefix examples/bell --silent --no-audit --no-fund --ignore-scripts && touch $@

.venv:
	@command -v $(PYTHON) >/dev/null || { echo "python3 is missing: install Python 3.11 or later."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or later is needed. PYTHON=/path/to/python3.12, say, tells make which one to use."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo "Python's venv module is missing. On Debian and Ubuntu: apt-get install python3-venv."; exit 1; }
	@$(PYTHON) -m venv .venv
