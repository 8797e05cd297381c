# CloudClaw: what there is to do with it. `make` alone lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

BIN := .venv/bin
STATE := $(or $(XDG_STATE_HOME),$(HOME)/.local/state)/cloudclaw
PYTEST_ARGS ?=
# Most tests of whole stacks wait for something, so files run beside each other, in the order of their names: the long
# ones come first, the quick ones fill up the end. (`PYTEST_ARGS="-n 0"`: one after the other.)
PARALLEL := -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: help setup protos lint types test demo up down bench images fmt clean

help: ## Show this list
	@echo "CloudClaw. Start with 'make demo'; it sets up everything it needs, and says what."
	@echo
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install what is missing: Python environment, bubblewrap, etcd, MinIO, grpcurl, agents
	@deploy/setup.sh
	@echo "setup: everything is in place"

protos: ## Lint the protos and generate the Python stubs
	@deploy/setup.sh --python
	@protos/generate.sh

lint: ## Style, import contracts, proto lint, stub drift
	@deploy/setup.sh --python
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/lint-imports --no-logo
	protos/generate.sh --check

types: ## Check the types (mypy, strict)
	@deploy/setup.sh --python
	$(BIN)/mypy libs services tests deploy

test: ## Run all tests; PYTEST_ARGS="-k name" narrows them
	@deploy/setup.sh
	$(BIN)/pytest $(PARALLEL) $(PYTEST_ARGS)

demo: ## Nodes are killed at work: see every task finish once, and an agent go on where it was
	@deploy/setup.sh etcd agents
	@$(BIN)/python -m deploy.demo

up: ## Start a local stack in the background; its state stays in ~/.local/state/cloudclaw
	@deploy/setup.sh etcd
	@deploy/stack.sh up "$(STATE)"

down: ## Stop that stack; its state stays
	@deploy/stack.sh down "$(STATE)"

bench: ## Measure against the budgets, in one run and as ratios
	@deploy/setup.sh
	@$(BIN)/python -m tests.bench

images: ## Build the container images (BASE=IMAGE sets their base; see deploy/README.md)
	@deploy/setup.sh docker
	@deploy/images/engine.sh deploy/images/build.sh

fmt: ## Format the sources and fix what ruff can
	@deploy/setup.sh --python
	$(BIN)/ruff check --fix --quiet . || true
	$(BIN)/ruff format --quiet .

clean: ## Remove caches of the tree and .venv; neither built components nor state
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find libs services tests deploy -name __pycache__ -type d -prune -exec rm -rf {} +
