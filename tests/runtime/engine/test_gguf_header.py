"""The architecture of a GGUF file is read without the package gguf, and encoder-decoders are not served."""

import struct
from pathlib import Path

import pytest

from laconic.cli.main import status
from laconic.runtime.engine.gguf_header import KEY, TEXT, read_architecture


def header(architecture: bytes, key: bytes = KEY, kind: int = TEXT) -> bytes:
    """The beginning of a GGUF file."""
    text = struct.pack("<Q", len(key)) + key + struct.pack("<IQ", kind, len(architecture)) + architecture
    return b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (header(b"llama") + bytes(20), "llama"),
        (header(b"llama")[:40], None),
        (header(b"llama", key=b"general.name"), None),
        (header(b"llama", kind=4), None),
        (b"PK" + bytes(100), None),
        (b"", None),
    ],
)
def test_the_first_key(content: bytes, expected: str | None, tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(content)
    assert read_architecture(tmp_path / "a.gguf") == expected


def test_an_encoder_decoder_is_not_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.gguf").write_bytes(header(b"t5"))
    for source in (tmp_path, tmp_path / "a.gguf"):
        assert status(["serve", str(source), "--runtime", "llama.cpp"]) == 2
        assert "a.gguf' holds an encoder-decoder" in capsys.readouterr().err
