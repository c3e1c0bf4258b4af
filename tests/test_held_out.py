"""The benchmark of large models compares them on texts that it does not calibrate on."""

from pathlib import Path

import pytest

from benchmarks import large_models, large_models_results
from benchmarks.large_models_files import check_held_out, write_texts
from laconic.errors import UserError


def test_texts_are_held_out(tmp_path: Path) -> None:
    write_texts(tmp_path / "texts.txt")
    check_held_out(tmp_path / "texts.txt", large_models.ROWS, large_models_results.ROWS)


def test_a_text_that_is_used_for_both_is_named(tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("".join(f"text {number}\n" for number in range(8)))
    with pytest.raises(UserError, match=r"^Line 7 of '.*' is a calibration text"):
        check_held_out(file, samples=8, compared=2)
