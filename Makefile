# Every target does its own set-up; a second run installs nothing.
.DEFAULT_GOAL := help
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest

.PHONY: help up test demo check soak bench docs lint format types clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

up: ## install what is missing, then run the whole service here (ARGS="--port 8010")
	@deploy/install.sh runtime
	@exec $(BIN)/instructloop up $(ARGS)

demo: ## the whole loop on this machine in under 20 minutes (ARGS="--judge brevity")
	@deploy/install.sh runtime
	@exec $(BIN)/instructloop demo $(ARGS)

test: ## every test: the fast ones two at a time, then those with vLLM, Chromium, training (ARGS="tests/core")
	@deploy/install.sh test
	$(MAKE) --no-print-directory lint types
ifdef ARGS
	$(PYTEST) $(ARGS)
else
	$(PYTEST) -m "not slow and not soak" -n 2 --dist loadfile
	$(PYTEST) -m "slow and not soak"
endif

check: ## the inner loop: lint, types, and the quick tests, two at a time
	@deploy/install.sh test
	$(MAKE) --no-print-directory lint types
	$(PYTEST) -m "not slow and not thorough and not soak" -n 2 --dist loadfile $(ARGS)

soak: ## what is too slow for `make test`: both demonstrations, memory, fifty swaps
	@deploy/install.sh test
	$(PYTEST) tests/soak -m soak $(ARGS)

bench: ## what the gateway costs, with LiteLLM beside it (ARGS="--rounds 5 --memory --engine")
	@deploy/install.sh runtime
	@deploy/install.sh peers || true # without them the bench says so and goes on
	@exec $(BIN)/instructloop bench gateway $(ARGS)

docs: ## the documentation as a site in build/docs, without a warning or a broken link
	@deploy/install.sh test
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs

lint: ## style and import directions
	@$(BIN)/ruff check -q . && $(BIN)/ruff format -q --check .
	@$(BIN)/lint-imports --config pyproject.toml > .venv/import-linter.log || { cat .venv/import-linter.log; exit 1; }

types: ## mypy, strict
	@$(BIN)/mypy

format: ## rewrite all files in the house style
	@$(BIN)/ruff check -q --fix . ; $(BIN)/ruff format -q .

clean: ## remove the virtual environment and caches, never a state folder
	rm -rf .venv .venv-peers .venv-peers-training .mypy_cache .ruff_cache .pytest_cache .hypothesis
