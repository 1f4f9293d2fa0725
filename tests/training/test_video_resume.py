"""kill -9 and Ctrl-C in the middle of decoding: no process is left, and the same command goes on to the same bits."""

from __future__ import annotations

import json
import signal
import time
from fractions import Fraction
from pathlib import Path
from shutil import copyfile

import numpy as np
import pytest

from mmrl.training.tracking import read_metrics

RUN = '''
import json, os, signal, sys, threading
from pathlib import Path

import torch

torch.set_num_threads(1)

from mmrl.data.grounding.formats import span_lines
from mmrl.data.grounding.sets import GroundingPrompts
from mmrl.ground.quarantine import Guarded, Quarantine
from mmrl.data.video.video import ClipReader
from mmrl.data.video.video import ClipSampling
from mmrl.training.optim import Optim
from mmrl.model.policy import Policy
from mmrl.rewards.pay import Rewards, in_process
from mmrl.training.run import Run
from mmrl.training.trainer import Trainer
from mmrl.types import Sampling

model, folder, out, how = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]


@in_process
def pay(rollout):
    return float(int(rollout.tokens.sum()) % 7) / 7


class Interrupted(ClipReader):
    """Ends the process, or presses Ctrl-C for the whole group, while the worker decodes."""

    stepping = False

    def _decode(self, info, indices, size, backend):
        if how != "whole" and self.stepping and self.counts["clips_decoded"] >= self.last:
            (out.parent / f"{how}.json").write_text(json.dumps(self.worker._child.pid))
            kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
            press = lambda: os.killpg(0, signal.SIGINT)
            threading.Timer(0.1, kill if how == "kill9" else press).start()
            self.stepping = False
        return super()._decode(info, indices, size, backend)


reader = Interrupted("pyav", isolate=True, quarantine=Quarantine(out.parent / f"{out.name}-bad.jsonl"))
sampling = ClipSampling(num_frames=16, max_tokens=160, factor=16)
prompts = Guarded(GroundingPrompts(span_lines(folder / "spans.jsonl"), reader, sampling))
trainer = Trainer(
    Policy.load(model, device="cpu", dtype="float32"),
    prompts=prompts,
    rewards=Rewards(accuracy=pay),
    sampling=Sampling(2, max_tokens=3),
    optim=Optim(lr=1e-3, schedule="linear"),
    run=Run(output=out, steps=4, prompts_per_step=1, save_every=1),
)
step = trainer.step


def watched(now):
    if now.step == 3:
        reader.stepping, reader.last = True, reader.counts["clips_decoded"]
    return step(now)


trainer.step = watched
trainer.fit()
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Clips that take a while to decode."""
    import av

    place = tmp_path_factory.mktemp("slow")
    with av.open(str(place / "0.mp4"), "w") as output:
        stream = output.add_stream("libx264", rate=30)
        stream.height, stream.width, stream.pix_fmt = 360, 640, "yuv420p"
        stream.gop_size, stream.options = 250, {"preset": "ultrafast"}
        for index in range(450):
            image = np.full((360, 640, 3), 7 * index % 250, np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 30)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    rows = []
    for number in range(3):
        if number:  # files of their own, but one is dear enough to make
            copyfile(place / "0.mp4", place / f"{number}.mp4")
        row = {"video": f"{number}.mp4", "query": f"number {number}"}
        rows.append(row | {"span": [1.0, 2.0], "duration": 15.0})
    (place / "spans.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


@pytest.fixture(scope="module")
def run(commands, tiny_folder, folder):
    """Trains into a folder to the end, or until what `how` says."""
    script = folder / "run.py"
    script.write_text(RUN)
    return lambda out, how: commands(
        [str(script), str(tiny_folder), str(folder), str(out), how], cwd=folder, session=True
    )


def alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def weights(out):
    return (out / "model" / "model.safetensors").read_bytes()


def timeless(out):
    away = ("time/", "memory/", "data/")
    return [
        {k: v for k, v in row.items() if not k.startswith(away)} for row in read_metrics(out)
    ]


@pytest.fixture(scope="module")
def whole(run, folder):
    """The run that nothing happened to."""
    done = run(folder / "whole", "whole")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "whole"


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="looks at /proc")
@pytest.mark.parametrize("how", ["kill9", "interrupt"])
def test_a_run_that_ends_while_decoding_leaves_nothing_and_goes_on(how, run, folder, whole):
    out = folder / how
    ended = run(out, how)
    assert ended.returncode != 0 and not (out / "finished.json").exists(), ended.stderr[-2000:]
    if how == "kill9":
        assert ended.returncode == -signal.SIGKILL
    worker = json.loads((folder / f"{how}.json").read_text())
    deadline = time.monotonic() + 20
    while alive(worker) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(worker), "the decoder outlived the run"
    assert not (folder / f"{out.name}-bad.jsonl").exists(), (
        "a clip whose decode was cut short is not a bad one"
    )
    done = run(out, "whole")
    assert done.returncode == 0, done.stderr[-3000:]
    assert weights(out) == weights(whole)
    assert timeless(out) == timeless(whole)
