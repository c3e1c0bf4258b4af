"""An error about `--targets`, `--keep` or `--anchored` begins with that option, and says why a matrix stays dense."""

from pathlib import Path

import pytest

from laconic.compress import Compress
from laconic.errors import UserError
from laconic.methods import Svd
from laconic.model import LanguageModel
from laconic.recipe.checks import check_order
from tests.architectures import Architecture
from tests.cli.printed import Output, complaint
from tests.experts import MIXTURES, jetmoe

GATE = "model.layers.0.mlp.gate"
DOWN = "model.layers.1.mlp.experts.down_proj"
ROUTER = f"The parameter '{GATE}.weight' cannot be compressed, as it belongs to a router"


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixture")
    Architecture("mixtral", MIXTURES["mixtral"][0]).model().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--targets", GATE), f"--targets: {ROUTER}"),
        (("--targets", f"{GATE}.weight"), f"--targets: {ROUTER}"),
        (("--targets", "*.gate"), "--targets: The target '*.gate' matches no site of this model, only parameters that"),
        (("--targets", f"{DOWN}.3"), f"--targets: The targets name 1 of the 4 matrices of '{DOWN}'"),
        (("--targets", DOWN[:-5]), f"--targets: There is no target '{DOWN[:-5]}': did you mean '{DOWN}'?"),
        (("--targets", "experts", "--anchored"), "--anchored must be left out for experts such as 'model."),
        (("--keep", "0.001"), "--keep must be at least 0."),
        (("--keep", "attention=0.5,experts=0.001"), "--keep experts must be at least 0."),
        (("--keep", "attention=0.5,expert=0.4"), "--keep: There is no targeted group 'expert': did you mean"),
        (("--keep", "attention=0.5"), "--keep must name every targeted group; 'ffn' is missing."),
        (("--method", "narrow:channels=0.5"), "--method[1]: The channels of this 'mixtral' cannot be removed"),
    ],
)  # fmt: skip
def test_an_error_begins_with_its_option(
    capsys: Output, mixture: Path, tmp_path: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    keep = () if "--keep" in arguments else ("--keep", "0.5")
    words = ("--method", "svd", *keep, *arguments, "--data", "builtin:pydoc", "-o", tmp_path / "small")
    said = complaint(capsys, "compress", mixture, *words)
    assert said.startswith(sentence)
    assert ".experts.down_proj.5" not in said


def test_groups_of_a_mixture_name_ffn_too(capsys: Output, mixture: Path, tmp_path: Path) -> None:
    arguments = ("--method", "svd:rank=2", "--targets", "re:nothing", "-o", tmp_path / "small")
    said = complaint(capsys, "compress", mixture, *arguments)
    assert "it has the groups embedding, attention, ffn, experts, head, " in said


def test_a_file_that_is_named_like_an_option_is_no_option(
    capsys: Output, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data.jsonl").write_text("{\n")
    said = complaint(capsys, "compress", tiny_model, "--method", "drone:rank=2", "--data", "data.jsonl", "-o", "small")
    assert said.startswith("data.jsonl:1 is not JSON: ") and said.endswith("; correct it.")


def test_a_recipe_names_the_parameter_of_the_step() -> None:
    lm = LanguageModel.of(Architecture("mixtral", MIXTURES["mixtral"][0]).model()).to_meta()
    step = Compress(method=Svd(rank=2), targets=(GATE,))
    with pytest.raises(UserError, match=rf"^recipe\.steps\[0\]\.compress\.targets: The parameter '{GATE}\.weight'"):
        check_order(lm, [step], ["recipe.steps[0].compress"])


@pytest.mark.filterwarnings("ignore::laconic.errors.StructureNotice")
def test_experts_that_stay_dense_are_of_the_group_of_experts() -> None:
    lm = LanguageModel.of(Architecture("jetmoe", jetmoe).model())
    with pytest.raises(UserError, match=r"as the class JetMoeParallelExperts computes its experts by code of its own"):
        lm.sites(("experts",))
