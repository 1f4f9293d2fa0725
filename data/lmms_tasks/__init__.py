"""Tasks of lmms-eval with our questions: `lmms_eval --include_path FOLDER --tasks mmrl_spans,mmrl_pretext`.

FOLDER is this one. `mmrl_spans` reads `spans.jsonl` and `mmrl_pretext` the data set `pretext/` (`mmrl pretext export`),
both in the current folder; `mmrl eval RUN --with lmms-eval` puts them there. lmms-eval loads the modules beside the
YAML files by themselves, in an environment of its own, where `mmrl` need only be importable: they use nothing of ours
that another program's versions could break (no math-verify, no transformers).
"""
