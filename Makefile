.PHONY: check types test docs

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
