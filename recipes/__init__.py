"""One runnable file per paper: `python -m recipes.papo`."""
