"""What is installed: one package `mmrl`, a console script, recipes that run beside a user's own `data`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata, util
from pathlib import Path

import pytest

from mmrl.recipes.__main__ import main, recipes

ROOT = Path(__file__).parents[2]
TREE = ("mmrl", "perception", "data", "recipes", "src")
FILES = ("pyproject.toml", "README.md", "LICENSE")


def run(arguments, place, path):
    """A Python of its own that finds our package only through `path`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=place,
        env={**environment, "PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def users_folder(tmp_path_factory):
    """A project whose own names are those of our folders; importing one of them is an error."""
    place = tmp_path_factory.mktemp("project")
    for name in (
        "data.py",
        "recipes/__init__.py",
        "perception/__init__.py",
        "types_of_mine.py",
    ):
        file = place / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("raise RuntimeError('the user's own module was imported')\n")
    (place / "data").mkdir()
    (place / "data" / "rows.txt").write_text("mine\n")
    return place


def test_list_names_every_recipe(capsys):
    main(["list"])
    lines = capsys.readouterr().out.splitlines()
    files = {file.stem for file in (ROOT / "recipes").glob("*.py")} - {"__init__", "__main__"}
    assert {line.split()[0] for line in lines} == files == set(recipes())
    assert all(len(line.split()) > 3 for line in lines), "each has its line of explanation"


@pytest.mark.parametrize("asked", [[], ["--help"], ["-h"]])
def test_without_a_recipe_the_usage_is_shown(asked, capsys):
    main(asked)
    assert "mmrl papo 7b" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("asked", "nearest"), [("papa", "papo"), ("noisy-rolout", "noisy_rollout"), ("xyz", None)]
)
def test_an_unknown_recipe_ends_with_the_nearest_name_and_status_2(asked, nearest, capsys):
    with pytest.raises(SystemExit) as ended:
        main([asked])
    said = capsys.readouterr().err
    hint = f"Perhaps you meant {nearest!r}."
    assert ended.value.code == 2 and repr(asked) in said and "mmrl list" in said
    assert hint in said if nearest else "Perhaps" not in said


def test_a_family_is_started_by_the_preset_of_a_member(capsys):
    with pytest.raises(SystemExit):
        main(["timelens", "video-r1", "--help"])
    assert "--order" in capsys.readouterr().out


def test_the_console_script_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"mmrl": "mmrl.recipes.__main__:main"}


def test_a_run_beside_the_users_own_names(users_folder, tiny_folder, tmp_path):
    small = ("--run.steps", "1", "--run.eval-prompts", "4", "--run.prompts-per-step", "2")
    model = ("--model", str(tiny_folder), "--sampling.group-size", "2")
    given = ("embedded", *model, *small, "--run.output", str(tmp_path / "out"))
    done = run(["mmrl.recipes.papo", *given], users_folder, ROOT / "src")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "papo: 1 steps done." in done.stdout
    assert (tmp_path / "out" / "model" / "model.safetensors").is_file()
    done = run(["mmrl.recipes", "papo", *given], users_folder, ROOT / "src")
    assert done.returncode == 0 and "finished run; nothing to do" in done.stderr, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of a copy of the tree, since building leaves files behind."""
    if util.find_spec("pip") is None or util.find_spec("setuptools") is None:
        pytest.skip("building a wheel needs pip and setuptools>=77: pip install -e .[dev]")
    if int(metadata.version("setuptools").split(".")[0]) < 77:
        pytest.skip("building a wheel needs setuptools>=77: pip install -e .[dev]")
    copy, built = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in TREE:
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignored)
    for name in FILES:
        shutil.copy(ROOT / name, copy / name)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "-w", str(built)]
    done = run(["pip", "wheel", *options, str(copy)], copy, "")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return next(built.glob("*.whl"))


def test_the_wheel_holds_one_package_with_types_and_recipes(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"mmrl"}
    assert "mmrl/py.typed" in names
    for folder in ("perception", "data", "recipes"):
        for file in (ROOT / folder).rglob("*.py"):
            assert f"mmrl/{file.relative_to(ROOT).as_posix()}" in names
    for file in [
        *(ROOT / "mmrl").rglob("*.py"),
        *(ROOT / "mmrl" / "report" / "page").iterdir(),
    ]:
        assert file.relative_to(ROOT).as_posix() in names
    for file in (ROOT / "data").rglob("*.yaml"):
        assert f"mmrl/{file.relative_to(ROOT).as_posix()}" in names


def test_the_wheel_runs_by_itself(wheel, users_folder, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    done = run(["mmrl.recipes", "list"], users_folder, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert {line.split()[0] for line in done.stdout.splitlines()} == set(recipes())
    done = run(["mmrl.recipes.papo", "--help"], users_folder, tmp_path)
    assert done.returncode == 0 and "--papo.gamma" in done.stdout, done.stderr[-2000:]
