"""Few functions lie between a verb of the command line and the mathematics that it is for."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import laconic
from laconic.cli.main import status
from laconic.compress import Compress
from laconic.model import LanguageModel, Site

ROOT = str(Path(laconic.__file__).parent)
NO_FUNCTION = {"<genexpr>", "<lambda>", "<listcomp>", "<dictcomp>", "<setcomp>"}
MOST = 9


def path_from_verb() -> list[str]:
    """The functions of laconic that lead here, the verb first, without generator expressions and lambdas."""
    frame, names = sys._getframe(1), []
    while frame is not None:
        code, file = frame.f_code, frame.f_code.co_filename
        if file.startswith(ROOT) and code.co_name not in NO_FUNCTION:
            names.append(f"{file.removeprefix(ROOT)}:{code.co_qualname}")
            if names[-1] == "/cli/compress.py:compress":
                return names[::-1]
        frame = frame.f_back
    raise AssertionError("no verb led here")


@pytest.mark.parametrize(
    ("method", "function"),
    [
        ("drone:rank=2", "laconic.methods.lowrank.drone.two_sided_components"),
        ("gptq:bits=4", "laconic.methods.quantize.gptq.gptq"),
        ("narrow:heads=0.5", "laconic.compress.width_parts.removal_order"),
        ("narrow:heads=0.5", "laconic.compress.width_parts.refit_columns"),
        ("shorten:drop=1", "laconic.compress.kl_metric.divergence"),
    ],
)
def test_the_mathematics_is_near_the_verb(
    method: str, function: str, monkeypatch: pytest.MonkeyPatch, tiny_model: Path, texts: Path, tmp_path: Path
) -> None:
    path, _, name = function.rpartition(".")
    module = importlib.import_module(path)
    numeric: Callable[..., Any] = getattr(module, name)
    paths: list[list[str]] = []

    def recorded(*args: Any, **kwargs: Any) -> Any:
        paths.append(path_from_verb())
        return numeric(*args, **kwargs)

    monkeypatch.setattr(module, name, recorded)
    arguments = ["compress", tiny_model, "--method", method, "--data", texts, "-o", tmp_path / "small"]
    assert status([str(argument) for argument in arguments]) == 0
    # The verb itself is not counted, and the numeric function is.
    longest = max(paths, key=len)
    assert len(longest) <= MOST, "\n".join([*longest, function])


def test_a_verb_builds_one_step_and_lists_the_layers_once_for_each_state_of_the_model(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Path, texts: Path, tmp_path: Path
) -> None:
    """The model has two states: without weights, to be checked, and with weights, to be compressed."""
    steps: list[Compress] = []
    listed: list[str] = []
    check, sites = Compress.__post_init__, LanguageModel.sites

    def count_step(step: Compress) -> None:
        steps.append(step)
        check(step)

    def count_listing(lm: LanguageModel, *targets: Any) -> list[Site]:
        listed.append(lm.device.type)
        return sites(lm, *targets)

    monkeypatch.setattr(Compress, "__post_init__", count_step)
    monkeypatch.setattr(LanguageModel, "sites", count_listing)
    arguments = [
        "compress",
        tiny_model,
        "--method",
        "drone",
        "--keep",
        "0.5",
        "--data",
        texts,
        "-o",
        tmp_path / "small",
    ]
    assert status([str(argument) for argument in arguments]) == 0
    assert len(steps) == 1
    assert listed == ["meta", "cpu"]
