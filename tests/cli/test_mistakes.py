"""Every verb names a mistake in one sentence and leaves nothing."""

import json
import shutil
from importlib import import_module
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from laconic.cli.main import status
from tests.cli.printed import SVD, Output, complaint


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("nowhere/at/all", *SVD), "no model folder 'nowhere/at/all'"),
        (("MODEL", "--method", "svdd", "--keep", "0.5"), "no method 'svdd': did you mean 'svd'?"),
        (("MODEL", "--method", "shrink-heads:sice=4"), "--method.shrink-heads: There is no key 'sice': did you mean"),
        (("MODEL", "--method", "shrink-heads:keep=2"), "--method.shrink-heads.keep must be in (0, 1]; got 2."),
        (("MODEL", "--method", "narrow:heads=0"), "--method.narrow.heads must be in (0, 1]; got 0."),
        (("MODEL", "--method", "narrow"), "--method.narrow: The step 'narrow' needs a size"),
        (
            ("MODEL", "--method", "narrow", "--keep", "0.5"),
            "or in place of them narrow:keep=F, or narrow:experts=F for a mixture of experts, with F in (0, 1].",
        ),
        (
            ("MODEL", "--method", "narrow:heads=0.5", "--keep", "0.5"),
            "keep does not apply to 'narrow', because it is a step: leave keep out, and set its size by narrow:heads=… "
            "or narrow:channels=… or narrow:experts=… or narrow:keep=…; got 0.5.",
        ),
        (("MODEL", "--method", "shorten", "--keep", "0.5"), "give either shorten:drop=N or shorten:blocks=[N,…]."),
        (
            ("MODEL", "--method", "shorten:drop=1", "--keep", "0.5"),
            "set its size by shorten:drop=… or shorten:blocks=…; got 0.5.",
        ),
        (("MODEL", "--method", "narrow:heads=0.5"), "--data is missing"),
        (("MODEL", "--method", "shrink-head:size=4"), "no method 'shrink-head': did you mean 'shrink-heads'?"),
        (
            ("MODEL", "--method", "shrink-heads:size=4", "--keep", "0.5"),
            "leave keep out, and set its size by shrink-heads:keep=… or shrink-heads:size=…; got 0.5.",
        ),
        (("MODEL", "--method", "svd", "--keep", "0"), "--keep must be in (0, 1]; got 0.0."),
        (("MODEL", "--method", "svd", "--keep", "1.5"), "--keep must be in (0, 1]; got 1.5."),
        (("MODEL", "--method", "svd", "--keep", "half"), "--keep must be a number in (0, 1]; got 'half'."),
        (("MODEL", "--method", "svd", "--keep", "ffn=2"), "--keep ffn must be in (0, 1]; got 2.0."),
        (("MODEL", "--method", "svd"), "needs a size"),
        (
            ("MODEL", "--method", "svd:rank=2", "--keep", "0.5"),
            "keep does not apply to 'svd': its size is set by rank.",
        ),
        (("MODEL", *SVD, "--allocate", "global"), "allocate: global compares weights one by one, and 'svd' has"),
        (
            ("MODEL", "--method", "svd:rank=4", "--allocate", "spectrum"),
            "allocate: spectrum divides keep among the matrices, but 'svd' has a size of its own; give keep",
        ),
        (("MODEL", *SVD, "--targets", "fnn"), "no target 'fnn': did you mean 'ffn'?"),
        (
            ("MODEL", *SVD, "--allocate", "fair"),
            "allocate must be one of uniform, spectrum, threshold, global, Q2_K, ",
        ),
        (("MODEL", "--method", "drone", "--keep", "0.5"), "--data is missing"),
        (("MODEL", *SVD, "--data", "./nowhere.txt"), "nowhere.txt"),
        (("MODEL", *SVD, "--data", "EMPTY"), "no rows"),
        (("MODEL", *SVD, "--device", "abacus"), "--device must be cpu, cuda or cuda:N; got 'abacus'."),
        (("MODEL", *SVD, "--device", "meta"), "--device must be cpu, cuda or cuda:N; got 'meta'."),
        (("MODEL", *SVD, "--device", "cuda:99"), "--device 'cuda:99' is not available"),
        (("MODEL", "--method", "svd:rank=["), "--method, rank must be a YAML value; got '['."),
        (("MODEL", "--method", "svd:rnk=3"), "The method 'svd' has no parameter 'rnk': did you mean 'rank'?"),
        (("MODEL", *SVD, "--samples", "many"), "--samples"),
        (("MODEL", *SVD, "--batch-size", "0"), "--batch-size"),
        (("MODEL", *SVD, "--max-length", "1"), "--max-length"),
        (("MODEL", *SVD, "--sequential"), "sequential must be left out, because it changes nothing for 'svd'."),
        (("MODEL", *SVD, "--anchored"), "--data is missing"),
        (
            ("MODEL", "--method", "narrow:heads=0.5", "--sequential", "--data", "builtin:pydoc"),
            "it changes nothing for 'narrow'; the step has a parameter for it: narrow:sequential=true.",
        ),
        (("MODEL", *SVD, "--bogus"), "No such option: --bogus"),
        (("UNKNOWN", *SVD), "has no entry in laconic.model.anatomy, and no "),
        (("NAN", *SVD), "NaN"),
    ],
)
def test_compress_names_the_mistake_and_leaves_nothing(
    capsys: Output, tiny_model: Path, tmp_path: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    output = tmp_path / "small"
    stands_for = {"MODEL": tiny_model, "EMPTY": tmp_path / "empty.txt"}
    (tmp_path / "empty.txt").touch()
    if arguments[0] in ("UNKNOWN", "NAN"):
        stands_for[arguments[0]] = _spoilt(tiny_model, tmp_path / "spoilt", arguments[0])
    before = set(tmp_path.iterdir())
    filled = [str(stands_for.get(argument, argument)) for argument in arguments]
    assert sentence in complaint(capsys, "compress", *filled, "-o", output)
    assert set(tmp_path.iterdir()) == before


def _spoilt(model: Path, folder: Path, how: str) -> Path:
    shutil.copytree(model, folder)
    if how == "UNKNOWN":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "model_type": "resnet", "architectures": []}))
    else:
        tensors = load_file(folder / "model.safetensors")
        tensors["classifier.weight"][0, 0] = torch.nan
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("evaluate", "MODEL", "--tasks", "glue/sst3"), "sst"),
        (("evaluate", "MODEL", "--tasks", ","), "--tasks names no task"),
        (("evaluate", "MODEL", "--tasks", "glue/sst2", "--limit", "0"), "--limit"),
        (("evaluate", "MODEL", "--tasks", "glue/sst2", "--against", "./nowhere"), "no model folder './nowhere'"),
        (("run", "nowhere.yaml", "-o", "OUT"), "The recipe 'nowhere.yaml' cannot be read"),
        (("inspect", "./nowhere"), "no model folder './nowhere'"),
        (("inspect", "MODEL", "--data", "nowhere.txt"), "There is no data 'nowhere.txt'"),
        (("comprss",), "Did you mean 'compress'?"),
        (("compress",), "Missing"),
    ],
)
def test_the_other_verbs_name_the_mistake(
    capsys: Output, tiny_model: Path, tmp_path: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    stands_for = {"MODEL": tiny_model, "OUT": tmp_path / "out"}
    assert sentence in complaint(capsys, *(stands_for.get(argument, argument) for argument in arguments))


def test_the_demo_without_its_model_says_what_to_install(
    capsys: Output, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("laconic.cli.demo.find_spec", lambda name: None)
    assert "pip install 'laconic-lm[demo]'" in complaint(capsys, "demo", "-o", tmp_path / "demo")


@pytest.mark.parametrize(
    ("error", "expected", "words"),
    [
        (KeyboardInterrupt(), 130, ""),
        (OSError(28, "No space left on device", "out/model.safetensors"), 2, "out/model.safetensors"),
        (PermissionError(13, "Permission denied", "out"), 2, "Permission denied"),
    ],
)
def test_what_the_system_refuses_and_what_the_user_stops(
    capsys: Output, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    error: BaseException, expected: int, words: str,
) -> None:  # fmt: skip
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(import_module("laconic.recipe.entry"), "load", refuse)
    assert status(["compress", str(tiny_model), *SVD, "--json", "-o", str(tmp_path / "small")]) == expected
    captured = capsys.readouterr()
    assert captured.out == "" and words in captured.err and len(captured.err.splitlines()) <= 1
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--method", "svd", "--keep", "0.5", "--keep", "0.3"), "The option '--keep' is given 2 times; give it once."),
        ((*SVD, "--output", "other"), "The option '--output' is given 2 times; give it once."),
        (("--method", "svd:rank=2,rank=3"), "--method: The parameter 'rank' is given twice; give it once."),
        (("--method", "svd", "--keep", "ffn=0.5, ffn=0.3"), "--keep ffn is given twice; give it once."),
        ((*SVD, "--samples", "x" * 10**5), "--samples must be a whole number; got 'xxx"),
        ((*SVD, "--samples", "1.5"), "--samples must be a whole number; got '1.5'."),
        ((*SVD, "--max-length", "1"), "--max-length must be greater than or equal to 2; got '1'."),
        ((*SVD, "--targets", ""), "--targets must be groups or globs, like attention or ffn; got ''."),
        ((*SVD, "--targets", ", "), "--targets must be groups or globs, like attention or ffn; got ', '."),
        ((*SVD, "--seed", str(2**64)), f"--seed must be in [0, {2**32 - 1}]; got {2**64}."),
    ],
)
def test_an_option_that_is_given_twice_or_without_end_or_cannot_be(
    capsys: Output, tiny_model: Path, tmp_path: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    said = complaint(capsys, "compress", tiny_model, *arguments, "-o", tmp_path / "small")
    assert said.startswith(sentence) and len(said) <= 3000


def test_an_override_that_is_given_twice(capsys: Output, tiny_model: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"model": str(tiny_model), "steps": [{"compress": {"method": "svd:rank=2"}}]}))
    said = complaint(capsys, "run", recipe, "seed=1", "seed=2", "-o", tmp_path / "small")
    assert said == "recipe.seed is overridden 2 times; give it once."
