"""The program as the shell sees it: exit statuses, what goes to which stream, and Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest

from laconic.cli.main import status
from tests.fresh_python import run_fresh

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def small(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with layers that only laconic knows."""
    folder = tmp_path_factory.mktemp("small") / "model"
    assert status(["compress", str(tiny_model), "--method", "svd:rank=2", "--targets", "ffn", "-o", str(folder)]) == 0
    return folder


def start(*arguments: object, started: Sequence[str] = ("-m", "laconic")) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *started, *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )


def test_json_alone_goes_to_stdout(tiny_model: Path, tmp_path: Path) -> None:
    program = start("compress", tiny_model, "--method", "svd:rank=2", "-o", tmp_path / "small", "--json")
    out, err = program.communicate(timeout=120)
    assert program.returncode == 0, err
    assert json.loads(out)["output"] == str(tmp_path / "small")
    assert "Loading" not in err and "Warning" not in err


def script(folder: Path) -> Path:
    """The script that an installation makes of what pyproject.toml declares."""
    declared = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["scripts"]["laconic"]
    module, _, name = declared.partition(":")
    path = folder / "laconic"
    path.write_text(f"import sys\nfrom {module} import {name}\nsys.exit({name}())\n")
    return path


@pytest.mark.parametrize(
    ("by", "seen"),
    [
        ("script", "pydantic"),
        *(("module", seen) for seen in ("pydantic", "torch._C", "transformers.utils.generic", "laconic.formats")),
    ],
)
@pytest.mark.slow
def test_ctrl_c_during_imports_is_one_line(by: str, seen: str, tmp_path: Path) -> None:
    started = ["-m", "laconic"] if by == "module" else [str(script(tmp_path))]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-X", "importtime", *started, "inspect", "./nowhere"]
    program = subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert program.stderr is not None
    # Each module is told of once it is imported.
    for line in program.stderr:
        if line.split("|")[-1].strip() == seen:
            break
    program.send_signal(signal.SIGINT)
    out, err = program.communicate(timeout=60)
    said = [line for line in err.splitlines() if not line.startswith("import time:")]
    assert (program.returncode, out, said) == (130, "", ["Interrupted."])


def test_ctrl_c_during_imports_is_the_callers_where_laconic_is_a_library() -> None:
    code = "from laconic.cli import exit_on_interrupt\nwith exit_on_interrupt():\n    raise KeyboardInterrupt"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, text=True, capture_output=True, check=False)
    assert "KeyboardInterrupt" in ended.stderr and "Interrupted." not in ended.stderr


IMPATIENT = """
from laconic.__main__ import main
from laconic.cli import terminal
terminal.SECONDS_BETWEEN_LINES = 0.2
main()
"""
"""The program, which tells of its progress sooner."""


@pytest.mark.slow
def test_ctrl_c_leaves_nothing(tiny_model: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("the cat is good\n" * 30_000)
    output = tmp_path / "out" / "small"
    output.parent.mkdir()
    program = start("compress", tiny_model, "--method", "fwsvd", "--keep", "0.5", "--data", texts, "--samples", 30_000,
                    "-o", output, started=("-c", IMPATIENT))  # fmt: skip
    # It is at work once it has told how far it is.
    assert program.stderr is not None and "Measuring" in program.stderr.readline()
    time.sleep(0.2)
    program.send_signal(signal.SIGINT)
    out, err = program.communicate(timeout=60)
    assert program.returncode == 130
    assert out == "" and err.splitlines()[-1] == "Interrupted." and "Traceback" not in err
    assert list(output.parent.iterdir()) == []


@pytest.mark.parametrize(
    "line",
    [
        "inspect {model} --json",
        "evaluate {model} --batch 1 --length 8 --json",
        "compress {model} --method rtn:bits=8 --targets attention -o {out} --json",
        "run {recipe} -o {out} --json",
        "study {study} -o {out} --workers 2 --json",
    ],
)
@pytest.mark.slow
def test_what_laconic_saved_is_read_by_a_program_that_has_just_begun(line: str, small: Path, tmp_path: Path) -> None:
    recipe, study = tmp_path / "recipe.yaml", tmp_path / "study.yaml"
    recipe.write_text(f"model: {small}\nsteps:\n- compress: {{method: {{rtn: {{bits: 8}}}}, targets: [attention]}}\n")
    study.write_text(f"axes: {{recipe: [{recipe}], seed: [0]}}\ntasks: []\ncost: {{batch: [1], length: [8]}}\n")
    words = line.format(model=small, recipe=recipe, study=study, out=tmp_path / "out").split()
    if "--workers" not in words:
        program = (
            f"import runpy, sys\nsys.argv = {['laconic', *words]}\nrunpy.run_module('laconic', run_name='__main__')"
        )
        assert json.loads(run_fresh(program))
        return
    # Its workers are programs of their own.
    started = start(*words)
    out, err = started.communicate(timeout=240)
    assert started.returncode == 0, err + out
    assert json.loads(out)
