"""Stacks of experts as they are stored: which codes are decoded, which masks are refused, which weights are counted."""

import pytest
import torch
from torch import nn

from laconic.errors import UserError
from laconic.formats import Sparse
from laconic.formats.expert_stacks import stack_formats
from laconic.formats.packed_stack import PackedStack
from laconic.formats.sparse_stack import SparseStack
from laconic.methods import Awq, Method, Rtn
from laconic.model.size import module_size
from tests.formats.test_expert_stacks import EXPERTS, IN, OUT, formats_of, rebuilt, routing_of
from tests.matrices import case


def test_only_experts_with_rows_are_decoded(monkeypatch: pytest.MonkeyPatch):
    stack = stack_formats(formats_of("rtn, 3 bits"), EXPERTS)
    assert isinstance(stack, PackedStack)
    decoded: list[int] = []
    decode = type(stack).decode
    monkeypatch.setattr(type(stack), "decode", lambda stack, which: decoded.extend(which) or decode(stack, which))
    routing = routing_of()
    with torch.no_grad():
        stack.double()(torch.randn(len(routing.order), IN, dtype=torch.float64), routing)
        assert decoded == sorted(set(routing.experts.tolist())) and len(decoded) == 3
        decoded.clear()
        with stack.keep_decoded():
            stack(torch.randn(len(routing.order), IN, dtype=torch.float64), routing)
    assert len(decoded) == EXPERTS


@pytest.mark.parametrize("method", [Rtn(bits=4, group_size=16), Rtn(bits=3, group_size=16), Awq(bits=4, group_size=16)])
def test_several_experts_are_decoded_at_once(method: Method):
    matrix = case("of all experts", (OUT, 48))
    weights = [matrix.weight.roll(expert, 0) for expert in range(EXPERTS)]
    stack = stack_formats((method.compress(weight, matrix.stats) for weight in weights), EXPERTS)
    assert isinstance(stack, PackedStack)
    for dtype in (torch.float32, torch.bfloat16):
        stack.to(dtype)
        for which in ([1, 2], [0, 3], [2], [0, 2, 1, 3], [0, 0, 2]):
            expected = torch.stack([stack.dense(expert) for expert in which])
            assert torch.equal(stack.decode(which), expected) and expected.dtype is dtype


def test_a_mask_that_does_not_fit_its_values_is_an_error():
    stack = stack_formats(formats_of("sparse"), EXPERTS)
    stored = stack.state_dict()
    stored["bits"] = stored["bits"].clone().fill_(255)
    loaded = rebuilt(stack)
    loaded.values.data, loaded.bits.data = stored["values"], stored["bits"]
    with pytest.raises(UserError, match="the file is damaged"):
        loaded.unpack()


def test_a_mask_of_another_length_is_an_error():
    stack = stack_formats(formats_of("sparse"), EXPERTS)
    stored = stack.state_dict()
    stored["bits"] = stored["bits"][:, :-1]
    with pytest.raises(UserError, match=f"must have {OUT * IN // 8} bytes; got {OUT * IN // 8 - 1}"):
        stack.load_state_dict(stored)


def test_zeros_that_fill_up_the_values_of_an_expert_are_no_parameters():
    weight = torch.arange(1.0, 13.0).view(3, 4)
    formats = [Sparse.from_dense(weight, weight > kept) for kept in (2, 6)]
    stack = stack_formats(formats, 2)
    assert isinstance(stack, SparseStack)
    parameters, nbytes = module_size(nn.Sequential(stack), torch.float16)
    assert parameters == stack.count == 10 + 6
    assert nbytes == 2 * (2 * 10 + 2)
