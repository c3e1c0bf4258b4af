"""Every command and snippet of README.md and of the pages in docs/ runs, with a real model in the place of MODEL."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModel, AutoTokenizer

from laconic.cli.main import status
from laconic.processes import barrier
from tests.conftest import keep_three_blocks
from tests.pair import Pair
from tests.sentences import NORMALIZE, Part, sentence_folder
from tests.task_models import TASK_MODELS, TOKENS
from tests.tokens import letters

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCS = ROOT / "docs"
PAGES = [
    page
    for page in sorted(DOCS.rglob("*.md"))
    # tests/test_extend.py runs the page of plug-ins, and tests/api/test_docs.py the one of Python.
    if page.name not in ("extend.md", "python.md") and re.search(r"^```(sh|python)$", page.read_text(), re.MULTILINE)
]
GUIDES = "".join(page.read_text() for page in (DOCS / "guides").glob("*.md"))
OWN_TESTS = {"models", "several-processes"}
"""Pages whose Python needs a test of its own, below."""


def blocks(language: str, text: str = README) -> Iterator[str]:
    """The code of each block fenced as `language`."""
    yield from re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def shortened(words: list[str]) -> list[str]:
    """The command on the fewest rows that still make a model: what is tested is that it runs, not its figures."""
    fewer = {
        "evaluate": ["--limit", "20"] if "--tasks" in words else [],
        "compress": ["--samples", "16"] if "--data" in words else [],
        "run": ["samples=16", "evaluate.limit=20"],
    }.get(words[0], [])
    # Each is given once.
    if fewer and fewer[0] in words:
        at = words.index(fewer[0])
        words = [*words[:at], *words[at + 2 :]]
    anew = tuple(word.partition("=")[0] + "=" for word in fewer if "=" in word)
    return [*(word for word in words if not (anew and word.startswith(anew))), *fewer]


@pytest.fixture
def model(shallow_model: Path, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A real model, in a folder where the README's relative paths lead somewhere."""
    reviews = [{"text": "a fine film", "label": "good"}, {"text": "a dull one", "label": "bad"}] * 8
    (tmp_path / "reviews.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in reviews))
    (tmp_path / "news").mkdir()
    for split, name in (("train", "ada"), ("dev", "byron")):
        sentences = f"{name} B-PER\nran O\n\nit O\nwas O\n{name} B-PER\n\n" * 8
        (tmp_path / "news" / f"{split}.conll").write_text(sentences)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LACONIC_DATA", str(shared_data))
    return str(shallow_model)


@pytest.fixture(scope="session")
def embedder(shared_models: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A real model in the layout of sentence-transformers."""
    real = shared_models / "minilm-stsb"
    encoder = keep_three_blocks(AutoModel.from_pretrained(real, add_pooling_layer=False))
    pooling = Part("Pooling", {"embedding_dimension": encoder.config.hidden_size, "pooling_mode": "mean"})
    folder = sentence_folder(tmp_path_factory.mktemp("models") / "embedder", [pooling, NORMALIZE], model=encoder)
    AutoTokenizer.from_pretrained(real).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small random model for token classification."""
    folder = tmp_path_factory.mktemp("models") / "tagger"
    model = TASK_MODELS[f"bert-{TOKENS.value}"].model()
    model.config.id2label = dict(enumerate(("O", "B-PER", "I-PER")))
    model.save_pretrained(folder)
    letters().save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
def test_every_command_runs(model: str, capfd: pytest.CaptureFixture[str]) -> None:
    commands = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("laconic ")]
    assert len(commands) >= 6
    for command in commands:
        words = shortened(shlex.split(command.replace("MODEL", model))[1:])
        assert status(words) == 0, (command, capfd.readouterr().err)
    assert Path("small/plan.yaml").read_text() == Path("same/plan.yaml").read_text()


@pytest.mark.slow
def test_every_snippet_runs(model: str) -> None:
    (snippet,) = blocks("python")
    names: dict[str, object] = {}
    exec(compile(snippet.replace('"MODEL"', repr(model)), "README.md", "exec"), names)
    assert type(names["smaller"]) is type(names["plain"]) is type(names["model"])


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_every_command_of_the_docs_runs(
    page: Path, model: str, embedder: str, tagger: str, shared_models: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text = page.read_text()
    real = {"BART": "bart-g2p-us", "LLAMA": "mico-tinyllama-1m"}
    models = {
        "MODEL": model,
        "EMBEDDER": embedder,
        "TAGGER": tagger,
        **{name: str(shared_models / folder) for name, folder in real.items()},
    }
    python = page.stem not in OWN_TESTS and any(blocks("python", text))
    skipped = [] if python else [re.sub(r"\bMODEL\b", model, line) for line in run_elsewhere(page)]
    names: dict[str, Any] = {}
    with_models = re.sub(r"\b(" + "|".join(models) + r")\b", lambda found: models[found[0]], text)
    for language, block in re.findall(r"^```(sh|python)\n(.*?)^```", with_models, flags=re.MULTILINE | re.DOTALL):
        if language == "python":
            if python:
                exec(compile(block, page.name, "exec"), names)
            continue
        for command in block.splitlines():
            if command not in skipped:
                run_command(command, capfd)


def run_elsewhere(page: Path) -> list[str]:
    """The commands that another test runs: those of README.md, and for a page of a method those of the guides."""
    return (README + GUIDES if page.parent.name == "methods" else README).splitlines()


def run_command(command: str, capfd: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(command)
    if words[0] == "torchrun":
        launch(words[1:])
        return
    assert words[0] == "laconic"
    assert status(shortened(words[1:])) == 0, (command, capfd.readouterr().err)


def test_the_snippet_of_embedding_models_runs(embedder: str, model: str) -> None:
    pytest.importorskip("sentence_transformers")
    (snippet,) = blocks("python", (ROOT / "docs" / "models.md").read_text())
    names: dict[str, Any] = {}
    exec(compile(snippet.replace('"small"', repr(embedder)), "models.md", "exec"), names)
    assert names["vectors"].shape == (1, 384)


def test_there_are_commands_in_the_docs() -> None:
    assert sum("laconic " in block for page in PAGES for block in blocks("sh", page.read_text())) >= 8


def launch(words: list[str]) -> None:
    """Run `torchrun` with these words, and require that it succeeds."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", *words]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.slow
def test_the_snippet_of_processes_runs_in_two(model: str, shared_data: Path, pair: Pair) -> None:
    (snippet,) = blocks("python", (ROOT / "docs" / "several-processes.md").read_text())
    assert pair(run_snippet, snippet.replace('"MODEL"', repr(model)), Path.cwd(), shared_data) == [True, True]


def run_snippet(snippet: str, folder: Path, data: Path) -> bool:
    os.chdir(folder)
    os.environ["LACONIC_DATA"] = str(data)
    exec(compile(snippet, "several-processes.md", "exec"), {})
    barrier()
    return Path("smaller").is_dir()


def test_every_make_target_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"\bmake (\w+)", README)
    assert {"demo", "test"} <= set(targets)
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)


def test_every_link_leads_to_a_file() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)", README)
    assert links
    assert all((ROOT / link).exists() for link in links), links
