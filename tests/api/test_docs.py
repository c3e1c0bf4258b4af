"""The snippets of docs/python.md run one after the other, with a real model in the place of MODEL."""

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "python.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_every_snippet_runs(
    shallow_model: Path, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LACONIC_DATA", str(shared_data))
    snippets = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert len(snippets) >= 8
    names: dict[str, object] = {}
    for snippet in snippets:
        code = snippet.replace('"MODEL"', repr(str(shallow_model)))
        exec(compile(code, "python.md", "exec"), names)
    assert {"small", "again", "seen", "sizes", "dense"} <= {path.name for path in tmp_path.iterdir()}
