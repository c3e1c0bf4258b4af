"""The output of a verb, and the sentence of its error."""

import json

import pytest

from laconic.cli.main import status

Output = pytest.CaptureFixture[str]
SVD = ("--method", "svd", "--keep", "0.5")
"""The arguments of a compression that needs no data."""


def said(capsys: Output, *arguments: object) -> dict[str, object]:
    """The one JSON object that a verb prints."""
    assert status([str(argument) for argument in (*arguments, "--json")]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 1
    return json.loads(lines[0])


def complaint(capsys: Output, *arguments: object) -> str:
    """The one sentence on stderr of a verb that was asked for something that cannot be."""
    assert status([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]
