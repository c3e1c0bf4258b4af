"""Stacks of compressed experts: the formats of all experts, computed together and stored as one."""

import copy
import json
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from laconic.errors import UserError
from laconic.formats import Codebook, Constant, Format, LowRank, Quantized, Sparse, Sum, dense_weight
from laconic.formats.expert_stacks import STACKS, LowRankStack, empty_stack, stack_formats
from laconic.formats.experts import ExpertStack
from laconic.formats.ggml import GgmlBlocks
from laconic.formats.int8 import DynamicInt8
from laconic.formats.packed_stack import PackedStack
from laconic.formats.routing import Routing
from laconic.formats.sparse_stack import SparseStack
from laconic.methods import Awq, Gptq, Int8, KMeans, LnStructured, Magnitude, Method, Plus, Rtn, Svd
from tests.matrices import case

EXPERTS, OUT, IN = 4, 24, 96
HALF = torch.rand(OUT, IN, generator=torch.Generator().manual_seed(0)) > 0.5


def solve(method: Method, pruned: bool = False) -> list[Format]:
    """The matrices of all experts, compressed one by one."""
    formats = []
    for expert in range(EXPERTS):
        matrix = case(f"expert {expert}", (OUT, IN))
        # Every case of a shape has the same matrix.
        weight = matrix.weight.roll(expert, 0)
        if pruned:
            matrix.stats.support = HALF
        formats.append(method.compress(weight * HALF if pruned else weight, matrix.stats))
    return formats


