"""The experts of a mixture in a checkpoint of codes: matrices of its own for each expert.

transformers keeps the matrices of all experts of a layer in two tensors, and files have them one by one. A gate and the
input beside it are one matrix in memory and two in a file. Which rows belong to which matrix of the file is found by
converting a tensor of row numbers as transformers converts the weights.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from laconic.export.coded_linear import CodedLinear
from laconic.formats import DynamicInt8, ExpertStack, Quantized
from laconic.formats.expert_layer import ExpertLayer, find_expert_stacks
from laconic.numerics.packing import from_bytes


@dataclass(frozen=True)
class ExpertPart:
    """A matrix of one expert in a file.

    Args:
        path: its path in the file.
        expert: the number of the expert.
        name: the last part of the path.
        rows: its rows in the matrix that the expert has in memory.
    """

    path: str
    expert: int
    name: str
    rows: slice


def expert_parts(plain: PreTrainedModel, path: str, name: str) -> tuple[ExpertPart, ...] | None:
    """The matrices that a file has for a matrix of every expert; None if it has all experts in one tensor.

    Args:
        plain: a model as its class builds it, with or without weights.
        path: the path of a module of experts.
        name: the parameter with the matrix of every expert.

    Example:
        >>> from transformers import MixtralConfig, MixtralForCausalLM
        >>> sizes = dict(num_hidden_layers=1, hidden_size=8, num_attention_heads=2, num_key_value_heads=2)
        >>> config = MixtralConfig(**sizes, intermediate_size=16, vocab_size=16, num_local_experts=2)
        >>> parts = expert_parts(MixtralForCausalLM(config), "model.layers.0.mlp.experts", "gate_up_proj")
        >>> [(part.path, part.rows) for part in parts[:2]]
        [('model.layers.0.block_sparse_moe.experts.0.w1', slice(0, 16, None)), \
('model.layers.0.block_sparse_moe.experts.0.w3', slice(16, 32, None))]
    """
    stack = find_expert_stacks(plain.get_submodule(path))[name]
    rows = stack.shape[0]
    numbers = torch.arange(stack.experts * rows).view(stack.experts, rows, 1)
    saved = revert_weight_conversion(plain, {f"{path}.{name}": numbers})
    parts: list[ExpertPart] = []
    for key, part in saved.items():
        owner, _, last = key.removesuffix(".weight").rpartition(".")
        first = int(part.flatten()[0])
        expert, start = divmod(first, rows)
        if part.dim() != 2 or owner.rpartition(".")[2] != str(expert):
            return None
        assert torch.equal(part.flatten(), torch.arange(first, first + len(part))), "a matrix has neighbouring rows"
        parts.append(ExpertPart(f"{owner}.{last}", expert, last, slice(start, start + len(part))))
    return tuple(sorted(parts, key=lambda part: (part.expert, part.rows.start)))


def row_part(layer: Quantized | DynamicInt8, rows: slice) -> Quantized | DynamicInt8:
    """Some rows of a quantized matrix, without a bias.

    Args:
        layer: the matrix, of which no weight was pruned and no column is scaled.
        rows: the rows.

    Example:
        >>> layer = DynamicInt8.from_codes(torch.tensor([[1], [2]], dtype=torch.int8), torch.tensor([0.5, 1.0]))
        >>> row_part(layer, slice(1, 2)).dense().tolist()
        [[2.0]]
    """
    dtype = layer.weight.dtype
    if isinstance(layer, DynamicInt8):
        codes = layer.codes.detach().view(torch.int8).view(layer.shape)
        return DynamicInt8.from_codes(codes[rows], from_bytes(layer.scales.detach())[rows], dtype)
    grid = layer.grid
    if layer.group is not None:
        grid = grid._replace(scale=grid.scale[rows], zero=grid.zero[rows])
    return Quantized.from_codes(layer.matrix.unpacked_codes[rows], grid, layer.symmetric, dtype)


class CodedExperts(nn.Module):
    """The experts of a layer as linear layers, whose buffers are the tensors of the exported file.

    It has no forward pass.

    Args:
        layer: the experts; their matrices are quantized, without biases.
        parts: the matrices in the file, by the names of the stacks.
        make: makes the tensors of one matrix.
    """

    def __init__(
        self,
        layer: ExpertLayer,
        parts: Mapping[str, Sequence[ExpertPart]],
        make: Callable[[Quantized | DynamicInt8], CodedLinear],
    ) -> None:
        super().__init__()
        self.parts, stacks = parts, layer.stacks()
        self.shapes = {name: (stack.experts, *stack.shape) for name, stack in stacks.items()}
        for number in range(max(count for count, *_ in self.shapes.values())):
            self.add_module(str(number), nn.Module())
        for name, stack in stacks.items():
            for part in parts[name]:
                self.get_submodule(str(part.expert)).add_module(part.name, make(_matrix(stack, part)).eval())
        self.stored_bytes = sum(stack.nbytes() for stack in stacks.values())

    def coded(self, part: ExpertPart) -> CodedLinear:
        """The tensors of one matrix."""
        found = self.get_submodule(f"{part.expert}.{part.name}")
        assert isinstance(found, CodedLinear)
        return found

    def dense(self, name: str) -> Float[Tensor, "experts out in"]:
        """The matrix of every expert, decoded from the stored tensors.

        Args:
            name: the name of the stack.
        """
        matrices = torch.empty(self.shapes[name], dtype=self.coded(self.parts[name][0]).dtype)
        for part in self.parts[name]:
            matrices[part.expert, part.rows] = self.coded(part).dense()
        return matrices

    @property
    def matrices(self) -> dict[str, CodedLinear]:
        """All matrices, by their paths in the file."""
        return {part.path: self.coded(part) for parts in self.parts.values() for part in parts}


def _matrix(stack: ExpertStack, part: ExpertPart) -> Quantized | DynamicInt8:
    matrix = stack.slice(part.expert)
    assert isinstance(matrix, (Quantized, DynamicInt8))
    return row_part(matrix, part.rows)
