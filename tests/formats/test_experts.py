"""A layer of experts computes what the transformers module computes that it stands in for, on the same tensors."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
import transformers as hf
from torch import Tensor
from transformers import PreTrainedModel

from laconic.formats import routing as grouping
from laconic.formats.expert_layer import FLAGS, ExpertLayer, find_expert_stacks, is_experts, stack_names
from laconic.formats.experts import DenseExpertStack
from laconic.formats.routing import Routing, grouped_product
from tests.architectures import Architecture, batch_for
from tests.experts import EVERY, EXPERTS, MIXTURES, SMALLER

OTHERS: dict[str, Callable[[], PreTrainedModel]] = {
    "granitemoe": lambda: hf.GraniteMoeForCausalLM(
        hf.GraniteMoeConfig(**EVERY, num_local_experts=EXPERTS, num_experts_per_tok=2)
    ),
    "jamba": lambda: hf.JambaForCausalLM(
        hf.JambaConfig(
            **EVERY, num_experts=EXPERTS, expert_layer_period=2, expert_layer_offset=1, use_mamba_kernels=False,
            attn_layer_period=2, attn_layer_offset=1, mamba_d_state=4, mamba_dt_rank=4,
        )
    ),
    "phimoe": lambda: hf.PhimoeForCausalLM(
        hf.PhimoeConfig(**EVERY, num_local_experts=EXPERTS, num_experts_per_tok=2)
    ),
    # Without a gate.
    "nemotron-h": lambda: hf.NemotronHForCausalLM(
        hf.NemotronHConfig(
            **{name: value for name, value in EVERY.items() if name != "num_hidden_layers"},
            layers_block_type=["attention", "moe"], n_routed_experts=EXPERTS, num_experts_per_tok=2,
            moe_intermediate_size=SMALLER, moe_shared_expert_intermediate_size=SMALLER, use_mamba_kernels=False,
        )
    ),
    # Transposed and with biases, but not interleaved.
    "privacy-filter": lambda: hf.OpenAIPrivacyFilterForTokenClassification(
        hf.OpenAIPrivacyFilterConfig(**EVERY, num_local_experts=EXPERTS, num_experts_per_tok=2)
    ),
    # With a norm after each expert.
    "muse-spark": lambda: hf.MuseSparkTextModel(
        hf.MuseSparkTextConfig(
            **EVERY, num_local_experts=EXPERTS, num_experts_per_tok=2, moe_hidden_size=16,
            moe_intermediate_size=SMALLER, mlp_layer_types=["dense", "sparse"], layer_types=["full_attention"] * 2,
        )
    ),
}  # fmt: skip
BUILD = {**{name: entry[0] for name, entry in MIXTURES.items()}, **OTHERS}


@contextmanager
def swapped(model: PreTrainedModel) -> Iterator[None]:
    """A context in which an `ExpertLayer` stands in for every module of experts."""
    found = {name: module for name, module in model.named_modules() if is_experts(module)}
    assert found
    for name, module in found.items():
        model.set_submodule(name, ExpertLayer(module))
    yield
    for name, module in found.items():
        model.set_submodule(name, module)


def run(model: PreTrainedModel) -> tuple[Tensor, dict[str, Tensor]]:
    """The outputs, and the gradients of their sum of cubes by tensor, with the names of the plain model."""
    model.zero_grad()
    outputs = model(**batch_for(model))[0]
    # The sum of squares of outputs of a norm is constant, so its gradients would be errors of rounding.
    outputs.pow(3).sum().backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    for stack in ("gate_up_proj", "up_proj", "down_proj"):
        renamed = {".weight": "", ".bias": "_bias"}
        for new, old in renamed.items():
            end = f"experts.{stack}{new}"
            grads = {name[: -len(new)] + old if name.endswith(end) else name: grad for name, grad in grads.items()}
    return outputs.detach(), grads


@pytest.mark.parametrize("name", BUILD)
def test_a_swapped_model_has_the_same_outputs_gradients_and_tensors(name: str) -> None:
    model = Architecture(name, BUILD[name]).model()
    model.set_experts_implementation("eager")
    before = {key: (id(tensor), tensor.clone()) for key, tensor in model.named_parameters()}
    outputs, grads = run(model)
    with swapped(model):
        assert {id(tensor) for tensor in model.parameters()} == {identity for identity, _ in before.values()}
        swapped_outputs, swapped_grads = run(model)
    assert torch.allclose(outputs, swapped_outputs, rtol=1e-5, atol=1e-5)
    assert grads.keys() == swapped_grads.keys()
    for key, grad in grads.items():
        assert torch.allclose(grad, swapped_grads[key], rtol=1e-4, atol=1e-4 * float(grad.abs().max())), key
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    for key, (identity, tensor) in before.items():
        assert id(after[key]) == identity and torch.equal(after[key], tensor)


@pytest.mark.parametrize("name", ["mixtral", "gpt-oss"])
def test_a_model_in_double_precision_has_the_same_outputs(name: str) -> None:
    model = Architecture(name, BUILD[name]).model().double()
    model.set_experts_implementation("eager")
    outputs, grads = run(model)
    with swapped(model):
        swapped_outputs, swapped_grads = run(model)
    assert swapped_outputs.dtype is torch.float64
    assert torch.allclose(outputs, swapped_outputs, rtol=1e-12, atol=1e-12)
    for key, grad in grads.items():
        # The router of some classes computes in float32.
        assert torch.allclose(grad, swapped_grads[key], rtol=1e-6, atol=1e-6 * float(grad.abs().max())), key


def test_a_copy_of_a_swapped_model_has_tensors_of_its_own() -> None:
    model = Architecture("gpt-oss", BUILD["gpt-oss"]).model()
    with swapped(model):
        copied = copy.deepcopy(model)
        expected = model(**batch_for(model))[0]
        for parameter in model.parameters():
            parameter.data.zero_()
        assert torch.equal(copied(**batch_for(model))[0], expected)


@pytest.mark.parametrize("name", BUILD)
def test_a_slice_is_the_linear_layer_of_one_expert(name: str) -> None:
    model = Architecture(name, BUILD[name]).model()
    module = next(module for module in model.modules() if is_experts(module))
    generator = torch.Generator().manual_seed(0)
    for stack in find_expert_stacks(module).values():
        x = torch.randn(5, stack.in_features, generator=generator)
        for expert in range(EXPERTS):
            routing = Routing.of(torch.full((5, 1), expert), torch.ones(5, 1), EXPERTS)
            linear = stack.slice(expert)
            assert linear.weight.shape == stack.shape
            assert isinstance(stack, DenseExpertStack)
            assert linear.weight.data_ptr() - stack.weight.data_ptr() == expert * linear.weight.nbytes
            assert torch.allclose(linear(x), stack(x, routing), rtol=1e-6, atol=1e-6)


def sizes(dtype: torch.dtype, on: torch.device) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Rows, matrices and ends: sizes with and without the alignment of a grouped product, experts without rows."""
    generator = torch.Generator().manual_seed(0)
    for rows, inner, outer in ((9, 16, 8), (9, 10, 7), (0, 16, 8)):
        x = torch.randn(rows, inner, generator=generator)
        weight = torch.randn(3, outer, inner, generator=generator)
        ends = torch.tensor([rows // 2, rows // 2, rows], dtype=torch.int32)
        yield x.to(on, dtype), weight.to(on, dtype), ends.to(on)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_grouped_product_and_its_gradients_are_those_of_each_expert(dtype: torch.dtype) -> None:
    for x, weight, ends in sizes(dtype, torch.device("cpu")):
        x.requires_grad_()
        weight.requires_grad_()
        product = grouped_product(x, weight, ends)
        experts = torch.arange(3).repeat_interleave(ends.diff(prepend=ends.new_zeros(1)))
        expected = torch.einsum("soi,si->so", weight[experts], x)
        assert torch.allclose(product, expected, rtol=1e-2 if dtype is torch.bfloat16 else 1e-5, atol=0.05)
        # The gradient of a sum is expanded from one number.
        grads = torch.autograd.grad(product.sum(), (x, weight))
        wanted = torch.autograd.grad(expected.sum(), (x, weight))
        for one, other in zip(grads, wanted, strict=True):
            assert torch.allclose(one, other, rtol=1e-2, atol=0.05)


def test_half_precision_takes_one_grouped_product_where_torch_can(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    grouped = torch.nn.functional.grouped_mm
    monkeypatch.setattr(
        grouping.nn.functional, "grouped_mm", lambda *args, **kwargs: calls.append(1) or grouped(*args, **kwargs)
    )
    for x, weight, ends in sizes(torch.bfloat16, torch.device("cpu")):
        grouped_product(x, weight, ends)
    # Rows of 10 numbers are not aligned, and no rows need no grouping.
    assert len(calls) == 1


def test_the_meta_device_needs_no_numbers() -> None:
    for x, weight, ends in sizes(torch.float64, torch.device("meta")):
        assert grouped_product(x, weight, ends).shape == (len(x), weight.shape[1])
    routing = Routing.of(torch.zeros(3, 2, dtype=torch.int64, device="meta"), torch.ones(3, 2, device="meta"), 5)
    assert routing.counts.shape == (5,) and routing.tokens.shape == (6,)


def test_a_routing_is_sorted_by_expert_and_keeps_the_order_of_tokens() -> None:
    index = torch.tensor([[3, 1], [0, 3], [1, 3]])
    routing = Routing.of(index, torch.arange(6.0).reshape(3, 2), 5)
    assert routing.experts.tolist() == [0, 1, 1, 3, 3, 3] and routing.tokens.tolist() == [1, 0, 2, 0, 1, 2]
    assert routing.weights.tolist() == [2, 1, 4, 0, 3, 5]
    assert routing.counts.tolist() == [1, 2, 0, 3, 0] and routing.ends.dtype is torch.int32
    gathered = routing.gather(torch.ones(6, 1), k=2)
    assert gathered.flatten().tolist() == [1, 5, 9]


def test_an_empty_stack_of_a_specification_has_its_sizes() -> None:
    stack = DenseExpertStack(4, 3, 2, bias=True, is_transposed=True)
    again = DenseExpertStack.empty(**stack.spec())
    assert again.weight.shape == (4, 2, 3) and again.bias is not None and again.bias.shape == (4, 3)
    assert again.nbytes() == 96 and again.nbytes_in(torch.bfloat16) == 48
    again.set_bias(None)
    assert again.bias is None


def test_this_version_of_transformers_sets_every_flag_that_is_read() -> None:
    from transformers.integrations import moe

    @moe.use_experts_implementation
    class Experts(torch.nn.Module):
        def __init__(self, config: object) -> None:
            super().__init__()
            self.gate_up_proj = torch.nn.Parameter(torch.zeros(2, 4, 2))
            self.down_proj = torch.nn.Parameter(torch.zeros(2, 2, 2))

        def forward(self) -> None: ...

    missing = set(FLAGS) - vars(Experts(hf.MixtralConfig())).keys()
    assert not missing, f"transformers no longer sets {missing} on experts; laconic.formats.experts reads them."
    assert "_apply_gate" in vars(Experts), "transformers no longer gives experts a method _apply_gate, which is called."
    assert is_experts(Experts(hf.MixtralConfig())) and stack_names(Experts(hf.MixtralConfig()))[0] == "gate_up_proj"
