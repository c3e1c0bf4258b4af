"""A hub that is out of reach: told at once, and what its cache has is read as ever."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from laconic.calibrate.sources import check_source
from laconic.errors import UserError
from laconic.hub import out_of_reach
from laconic.model import check_model, load
from tests.architectures import BY_NAME, outputs
from tests.model.checkpoints.hub import put

At = Callable[[str], None]


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> At:
    """Puts the hub at an address, with an empty cache."""

    def put_at(address: str) -> None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

    return put_at


@pytest.fixture
def nowhere(at: At) -> str:
    at(address := closed())
    return address


def closed() -> str:
    """An address of this machine that nobody listens at."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


def test_a_model_is_told_at_once(nowhere: str) -> None:
    start = time.monotonic()
    with pytest.raises(UserError) as caught:
        check_model("nowhere")
    assert time.monotonic() - start < 3
    assert str(caught.value) == (
        "There is no loadable model 'nowhere': there is no such folder, the cache of the hub does not have it, and the "
        f"hub cannot be asked ({nowhere} cannot be reached: [Errno 111] Connection refused); check the name and the "
        "network, or give a folder."
    )


def test_data_are_told_at_once(nowhere: str) -> None:
    start = time.monotonic()
    with pytest.raises(
        UserError, match=rf"^The data 'owner/name' is no local file and cannot .*{nowhere} cannot be reached: "
    ):
        check_source("owner/name", "train")
    assert time.monotonic() - start < 8


def test_what_the_cache_has_is_read_without_a_wait(nowhere: str, tmp_path: Path) -> None:
    model = BY_NAME["gpt2"].model()
    model.save_pretrained(tmp_path / "model")
    put(tmp_path / "model", "owner/model", tmp_path / "hub")
    start = time.monotonic()
    assert torch.equal(outputs(load("owner/model").model), outputs(model))
    assert time.monotonic() - start < 8
    next((tmp_path / "hub").glob("*/snapshots/*/model.safetensors")).unlink()
    with pytest.raises(UserError, match=r"^The weights of 'owner/model' cannot be loaded: there is no file named"):
        check_model("owner/model")


def test_offline_mode_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(UserError, match=r"'nowhere': .*\(HF_HUB_OFFLINE is set, so that it is not asked\); check"):
        check_model("nowhere")


def test_an_address_that_is_none(at: At) -> None:
    at("huggingface")
    assert (
        out_of_reach("gpt2")
        == "huggingface cannot be reached: Request URL is missing an 'http://' or 'https://' protocol"
    )


class Answers(BaseHTTPRequestHandler):
    """Says the next of `statuses` to each question."""

    statuses: Iterator[int]

    def do_HEAD(self) -> None:
        self.send_response(next(self.statuses))
        self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.mark.parametrize(
    ("statuses", "reached"), [([404], True), ([401], True), ([503, 503, 404], True), ([503] * 9, False)]
)
def test_a_hub_that_answers(at: At, statuses: list[int], reached: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # huggingface_hub's waits between two questions, of seconds.
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    handler = type("Here", (Answers,), {"statuses": iter(statuses)})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        at(f"http://127.0.0.1:{server.server_port}")
        why = out_of_reach("gpt2")
    finally:
        server.shutdown()
        server.server_close()
    assert (why is None) == reached
    assert reached or (why is not None and "503" in why)


@pytest.mark.slow
def test_the_screen_has_one_sentence(tmp_path: Path) -> None:
    environment = {**os.environ, "HF_ENDPOINT": closed(), "HF_HOME": str(tmp_path)}
    environment.pop("HF_HUB_OFFLINE")
    words = [
        sys.executable,
        "-m",
        "laconic",
        "compress",
        "nowhere",
        "--method",
        "svd:rank=2",
        "-o",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("There is no loadable model 'nowhere': ")
