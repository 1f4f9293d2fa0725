"""Every task gives the samples it gave before: a change of pixels or truth needs a new `version`.

`fingerprints.json` holds, per task and knobs, the hash of truths and words and the hash of pixels, and the versions of
the libraries they were made with. Truths must match everywhere; pixels only with the same libraries, otherwise the mean
grey level of each visual within one level. After a wanted change: bump the version and run this file as a script.
"""

import hashlib
import importlib.metadata
import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from mmrl.data.pretext.audit.conformance import drawn_cases
from mmrl.data.pretext.catalogue import TASKS, find
from mmrl.data.pretext.presets import PRESETS, TaskMix
from mmrl.data.pretext.stream.sources import DrawnSource
from mmrl.data.pretext.stream.stream import SampleStream

STORE = Path(__file__).with_name("fingerprints.json")
LIBRARIES = ("numpy", "pillow", "scipy")


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in LIBRARIES}


def fingerprint(name: str, level: float | None) -> dict:
    """Hashes of two samples of a task."""
    words, pixels, means = hashlib.blake2b(digest_size=12), hashlib.blake2b(digest_size=12), []
    for case in drawn_cases(find(name), (level,), each=2):
        sample = case.sample
        words.update(
            json.dumps(
                [sample.truth, list(sample.messages), repr(sample.key)], sort_keys=True
            ).encode()
        )
        for visual in sample.visuals:
            pixels.update(
                str(visual.pixels.shape).encode()
                + np.ascontiguousarray(visual.pixels).tobytes()
            )
            means.append(round(float(visual.pixels.mean()), 1))
    return {"words": words.hexdigest(), "pixels": pixels.hexdigest(), "means": means}


def entries() -> dict[str, dict]:
    return {
        f"{task.name} v{task.version} {'default' if level is None else level}": fingerprint(
            task.name, level
        )
        for task in TASKS
        for level in (None, 1.0)
    }


def of_preset(entry: TaskMix) -> str:
    """Hash of the words and truths of the first four samples of a preset on drawn media."""
    found = islice(SampleStream(DrawnSource(0, (240, 320)), entry).iterate(), 4)
    parts = [
        [index, sample.task, sample.truth, list(sample.messages), repr(sample.key)]
        for index, sample in found
    ]
    return hashlib.blake2b(
        json.dumps(parts, sort_keys=True).encode(), digest_size=12
    ).hexdigest()


@pytest.mark.parametrize("entry", PRESETS, ids=lambda entry: entry.name)
def test_golden_samples_of_each_preset(entry) -> None:
    known = json.loads(STORE.read_text())["presets"]
    assert of_preset(entry) == known.get(entry.name), (
        f"{entry.name}: if wanted, run {Path(__file__).name} as a script"
    )


@pytest.mark.parametrize("level", [None, 1.0])
@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_golden_samples_of_each_task(task, level) -> None:
    stored = json.loads(STORE.read_text())
    known = stored["samples"].get(
        f"{task.name} v{task.version} {'default' if level is None else level}"
    )
    assert known is not None, (
        f"{task.name} v{task.version} has no fingerprint; run this file as a script"
    )
    found = fingerprint(task.name, level)
    hint = f"{task.name}: if the change is wanted, bump its version and run {Path(__file__).name} as a script"
    assert found["words"] == known["words"], hint
    assert len(found["means"]) == len(known["means"])
    assert np.allclose(found["means"], known["means"], atol=1.0), hint
    if stored["versions"] == versions():
        assert found["pixels"] == known["pixels"], hint


if __name__ == "__main__":
    golden = {
        "versions": versions(),
        "samples": entries(),
        "presets": {entry.name: of_preset(entry) for entry in PRESETS},
    }
    STORE.write_text(json.dumps(golden, indent=1) + "\n")
