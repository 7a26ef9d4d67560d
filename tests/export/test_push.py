"""Uploading to the hub: what is shown, what a small server of the hub's protocol gets, and what is refused."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from srd.base.errors import RunError, UserError
from srd.export.push import check_repository, prepared, push
from srd.recipe.reading import validate_recipe, write_recipe

CARD = "---\nlibrary_name: transformers\n---\n\n# tiny\n\nsrd chat OWNER/tiny\n"


class Hub:
    """What a server of the hub's protocol was asked and told."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, Any]] = []
        self.private = True
        self.status = 200
        self.files: dict[str, bytes] = {}

    def reply(self, method: str, path: str, body: bytes) -> Any:
        lines = [json.loads(line) for line in body.splitlines()] if path.endswith("commit/main") else []
        self.asked.append((method, path, json.loads(body) if body and not lines else None))
        for line in lines:
            if line["key"] == "file":
                self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        if path.endswith("repos/create"):
            return {"url": f"{constants.ENDPOINT}/me/tiny", "name": "me/tiny"}
        if "preupload" in path:
            given = json.loads(body)["files"]
            return {"files": [{"path": each["path"], "uploadMode": "regular", "shouldIgnore": False} for each in given]}
        if path.endswith("commit/main"):
            return {
                "success": True,
                "commitOid": "0" * 40,
                "commitUrl": f"{constants.ENDPOINT}/me/tiny/commit/{'0' * 40}",
                "hookOutput": "",
            }
        if "validate-yaml" in path:
            return {"errors": [], "warnings": []}
        return {"id": "me/tiny", "private": self.private, "siblings": [], "tags": [], "sha": "0" * 40}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A server on this machine that stands for the hub."""
    state = Hub()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            told = json.dumps(state.reply(self.command, self.path, body)).encode()
            self.send_response(state.status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(told)))
            self.end_headers()
            self.wfile.write(told)

        do_GET = do_POST = answer

        def log_message(self, *given: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_token")
    yield state
    server.shutdown()
    server.server_close()


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """As much of a run directory as an upload reads."""
    recipe = {"name": "tiny", "teacher": "a", "student": "b", "data": "rows.jsonl"}
    (tmp_path / "run" / "student").mkdir(parents=True)
    write_recipe(validate_recipe(recipe, "tiny"), tmp_path / "run" / "recipe.yaml")
    (tmp_path / "run" / "student" / "README.md").write_text(CARD)
    (tmp_path / "run" / "student" / "model.safetensors").write_bytes(b"weights")
    return tmp_path / "run"


def test_a_student_goes_to_a_private_repository_with_its_card(hub: Hub, run_dir: Path) -> None:
    with prepared(str(run_dir), "me/tiny", data=False) as upload:
        assert set(upload.sizes) == {"README.md", "model.safetensors"} and upload.sizes["model.safetensors"] == 7
        assert "names no licence" in upload.notes[0]
        assert push(upload) == f"{constants.ENDPOINT}/me/tiny"
    assert hub.files == {"README.md": CARD.replace("OWNER/tiny", "me/tiny").encode(), "model.safetensors": b"weights"}
    ((_, _, wanted),) = [each for each in hub.asked if each[1].endswith("repos/create")]
    assert wanted.get("visibility") == "private" or wanted.get("private") is True
    assert wanted["name"] == "tiny" and wanted["organization"] == "me"


def test_curated_data_go_to_a_data_set(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "stage_0.jsonl").write_text("{}\n")
    with prepared(str(tmp_path), "me/rows", data=True) as upload:
        assert push(upload) == f"{constants.ENDPOINT}/datasets/me/rows"
    assert hub.files == {"stage_0.jsonl": b"{}\n"}
    assert any("/api/datasets/me/rows/commit" in path for _, path, _ in hub.asked)


def test_a_repository_that_is_public_is_not_written_unseen(hub: Hub, run_dir: Path) -> None:
    hub.private = False
    with prepared(str(run_dir), "me/tiny", data=False) as upload:
        with pytest.raises(UserError, match="is there already and is public"):
            push(upload)
        assert hub.files == {}
        push(upload, public=True)
    assert "model.safetensors" in hub.files


@pytest.mark.parametrize(
    ("change", "kind", "told"),
    [
        (lambda patch, hub: patch.setattr(constants, "HF_HUB_OFFLINE", True), UserError, "HF_HUB_OFFLINE is set"),
        (lambda patch, hub: patch.setattr(huggingface_hub, "get_token", lambda: None), UserError, "no token.*hf auth"),
        (lambda patch, hub: patch.setattr(hub, "status", 403), UserError, "does not let this token write to me/tiny"),
        (lambda patch, hub: patch.setattr(hub, "status", 400), UserError, "refuses me/tiny"),
        (lambda patch, hub: patch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9"), RunError, "cannot be reached"),
    ],
)
def test_what_stands_in_the_way_is_said(
    hub: Hub, run_dir: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[..., Any], kind: Any, told: str
) -> None:
    with prepared(str(run_dir), "me/tiny", data=False) as upload:
        change(monkeypatch, hub)
        with pytest.raises(kind, match=told):
            push(upload)
    assert hub.files == {}


def test_what_cannot_be_uploaded_is_refused(tmp_path: Path, run_dir: Path) -> None:
    for name in ("tiny", "a/b/c", "me/", "me/a b", ""):
        with pytest.raises(UserError, match="is no name on the hub"):
            check_repository(name)
    (run_dir / "student" / "README.md").unlink()
    cases = [(str(tmp_path / "no"), "is no run directory"), (str(run_dir), "no model card yet.*srd run .*--run-dir")]
    for name, told in cases:
        with pytest.raises(UserError, match=told), prepared(name, "me/tiny", data=False):
            pass
