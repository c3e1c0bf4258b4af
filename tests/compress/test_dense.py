"""Parameters in no layer that can be compressed: they are counted, reported, and refused if there are many."""

from pathlib import Path

import pytest
import torch

from laconic import compress
from laconic.compress import Compress, Outcome
from laconic.errors import UserError
from laconic.formats import Quantized
from laconic.methods import Magnitude, Rtn, Svd
from laconic.model import DEFAULT_TARGETS, LanguageModel, load
from laconic.recipe.checks import check_order
from laconic.report.inspection.parts import measure_parts
from laconic.store import save
from tests.architectures import BY_NAME, HEADS, INNER, WIDTH, Architecture, outputs
from tests.experts import BLOCKS, IN_JETMOE, MIXTURES, OUTSIDE_IN_JETMOE, jetmoe
from tests.model.test_usage import READ

pytestmark = pytest.mark.filterwarnings("ignore::laconic.errors.StructureNotice")
every_mixture = pytest.mark.parametrize("name", MIXTURES)
TOTAL = IN_JETMOE + OUTSIDE_IN_JETMOE
SHARE = IN_JETMOE / TOTAL


def seen(name: str) -> LanguageModel:
    return LanguageModel.of(Architecture(name, MIXTURES[name][0] if name in MIXTURES else jetmoe).model())


def dense_bytes(lm: LanguageModel) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in lm.model.named_parameters() if "put_linear" in name}


@every_mixture
@pytest.mark.parametrize("targets", [DEFAULT_TARGETS, ("blocks",), ("all",)])
def test_of_a_mixture_only_the_router_stays_dense(name: str, targets: tuple[str, ...]) -> None:
    lm, count = seen(name), MIXTURES[name][1]
    coverage = lm.coverage(targets)
    matrices = sum(
        parameter.numel()
        for path, parameter in lm.model.model.layers.named_parameters()
        if parameter.dim() > 1 and not path.endswith("_bias")
    )
    assert (coverage.count, coverage.total) == (count, matrices)
    assert coverage.kinds == ("mlp.router.weight" if name == "gpt-oss" else "mlp.gate.weight",)
    Compress(method=Svd(), keep=0.5, targets=targets).check(lm)
    assert lm.coverage(("experts",)).count == 0


@pytest.mark.parametrize("targets", [("blocks",), ("all",)])
def test_what_cannot_be_compressed_is_counted_and_refused(targets: tuple[str, ...]) -> None:
    lm = seen("jetmoe")
    assert (lm.coverage(targets).count, lm.coverage(targets).total) == (IN_JETMOE, TOTAL)
    sentence = (
        rf"^targets: {SHARE:.1%} of the parameters that {', '.join(targets)} select in the blocks of 'jetmoe' "
        rf"\({IN_JETMOE:,d} of {TOTAL:,d}\) are in no layer that can be compressed and would stay dense: "
        r"mlp\.input_linear\.weight, mlp\.output_linear\.weight.*; compress only the others with allow_dense: true"
    )
    for step in (
        Compress(method=Svd(), keep=0.5, targets=targets),
        Compress(method=Magnitude(sparsity=0.5), targets=targets),
    ):
        with pytest.raises(UserError, match=sentence):
            step.check(lm)
    with pytest.raises(UserError, match=f"^the step.targets: {SHARE:.1%} of the parameters"):
        check_order(lm.to_meta(), [Compress(method=Rtn(bits=4), targets=targets)], ["the step"])


def test_where_it_is_asked_for_the_others_are_compressed_alone(tmp_path: Path) -> None:
    lm = seen("jetmoe")
    before = dense_bytes(lm)
    covered = lm.coverage(("blocks",))
    outcome = Compress(method=Svd(), keep=0.5, targets=("blocks",), allow_dense=True).apply(lm, None)
    assert outcome.dense_nbytes == 4 * covered.sites
    assert 0.4 * outcome.dense_nbytes < outcome.nbytes <= 0.5 * outcome.dense_nbytes
    told = outcome.found["dense"]
    assert (told["parameters"], told["of"]) == (IN_JETMOE, covered.total)
    assert told["names"][:2] == ["mlp.input_linear.weight", "mlp.output_linear.weight"]
    after = dense_bytes(lm)
    assert before and before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert lm.coverage(("blocks",)) == covered, "what was compressed counts as it was"
    save(lm, tmp_path / "saved")
    assert torch.equal(outputs(load(str(tmp_path / "saved")).model), outputs(lm.model))


