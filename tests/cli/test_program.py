"""The program as the shell sees it: exit statuses, what goes to which stream, and Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def start(*arguments: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "laconic", *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )


def test_json_alone_goes_to_stdout(tiny_model: Path, tmp_path: Path) -> None:
    program = start("compress", tiny_model, "--method", "svd:rank=2", "-o", tmp_path / "small", "--json")
    out, err = program.communicate(timeout=120)
    assert program.returncode == 0, err
    assert json.loads(out)["output"] == str(tmp_path / "small")
    assert "Loading" not in err and "Warning" not in err


def test_ctrl_c_says_nothing_and_leaves_nothing(tiny_model: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("the cat is good\n" * 150_000)
    output = tmp_path / "out" / "small"
    output.parent.mkdir()
    program = start("compress", tiny_model, "--method", "fwsvd", "--keep", "0.5", "--data", texts, "--samples", 150_000,
                    "-o", output)  # fmt: skip
    # It is at work once it has told how far it is, which it does where a work takes longer than seconds.
    assert program.stderr is not None and "Measuring" in program.stderr.readline()
    time.sleep(0.2)
    program.send_signal(signal.SIGINT)
    out, err = program.communicate(timeout=60)
    assert program.returncode == 130
    assert out == "" and "Traceback" not in err
    assert list(output.parent.iterdir()) == []
