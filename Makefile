.PHONY: check types test

# Under a minute: what a change breaks most often.
check:
	ruff check .
	ruff format --check .
	python -m pytest tests/test_layers.py tests/test_grpo.py tests/losses tests/objectives

types:
	pyright

test:
	python -m pytest
