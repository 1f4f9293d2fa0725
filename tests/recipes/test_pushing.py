"""`mmrl export RUN --push-to-hub`: a hub of our own on loopback gets every file, or a message says what is missing."""

from __future__ import annotations

import base64
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants

from mmrl.recipes.__main__ import main
from mmrl.training.model_card import model_card


class Hub:
    """What the hub's routes say to somebody who makes a repository and commits files. `refuses`: path -> status."""

    def __init__(self):
        self.repositories, self.files, self.refuses, self.tokens = {}, {}, {}, set()

    def say(self, method, path, body):
        for part, status in self.refuses.items():
            if part in path:
                return status, {"error": "not\x1b[31m with this token"}
        if path.endswith("whoami-v2"):
            return 200, {"name": "me", "type": "user", "auth": {}}
        if path.endswith("/repos/create"):
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            hidden = asked.get("visibility", "private" if asked.get("private") else "public")
            self.repositories[name] = hidden == "private"
            self.files[name] = {".gitattributes": b""}
            return 200, {"url": f"{constants.ENDPOINT}/{name}"}
        name = re.match(r"/api/models/([^/]+/[^/?]+)", path)
        if name is None:
            return 200, {"warnings": [], "errors": []}  # of the card
        name = name[1]
        if name not in self.repositories:
            return 404, {"error": "Repository not found"}
        if "/preupload/" in path:
            asked = json.loads(body)["files"]
            modes = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            return 200, {"files": [{"path": f["path"], **modes} for f in asked]}
        if "/commit/" in path:
            for line in body.splitlines()[1:]:
                one = json.loads(line)["value"]
                self.files[name][one["path"]] = base64.b64decode(one["content"])
            url = f"{constants.ENDPOINT}/{name}/commit/1"
            return 200, {
                "commitUrl": url,
                "commitOid": "1",
                "commitMessage": "",
                "success": True,
            }
        files = [{"rfilename": file} for file in self.files[name]]
        return 200, {"id": name, "private": self.repositories[name], "siblings": files}

    @contextmanager
    def answers(self):
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                hub.tokens.add(self.headers.get("Authorization"))
                status, said = hub.say(self.command, self.path, body)
                said = json.dumps(said).encode()
                self.send_response(status)
                if status == 404:
                    self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

            do_POST = do_GET

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            server.server_close()


@pytest.fixture
def hub(monkeypatch):
    found = Hub()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    with found.answers() as url:
        monkeypatch.setattr(constants, "ENDPOINT", url)
        yield found


@pytest.fixture
def export(tiny_folder, tmp_path):
    folder = tmp_path / "whole"

    def run(*args):
        main(["export", str(tiny_folder), "--output", str(folder), *args])
        return {f.name: f.read_bytes() for f in folder.iterdir()}

    run.folder = folder
    return run


@pytest.mark.parametrize("public", [False, True])
def test_the_repository_has_the_folders_files_and_is_private(hub, export, capsys, public):
    files = export("--push-to-hub", "me/papo", *["--public"] * public)
    assert hub.repositories == {"me/papo": not public}
    assert hub.files["me/papo"] == {".gitattributes": b"", **files} and len(files) > 3
    assert "Bearer hf_mine" in hub.tokens
    assert capsys.readouterr().out.splitlines()[-1] == f"{constants.ENDPOINT}/me/papo"


def test_an_empty_repository_is_filled_and_a_full_one_is_left_alone(hub, export):
    hub.repositories["me/papo"], hub.files["me/papo"] = True, {".gitattributes": b""}
    with pytest.raises(
        SystemExit, match=r"me/papo is there, empty and private; leave --public"
    ):
        export("--push-to-hub=me/papo", "--public")
    hub.files["me/papo"]["model.safetensors"] = b"old"
    with pytest.raises(SystemExit, match=r"1 files already \(model.safetensors\).*overwritten"):
        export("--push-to-hub=me/papo")
    assert not export.folder.exists() and hub.files["me/papo"]["model.safetensors"] == b"old"
    del hub.files["me/papo"]["model.safetensors"]
    assert export("--push-to-hub=me/papo").items() <= hub.files["me/papo"].items()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("papo", "'papo'; it must be OWNER/NAME"),
        ("", "''; it must be OWNER/NAME"),
        ("me/../you", "OWNER/NAME"),
        ("me/a b", "OWNER/NAME"),
        ("https://huggingface.co/me/papo", "OWNER/NAME"),
    ],
)
def test_a_name_that_is_none_is_refused(hub, export, name, message):
    with pytest.raises(SystemExit, match=f"mmrl export: --push-to-hub is .*{message}"):
        export("--push-to-hub", name)
    assert not export.folder.exists() and not hub.tokens


def test_without_token_network_or_right_nothing_is_written(hub, export, monkeypatch, tmp_path):
    def refused(message):
        with pytest.raises(SystemExit, match=message) as error:
            export("--push-to-hub", "me/papo")
        assert not export.folder.exists() and "\x1b" not in str(error.value)

    hub.refuses["whoami"] = 401
    refused(r"the hub refuses \(401: .*right to write to 'me': `hf auth login`")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused("needs the network, but HF_HUB_OFFLINE is set")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens
    refused("was not reached or did not take it")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    refused("needs a token that may write: run `hf auth login`, or set HF_TOKEN")
    with pytest.raises(SystemExit, match="--public goes with --push-to-hub OWNER/NAME"):
        export("--public")


def test_an_upload_that_fails_says_where_the_model_is_and_how_to_send_it(hub, export):
    hub.refuses["/commit/"] = 403
    with pytest.raises(SystemExit, match=r"\(403.*later with `hf upload me/papo .* --private`"):
        export("--push-to-hub", "me/papo")
    assert (export.folder / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("source", "named"),
    [("Qwen/Qwen2.5-VL-7B-Instruct", True), ("/models/qwen", False), ("models/a/b", False)],
)
def test_the_cards_head_names_a_base_of_the_hub_alone(source, named):
    """The hub refuses a commit whose card names a base that is no model of the hub."""
    card = model_card("x", {"policy": {"source": source}}, {})
    head = card.split("---")[1]
    assert (f'base_model: "{source}"' in head) == named and source in card
