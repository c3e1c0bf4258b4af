"""Matrices of experts are sites, named by their stack and the number of the expert, and are replaced together."""

import pytest
import torch

from laconic.formats import DenseExpertStack, ExpertLayer
from laconic.model import Group, LanguageModel, Role
from tests.architectures import Architecture, alike, outputs
from tests.experts import EXPERTS, MIXTURES

pytestmark = pytest.mark.filterwarnings("ignore::laconic.errors.StructureNotice")
every_mixture = pytest.mark.parametrize("name", MIXTURES)


def tiny(name: str) -> LanguageModel:
    return LanguageModel.of(Architecture(name, MIXTURES[name][0]).model())


@every_mixture
def test_each_matrix_of_each_expert_is_a_site(name: str) -> None:
    lm = tiny(name)
    sites = {site.name: site for site in lm.sites(("experts",))}
    seen = set()
    for path, module in lm.model.named_modules():
        if not path.endswith(".experts"):
            continue
        for stack, role in (("gate_up_proj", Role.INNER), ("down_proj", Role.OUTPUT)):
            for expert in range(EXPERTS):
                site = sites[f"{path}.{stack}.{expert}"]
                expected = module.get_parameter(stack)[expert]
                assert torch.equal(site.weight(), expected.T if name == "gpt-oss" else expected)
                bias = site.bias()
                assert (bias is None) == (name != "gpt-oss")
                assert bias is None or torch.equal(bias, module.get_parameter(f"{stack}_bias")[expert])
                assert (site.group, site.role, site.unit) == (Group.EXPERTS, role, f"{path}.{stack}")
                assert site.shape == tuple(site.weight().shape) and site.block is not None
                assert path.startswith(site.block) and site.support is None and not site.is_lookup
                seen.add(site.name)
    assert seen == sites.keys()
    assert len({site.input for site in sites.values()}) == len({site.storage for site in sites.values()}) == len(sites)


def test_a_target_may_name_a_stack_or_one_matrix_of_it() -> None:
    lm = tiny("mixtral")
    path = "model.layers.1.mlp.experts.down_proj"
    assert {site.unit for site in lm.sites((path,))} == {path} and len(lm.sites((path,))) == EXPERTS
    assert [site.name for site in lm.sites((f"{path}.2",))] == [f"{path}.2"]
    assert len(lm.sites(("*.experts.down_proj",))) == 2 * EXPERTS
    assert len(lm.sites(("re:layers.0.*experts",))) == 2 * EXPERTS


@every_mixture
def test_a_stack_is_replaced_as_a_whole(name: str) -> None:
    lm = tiny(name)
    before = outputs(lm.model)
    path = "model.layers.1.mlp.experts.down_proj"
    first = lm.sites((path,))[0]
    dense = lm.stored_nbytes(lm.sites((path,)))
    assert dense == {path: EXPERTS * first.weight().nbytes}
    stack = DenseExpertStack(EXPERTS, *first.shape, bias=False)
    with torch.no_grad():
        stack.weight.copy_(torch.stack([site.weight() for site in lm.sites((path,))]))
    trial = lm.shallow_copy()
    trial.replace_stack(path, stack)
    assert alike(outputs(trial.model), before), "the biases stay, and the layer computes the same"
    layer = trial.model.get_submodule(path.rpartition(".")[0])
    assert isinstance(layer, ExpertLayer) and not isinstance(
        lm.model.get_submodule(path.rpartition(".")[0]), ExpertLayer
    )
    assert trial.stored_nbytes(trial.sites((path,))) == dense
    assert [site.name for site in trial.sites(("experts",))] == [site.name for site in lm.sites(("experts",))]
    with torch.no_grad():
        stack.weight.zero_()
    trial.replace_stack(path, stack, bias=torch.zeros(EXPERTS, first.shape[0]))
    blind = lm.copy()
    with torch.no_grad():
        for parameter in ("down_proj", "down_proj_bias"):
            for key, tensor in blind.model.get_submodule("model.layers.1.mlp.experts").named_parameters():
                if key == parameter:
                    tensor.zero_()
    assert alike(outputs(trial.model), outputs(blind.model)) and not alike(outputs(blind.model), before)


def test_a_model_with_a_replaced_stack_is_copied_and_emptied() -> None:
    lm = tiny("gpt-oss")
    path = "model.layers.0.mlp.experts.gate_up_proj"
    lm.replace_stack(path, DenseExpertStack.of(torch.nn.Parameter(torch.randn(EXPERTS, 96, 32))))
    copied = lm.copy()
    assert torch.equal(outputs(copied.model), outputs(lm.model))
    empty = lm.to_meta()
    assert {tensor.device.type for tensor in empty.model.parameters()} == {"meta"}
    assert [site.shape for site in empty.sites(("experts",))] == [site.shape for site in lm.sites(("experts",))]
