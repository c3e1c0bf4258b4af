"""The mixtures of block types that llama.cpp calls file types, such as Q4_K_M: which matrix gets which blocks.

Most matrices get the type in the name. Values, the output projections of feed-forwards and attentions, and the head get
more bits, in some or all of the blocks. Position embeddings and the like stay dense, as in a file of llama.cpp. So do
rows that are no multiple of 32 columns, and word embeddings that the model scales, of which a file holds the numbers
before they are scaled.

The rules are those of llama.cpp's own quantizer, without its special cases for Falcon and for models of 70B, and
without those that depend on an importance matrix. A block is counted in its own stack.

Source: `llama_tensor_get_type_impl` of src/llama-quant.cpp in llama.cpp (release v0.4.0).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from laconic.allocate import Plan
from laconic.compress.allocators.allocator import AllocationRequest, AllocationResult, Allocator
from laconic.compress.checks import SizeSpec, check_unused
from laconic.compress.fitted import fit_method, solved_shape
from laconic.compress.solve_groups import SolveGroup
from laconic.errors import UserError
from laconic.methods import Method
from laconic.methods.quantize.blocks import BlockGridName, BlockQuantization
from laconic.model import Group, LanguageModel, Site
from laconic.model.site import Role

FileTypeName = Literal[
    "Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_0", "Q4_1", "Q4_K_S", "Q4_K_M", "Q5_0", "Q5_1", "Q5_K_S", "Q5_K_M",
    "Q6_K", "Q8_0", "IQ4_NL",
]  # fmt: skip
"""The names of the file types."""
MANY_READERS = 4
"""Heads of queries for each head of keys from which values get more bits."""
EIGHT_EXPERTS = 8
"""The number of experts for which the small matrices get more bits."""


@dataclass(frozen=True)
class _Place:
    """The block of a matrix, and the sizes of its model on which its type depends.

    Args:
        block: the number of its block.
        blocks: the number of blocks.
        readers: heads of queries for each head of keys.
        experts: the number of experts; 1 for none.
    """

    block: int
    blocks: int
    readers: int
    experts: int

    @property
    def is_first_eighth(self) -> bool:
        return self.block < self.blocks // 8

    @property
    def gets_more_bits(self) -> bool:
        """Whether it is in the first or last eighth of the blocks, or in every third one between them."""
        first, last = self.blocks // 8, 7 * self.blocks // 8
        return self.block < first or self.block >= last or (self.block - first) % 3 == 2


_Choice = Callable[[_Place], BlockGridName]


def _more(then: BlockGridName, otherwise: BlockGridName) -> _Choice:
    return lambda place: then if place.gets_more_bits else otherwise


def _first(blocks: Callable[[_Place], int], then: BlockGridName, otherwise: BlockGridName) -> _Choice:
    return lambda place: then if place.block < blocks(place) else otherwise


_VALUES: Mapping[str, _Choice] = {
    "Q2_K": lambda place: "q4_k" if place.readers >= MANY_READERS else "q3_k",
    "Q3_K_M": _first(lambda place: 2, "q5_k", "q4_k"),
    "Q3_K_L": lambda place: "q5_k",
    "Q4_K_S": _first(lambda place: 4, "q5_k", "q4_k"),
    "Q4_K_M": _more("q6_k", "q4_k"),
    "Q5_K_M": _more("q6_k", "q5_k"),
    "IQ4_NL": lambda place: "q5_k" if place.readers >= MANY_READERS else "iq4_nl",
}
_FEED_FORWARD_OUTPUTS: Mapping[str, _Choice] = {
    "Q2_K": lambda place: "q3_k",
    "Q3_K_M": _first(lambda place: place.blocks // 16, "q5_k", "q4_k"),
    "Q3_K_L": lambda place: "q5_k",
    "Q4_K_S": lambda place: "q5_k" if place.is_first_eighth else "q4_k",
    "Q4_K_M": _more("q6_k", "q4_k"),
    "Q5_K_M": _more("q6_k", "q5_k"),
}
_ATTENTION_OUTPUTS: Mapping[str, BlockGridName] = {"Q2_K": "q3_k", "Q3_K_M": "q4_k", "Q3_K_L": "q5_k"}
_WITH_EIGHT_EXPERTS = ("Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M", "IQ4_NL")
"""The file types in which the outputs of attentions get q5_k beside eight experts."""
_BASES: Mapping[str, BlockGridName] = {
    **{"Q2_K": "q2_k", "Q4_0": "q4_0", "Q4_1": "q4_1", "Q5_0": "q5_0", "Q5_1": "q5_1", "Q6_K": "q6_k", "Q8_0": "q8_0"},
    "IQ4_NL": "iq4_nl",
    **{name: "q3_k" for name in ("Q3_K_S", "Q3_K_M", "Q3_K_L")},
    **{name: "q4_k" for name in ("Q4_K_S", "Q4_K_M")},
    **{name: "q5_k" for name in ("Q5_K_S", "Q5_K_M")},
}


@dataclass(frozen=True)
class FileType(Allocator):
    """Gives every matrix the type of blocks that one of llama.cpp's file types has for it.

    Args:
        name: the name of the file type.
    """

    name: FileTypeName

    def check(self, size_spec: SizeSpec) -> None:
        method = size_spec.method
        if not self.supports(method):
            raise UserError(
                f"allocate: {self.name} chooses the grid of each matrix; give one of rtn, gptq and yaqa without grid, "
                f"bits and other parameters of grids. Got '{method.name}'."
            )
        if size_spec.keep is not None:
            raise UserError(f"keep must be left out: the file type {self.name} sets the size of every matrix.")
        check_unused(size_spec)

    def supports(self, method: Method) -> bool:
        if not isinstance(method, BlockQuantization):
            return False
        try:
            replace(method, grid=_BASES[self.name])
        except UserError:
            return False
        return method.grid is None

    def stores_rows(self, method: Method) -> bool:
        return True

    def plan(self, request: AllocationRequest) -> AllocationResult:
        return AllocationResult(self.plan_from_shapes(request))

    def plan_from_shapes(self, request: AllocationRequest) -> Plan:
        method, lm = request.size_spec.method, request.lm
        assert isinstance(method, BlockQuantization)
        return {group.name: self._method_of(group, method, lm) for group in request.groups}

    def _method_of(self, group: SolveGroup, method: BlockQuantization, lm: LanguageModel) -> Method | None:
        grid = block_type(self.name, group.sites[0], lm)
        if grid is None:
            return None
        chosen = replace(method, grid=grid)
        # Rows that no blocks fit stay dense in a file of llama.cpp as well.
        return None if fit_method(group, chosen).shape_error(solved_shape(group, chosen), "") else chosen


def block_type(file_type: str, site: Site, lm: LanguageModel) -> BlockGridName | None:
    """The type of blocks that a file type has for a matrix, before its width is looked at; None if it stays dense.

    Args:
        file_type: the name of the file type.
        site: the matrix.
        lm: the model.
    """
    base = _BASES[file_type]
    if site.is_lookup:
        module = site.places[0].module
        return base if type(module) is nn.Embedding and lm.model.get_input_embeddings() is module else None
    if site.group is Group.HEAD:
        table = lm.model.get_input_embeddings()
        if type(table) is not nn.Embedding and site.parameter is table.weight:
            return None
        return "q6_k" if site.role is Role.OUTPUT and base != "q8_0" else base
    place = _place(site, lm)
    if site.group is Group.ATTENTION:
        return _attention_type(file_type, site.role, place)
    if site.role is Role.OUTPUT and file_type in _FEED_FORWARD_OUTPUTS:
        return _FEED_FORWARD_OUTPUTS[file_type](place)
    return base


def _attention_type(file_type: str, role: Role, place: _Place) -> BlockGridName:
    base, is_eight = _BASES[file_type], place.experts == EIGHT_EXPERTS
    if role in (Role.VALUE, Role.FUSED):
        return "q8_0" if is_eight else _VALUES.get(file_type, lambda place: base)(place)
    if role is Role.KEY and is_eight:
        return "q8_0"
    if role is Role.OUTPUT and is_eight:
        return "q5_k" if file_type in _WITH_EIGHT_EXPERTS else base
    return _ATTENTION_OUTPUTS.get(file_type, base) if role is Role.OUTPUT else base


def _place(site: Site, lm: LanguageModel) -> _Place:
    names = next([name for name, _ in blocks] for _, blocks in lm.stacks() if site.block in dict(blocks))
    config = lm.model.config
    heads = getattr(config, "num_attention_heads", None) or 1
    groups = getattr(config, "num_key_value_heads", None) or heads
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None) or 1
    return _Place(names.index(str(site.block)), len(names), heads // groups, experts)
