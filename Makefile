.PHONY: check types test docs vllm-env vllm-tests

# Under a minute: what a change breaks most often.
check:
	ruff check .
	ruff format --check .
	python -m pytest tests/test_layers.py tests/test_grpo.py tests/losses tests/objectives

types:
	pyright

test:
	python -m pytest

# The site, in site/; needs the extra `docs`, and no network. Pages from the code come first.
docs:
	python docs/build.py
	mkdocs build --quiet

# Another environment, since vLLM wants its own torch: a folder outside the checkout's own, with the CPU build.
VLLM_ENV ?= .venv-vllm

vllm-env:
	python tests/vllm/environment.py $(VLLM_ENV)

vllm-tests:
	MMRL_VLLM=1 PYTHONPATH=src OMP_NUM_THREADS=1 $(VLLM_ENV)/bin/python -m pytest -n 0 tests/vllm
