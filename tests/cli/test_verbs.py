"""Each verb does its work, prints one JSON object when asked to, and names every mistake in one sentence."""

import json
import platform
import shlex
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from laconic.cli.main import status
from laconic.cli.options import keep_from
from laconic.model import skeleton
from laconic.recipe.described import KINDS
from laconic.recipe.flow import steps_of
from laconic.recipe.order import check_order
from laconic.recipe.parse import method_or_step
from laconic.recipe.steps import STEPS
from tests.architectures import BY_NAME, Architecture
from tests.experts import MIXTURES
from tests.tokens import letters
from tests.unread import spoil

Output = pytest.CaptureFixture[str]


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


def test_compress_inspect_and_run_again(capsys: Output, tiny_model: Path, texts: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    made = said(capsys, "compress", tiny_model, "--method", "kfac-svd:multiple=1", "--keep", "attention=0.5,ffn=0.4",
                "--allocate", "spectrum", "--data", texts, "--samples", 6, "-o", small)  # fmt: skip
    assert made["output"] == str(small) and made["bytes"] < 0.5 * made["dense_bytes"]
    assert said(capsys, "inspect", small, "-o", tmp_path / "seen")["model"] == str(small)
    pictures = ("size-by-part", "magnitudes", "far-from-zero", "top-l1", "effective-rank", "spectra")
    assert {path.name for path in (tmp_path / "seen").iterdir()} == {
        "inspect.json", "inspect.html", *(f"{name}.{kind}" for name in pictures for kind in ("png", "svg")),
    }  # fmt: skip
    ran = said(capsys, "inspect", tiny_model, "--data", texts)
    assert ran["activity"]["source"] == str(texts) and len(ran["words"]) >= 4
    again = said(capsys, "run", small / "recipe.yaml", "steps[0].compress.keep=0.3", "-o", tmp_path / "smaller")
    assert again["bytes"] <= 0.3 * again["dense_bytes"]


def test_experts_are_left_where_that_is_asked_for_and_that_is_said(capsys: Output, tmp_path: Path) -> None:
    mixture = tmp_path / "mixture"
    Architecture("mixtral", MIXTURES["mixtral"][0]).model().save_pretrained(mixture)
    spoilt = shutil.copytree(mixture, tmp_path / "spoilt")
    spoil(spoilt)
    asked = ("--method", "rtn:bits=4", "-o", tmp_path / "out")
    capsys.readouterr()
    # Before weights are read, and after the line that says where its matrices were found.
    assert status(["compress", str(spoilt), *map(str, asked)]) == 2
    assert "85.8% of the parameters that attention, ffn name" in capsys.readouterr().err.splitlines()[-1]
    assert status(["compress", str(mixture), *map(str, asked), "--allow-dense"]) == 0
    told = capsys.readouterr().out
    assert "allow_dense: true" in told
    assert "Left dense in the blocks, and not counted above: 37,120 of 43,264 parameters (85.8%)" in " ".join(
        told.split()
    )
    assert said(capsys, "inspect", mixture)["dense"]["share"] == 0.858
    again = said(capsys, "run", tmp_path / "out" / "recipe.yaml", "-o", tmp_path / "again")
    assert again["found"][0]["dense"]["names"][0] == "mlp.experts.gate_up_proj"


def test_compress_prints_a_recipe_that_run_takes(capsys: Output, tiny_model: Path, tmp_path: Path) -> None:
    arguments = ["compress", tiny_model, "--method", "svd:rank=4", "--targets", "ffn", "-o", tmp_path / "one"]
    assert status([str(argument) for argument in arguments]) == 0
    printed = capsys.readouterr().out
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(printed[: printed.index("\n\n")])
    plan = tmp_path / "plan.yaml"
    plan.write_text("encoder.layer.0.intermediate.dense: {svd: {rank: 2}}\n".replace("encoder", "bert.encoder"))
    assert set(said(capsys, "run", recipe, "-o", tmp_path / "two")["sites"]) > {"bert.encoder.layer.0.output.dense"}
    planned = said(capsys, "run", recipe, "--plan", plan, "-o", tmp_path / "three")
    assert planned["sites"] == {"bert.encoder.layer.0.intermediate.dense": {"svd": {"rank": 2}}}


def test_what_keep_came_to_is_said_where_bits_are_too_few_to_reach_it(
    capsys: Output, tiny_model: Path, tmp_path: Path
) -> None:
    made = said(capsys, "compress", tiny_model, "--method", "rtn", "--keep", 0.5, "-o", tmp_path / "one")
    (told,) = made["found"][0]["reached"]
    assert status(["compress", str(tiny_model), "--method", "rtn", "--keep", "0.5", "-o", str(tmp_path / "two")]) == 0
    line = f"keep 0.5 was asked for; the nearest sizes below it keep {told['kept']:.4f}"
    assert line in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            "rtn:bits=4,group_size=40",
            "group_size 40 is more than the 32 columns of 'bert.encoder.layer.0.attention.self.query' and of 9 other "
            "matrices: each row is one group there.\n",
        ),
        ("rtn:bits=4,group_size=32", ""),
        ("rtn:bits=4", ""),
        ("rtn:bits=4,group_size=channel", ""),
    ],
)
def test_groups_that_are_wider_than_a_matrix_are_told(
    capsys: Output, tiny_model: Path, tmp_path: Path, given: str, told: str
) -> None:
    assert status(["compress", str(tiny_model), "--method", given, "-o", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().err == told


def test_bytes_that_a_tied_matrix_shared_are_no_fraction(capsys: Output, tmp_path: Path) -> None:
    BY_NAME["llama-tied"].lm().model.save_pretrained(tmp_path / "tied")
    letters("start").save_pretrained(tmp_path / "tied")
    command = ["compress", str(tmp_path / "tied"), "--method", "rtn:bits=4", "--targets", "embedding"]
    assert status([*command, "-o", str(tmp_path / "out")]) == 0
    assert "(they shared the bytes of matrices that stay; 0 left as they were)" in capsys.readouterr().out


def test_how_it_is_calibrated_and_in_which_order_is_in_the_recipe(
    capsys: Output, tiny_model: Path, texts: Path, tmp_path: Path
) -> None:
    options = ("--method", "wanda:sparsity=0.5", "--data", texts, "--samples", 6, "--batch-size", 4, "--max-length", 7)
    spelled = {}
    for course in ("sequential", "anchored"):
        said(capsys, "compress", tiny_model, *options, f"--{course}", "-o", tmp_path / course)
        spelled[course] = yaml.safe_load((tmp_path / course / "recipe.yaml").read_text())
        assert {"samples": 6, "batch_size": 4, "max_length": 7}.items() <= spelled[course].items()
    steps = {course: recipe["steps"][0]["compress"] for course, recipe in spelled.items()}
    assert (steps["sequential"]["sequential"], steps["sequential"]["anchored"]) == (True, False)
    assert steps["anchored"]["anchored"]
    # What is said of rows reaches the model: other rows give other zeros.
    masks = {}
    for name, more in {"as": (), "short": ("steps[0].compress.sequential=true", "max_length=3")}.items():
        said(capsys, "run", tmp_path / "sequential" / "recipe.yaml", *more, "-o", tmp_path / name)
        masks[name] = load_file(tmp_path / name / "model.safetensors")
    first = load_file(tmp_path / "sequential" / "model.safetensors")
    assert all(torch.equal(tensor, masks["as"][name]) for name, tensor in first.items())
    assert any(not torch.equal(tensor, masks["short"][name]) for name, tensor in first.items())


def test_steps_are_named_as_methods_are(capsys: Output, tiny_model: Path, texts: Path, tmp_path: Path) -> None:
    made = said(capsys, "compress", tiny_model, "--method", "shrink-heads:size=5,multiple=1",
                "--method", "svd:multiple=1", "--keep", 0.5, "--data", texts, "--samples", 6, "-o",
                tmp_path / "one")  # fmt: skip
    assert made["bytes"] < 0.5 * made["dense_bytes"]
    steps = yaml.safe_load((tmp_path / "one" / "recipe.yaml").read_text())["steps"]
    assert [next(iter(step)) for step in steps] == ["shrink-heads", "compress"]
    assert steps[0]["shrink-heads"] == {"size": 5, "multiple": 1}


def test_one_threshold_for_all_is_meant_for_the_method_that_has_scores(
    capsys: Output, tiny_model: Path, tmp_path: Path
) -> None:
    said(capsys, "compress", tiny_model, "--method", "svd:rank=8", "--method", "magnitude:sparsity=0.5",
         "--allocate", "global", "-o", tmp_path / "one")  # fmt: skip
    first, second = yaml.safe_load((tmp_path / "one" / "recipe.yaml").read_text())["steps"]
    assert (first["compress"]["allocate"], second["compress"]["allocate"]) == ("uniform", "global")


def test_heads_and_channels_go_by_one_option(capsys: Output, tiny_model: Path, texts: Path, tmp_path: Path) -> None:
    made = said(capsys, "compress", tiny_model, "--method", "narrow:heads=0.5,channels=0.5", "--data", texts,
                "--samples", 6, "-o", tmp_path / "small")  # fmt: skip
    sizes = made["bytes"], made["dense_bytes"]
    assert isinstance(sizes[0], int)
    assert 2 * sizes[0] == sizes[1]
    steps = yaml.safe_load((tmp_path / "small" / "recipe.yaml").read_text())["steps"]
    assert steps[0]["narrow"]["importance"] == "obs" and steps[0]["narrow"]["channels"] == 0.5


def test_methods_lists_all_of_them(capsys: Output) -> None:
    said_of = said(capsys, "methods")
    listed = said_of["methods"]
    assert {method["name"] for method in listed} >= {"svd", "fwsvd", "drone", "kfac-svd"}
    assert all(method["paper"] and method["what"] for method in listed)
    assert {step["name"] for step in said_of["steps"]} == {step.name for step in STEPS} - {"compress"}
    assert status(["methods"]) == 0 and "kfac-svd" in capsys.readouterr().out


@pytest.mark.parametrize("name", KINDS)
def test_methods_shows_one_with_an_example_that_is_one(name: str, capsys: Output, tiny_model: Path) -> None:
    shown = said(capsys, "methods", name)
    assert shown["name"] == name and shown["what"]
    assert all(one["meaning"] and one["type"] for one in shown["parameters"])
    assert status(["methods", name]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert shown["what"] in printed and all(one["name"] in printed for one in shown["parameters"])
    assert f"Example: {shown['example']}" in printed
    arguments = shlex.split(shown["example"])
    given = dict(zip(arguments[3::2], arguments[4::2], strict=True))
    steps = steps_of(
        [method_or_step(given["--method"], "--method")], keep_from(given.get("--keep")), "uniform", ("ffn",)
    )
    assert any(step.needs_data for step in steps) <= ("--data" in given)
    check_order(skeleton(str(tiny_model)), steps, ["--method"])


def test_methods_tells_types_defaults_and_what_each_is_for(capsys: Output) -> None:
    parameters = {one["name"]: one for one in said(capsys, "methods", "gptq")["parameters"]}
    assert parameters["bits"] == {
        "name": "bits", "type": "a whole number in [2, 8]", "default": "none",
        "meaning": "of each code; in place of `keep`.",
    }  # fmt: skip
    assert parameters["group_size"]["type"] == "a whole number in [1, ∞) or channel or tensor"
    assert (parameters["act_order"]["type"], parameters["act_order"]["default"]) == ("true or false", "true")
    assert said(capsys, "methods", "kmeans")["parameters"][1]["meaning"].startswith("what shares a table")
    (needed,) = [one for one in said(capsys, "methods", "compress")["parameters"] if one["default"] is None]
    assert needed["name"] == "method"
    assert "did you mean 'gptq'?" in complaint(capsys, "methods", "gtpq")


def test_the_version_is_shown_with_what_figures_depend_on(capsys: Output) -> None:
    assert status(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"laconic {version('laconic')} " + (
        f"(python {platform.python_version()}, torch {torch.__version__}, transformers {version('transformers')})"
    )


SVD = ("--method", "svd", "--keep", "0.5")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("nowhere/at/all", *SVD), "no model folder 'nowhere/at/all'"),
        (("MODEL", "--method", "svdd", "--keep", "0.5"), "no method 'svdd': did you mean 'svd'?"),
        (("MODEL", "--method", "shrink-heads:sice=4"), "--method.shrink-heads: There is no key 'sice': did you mean"),
        (("MODEL", "--method", "shrink-heads:keep=2"), "--method.shrink-heads.keep must be in (0, 1]; got 2."),
        (("MODEL", "--method", "narrow:heads=0"), "--method.narrow.heads must be in (0, 1]; got 0."),
        (("MODEL", "--method", "narrow"), "--method.narrow: The step 'narrow' needs a size"),
        (("MODEL", "--method", "narrow:heads=0.5"), "--data is missing"),
        (("MODEL", "--method", "shrink-head:size=4"), "no method 'shrink-head': did you mean 'shrink-heads'?"),
        (
            ("MODEL", "--method", "shrink-heads:size=4", "--keep", "0.5"),
            "keep must be left out, because 'shrink-heads'",
        ),
        (("MODEL", "--method", "svd", "--keep", "0"), "--keep must be in (0, 1]; got 0.0."),
        (("MODEL", "--method", "svd", "--keep", "1.5"), "--keep must be in (0, 1]; got 1.5."),
        (("MODEL", "--method", "svd", "--keep", "half"), "--keep must be a number in (0, 1]; got 'half'."),
        (("MODEL", "--method", "svd", "--keep", "ffn=2"), "--keep ffn must be in (0, 1]; got 2.0."),
        (("MODEL", "--method", "svd"), "needs a size"),
        (("MODEL", "--method", "svd:rank=2", "--keep", "0.5"), "says its own size"),
        (("MODEL", *SVD, "--allocate", "global"), "allocate: global compares weights one by one, and 'svd' has"),
        (("MODEL", *SVD, "--targets", "fnn"), "no target 'fnn': did you mean 'ffn'?"),
        (
            ("MODEL", *SVD, "--allocate", "fair"),
            "allocate must be one of uniform, spectrum, threshold, global; got 'fair'.",
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
            "it changes nothing for 'narrow'; a step says so itself, as narrow:sequential=true.",
        ),
        (("MODEL", *SVD, "--bogus"), "No such option: --bogus"),
        (("UNKNOWN", *SVD), "has no entry in laconic.model.anatomy; known are"),
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


def writers(model: Path, tmp_path: Path) -> dict[str, tuple[object, ...]]:
    """Every verb that writes to a folder, by its name."""
    (tmp_path / "recipe.yaml").write_text(f"model: {model}\nsteps: [compress: {{method: svd, keep: 0.5}}]\n")
    axes = {"model": [str(model)], "method": ["svd"], "keep": [0.5]}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({"axes": axes, "cost": {"batch": [1], "length": [4]}}))
    (tmp_path / "studied" / "cells").mkdir(parents=True, exist_ok=True)
    return {
        "compress": ("compress", model, *SVD),
        "run": ("run", tmp_path / "recipe.yaml"),
        "export": ("export", model, "--to", "openvino"),
        "inspect": ("inspect", model),
        "study": ("study", tmp_path / "study.yaml"),
        "report": ("report", tmp_path / "studied"),
        "demo": ("demo",),
    }


WRITERS = pytest.mark.parametrize("verb", ["compress", "run", "export", "inspect", "study", "report", "demo"])


@WRITERS
def test_an_output_without_a_name_is_refused(verb: str, capsys: Output, tiny_model: Path, tmp_path: Path) -> None:
    said = complaint(capsys, *writers(tiny_model, tmp_path)[verb], "-o", "")
    assert "--output" in said and "folder" in said and said.endswith("got ''.")


@WRITERS
def test_an_output_that_cannot_be_is_refused_before_a_model_is_loaded(
    verb: str, capsys: Output, tiny_model: Path, tmp_path: Path
) -> None:
    # Weights that cannot be read tell whether they were.
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    (model / "model.safetensors").write_bytes(b"")
    command = writers(model, tmp_path)[verb]
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for place in ("/proc/out", tmp_path / "file" / "out", tmp_path / "loop" / "out", tmp_path / ("n" * 245)):
        assert "cannot be made" in complaint(capsys, *command, "-o", place)
    if verb not in ("demo", "report"):
        assert "the folder of the model" in complaint(capsys, *command, "-o", model / "out")
        assert "the folder of the model" in complaint(capsys, *command, "-o", model)


def test_an_existing_output_is_refused(capsys: Output, tiny_model: Path, tmp_path: Path) -> None:
    for verb in (("compress", tiny_model, *SVD), ("inspect", tiny_model), ("demo",)):
        assert "exists already" in complaint(capsys, *verb, "-o", tmp_path)


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
    assert "pip install 'laconic[demo]'" in complaint(capsys, "demo", "-o", tmp_path / "demo")


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

    monkeypatch.setattr(sys.modules["laconic.recipe.run"], "load", refuse)
    assert status(["compress", str(tiny_model), *SVD, "--json", "-o", str(tmp_path / "small")]) == expected
    captured = capsys.readouterr()
    assert captured.out == "" and words in captured.err and len(captured.err.splitlines()) <= 1
    assert not (tmp_path / "small").exists()


def test_a_recipe_corrects_what_it_compressed(capsys: Output, tiny_model: Path, texts: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    steps = [{"compress": {"method": "svd:rank=2"}}, {"correct": {"refit": True}}]
    recipe.write_text(yaml.safe_dump({"model": str(tiny_model), "data": str(texts), "samples": 9, "steps": steps}))
    record = said(capsys, "run", recipe, "-o", tmp_path / "small")
    (found,) = [found for found in record["found"] if found]
    assert found["kl_after"] < found["kl_before"] and found["kept"] in ("refit", "biases")
    assert complaint(capsys, "run", recipe, "steps[1].correct.held_out=2", "-o", tmp_path / "no").startswith(
        "recipe.steps[1].correct"
    )


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
        ((*SVD, "--seed", str(2**64)), f"recipe.seed must be in [0, {2**32 - 1}]; got {2**64}."),
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
    assert said == "recipe.seed is given 2 times after the file; give it once."


def test_a_flag_may_be_repeated(capsys: Output) -> None:
    assert status(["methods", "--json", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["methods"]
