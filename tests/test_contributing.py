"""CONTRIBUTING.md's "add a method in four edits", done: a fifth method in a copy of the project passes its suites."""

import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from laconic.methods import METHODS, Drone

ROOT = Path(__file__).parents[1]

FILE = '''"""Truncated SVD of the matrix after its rows were scaled to unit length.

Paper: an example for CONTRIBUTING.md: Ŵ = D SVD_r(D^{-1} W) with D = diag(‖w_i‖).
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from laconic.calibrate import LayerStats
from laconic.methods.lowrank.base import TruncationMethod
from laconic.numerics.lowrank import Components, svd_components


@dataclass(frozen=True, kw_only=True)
class RowScaled(TruncationMethod):
    """Every row counts the same."""

    name = "row-scaled"
    paper = "none: an example"
    needs = frozenset()

    def components(self, weight: Float[Tensor, "out in"], stats: LayerStats) -> Components:
        d = weight.double().norm(dim=1).clamp(min=1e-12)
        A, B = svd_components(weight.double() / d[:, None])
        return Components(A * d[:, None], B)
'''

EQUATION = """

@every_shape
def test_row_scaled_is_its_equation(shape):
    matrix = double(shape)
    d = matrix.weight.norm(dim=1)[:, None]
    assert torch.allclose(approximation(RowScaled(rank=RANK), matrix), d * best_rank(matrix.weight / d), atol=1e-9)
"""

IMPORT = "from laconic.methods.lowrank.row_scaled import RowScaled\n"


def edit(path: Path, pattern: str, replacement: str) -> None:
    """One substitution; it must be possible exactly once."""
    text, count = re.subn(pattern, replacement, path.read_text(), flags=re.MULTILINE)
    assert count == 1, f"{pattern} is not in {path.name} exactly once"
    path.write_text(text)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The library and its tests, elsewhere."""
    for folder in ("laconic", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


@pytest.mark.slow
def test_a_fifth_method_takes_four_edits(copy: Path) -> None:
    (copy / "laconic/methods/lowrank/row_scaled.py").write_text(FILE)
    registry = copy / "laconic/methods/__init__.py"
    edit(registry, r"^from laconic\.methods\.lowrank\.svd import Svd\n", r"\g<0>" + IMPORT)
    edit(registry, r"^    Svd,\n", r"\g<0>    RowScaled,\n")
    suite, equations = copy / "tests/test_every_method.py", copy / "tests/test_equations.py"
    edit(suite, r"^from laconic\.methods import \(\n", IMPORT + r"\g<0>")
    edit(suite, r"^    Svd\(multiple=1\),\n", r"\g<0>    RowScaled(multiple=1),\n")
    edit(equations, r"^from laconic\.methods import .*\n", r"\g<0>" + IMPORT)
    equations.write_text(equations.read_text() + EQUATION)
    tests = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:xdist",
        "-k",
        "row or left_out",
        suite,
        equations,
    ]
    ran = subprocess.run(tests, cwd=copy, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-1000:]
    subprocess.run([sys.executable, "-m", "laconic.recipe.catalogue"], cwd=copy, check=True)
    assert (
        "row-scaled"
        in subprocess.run(
            [sys.executable, "-m", "laconic", "methods"], cwd=copy, capture_output=True, text=True, check=True
        ).stdout
    )


def test_a_method_without_an_example_is_noticed(tmp_path: Path) -> None:
    suite = Path(shutil.copy(ROOT / "tests/test_every_method.py", tmp_path))
    edit(suite, r"^    Drone\(multiple=1\),\n", "")
    names = runpy.run_path(str(suite))
    assert set(METHODS) - {type(example) for example in names["EXAMPLES"]} == {Drone}
    with pytest.raises(AssertionError):
        names["test_no_method_is_left_out"]()
