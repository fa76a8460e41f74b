# dicomnode: `make help` lists what there is. Everything happens in .venv, made on first use.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST := $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help install viewer demo test test-all lint format docs bench experiments deid-report pictures soak system clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP) ## make .venv with everything the node, its tests and the demo need

$(STAMP): pyproject.toml constraints.txt
	@bash scripts/preflight.sh "$(PYTHON)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a few minutes the first time)"
	@$(BIN)/python -m pip install -q --upgrade pip
	@$(BIN)/python -m pip install -q -c constraints.txt -e '.[train]' --group dev
	@node=$$($(BIN)/python hatch_build.py requires); [ -z "$$node" ] || $(BIN)/python -m pip install -q "$$node"
	@touch $@

viewer: install ## build the viewer where it is missing or its sources changed
	@$(BIN)/python hatch_build.py

demo: viewer ## a node, a workstation and a PACS: from a study to a Structured Report; KEEP=1 goes on serving
	$(BIN)/python -m dicomnode.cli.demo $(if $(KEEP),--keep)

test: viewer ## tests that need no extra server
	$(PYTEST) -q -n 2 -m "not integration and not slow" tests/unit
	$(BIN)/python hatch_build.py npm run test

test-all: viewer system ## all tests, with DCMTK, validators and strace
	$(PYTEST) -q -n 2 tests/unit
	$(BIN)/python hatch_build.py npm run test
	$(PYTEST) -q -n 2 --dist loadfile tests/integration

system:
	@bash scripts/system-packages.sh

lint: install ## ruff, mypy strict, import rules; tsc and biome for the viewer
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PYTEST) -q tests/unit/test_architecture.py
	$(BIN)/python hatch_build.py npm run lint

format: install ## ruff format and its fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: install ## write config/dicomnode.toml and the generated pages of docs/
	$(BIN)/python -m dicomnode.config toml > config/dicomnode.toml
	$(BIN)/python -m dicomnode.config markdown > docs/settings.md
	$(BIN)/python -m dicomnode.telemetry > docs/metrics.md
	$(BIN)/python -m dicomnode.cli.reference > docs/commands.md

bench: viewer system ## all benchmarks, into docs/benchmarks.md
	$(BIN)/python -m pip install -q -c constraints.txt --group bench
	$(BIN)/python -m benchmarks

experiments: install ## train and measure every row of docs/evaluation (hours, resumable); tables from the ledger at the end
	$(BIN)/python benchmarks/experiments.py

deid-report: install ## plant made-up identities, de-identify, judge by ten checks; into docs/deid-report.md
	$(BIN)/python -m tests.deid_report

pictures: viewer system ## take the pictures of docs/images anew
	$(BIN)/python -m tests.pictures

soak: viewer system ## long campaigns, seeded and resumable; log in .cache/soak
	$(BIN)/python -m tests.soak

clean: ## remove what was built
	rm -rf $(VENV) build dist demo-output dicomnode/web/viewer viewer/node_modules