@every_mixture
def test_the_target_ffn_has_the_experts_too(name: str) -> None:
    lm = seen(name)
    groups = {site.group.value for site in lm.sites(("ffn",))}
    assert groups == ({"ffn", "experts"} if MIXTURES[name][2] else {"experts"})
    assert {site.name for site in lm.sites(("experts",))} <= {site.name for site in lm.sites(("ffn",))}


def test_a_target_that_matches_only_what_cannot_be_compressed() -> None:
    lm = seen("jetmoe")
    target = "*.mlp.input_linear*"
    sentence = r"^targets: The target '\*.*' matches no site of this model, only parameters .*: 'model.layers"
    for allowed in (False, True):
        with pytest.raises(UserError, match=sentence):
            Compress(method=Svd(), keep=0.5, targets=(target,), allow_dense=allowed).check(lm)


def test_from_python() -> None:
    model = Architecture("jetmoe", jetmoe).model()
    with pytest.raises(
        UserError, match=r"^targets: 94.6% of the parameters that attention, ffn select in the blocks of"
    ):
        compress(model, "rtn:bits=4")
    changed = compress(model, "rtn:bits=4", allow_dense=True).model
    assert isinstance(changed.get_submodule("model.layers.0.self_attention.kv_proj"), Quantized)


def test_attention_alone_is_no_case_for_it() -> None:
    outcome = Compress(method=Svd(), keep=0.5, targets=("attention",)).apply(seen("mixtral"), None)
    assert len(outcome.plan) == 4 * BLOCKS and outcome.found == {}


def test_a_second_step_counts_as_the_first_did() -> None:
    """A tenth of the matrices is left dense; after the first step, which makes the others small, it is most of them."""
    lm = LanguageModel.of(Architecture("mamba", READ["mamba"][0]).model())
    share = lm.coverage(("blocks",)).share
    assert 0.05 < share < 0.1
    steps = [Compress(method=Svd(), keep=0.2, targets=("blocks",)), Compress(method=Rtn(bits=4), targets=("blocks",))]
    check_order(lm.to_meta(), steps, ["first", "second"])
    told: list[Outcome] = [step.apply(lm, None) for step in steps]
    assert [outcome.found["dense"]["share"] for outcome in told] == [round(share, 4)] * 2
    assert told[0].found["dense"]["names"] == ["mixer.A_log", "mixer.conv1d.weight", "mixer.dt_proj.weight"]


def test_a_plan_names_what_it_compresses() -> None:
    lm = seen("qwen3-moe")
    name = "model.layers.0.self_attn.q_proj"
    outcome = Compress(method=Svd(), plan={name: Svd(rank=4)}).apply(lm, None)
    assert list(outcome.plan) == [name] and outcome.found["dense"]["parameters"] == MIXTURES["qwen3-moe"][1]


@pytest.mark.parametrize("name", BY_NAME)
def test_known_architectures_leave_nothing(name: str) -> None:
    lm = BY_NAME[name].lm()
    for targets in (DEFAULT_TARGETS, ("blocks",), ("all",)):
        # Cohere's norms of the queries and keys have a row for each head.
        dense = [parameter.name for parameter in lm.coverage(targets).dense]
        assert all(name.endswith("_norm.weight") for name in dense) and (not dense or name == "cohere")
    assert (measure_parts(lm).dense is None) == (measure_parts(lm).dense_note() == "") == (name != "cohere")


def test_numbers_of_all_sites_in_the_blocks() -> None:
    lm = BY_NAME["gpt2"].lm()
    assert lm.coverage().sites == 2 * (4 * WIDTH * WIDTH + 2 * WIDTH * INNER) and WIDTH % HEADS == 0
    assert lm.coverage(("attention",)).sites == 2 * 4 * WIDTH * WIDTH
    assert lm.coverage(("*.0.*",)).sites == lm.coverage().sites // 2


def test_inspect_tells() -> None:
    found = measure_parts(seen("jetmoe"))
    assert found.to_json()["dense"]["parameters"] == IN_JETMOE
    told = f"Dense in the blocks, whatever the method: {IN_JETMOE:,d} of {TOTAL:,d} parameters ({SHARE:.1%}), "
    assert found.dense_note().startswith(told)
