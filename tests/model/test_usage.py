"""A matrix that another module reads, or that no run calls, is no site; a run of the class shows which those are."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as hf
from torch import nn
from transformers import PreTrainedModel

from laconic.calibrate import Calibration
from laconic.compress import Compress
from laconic.errors import UserError
from laconic.evaluate.footprint import count_macs
from laconic.methods import KfacSvd, Rtn, Svd
from laconic.model import LanguageModel, load
from laconic.model.usage import trace_usage
from laconic.store import save
from tests.architectures import BART, BY_NAME, SMALL, VOCABULARY, WIDTH, Architecture, outputs
from tests.calibrate.test_collect_stats import labelled_batches

pytestmark = pytest.mark.filterwarnings("ignore::laconic.errors.StructureNotice")

STATES = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": 2, "state_size": 4, **SMALL}
RWKV = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": 2, "context_length": 16, **SMALL}
MOBILE = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "embedding_size": 24,
    "intra_bottleneck_size": 16,
    "max_position_embeddings": 40,
}

MIXED = {
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 40, **SMALL,
}  # fmt: skip

# The model, and the ends of the paths of its linears that others read.
READ: dict[str, tuple[Callable[[], PreTrainedModel], set[str]]] = {
    "mamba": (lambda: hf.MambaForCausalLM(hf.MambaConfig(**STATES)), {"mixer.dt_proj"}),
    "falcon-mamba": (lambda: hf.FalconMambaForCausalLM(hf.FalconMambaConfig(**STATES)), {"mixer.dt_proj"}),
    "rwkv": (
        lambda: hf.RwkvForCausalLM(hf.RwkvConfig(**RWKV)),
        {"attention.output", "feed_forward.value"},
    ),
    "mobilebert": (
        lambda: hf.MobileBertForMaskedLM(hf.MobileBertConfig(**MOBILE)),
        {"predictions.decoder", "predictions.dense"},
    ),
}
every_read = pytest.mark.parametrize("name", READ)


def linears(model: PreTrainedModel) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}


@every_read
@pytest.mark.parametrize("targets", ["all", "blocks"])
def test_what_others_read_is_left_and_the_folder_runs(name: str, targets: str, tmp_path: Path) -> None:
    build, read = READ[name]
    lm = LanguageModel.of(Architecture(name, build).model())
    before = linears(lm.model)
    left = {path for path in before if ".".join(path.split(".")[-2:]) in read}
    outcome = Compress(method=Svd(), keep=0.5, targets=(targets,), allow_dense=name == "rwkv").apply(lm, None)
    assert left and not left & outcome.plan.keys()
    assert linears(lm.model) >= left
    assert len(outcome.plan) >= len({path for path in before - left if ".layer" in path or ".blocks." in path})
    save(lm, tmp_path / name)
    again = load(str(tmp_path / name))
    assert torch.equal(outputs(again.model), outputs(lm.model))
    assert {site.name for site in again.sites(("all",))} == {site.name for site in lm.sites(("all",))}


@pytest.mark.parametrize("name", ["mamba", "falcon-mamba"])
def test_the_usual_targets_take_what_there_is(name: str) -> None:
    lm = LanguageModel.of(Architecture(name, READ[name][0]).model())
    assert [site.name for site in lm.sites()] == [site.name for site in lm.sites(("ffn",))] != []
    with pytest.raises(UserError, match="The target 'attention' matches no site of this model; it has the groups"):
        lm.sites(("attention",))


def test_bytes_of_a_budget_are_those_of_sites_alone() -> None:
    lm = LanguageModel.of(Architecture("mamba", READ["mamba"][0]).model())
    outcome = Compress(method=Rtn(bits=8), targets=("blocks",)).apply(lm, None)
    sizes = {name: module.weight.numel() for name, module in Architecture("m", READ["mamba"][0]).model().named_modules()
             if isinstance(module, nn.Linear)}  # fmt: skip
    assert outcome.before == {name: 4 * size for name, size in sizes.items() if "mixer" in name and "dt_" not in name}


def test_the_projections_of_an_attention_to_nothing_are_no_sites() -> None:
    lm = LanguageModel.of(Architecture("bart", lambda: hf.BartForCausalLM(hf.BartConfig(**BART, **SMALL))).model())
    names = {site.name for site in lm.sites(("all",))}
    assert not any("encoder_attn" in name for name in names)
    assert {site.name.rsplit(".", 1)[1] for site in lm.sites(("attention",))} == {
        "q_proj", "k_proj", "v_proj", "out_proj",
    }  # fmt: skip
    assert not lm.coverage().dense, "they compute nothing"
    Compress(method=Svd(), keep=0.5, targets=("blocks",)).apply(lm, Calibration(labelled_batches(lm, 1)))


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("backbone.layers.1.mixer.dt_proj", "other code of the model reads its weight directly"),
        ("*.0.mixer.dt_proj", "other code of the model reads its weight directly"),
    ],
)
def test_one_that_is_named_is_refused_with_why(target: str, why: str) -> None:
    lm = LanguageModel.of(Architecture("mamba", READ["mamba"][0]).model())
    with pytest.raises(
        UserError, match=f"^The matrix 'backbone.layers.*dt_proj' cannot be compressed: {why}.*leave it"
    ):
        lm.sites((target,))


def test_one_that_a_plan_names_is_refused_with_why() -> None:
    lm = LanguageModel.of(Architecture("bart", lambda: hf.BartForCausalLM(hf.BartConfig(**BART, **SMALL))).model())
    name = "model.decoder.layers.0.encoder_attn.k_proj"
    with pytest.raises(
        UserError, match=f"The matrix '{name}' cannot be compressed: the model does not call it for text; leave"
    ):
        Compress(method=Svd(), plan={name: Svd(rank=2)}).check(lm)


@pytest.mark.parametrize("name", BY_NAME)
def test_known_architectures_are_run_and_lose_no_site(name: str) -> None:
    lm = BY_NAME[name].lm()
    usage = trace_usage(lm.model, globally=lm.anatomy.global_attention)
    assert usage is not None and usage.matrices
    # DeBERTa's table of relative positions is no linear, and no word embedding.
    assert {path.rpartition(".")[2] for path in lm.excluded_matrices()} <= {"rel_embeddings"}
    assert not usage.matrices - usage.called


def test_shared_layers_are_called_many_times_and_are_sites() -> None:
    lm = BY_NAME["albert-groups"].lm()
    assert {site.name for site in lm.sites(("blocks",))} >= {"albert.encoder.albert_layer_groups.1.albert_layers.0.ffn"}


def test_a_class_that_cannot_be_run_without_weights_has_sites_as_its_modules_say() -> None:
    """Its shapes depend on numbers, so the run needs more than there is; xmod wants to be told a language."""
    config = hf.XmodConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        **SMALL,
    )  # fmt: skip
    model = hf.XmodForMaskedLM(config)
    assert trace_usage(model) is None
    assert not LanguageModel.of(model).excluded_matrices()


def test_experts_that_zeros_did_not_choose_are_called() -> None:
    config = hf.SwitchTransformersConfig(
        vocab_size=VOCABULARY, d_model=WIDTH, d_kv=8, d_ff=48, num_layers=2, num_heads=4, num_experts=4,
        num_sparse_encoder_layers=1, num_sparse_decoder_layers=1,
    )  # fmt: skip
    usage = trace_usage(hf.SwitchTransformersForConditionalGeneration(config))
    experts = set() if usage is None else {path for path in usage.matrices if "experts." in path}
    assert usage is not None and len(experts) == 2 * 2 * 4 * 2 // 2 and experts <= usage.called


ROUTED = {
    "phimoe": (
        lambda: hf.PhimoeForCausalLM(hf.PhimoeConfig(**MIXED, num_local_experts=4, num_experts_per_tok=2)),
        "mlp.router",
    ),
    "llama4": (
        lambda: hf.Llama4ForCausalLM(
            hf.Llama4TextConfig(
                **MIXED, num_local_experts=4, num_experts_per_tok=1, intermediate_size_mlp=48, moe_layers=[0, 1],
                attention_chunk_size=8,
            )
        ),
        "feed_forward.router",
    ),
}  # fmt: skip


# A few tokens are no calibration of experts.
@pytest.mark.filterwarnings("ignore:.*saw fewer tokens:laconic.errors.Notice")
@pytest.mark.parametrize("name", ROUTED)
def test_a_router_that_is_a_linear_and_returns_a_tuple_is_no_site(name: str, tmp_path: Path) -> None:
    build, router = ROUTED[name]
    lm = LanguageModel.of(Architecture(name, build).model())
    assert not [site.name for site in lm.sites(("all",)) if site.name.endswith(router)]
    with pytest.raises(UserError, match=f"'model.layers.1.{router}' cannot be compressed: its module returns more"):
        lm.sites((f"model.layers.1.{router}",))
    assert any(parameter.name.endswith(f"{router}.weight") for parameter in lm.coverage(("blocks",)).dense)
    batch = {"input_ids": torch.tensor([[5, 6, 7, 8]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    Compress(method=KfacSvd(), keep=0.5, allow_dense=True).apply(lm, Calibration([batch]))
    save(lm, tmp_path / name)
    assert torch.allclose(outputs(load(str(tmp_path / name)).model), outputs(lm.model), atol=1e-6)
    routers = [module for path, module in lm.model.named_modules() if path.endswith(router)]
    assert count_macs(lm, batch) > sum(4 * module.weight.numel() for module in routers) > 0


def test_the_same_class_and_configuration_are_run_once() -> None:
    one, other = BY_NAME["gpt2"].model(0), BY_NAME["gpt2"].model(1)
    assert trace_usage(one) is trace_usage(other)
