"""Export, command line, preview, marking of exported rows."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmrl.data.pretext.__main__ import main
from mmrl.data.pretext.audit.preview import write_preview
from mmrl.data.pretext.catalogue import find
from mmrl.data.pretext.craft.procedural import scene
from mmrl.data.pretext.presets import Ingredient, TaskMix, preset
from mmrl.data.pretext.stream.export import export, row_of
from mmrl.data.pretext.stream.scoring import score_row, trl_reward
from mmrl.data.pretext.stream.sources import DrawnSource
from mmrl.data.pretext.stream.stream import SampleStream
from mmrl.ground.outputs import OutputError
from mmrl.ground.progress import with_progress

ROOT = Path(__file__).parents[3]
DRAFTS = ".out.draft-*"
MIX = TaskMix(
    "mix",
    (
        Ingredient("relative-position"),
        Ingredient("camera-motion", 0.5, {"frames": 4, "side": 64}),
    ),
)


def stream() -> SampleStream:
    return SampleStream(DrawnSource(0, (240, 320)), MIX)


def load(folder: Path, split: str = "train"):
    import datasets

    return datasets.load_dataset(
        str(folder), split=split, cache_dir=str(folder.parent / "cache")
    )


def test_an_exported_folder_loads_and_its_truths_pay(tmp_path) -> None:
    done = export(stream, tmp_path / "out", 20, about={"preset": "mix", "seed": 0})
    rows = load(tmp_path / "out")
    assert done.rows == len(rows) == 20
    expected = [sample for _, (_, sample) in zip(range(20), stream().iterate(), strict=False)]
    for row, sample in zip(rows, expected, strict=True):
        assert row["id"] == sample.id and row["answer"] == find(sample.task).format(
            sample.truth
        )
        assert score_row(row["solution"], row).correct and score_row("", row).reward == 0.0
        kinds = [part["type"] for part in row["prompt"][0]["content"]]
        assert kinds.count("image") == len(row["images"]) and kinds.count("video") == len(
            row["videos"]
        )
        for picture, visual in zip(
            row["images"], [v for v in sample.visuals if not v.is_video], strict=True
        ):
            assert np.array_equal(np.asarray(picture), visual.pixels)
        for frames, times in zip(row["videos"], row["video_times"], strict=True):
            visual = next(v for v in sample.visuals if v.is_video)
            assert np.array_equal(np.stack([np.asarray(f) for f in frames]), visual.pixels)
            assert times == visual.times.tolist()
    assert (
        trl_reward(rows["solution"], rows["task"], rows["truth"], rows["surface"]) == [1.0] * 20
    )
    chat = [[{"role": "assistant", "content": rows[0]["solution"]}]]
    assert trl_reward(chat, rows["task"][:1], rows["truth"][:1], rows["surface"][:1]) == [1.0]
    assert np.load(tmp_path / "out" / "hashes.npy").dtype == np.uint64


def test_workers_do_not_change_the_rows(tmp_path) -> None:
    export(stream, tmp_path / "one", 40)
    export(stream, tmp_path / "two", 40, workers=2)
    first, second = load(tmp_path / "one"), load(tmp_path / "two")
    assert first["id"] == second["id"] and first["recipe"] == second["recipe"]
    one, two = (
        sorted((tmp_path / name / "data").iterdir())[0].read_bytes() for name in ("one", "two")
    )
    assert one == two


def left(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


@pytest.mark.parametrize(
    "held", [["mine.txt"], ["manifest.json"], ["config.json", "model.safetensors"]]
)
def test_a_folder_of_others_is_never_emptied(tmp_path, held) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    for name in held:
        (folder / name).write_text("keep")
    before = left(folder)
    with pytest.raises(OutputError, match="not empty"):
        export(stream, folder, 2)
    with pytest.raises(OutputError, match=r"no folder of a data set of mmrl.*--output"):
        export(stream, folder, 2, overwrite=True)
    assert left(folder) == before and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_overwriting_replaces_our_files_only_and_no_neighbour(tmp_path, capsys) -> None:
    folder = tmp_path / "out"
    for name in ("out.part", "out.quarantine.jsonl", ".out.draft"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("keep")
    export(stream, folder, 3)
    assert json.loads((folder / ".mmrl.json").read_text())["kind"] == "data set"
    aliens = {"mine.txt": b"keep", "data/mine.txt": b"keep", "plots/a.png": b"keep"}
    for name, content in aliens.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    with pytest.raises(OutputError, match="not empty"):
        export(stream, folder, 2)
    export(stream, folder, 2, split="test", overwrite=True)
    after = left(folder)
    assert {name: after[name] for name in aliens} == aliens
    assert "which stay: " in capsys.readouterr().err
    shards = [name for name in after if name.endswith(".parquet")]
    assert shards == ["data/test-00000-of-00001.parquet"] and len(load(folder, "test")) == 2
    ours = set(after) - set(aliens)
    assert ours == {*shards, "README.md", "manifest.json", "hashes.npy", ".mmrl.json"}
    for name in ("out.part", "out.quarantine.jsonl", ".out.draft"):
        assert left(tmp_path / name) == {"mine": b"keep"}


@pytest.mark.parametrize("place", ["", ".", "/", ".."])
def test_no_export_into_the_working_folder(tmp_path, monkeypatch, capsys, place) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ["export", "--preset", "relative-position", "--count", "1", "--overwrite"]
    assert main([*asked, "--output", place]) == 2
    assert "the working folder" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_stuck_export_leaves_no_folder(tmp_path) -> None:
    from mmrl.data.pretext.stream.sources import FolderSource

    (tmp_path / "media").mkdir()
    (tmp_path / "media" / "bad.png").write_text("x")
    with pytest.raises(ValueError, match="gave no sample"):
        export(
            partial(
                SampleStream,
                FolderSource(tmp_path / "media"),
                TaskMix("p", (Ingredient("rotation"),)),
            ),
            tmp_path / "out",
            2,
        )
    assert not (tmp_path / "out").exists()


def test_a_killed_export_leaves_no_folder_and_is_made_again_the_same(tmp_path) -> None:
    output = tmp_path / "out"
    command = ["export", "--preset", "relative-position", "--output"]
    victim = subprocess.Popen(
        [sys.executable, "-m", "data.pretext", *command, str(output), "--count", "100000"],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while not any(
            part.stat().st_size for part in tmp_path.glob(f"{DRAFTS}/data/*.parquet")
        ):
            assert victim.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        victim.kill()
        victim.wait()
    assert list(tmp_path.glob(DRAFTS)) and not output.exists()
    for folder in (output, tmp_path / "calm"):
        assert main([*command, str(folder), "--count", "60"]) == 0
    assert not list(tmp_path.glob(DRAFTS)), "the next start swept it"
    files = [sorted((folder / "data").iterdir()) for folder in (output, tmp_path / "calm")]
    assert [file.name for file in files[0]] == [file.name for file in files[1]]
    assert all(one.read_bytes() == two.read_bytes() for one, two in zip(*files, strict=True))


def test_an_export_that_is_stopped_leaves_nothing_behind(tmp_path) -> None:
    """SIGTERM with workers: the documented code, no draft, no temporary clip."""
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    command = [sys.executable, "-m", "data.pretext", "export", "--preset", "camera-motion"]
    command += ["--count", "100000", "--workers", "2", "--output", str(tmp_path / "out")]
    victim = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "TMPDIR": str(scratch)}, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 60
    while not any(part.stat().st_size for part in tmp_path.glob(f"{DRAFTS}/data/*.parquet")):
        assert victim.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    assert list(scratch.glob("mmrl-*/*"))
    victim.terminate()
    said = victim.communicate(timeout=30)[1].decode()
    assert victim.returncode == 143 and "Traceback" not in said
    assert not list(tmp_path.glob(DRAFTS)) and not list(scratch.glob("mmrl-*/*"))


def test_a_bad_medium_is_listed_once_whatever_the_workers(tmp_path) -> None:
    (tmp_path / "media").mkdir()
    for number in range(3):
        Image.fromarray(scene(0, number, 240, 320).picture()).save(
            tmp_path / "media" / f"{number}.png"
        )
        (tmp_path / "media" / f"bad{number}.png").write_text("x")
    asked = [
        "--source",
        str(tmp_path / "media"),
        "--preset",
        "relative-position",
        "--count",
        "64",
        "--workers",
        "2",
    ]
    assert main(["export", *asked, "--output", str(tmp_path / "out")]) == 0
    lines = (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["where"].rsplit("/")[-1] for line in lines) == [
        f"bad{i}.png" for i in range(3)
    ]
    assert not (tmp_path / "out.quarantine.jsonl").exists()


def test_slow_work_is_told(capsys) -> None:
    assert list(with_progress(range(3), 3, "rows written", seconds=0.0)) == [0, 1, 2]
    lines = capsys.readouterr().err.splitlines()
    assert (
        len(lines) == 3
        and lines[-1].startswith("rows written 3/3")
        and lines[-1].endswith("0 s left")
    )


class Images(HTMLParser):
    """Collects what a browser would load."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attrs) -> None:
        values = dict(attrs)
        if tag == "img":
            self.sources.append(values["src"])
        named = [v for k, v in attrs if k in ("src", "href") and v]
        # Places on the page itself are none outside.
        self.outside += [v for v in named if not v.startswith(("data:", "#"))]
        assert tag != "script" or not values