KINDS: dict[str, Callable[[], list[Format]]] = {
    "low-rank": lambda: solve(Svd(rank=5)),
    "rtn, 3 bits": lambda: solve(Rtn(bits=3, group_size=64)),
    "rtn, one grid": lambda: solve(Rtn(bits=4, group_size="tensor")),
    "blocks": lambda: solve(Rtn(grid="q4_0")),
    "awq": lambda: solve(Awq(bits=4, group_size=16)),
    "gptq after pruning": lambda: solve(Gptq(bits=4, group_size=16), pruned=True),
    "codebook": lambda: solve(KMeans(bits=2, group_size="channel")),
    "int8": lambda: solve(Int8()),
    "sparse": lambda: solve(Magnitude(sparsity=0.5)),
    "2:4": lambda: solve(Magnitude(pattern="2:4")),
    "columns": lambda: solve(LnStructured(sparsity=0.5)),
    "sum": lambda: solve(Plus(base=Rtn(bits=3, group_size=16), residual=Svd(rank=2))),
    "sum with quantized factors": lambda: solve(
        Plus(base=Rtn(bits=3, group_size=16), residual=Svd(rank=2), factor_bits=8)
    ),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


@cache
def _solved(kind: str) -> list[Format]:
    return KINDS[kind]()


def formats_of(kind: str) -> list[Format]:
    return copy.deepcopy(_solved(kind))


def routing_of(tokens: int = 9, k: int = 2) -> Routing:
    """Choices of a router that leaves the third expert out."""
    generator = torch.Generator().manual_seed(1)
    scores = torch.rand(tokens, EXPERTS, generator=generator)
    scores[:, 2] = -1
    weights, index = scores.topk(k, dim=1)
    return Routing.of(index, weights, EXPERTS)


def format_of(stack: ExpertStack, index: int) -> Format:
    format = stack.slice(index)
    assert isinstance(format, Format)
    return format


@every_kind
def test_the_matrix_of_an_expert_is_that_of_its_slice(kind: str) -> None:
    stack = stack_formats(formats_of(kind), EXPERTS)
    for index in range(EXPERTS):
        layer, support = format_of(stack, index), stack.support(index)
        assert torch.equal(stack.dense(index), layer.dense())
        if layer.support is None:
            assert support is None
        else:
            assert support is not None and torch.equal(support, layer.support)


def bias_of(module: nn.Module) -> Tensor:
    bias = module.bias
    assert isinstance(bias, Tensor)
    return bias.detach()


def expected(formats: list[Format], x: Tensor, routing: Routing) -> Tensor:
    return torch.stack(
        [format.dense() @ row for row, format in zip(x, (formats[e] for e in routing.experts), strict=True)]
    )


@every_kind
def test_a_stack_multiplies_by_the_matrix_of_each_expert(kind: str):
    formats, routing = formats_of(kind), routing_of()
    stack = stack_formats(formats, EXPERTS)
    x = torch.randn(len(routing.order), IN, generator=torch.Generator().manual_seed(2))
    bias = torch.randn(EXPERTS, OUT, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        plain = expected(formats, x, routing)
        assert torch.allclose(stack(x, routing), plain, atol=1e-4)
        stack.set_bias(bias)
        assert torch.allclose(stack(x, routing), plain + bias[routing.experts], atol=1e-4)
    assert torch.equal(bias_of(stack.slice(1)), bias[1])


@every_kind
def test_a_slice_is_the_format_of_its_expert(kind: str):
    formats = formats_of(kind)
    stack = stack_formats(formats, EXPERTS)
    for expert, format in enumerate(formats):
        slice = stack.slice(expert)
        assert isinstance(slice, type(format))
        assert slice.spec() == format.spec()
        assert torch.equal(dense_weight(slice), format.dense())
        if format.support is None or slice.support is None:
            assert slice.support is format.support
        else:
            assert torch.equal(slice.support, format.support)


@every_kind
def test_it_stores_the_bytes_of_its_formats(kind: str):
    formats = formats_of(kind)
    stack = stack_formats(iter(formats), EXPERTS)
    assert stack.nbytes() == sum(format.nbytes() for format in formats)
    assert stack.nbytes() == sum(tensor.nbytes for tensor in stack.state_dict().values())
    assert stack.nbytes_in(torch.bfloat16) == EXPERTS * formats[0].nbytes_in(torch.bfloat16)
    assert stack.macs() == formats[0].macs()


def rebuilt(stack: ExpertStack) -> ExpertStack:
    """A stack with the same specification and without weights."""
    made = type(stack).empty(**json.loads(json.dumps(stack.spec())))
    for name, child in stack.named_children():
        if isinstance(child, ExpertStack):
            setattr(made, name, rebuilt(child))
    return made


@every_kind
def test_it_is_saved_and_loaded(kind: str):
    stack = stack_formats(formats_of(kind), EXPERTS)
    stack.set_bias(torch.ones(EXPERTS, OUT))
    loaded = rebuilt(stack)
    loaded.load_state_dict(copy.deepcopy(stack.state_dict()))
    if isinstance(loaded, SparseStack):
        loaded.unpack()
    assert loaded.spec() == stack.spec()
    assert all(torch.equal(dense_weight(loaded.slice(e)), dense_weight(stack.slice(e))) for e in range(EXPERTS))
    assert torch.equal(bias_of(loaded), torch.ones(EXPERTS, OUT))
    loaded.load_state_dict(stack.state_dict())


@every_kind
def test_it_computes_in_other_dtypes(kind: str):
    formats, routing = formats_of(kind), routing_of()
    x = torch.randn(len(routing.order), IN, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    plain = expected([format.double() for format in formats], x, routing)
    with torch.no_grad():
        for dtype, tolerance in ((torch.float64, 1e-12), (torch.bfloat16, 0.1)):
            stack = stack_formats([copy.deepcopy(format).to(dtype) for format in formats], EXPERTS)
            found = stack(x.to(dtype), routing)
            assert found.dtype == dtype
            assert torch.allclose(found.double(), plain, atol=tolerance)


@every_kind
def test_it_has_the_same_form_without_values(kind: str):
    stack = stack_formats(formats_of(kind), EXPERTS)
    meta = copy.deepcopy(stack).to("meta")
    x = torch.randn(18, IN, device="meta")
    choices = torch.zeros(9, 2, dtype=torch.long, device="meta")
    assert meta(x, Routing.of(choices, choices.float(), EXPERTS)).shape == (18, OUT)
    if isinstance(meta, PackedStack):
        assert format_of(meta, 0).spec() == format_of(stack, 0).spec()


def test_every_kind_has_a_case():
    kinds = {type(stack_formats(formats_of(kind), EXPERTS)) for kind in KINDS}
    assert kinds == set(STACKS)
    assert len({stack.kind for stack in STACKS}) == len(STACKS)


def test_new_codes_are_seen_by_the_next_product():
    formats, routing = formats_of("rtn, 3 bits"), routing_of()
    stack = stack_formats(formats, EXPERTS)
    x = torch.randn(len(routing.order), IN, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        stack(x, routing)
        stack.set_slice(0, formats[1])
        formats[0] = formats[1]
        assert torch.allclose(stack(x, routing), expected(formats, x, routing), atol=1e-4)
        moved = copy.deepcopy(stack).to(torch.float64)
        assert moved(x.double(), routing).dtype == torch.float64


def test_factors_learn_and_pruned_weights_stay_zero():
    routing = routing_of()
    x = torch.randn(len(routing.order), IN)
    low = stack_formats(formats_of("low-rank"), EXPERTS)
    low(x, routing).sum().backward()
    assert isinstance(low, LowRankStack)
    gradient = low.right.get_parameter("weight").grad
    assert gradient is not None
    assert gradient[0].any()
    assert not gradient[2].any()
    sparse = stack_formats(formats_of("sparse"), EXPERTS)
    sparse(x, routing).sum().backward()
    assert isinstance(sparse, SparseStack)
    gradient, mask = sparse.get_parameter("weight").grad, sparse.get_buffer("mask")
    assert gradient is not None
    assert gradient[mask].any()
    assert not gradient[~mask].any()


@pytest.mark.parametrize("kind", ["sparse", "codes"])
def test_experts_may_keep_different_numbers_of_weights(kind: str):
    formats: list[Format] = []
    for expert in range(EXPERTS):
        matrix = case(f"expert {expert}", (OUT, IN))
        mask = matrix.weight > 0.1 * expert
        matrix.stats.support = mask
        sparse = Sparse.from_dense(matrix.weight, mask)
        formats.append(
            sparse if kind == "sparse" else Rtn(bits=3, group_size=16).compress(sparse.dense(), matrix.stats)
        )
    # The expert with the most comes last.
    formats.reverse()
    stack = stack_formats(formats, EXPERTS)
    assert all(torch.equal(dense_weight(stack.slice(e)), format.dense()) for e, format in enumerate(formats))
    assert all(format_of(stack, e).spec() == format.spec() for e, format in enumerate(formats))
    stored = stack.state_dict()
    assert stack.nbytes() == sum(tensor.nbytes for tensor in stored.values()) == EXPERTS * formats[-1].nbytes()
    loaded = rebuilt(stack)
    loaded.load_state_dict(stored)
    if isinstance(loaded, SparseStack):
        loaded.unpack()
    assert all(torch.equal(dense_weight(loaded.slice(e)), format.dense()) for e, format in enumerate(formats))


def test_a_kind_without_a_stack_is_an_error():
    with pytest.raises(UserError, match="cannot be stored as 'constant'"):
        empty_stack(Constant(3, 2, bias=False), EXPERTS)


def test_the_formats_of_the_cases_are_the_expected_ones():
    kinds = {type(formats_of(kind)[0]) for kind in KINDS}
    assert kinds == {LowRank, Quantized, GgmlBlocks, Codebook, DynamicInt8, Sparse, Sum}


@pytest.mark.parametrize("ranks", [(5, 3, 5, 1), (2, 4, 3, 4)])
def test_experts_with_fewer_terms_than_others_have_terms_of_zeros(ranks: tuple[int, ...]):
    """A method finds as many terms as the statistics of an expert's tokens give it."""
    formats = [solve(Svd(rank=rank))[expert] for expert, rank in enumerate(ranks)]
    stack = stack_formats(formats, EXPERTS)
    assert isinstance(stack, LowRankStack) and stack.rank == max(ranks)
    for expert, format in enumerate(formats):
        assert torch.equal(dense_weight(stack.slice(expert)), dense_weight(format))
    assert stack.spec() == LowRankStack.empty(**stack.spec()).spec()
    assert stack.nbytes() == 4 * EXPERTS * max(ranks) * (OUT + IN)
