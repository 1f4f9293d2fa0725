"""TensorBoard, Weights & Biases, Trackio and MLflow: what each is told, by stand-ins with the surface of the real ones.

`logger_surfaces.json` holds the parameters of every call that we make, as the packages have them; a call that does not
fit is an error here. `python -m tests.training.test_loggers`, where the packages are installed, writes it anew.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import inspect
import json
import sys
import types
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from mmrl.training.door import entered
from mmrl.training.loggers import COLUMNS, MENDS, TAG, refuse_missing_logger, side_by_side
from mmrl.training.run import Run
from mmrl.training.tracking import Tracker, read_metrics
from mmrl.types import Media, Prompt, Rollout

FILE = Path(__file__).with_name("logger_surfaces.json")
MODULES = {"tensorboard": "torch.utils.tensorboard"}
"""Where a service is imported from, if not by its own name."""
CALLS = {
    "tensorboard": [
        f"SummaryWriter{name}"
        for name in ("", ".add_scalar", ".add_text", ".add_image", ".flush", ".close")
    ],
    "wandb": ["init", "Table", "Image", "Run.define_metric", "Run.log", "Run.finish"],
    "trackio": ["init", "finish", "Table", "Image", "Run.log"],
    "mlflow": [
        *("get_tracking_uri", "log_metrics", "log_params", "log_table", "MlflowClient"),
        *("MlflowClient.get_experiment_by_name", "MlflowClient.create_experiment"),
        *("MlflowClient.search_runs", "MlflowClient.create_run", "MlflowClient.update_run"),
        *("MlflowClient.log_image", "MlflowClient.log_artifact"),
        "MlflowClient.set_terminated",
    ],
}
SURFACES = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {}


def real_surface(service):
    """Call -> its parameters, of the installed package."""
    module = importlib.import_module(MODULES.get(service, service))
    found = {}
    for name in CALLS[service]:
        value = module
        for part in name.split("."):
            value = getattr(value, part)
        parameters = list(inspect.signature(value).parameters.values())
        found[name] = [
            [each.name, each.kind.name, each.default is not inspect.Parameter.empty]
            for each in parameters
            if each.name != "self"
        ]
    return found


def signature(rows):
    """A signature from what was recorded."""
    empty = inspect.Parameter.empty
    return inspect.Signature(
        [
            inspect.Parameter(
                name, inspect._ParameterKind[kind], default=None if has else empty
            )
            for name, kind, has in rows
        ]
    )


class StandIn:
    """A package that writes down what it is told, and takes nothing that the real one would not."""

    def __init__(self, service):
        self.surface, self.calls = SURFACES[service], []
        self.broken = ()
        self.known_runs = []

    def __call__(self, name, /, *args, **kwargs):
        given = signature(self.surface[name]).bind(*args, **kwargs).arguments
        if name in self.broken:
            raise ConnectionError("nobody there")
        self.calls.append((name, given))
        return given

    def of(self, name):
        return [given for called, given in self.calls if called == name]

    def object(self, prefix, **attributes):
        """Something whose methods are those of the surface that begin so."""
        found = types.SimpleNamespace(**attributes)
        for name in self.surface:
            if name.startswith(f"{prefix}."):
                setattr(found, name.rpartition(".")[2], partial(self, name))
        return found


def fake_wandb(stand_in):
    def init(**kwargs):
        stand_in("init", **kwargs)
        return stand_in.object("Run", offline=True, url=None)

    return {"init": init, "Settings": dict, "Table": partial(stand_in, "Table")}


def fake_trackio(stand_in):
    def init(**kwargs):
        print("what is printed here belongs to no command")
        stand_in("init", **kwargs)
        return stand_in.object("Run")

    return {"init": init, **{n: partial(stand_in, n) for n in ("Table", "finish")}}


def fake_mlflow(stand_in):
    def client():
        stand_in("MlflowClient")
        found = stand_in.object("MlflowClient")
        made = types.SimpleNamespace(info=types.SimpleNamespace(run_id="theirs"))

        def create_run(*args, **kwargs):
            stand_in("MlflowClient.create_run", *args, **kwargs)
            stand_in.known_runs.append(made)
            return made

        def search_runs(*args, **kwargs):
            stand_in("MlflowClient.search_runs", *args, **kwargs)
            return stand_in.known_runs

        def get_experiment_by_name(name):
            stand_in("MlflowClient.get_experiment_by_name", name)
            return None

        found.create_run, found.search_runs = create_run, search_runs
        found.get_experiment_by_name = get_experiment_by_name
        return found

    names = ("get_tracking_uri", "log_metrics", "log_params", "log_table")
    return {"MlflowClient": client, **{name: partial(stand_in, name) for name in names}}


def fake_tensorboard(stand_in):
    def writer(*args, **kwargs):
        stand_in("SummaryWriter", *args, **kwargs)
        return stand_in.object("SummaryWriter")

    return {"SummaryWriter": writer}


FAKES = {
    "tensorboard": fake_tensorboard,
    "wandb": fake_wandb,
    "trackio": fake_trackio,
    "mlflow": fake_mlflow,
}


def module(name, attributes):
    made = types.ModuleType(name)
    made.__spec__ = importlib.machinery.ModuleSpec(name, None)
    vars(made).update(attributes)
    return made


@pytest.fixture
def stand_in(monkeypatch, request):
    """The stand-in of the service that the test is about, in the place of the package."""
    service = request.param
    found = StandIn(service)
    # Pictures are made by the service's own class; here they are what they were made of.
    attributes = {"Image": lambda picture: ("picture", picture.size), **FAKES[service](found)}
    monkeypatch.setitem(sys.modules, service, module(service, attributes))
    if service in MODULES:
        monkeypatch.setitem(sys.modules, MODULES[service], module(service, attributes))
    found.service = service
    return found


def only(service):
    return pytest.mark.parametrize("stand_in", [service], indirect=True)


every = pytest.mark.parametrize("stand_in", FAKES, indirect=True)


def answer(number, size=(40, 60)):
    media = (Media(torch.zeros((1, 3, *size), dtype=torch.uint8)),) if size else ()
    tokens = torch.arange(2)
    prompt = Prompt(f"p{number}", [{"role": "user", "content": "Why?"}], media, answer=["red"])
    return Rollout(prompt, 0, tokens, tokens, tokens.byte(), "*red*", "eos", reward=0.5)


def session(folder, service, steps, settings=None):
    """One process of the run `cafe`: it logs some steps and leaves."""
    tracker = Tracker(
        folder,
        service,
        "papo",
        identity="cafe0123456789",
        project="ours",
        settings=settings or {"run": {"steps": 5}, "grpo": {"kl": 0.1}},
    )
    with tracker:
        for step in steps:
            tracker.sample(step, [answer(0), answer(1, None)])
            tracker.log(step, {"eval/pass@8": 0.5, "loss/total": float("nan")})


@every
def test_a_continued_run_goes_on_in_the_same_curves(stand_in, tmp_path, capsys):
    session(tmp_path, stand_in.service, range(4))
    session(tmp_path, stand_in.service, range(2, 6))
    printed = capsys.readouterr()
    assert printed.out == "" and "Also logged to" in printed.err
    assert [row["step"] for row in read_metrics(tmp_path)] == [0, 1, 2, 3, 2, 3, 4, 5]
    assert not any("logger/failures" in row for row in read_metrics(tmp_path))
    steps = {
        "tensorboard": lambda: [
            call["global_step"] for call in stand_in.of("SummaryWriter.add_scalar")
        ],
        "wandb": lambda: [
            c["data"]["step"] for c in stand_in.of("Run.log") if "samples" not in c["data"]
        ],
        "trackio": lambda: [
            c["step"] for c in stand_in.of("Run.log") if "samples" not in c["metrics"]
        ],
        "mlflow": lambda: [call["step"] for call in stand_in.of("log_metrics")],
    }
    assert steps[stand_in.service]() == [0, 1, 2, 3, 2, 3, 4, 5]


@only("wandb")
def test_wandb_knows_the_run_its_settings_and_its_answers(stand_in, tmp_path):
    session(tmp_path, "wandb", [0])
    (begun,) = stand_in.of("init")
    assert (begun["project"], begun["name"]) == ("ours", "papo-cafe0123")
    assert (begun["id"], begun["resume"]) == ("cafe0123456789", "allow")
    assert begun["config"] == {"run": {"steps": 5}, "grpo": {"kl": 0.1}}
    assert stand_in.of("Run.define_metric")[1] == {"name": "*", "step_metric": "step"}
    (table,) = stand_in.of("Table")
    assert table["columns"] == list(COLUMNS)
    shown, without = table["data"]
    assert shown == [0, "p0", ("picture", (60, 40)), "Why?", "*red*", "['red']", 0.5, "eos"]
    assert without[2] is None
    assert stand_in.of("Run.log")[-1]["data"] == {"step": 0, "eval/pass@8": 0.5}
    assert stand_in.of("Run.finish") == [{"exit_code": 0}]


@only("trackio")
def test_trackio_knows_the_run_by_its_name(stand_in, tmp_path):
    session(tmp_path, "trackio", [0], {"folder": Path("a")})
    (begun,) = stand_in.of("init")
    assert (begun["project"], begun["name"]) == ("ours", "papo-cafe0123")
    assert begun["resume"] == "allow" and begun["config"] == {"folder": "a"}
    assert len(stand_in.of("Table")[0]["data"]) == 2 and len(stand_in.of("finish")) == 1


@only("mlflow")
def test_mlflow_finds_the_run_again_and_keeps_parameters_and_files(stand_in, tmp_path):
    many = {"many": {str(number): number for number in range(250)}, "odd@name": "x" * 9000}
    session(tmp_path, "mlflow", [0], many)
    (tmp_path / "config.json").write_text("{}")
    session(tmp_path, "mlflow", [1], many)
    (made,) = stand_in.of("MlflowClient.create_run")
    assert made["tags"] == {TAG: "cafe0123456789"} and made["run_name"] == "papo-cafe0123"
    search = stand_in.of("MlflowClient.search_runs")[-1]
    assert search["filter_string"] == f"tags.{TAG} = 'cafe0123456789'"
    assert stand_in.of("MlflowClient.update_run") == [{"run_id": "theirs", "status": "RUNNING"}]
    batches = [call["params"] for call in stand_in.of("log_params")]
    assert [len(batch) for batch in batches] == [100, 100, 51], "once, and as many as it takes"
    assert len(batches[-1]["odd_name"]) == 6000
    assert stand_in.of("log_metrics")[0]["metrics"] == {"eval/pass_8": 0.5}
    files = [Path(call["local_path"]).name for call in stand_in.of("MlflowClient.log_artifact")]
    assert {"report.html", "config.json"} <= set(files)
    ends = [call["status"] for call in stand_in.of("MlflowClient.set_terminated")]
    assert ends == ["FINISHED"] * 2


@only("tensorboard")
def test_tensorboard_forgets_what_is_logged_again(stand_in, tmp_path):
    session(tmp_path, "tensorboard", range(4))
    session(tmp_path, "tensorboard", range(2, 4))
    assert [call["purge_step"] for call in stand_in.of("SummaryWriter")] == [0, 2]
    texts = stand_in.of("SummaryWriter.add_text")
    assert '    "kl": 0.1' in texts[0]["text_string"] and texts[0]["tag"] == "settings"
    # Four blanks: what a model says is no Markdown.
    assert "\n    *red*\n" in texts[1]["text_string"]
    picture = stand_in.of("SummaryWriter.add_image")[0]
    assert picture["img_tensor"].shape == (40, 60, 3) and picture["dataformats"] == "HWC"


@every
def test_a_service_that_fails_is_told_once_counted_and_stops_nothing(
    stand_in, tmp_path, capsys
):
    stand_in.broken = ("SummaryWriter.add_scalar", "Run.log", "log_metrics", "log_table")
    tracker = Tracker(tmp_path, stand_in.service)
    for step in range(3):
        tracker.log(step, {"a/b": 1.0})
    assert [row.get("logger/failures") for row in read_metrics(tmp_path)] == [None, 1.0, 1.0]
    told = capsys.readouterr().err
    assert told.count(f"{stand_in.service} did not take what was logged (ConnectionError") == 1


@pytest.mark.parametrize("stand_in", ["wandb", "trackio", "mlflow"], indirect=True)
def test_a_service_that_cannot_be_started_says_what_helps(stand_in, tmp_path):
    stand_in.broken = ("init", "MlflowClient")
    help_ = MENDS[stand_in.service].split("(")[0].split(",")[0]
    with pytest.raises(
        ValueError, match=rf"--run\.logger {stand_in.service} could not be.*{help_}"
    ):
        Tracker(tmp_path, stand_in.service)


@pytest.mark.parametrize(
    ("error", "status"), [(None, 0), (RuntimeError, 1), (KeyboardInterrupt, 0), (SystemExit, 0)]
)
@only("wandb")
def test_a_run_that_was_stopped_has_not_failed(stand_in, tmp_path, error, status):
    try:
        with Tracker(tmp_path, "wandb"):
            if error:
                raise error
    except BaseException as raised:
        assert type(raised) is error
    assert stand_in.of("Run.finish") == [{"exit_code": status}]


@only("wandb")
def test_the_id_is_that_of_the_run(stand_in, tmp_path):
    run = Run(name="papo", output=tmp_path / "out", logger="wandb", project="ours")
    for _ in range(2):
        with entered(run) as door:
            door.recipe = {"recipe": "papo", "preset": "7b"}
            with door.tracker(run, {"grpo": {"kl": 0.1}}) as tracker:
                tracker.log(0, {"a/b": 1.0})
            identity = door.marker.id
    begun = stand_in.of("init")
    assert {call["id"] for call in begun} == {identity} and len(begun) == 2
    assert begun[0]["config"] == {"recipe": door.recipe, "grpo": {"kl": 0.1}}


@every
def test_processes_that_do_not_write_log_nowhere(stand_in, tmp_path):
    tracker = Tracker(tmp_path, stand_in.service, writes=False)
    tracker.sample(0, [answer(0)])
    tracker.log(0, {"a/b": 1.0})
    assert stand_in.calls == []


@pytest.mark.parametrize("service", FAKES)
def test_a_package_that_is_not_installed_is_told_without_importing_it(service, monkeypatch):
    monkeypatch.setitem(sys.modules, service, None)
    with pytest.raises(
        ValueError, match=rf"pip install 'mmrl\[{service}\]'.*leave --run\.logger"
    ):
        refuse_missing_logger(service)


def test_an_unknown_logger_is_refused(tmp_path):
    allowed = "none, tensorboard, wandb, trackio, mlflow"
    with pytest.raises(
        ValueError, match=f"--run.logger is 'paper'; it must be one of {allowed}"
    ):
        Tracker(tmp_path, "paper")


def test_clips_stand_side_by_side_and_large_ones_are_small():
    clip = np.zeros((9, 30, 40, 3), dtype=np.uint8)
    clip[8] = 7
    large = np.ones((1, 448, 896, 3), dtype=np.uint8)
    found = side_by_side([clip, large])
    assert found.shape == (112, 4 * 40 + 224, 3)
    assert found[0, 3 * 40, 0] == 7, "the last frame is among those that are shown"
    assert side_by_side([]) is None


@pytest.mark.parametrize("service", FAKES)
def test_the_recorded_surface_is_that_of_the_package(service):
    """What we give must still be taken; other parameters may have come."""
    pytest.importorskip(service)
    now = real_surface(service)
    for name, rows in SURFACES[service].items():
        there = {each for each, _, _ in now[name]}
        assert {each for each, _, _ in rows} <= there, name


if __name__ == "__main__":
    surfaces = {service: real_surface(service) for service in CALLS}
    FILE.write_text(json.dumps(surfaces, indent=1) + "\n", encoding="utf-8")
