# Each of demo, test and check does all its own set-up on a fresh machine: a virtual environment with pinned versions.
PYTHON ?= python3.11
BIN := .venv/bin
READY := .venv/.ready
BENCHMARKS := .venv/.benchmarks
HAS_BROWSER := command -v chromium >/dev/null && command -v chromedriver >/dev/null
HAS_POSTGRESQL := command -v initdb >/dev/null || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1

.PHONY: demo week test check browser postgresql clean help

help:  ## what there is to do
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

demo: $(READY)  ## prune the embedded model through all seven stages
	$(BIN)/moeprune run params/demo.yaml

week: $(READY)  ## play a team's week on this machine, every claim checked (docs/week.md)
	PYTHONPATH=tests $(BIN)/python -m teams.week

test: $(READY) $(BENCHMARKS)  ## run the tests
	@$(HAS_BROWSER) || echo "NOTE: no chromium and chromedriver: pages are NOT opened in a browser. Install them: make browser"
	@$(HAS_POSTGRESQL) || echo "NOTE: no PostgreSQL: a team's servers are NOT tried. Install it: make postgresql"
	$(BIN)/python -m pytest -rs --numprocesses 2 --dist loadfile --no-loadscope-reorder

check: $(READY)  ## lint, format, types, directions of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

browser:  ## install the browser in which the tests open pages (Debian, as root)
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install --yes -qq --no-install-recommends chromium chromium-driver

postgresql:  ## install the database on which the tests try a team's servers (Debian, as root)
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install --yes -qq --no-install-recommends postgresql

clean:  ## remove the environment and all results
	rm -rf .venv .moeprune

$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not installed: install it, or name another with make PYTHON=..."; exit 1; }
	@echo "setting up .venv: some gigabytes of packages, minutes for the first time"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

$(BENCHMARKS): $(READY) tasks/benchmarks.py
	$(BIN)/python -m tasks.benchmarks
	@touch $@
