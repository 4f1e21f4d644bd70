.PHONY: install format lint types test test-all nightly ci

install: ## the package, editable, and all tools
	pip install -e ".[dev]"

format: ## rewrite files as `make lint` wants them
	ruff check --fix .
	ruff format .

lint: ## style, formatting and spelling
	.ci/run lint

types:
	.ci/run types

test: ## the quick tests, on all cores
	pytest -m "not slow" --durations=10

test-all: ## all tests but whole experiments
	pytest --durations=25

nightly: ## whole experiments
	pytest -m nightly --durations=0 --durations-min=1

ci: ## everything, in a new environment
	.ci/run