def test_preview_pages_hold_pictures_prompts_and_truths(tmp_path) -> None:
    import base64
    import io
    from html import escape

    from PIL import Image

    samples = [sample for _, (_, sample) in zip(range(8), stream().iterate(), strict=False)]
    assert write_preview(samples, tmp_path / "deep" / "page.html", "<b>title</b>") == 8
    text = (tmp_path / "deep" / "page.html").read_text()
    page = Images()
    page.feed(text)
    assert (
        len(page.sources) >= sum(len(sample.visuals) for sample in samples) and not page.outside
    )
    for source in page.sources:
        image = Image.open(io.BytesIO(base64.b64decode(source.split(",", 1)[1])))
        image.load()
        assert min(image.size) > 8
    for sample in samples:
        assert f"<b>truth</b> {escape(find(sample.task).format(sample.truth))}" in text
    assert "<b>title</b>" not in text and "&lt;b&gt;title&lt;/b&gt;" in text


COUNT_IMAGES = """<script>addEventListener("load", () => {
  const all = [...document.images], good = all.filter(i => i.complete && i.naturalWidth > 8);
  const truths = [...document.querySelectorAll(".truth")].filter(t => t.offsetHeight > 0 && t.innerText.length > 6);
  document.title = `images ${good.length} of ${all.length}, truths ${truths.length}, wide ${
    document.documentElement.scrollWidth > innerWidth + 1}`;
});</script>"""


