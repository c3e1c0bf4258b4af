"""The program under a launcher: several processes, one folder, one result on stdout, one sentence for a mistake."""

import json
import shlex
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch

from laconic.cli.main import status
from laconic.model import load
from tests.architectures import outputs
from tests.launched import launched
from tests.pair import Pair


@pytest.mark.slow
def test_a_model_made_by_two_is_that_made_by_one(tiny_model: Path, texts: Path, tmp_path: Path) -> None:
    line = f"compress {tiny_model} --method kfac-svd:multiple=1 --keep 0.5 --allocate spectrum --data {texts} --json -o"
    first, second = launched("-m", "laconic", *shlex.split(line), tmp_path / "two", cache=tmp_path / "cache")
    assert (first[0], second[0]) == (0, 0), (first[1:], second[1:])
    assert json.loads(first[1])["output"] == str(tmp_path / "two")
    assert second[1:] == ("", "")
    # Nothing half written and no lock stays.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "two"]
    assert len(list((tmp_path / "cache" / "solved").iterdir())) == 1
    assert status([*shlex.split(line), str(tmp_path / "one")]) == 0
    assert (tmp_path / "two" / "plan.yaml").read_text() == (tmp_path / "one" / "plan.yaml").read_text()
    one, two = (outputs(load(str(tmp_path / name)).model) for name in ("one", "two"))
    assert torch.allclose(one, two, rtol=1e-5, atol=1e-6)


def said(*arguments: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of the program in a process that is one of several already."""
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        code = status(arguments)
    return code, out.getvalue(), err.getvalue()


@pytest.mark.slow
def test_a_recipe_is_run_and_judged_once(pair: Pair, tiny_model: Path, texts: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {tiny_model}\ndata: {texts}\nsteps:\n- compress: {{method: {{wanda: {{sparsity: 0.5}}}}}}\n"
        "evaluate: {tasks: [], cost: true}\n"
    )
    (code, out, err), second = pair(said, "run", str(recipe), "-o", str(tmp_path / "out"), "--json")
    assert code == 0, err
    assert json.loads(out)["evaluation"]["cost"]["bytes"] > 0
    assert second == (0, "", "")


def test_help_is_printed_once(pair: Pair) -> None:
    first, second = pair(said, "compress", "--help")
    assert "Usage" in first[1] and second == (0, "", "")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("evaluate nowhere/at/all", "There is no model folder"),
        ("compress {model} --method drone --keep 0.5 --data {data} -o {output}", "exists already"),
        ("compress {model} --method drone --keep 0.5 --bits 3", "No such option"),
        ("compress {model} --method svd --keep 0.5 --device cuda:0 -o {output}/new", "got 'cuda:0'"),
    ],
)
def test_a_mistake_is_told_once_and_is_the_exit_status_of_each(
    line: str, sentence: str, pair: Pair, tiny_model: Path, texts: Path, tmp_path: Path
) -> None:
    first, second = pair(said, *shlex.split(line.format(model=tiny_model, data=texts, output=tmp_path)))
    assert first[:2] == (2, "")
    assert sentence in first[2] and first[2].count("\n") == 1
    assert second == (2, "", "")


BREAKS = """
import sys
from laconic.processes import barrier, process_group, rank
with process_group():
    if rank() == 1:
        sys.exit(3)
    barrier()
"""


ENDS = """
from pathlib import Path
from laconic.processes import process_group
with process_group():
    import torch._dynamo
names = [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]
print([name for name in names if "gloo" in name or "tcpstore" in name])
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads have names on Linux only")
def test_no_thread_of_the_group_is_alive_when_the_program_ends(tmp_path: Path) -> None:
    assert [(code, out) for code, out, _ in launched("-c", ENDS, cache=tmp_path)] == [(0, "[]\n")] * 2


def test_none_waits_for_one_that_has_died(tmp_path: Path) -> None:
    first, second = launched("-c", BREAKS, cache=tmp_path)
    assert first[0] not in (0, None) and second[0] == 3


def test_processes_that_do_not_find_each_other_say_so(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "two", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    assert status(["methods"]) == 2
    assert "do not find each other" in capsys.readouterr().err
