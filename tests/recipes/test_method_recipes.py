"""The recipes of the papers, through their real command lines: two steps, offline, and the parameters move."""

from __future__ import annotations

import importlib
import itertools
import json
import re
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmrl.recipes.shared.launch import choose_preset

ROOT = Path(__file__).parents[2]
NAMES = (
    "vogue",
    "dvrp",
    "noisy_rollout",
    "vppo",
    "rover",
    "pacs",
    "laser",
    "progrpo",
    "perception_r1",
    "pearl",
    "visurf",
    "calibrl",
    "mssr",
    "nsr",
    "ngrpo",
    "dcpo",
    "ace",
    "canon",
    "dsdr",
    "beyond_variance",
    "dars",
    "ead",
    "ghpo",
    "brorl",
    "rl_plus",
    "ampo",
    "noisy_verifier",
    "longrlvr",
    "rorecomp",
    "self_boundary",
    "rose",
    "deepsearch",
    "svs",
    "mel",
    "ssb",
    "arpo",
    "modomodo",
    "recap",
    "urlvr",
    "seele",
    "spae",
    "knowrl",
    "verltool",
    "vrag_rl",
    "repo",
    "bayesian_vla",
    "rrvf",
    "codev_r1",
    "capo",
    "rubric_anchors",
    "msrl",
    "writing_zero",
    "vmr",
    "dress",
    "cosine_verifier",
)
# Two steps would leave none for the stage that is looked at.
OPTIONS = {"msrl": ("--msrl.shares", "0", "0", "0", "0")}
STILL = ("verltool", "vrag_rl", "codev_r1", "msrl")
"""With a part of their warm-up these models earn the same with every answer, so two steps teach them nothing."""
METRICS = {
    "vogue": (
        "vogue/uncertainty",
        "vogue/bonus",
        "vogue/capped_visual",
        "branch/noisy/strength",
        "scored/noisy",
    ),
    "dvrp": (
        "dvrp/kl_masked",
        "dvrp/kl_noisy",
        "loss/necessity",
        "loss/robustness",
        "branch/noisy/strength",
    ),
    "noisy_rollout": ("rollout/noisy_answers",),
    "vppo": ("vppo/dependency", "vppo/trained", "loss/entropy"),
    "rover": ("loss/rover", "rover/value", "rover/ahead"),
    "pacs": ("loss/pacs", "pacs/agrees", "pacs/logit"),
    "laser": ("laser/verified", "laser/self_reward"),
    "progrpo": ("progrpo/shift", "progrpo/prompt", "progrpo/answer"),
    "perception_r1": ("reward/visual_rule", "reward/repetition"),
    "pearl": (
        "reward/perception",
        "reward/accuracy",
        "pearl/reasoning_factor",
        "pearl/gate_closed",
    ),
    "visurf": ("label/reward", "label/count", "visurf/teaching_tokens"),
    "calibrl": ("expert/reward", "calibrl/lead", "calibrl/logp_expert", "loss/guided"),
    "dars": ("dars/further_answers", "dars/hard_prompts", "dars/dropped_groups"),
    "ead": ("policy/mismatch",),
    "ghpo": ("ghpo/failed_groups", "ghpo/hinted_groups", "ghpo/unsolved_groups"),
    "brorl": ("reward/group_std",),
    "rl_plus": ("expert/reward", "rlplus/ratio", "teachers/answers", "loss/teachers"),
    "ampo": ("teachers/asked", "ampo/teachers", "ampo/probability", "loss/teachers"),
    "noisy_verifier": ("reward/verdict", "reward/corrected", "reward/false_negative"),
    "longrlvr": ("reward/evidence", "reward/context"),
    "rorecomp": ("rorecomp/put_by", "rorecomp/replayed_groups"),
    "urlvr": ("urlvr/intrinsic", "urlvr/agreement", "collapse/step"),
    "self_boundary": ("self_boundary/solved",),
    "rose": ("rose/branched", "rose/length", "rose/branches", "rose/answers"),
    "deepsearch": ("deepsearch/value", "deepsearch/searched", "deepsearch/kept_prompts"),
    "svs": ("svs/varied_problems", "svs/variants", "svs/accepted"),
    "mel": ("mel/pairs", "mel/validated", "mel/tokens", "loss/experience"),
    "ssb": ("ssb/asked", "ssb/written", "ssb/divergence", "loss/distillation"),
    "arpo": ("arpo/branches", "tree/leaves", "tree/tokens", "tree/answer_tokens"),
    "modomodo": ("eval/shapes/accuracy", "eval/gaps/answers"),
    "recap": ("recap/weight_accuracy", "recap/weight_next_token"),
    "spae": ("spae/steps", "spae/potential", "spae/gain", "spae/fade", "spae/answers"),
    "seele": ("seele/missed", "seele/hints", "seele/probability", "loss/hints"),
    "repo": ("repo/masked_beta", "repo/ref_divergence", "loss/at_least", "loss/at_most"),
    "bayesian_vla": (
        "bayesianvla/needs_question",
        "bayesianvla/needs_picture",
        "bayesianvla/bonus",
    ),
    "knowrl": ("knowrl/measured", "knowrl/answers", "knowrl/points", "knowrl/given"),
    "verltool": ("reward/curiosity", "reward/redundancy", "tool/answers", "tool/turns"),
    "vrag_rl": ("reward/answer_rule", "reward/pattern", "reward/retrieval", "tool/turns"),
    "rrvf": ("reward/similarity", "reward/form", "render/drawn"),
    "codev_r1": ("reward/accuracy", "simulation/equal"),
    "capo": ("capo/wrong", "capo/read", "capo/steps", "reward/critique_rule"),
    "rubric_anchors": ("reward/rubric_rule", "reward/accuracy"),
    "msrl": ("reward/accuracy", "reward/form"),
    "writing_zero": ("reward/preferred_rule", "reward/accuracy"),
    "vmr": ("reward/accuracy",),
    "dress": ("reward/score_rule", "reward/accuracy"),
    "cosine_verifier": ("reward/accuracy",),
    "mssr": ("mssr/value", "mssr/forgetting", "mssr/bonus", "policy/kl_ref"),
    "nsr": ("nsr/kept",),
    "ngrpo": ("reward/even_groups",),
    "dcpo": ("dcpo/visits", "dcpo/teaching"),
    "ace": ("ace/confidence", "ace/factor"),
    "canon": ("canon/number", "canon/inter"),
    "dsdr": ("dsdr/diversity", "dsdr/bonus", "loss/local_entropy"),
    "beyond_variance": ("beyondvariance/right_on_hard", "beyondvariance/right_on_easy"),
}
# What a method is about, where the wrong task would leave it at 0 throughout.
MOVING = {
    "arpo": ("arpo/branches",),
    "spae": ("spae/steps",),
    "knowrl": ("knowrl/measured", "knowrl/answers"),
    "capo": ("capo/wrong", "capo/read", "capo/wrong_steps"),
    "dsdr": ("dsdr/diversity", "dsdr/bonus"),
    "rose": ("rose/branched",),
    "deepsearch": ("deepsearch/searched", "deepsearch/rounds"),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_trains_with_no_arguments(name, warm, command_line, tmp_path):
    if name == "codev_r1" and not shutil.which("iverilog"):
        pytest.skip("Icarus Verilog is not installed")
    options = OPTIONS.get(name, ())
    done = command_line(name, tmp_path / "out", *options, fresh=name == "dvrp")
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"recipes.{name} embedded" in done.stderr and f"{name}: 2 steps done." in done.stdout
    rows = command_line.metrics(tmp_path / "out")
    assert [row["step"] for row in rows] == [0, 1, 2] and "eval/accuracy" in rows[-1]
    assert not set(METRICS[name]) - rows[-1].keys(), sorted(rows[-1])
    for metric in MOVING.get(name, ()):
        assert any(row[metric] > 0 for row in rows[1:]), f"nothing to see of {metric}"
    assert all(row["optim/grad_norm"] >= 0 for row in rows[1:]) and rows[1]["optim/lr"] > 0
    start, end = (
        load_file(at / "model.safetensors") for at in (warm(name), tmp_path / "out" / "model")
    )
    moved = [key for key in end if not torch.equal(end[key], start[key])]
    assert moved or name in STILL, "no parameter moved"
    if name != "noisy_rollout" and name not in STILL:
        assert any("visual" in key for key in moved), "the vision tower trains"


class Verdicts(BaseHTTPRequestHandler):
    """A judge that finds the first fact of each request and not the others."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        count = len(
            re.findall(
                r"^\d+\. ", body["messages"][1]["content"].split("Response")[0], re.MULTILINE
            )
        )
        text = "".join(f"<info{i}>{int(i == 1)}</info{i}>" for i in range(1, count + 1))
        reply = json.dumps({"choices": [{"message": {"content": text}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *_):
        pass


def test_perception_r1_asks_a_judge(command_line, tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Verdicts)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        done = command_line(
            "perception_r1",
            tmp_path / "out",
            "--judge.url",
            f"http://127.0.0.1:{server.server_port}/v1",
        )
    finally:
        server.shutdown()
    assert done.returncode == 0, done.stderr[-3000:]
    rows = command_line.metrics(tmp_path / "out")[1:]
    assert all(
        0.5 <= row["reward/visual"] <= 1.0 and "reward/visual_rule" not in row for row in rows
    )
    assert sum(row.get("judge/requests", 0) for row in rows) > 0


def test_a_judge_that_is_down_stops_the_run_with_a_checkpoint(command_line, tmp_path):
    done = command_line(
        "perception_r1",
        tmp_path / "out",
        "--judge.url",
        "http://127.0.0.1:9/v1",
        "--run.eval-prompts",
        "0",
    )
    assert done.returncode != 0 and "Step 1 failed" in done.stderr and "visual" in done.stderr
    assert (tmp_path / "out" / "checkpoints" / "step-0").is_dir()


class Critic(Verdicts):
    """A judge that finds the first step of each solution wrong, and cannot be read the first time it is asked."""

    numbers = itertools.count()
    """Of the requests, which come from several threads."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert body["messages"][0]["content"].startswith("You check solutions step by step")
        text = "<wrong>1</wrong>" if next(self.numbers) else "hm"
        reply = json.dumps({"choices": [{"message": {"content": text}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)


def test_capo_asks_a_judge_and_replays_what_it_said(command_line, tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Critic)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    cache = ("--judge.cache", str(tmp_path / "verdicts.sqlite"), "--run.steps", "1")
    # Else the first answers that it is asked about are those of an evaluation.
    cache += ("--run.eval-prompts", "0")
    url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        done = command_line("capo", tmp_path / "out", "--judge.url", url, *cache)
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 0, done.stderr[-3000:]
    row = command_line.metrics(tmp_path / "out")[-1]
    assert row["capo/wrong_steps"] == row["capo/answers"] > 0 and row["capo/read"] == 1.0
    # Equal answers wait for one reply, and each of them finds it unreadable.
    assert row["judge/unreadable"] >= 1.0 and row["reward/critique"] > 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Judge prompts" in page and "wrong_steps" in page
    # Nobody listens any more: the same run from what was recorded, to the last bit.
    again = command_line(
        "capo", tmp_path / "again", "--judge.url", url, "--judge.replay", *cache
    )
    assert again.returncode == 0, again.stderr[-3000:]
    repeated = command_line.metrics(tmp_path / "again")[-1]
    same = ("loss/total", "optim/grad_norm", "reward/critique", "capo/wrong")
    assert [repeated[name] for name in same] == [row[name] for name in same]
    assert "judge/requests" not in repeated
    other = command_line(
        "capo",
        tmp_path / "other",
        "--judge.url",
        url,
        "--judge.replay",
        *cache,
        "--run.seed",
        "9",
    )
    assert other.returncode != 0 and "only replays verdicts" in other.stderr


def test_msrl_goes_through_its_stages(warm, tmp_path, monkeypatch, capsys):
    from dataclasses import replace

    from mmrl.recipes import msrl
    from mmrl.recipes.shared import preference_stages
    from mmrl.recipes.shared.launch import launch

    warm("msrl")
    said = "<think> red circle </think> <answer> A </answer>"
    # After a step the tiny model agrees on nothing yet.
    monkeypatch.setattr(
        preference_stages, "best_rationale", lambda own, spell: replace(own[0], text=said)
    )
    out = tmp_path / "out"
    small = "--run.steps 5 --msrl.shares 0.2 0.2 0.2 0.2 --run.prompts-per-step 2 --msrl.rows 2"
    more = "--sampling.group-size 2 --msrl.rationales 1 --run.eval-prompts 4"
    options = [*small.split(), *more.split(), "--monitor.probe-every", "0"]
    launch(msrl.main, msrl.PRESETS, [*options, "--run.output", str(out)])
    stages = ("learn", "text", "caption", "distil")
    vision = {}
    for stage in stages:
        model = load_file(out / f"stage-{stage}" / "model" / "model.safetensors")
        vision[stage] = {name: x for name, x in model.items() if "visual" in name}
        metrics = [*(out / f"stage-{stage}" / "metrics.jsonl").read_text().splitlines()]
        assert json.loads(metrics[-1])["step"] == 1
    # Frozen until the pictures come.
    for name, weight in vision["learn"].items():
        assert torch.equal(weight, vision["text"][name])
        assert torch.equal(weight, vision["caption"][name])
    assert any(not torch.equal(x, vision["distil"][n]) for n, x in vision["learn"].items())
    lines = (out / "rationales.jsonl").read_text().splitlines()
    assert len(lines) == 4 and json.loads(lines[0]) == {"index": 0, "target": said}
    assert "in both orders" in capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_fits_its_recipe(name, rules):
    recipe = importlib.import_module(f"mmrl.recipes.{name}")
    rules.presets_fit(recipe)
    nearest = {"rover": "8b", "modomodo": "2b", "recap": "hybrid-7b"}.get(name, "7b")
    assert choose_preset(recipe.PRESETS, None, "my/Qwen2.5-VL-7B", None) == nearest


def test_the_table_names_every_recipe():
    text = (ROOT / "recipes" / "README.md").read_text()
    for name in (*NAMES, "grpo", "papo", "sft", "evaluate"):
        assert f"[{name}.py]({name}.py)" in text and f"recipes.{name}" in text, name
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        target = (ROOT / "recipes" / link).resolve()
        assert target.exists() or target.name == "effects.md", link
    for name, preset in re.findall(r"`python -m recipes\.(\w+) ([\w-]+)", text):
        known = importlib.import_module(f"mmrl.recipes.{name}").PRESETS
        assert preset.startswith("--") or preset in known, (name, preset)