def test_a_browser_loads_the_pictures_and_shows_the_truths(tmp_path) -> None:
    """In a real browser without a window; a script is added to a copy of the page to look at it."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome", "headless_shell")
    browser = next((path for path in map(shutil.which, names) if path), None)
    if browser is None:
        pytest.skip(f"no browser is installed; looked for {', '.join(names)}")
    mix = SampleStream(DrawnSource(0, (240, 320)), preset("mmrl-mix-v1"))
    samples = [sample for _, (_, sample) in zip(range(16), mix.iterate(), strict=False)]
    assert any(visual.is_video for sample in samples for visual in sample.visuals)
    write_preview(samples, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    # The page forbids all scripts but its own.
    open_to_all, policies = re.subn(
        r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text
    )
    assert policies == 1
    looked = open_to_all.replace("</body>", f"{COUNT_IMAGES}</body>")
    (tmp_path / "looked.html").write_text(looked)
    seen = subprocess.run(
        [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1200,900", "--dump-dom",
         f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=10000",
         f"file://{tmp_path / 'looked.html'}"],
        capture_output=True, text=True, timeout=120,
    ).stdout  # fmt: skip
    count = text.count("<img ")
    title = re.search(r"<title>(.*?)</title>", seen)
    assert title and title[1] == f"images {count} of {count}, truths 16, wide false", (
        title and title[1]
    )


def test_every_command_runs(tmp_path, capsys) -> None:
    quick = ["--preset", "relative-position", "--count"]
    assert (
        main(["export", *quick, "5", "--output", str(tmp_path / "set"), "--split", "train"])
        == 0
    )
    assert (
        main(["preview", *quick, "3", "--output", str(tmp_path / "p.html"), "--level", "0.9"])
        == 0
    )
    assert main(["stats", *quick, "6"]) == 0
    assert main(["audit", *quick, "24", "--json", str(tmp_path / "audit.json")]) in (0, 1)
    assert (
        main(["eval", "--preset", "relative-position", "--count", "2", "--max-tokens", "4"])
        == 0
    )
    assert main(["list"]) == 0
    assert json.loads((tmp_path / "audit.json").read_text())["preset"] == "relative-position"
    assert json.loads((tmp_path / "set" / "manifest.json").read_text())["rows"] == 5
    exclude = ["--exclude", str(tmp_path / "set" / "hashes.npy"), "--split", "train"]
    assert main(["stats", *quick, "4", *exclude]) == 0
    out = capsys.readouterr().out
    assert re.search(r"relative-position\s+100", out) and "puzzlecraft-mix" in out


def test_mistakes_are_named_in_one_line(tmp_path, capsys) -> None:
    assert (
        main(
            [
                "preview",
                "--source",
                str(tmp_path / "none"),
                "--output",
                str(tmp_path / "p.html"),
            ]
        )
        == 2
    )
    assert main(["stats", "--preset", "jigsav"]) == 2
    assert main(["stats", "--level", "3"]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 3 and all(line.startswith("error: ") for line in errors)


def test_the_library_imports_no_torch() -> None:
    code = (
        "import sys; from mmrl.data.pretext.__main__ import main;"
        "from mmrl.data.pretext.stream.stream import SampleStream;"
        "from mmrl.data.pretext.presets import preset; from mmrl.data.pretext.stream.sources import DrawnSource;"
        "from mmrl.data.pretext.stream.export import row_of; import mmrl.data.pretext.audit.audit;"
        "import mmrl.data.pretext.audit.preview;"
        "import mmrl.data.pretext.stream.scoring;"
        "s = SampleStream(DrawnSource(0, (240, 320)), preset('puzzlecraft-mix')); row_of(s.sample(0));"
        "bad = [m for m in sys.modules if m.split('.')[0] in ('torch', 'transformers')];"
        "assert not bad, bad[:5]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_rows_rebuild_their_samples() -> None:
    live = stream()
    sample = live.sample(3)
    row = row_of(sample)
    assert json.loads(row["recipe"]) == sample.recipe and json.loads(row["source"])["positions"]
    assert live.replay(sample).id == row["id"]
