.PHONY: install format lint types test test-all gpu-check lowest package nightly ci

install: ## the package with everything that tests need; install a CPU build of torch first if there is no GPU
	pip install -e ".[dev]"

format:
	ruff check --fix .
	ruff format .

lint:
	ruff check .
	ruff format --check .
	codespell

types:
	mypy

test: ## the quick tier
	pytest -m "not slow and not nightly" --durations=10

test-all: ## the whole suite
	pytest --durations=25

gpu-check: ## on a machine with a GPU, in ten minutes: what the tests check on a CPU; writes gpu_check.json
	python scripts/check_gpu.py

lowest: ## the quick tier with the oldest versions that are allowed; downloads them
	.ci/run lowest

package: ## builds both distributions and tests the wheel
	.ci/run package

nightly: ## whole experiments, besides
	pytest -m nightly

ci: ## what runs before a change lands, in an environment of its own
	.ci/run
