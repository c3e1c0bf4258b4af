"""Each verb does its work, prints one JSON object when asked to, and names every mistake in one sentence."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from laconic.cli.main import status
from tests.architectures import BY_NAME, Architecture
from tests.cli.printed import Output, complaint, said
from tests.experts import jetmoe
from tests.tokens import letters
from tests.unread import spoil


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


def test_what_cannot_be_compressed_stays_where_that_is_asked_for(capsys: Output, tmp_path: Path) -> None:
    mixture = tmp_path / "mixture"
    Architecture("jetmoe", jetmoe).model().save_pretrained(mixture)
    spoilt = shutil.copytree(mixture, tmp_path / "spoilt")
    spoil(spoilt)
    asked = ("--method", "rtn:bits=4", "-o", tmp_path / "out")
    capsys.readouterr()
    # Before weights are read, and after the line that says where its matrices were found.
    assert status(["compress", str(spoilt), *map(str, asked)]) == 2
    assert "94.6% of the parameters that attention, ffn select" in capsys.readouterr().err.splitlines()[-1]
    assert status(["compress", str(mixture), *map(str, asked), "--allow-dense"]) == 0
    told = capsys.readouterr().out
    assert "allow_dense: true" in told
    assert "Not compressed in the blocks, and not counted above: 45,056 of 47,616 parameters (94.6%)" in " ".join(
        told.split()
    )
    assert said(capsys, "inspect", mixture)["dense"]["share"] == 0.9462
    again = said(capsys, "run", tmp_path / "out" / "recipe.yaml", "-o", tmp_path / "again")
    assert again["found"][0]["dense"]["names"][0] == "mlp.input_linear.weight"


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
    line = f"keep 0.5 was requested; the nearest sizes below it keep {told['kept']:.4f}"
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
    assert "(before, they shared the bytes of other matrices; 0 not compressed)" in capsys.readouterr().out


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
