"""What of the blocks no step can compress: matrices that are no linear layer, and so stay dense whatever is asked for.

Experts are the large ones: transformers holds those of a layer as one parameter of three dimensions, (experts, out, in)
or (experts, in, out), beside a router that is no linear either. Others are the linears that another module reads
(`laconic.model.usage`), and small filters.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from laconic.formats import Format
from laconic.model.anatomy import Anatomy
from laconic.model.enumeration import sites_of, stacks_of
from laconic.model.roles import Group, Role, group_of
from laconic.model.site import Site
from laconic.model.targets import names
from laconic.model.usage import usage_of

NAMED = 3
"""How many kinds of them a sentence names."""


@dataclass(frozen=True)
class DenseParameter:
    """A parameter of a block with two dimensions or more that lies in no site; a target may name it as it would a site.

    count: its numbers.
    """

    name: str
    group: Group
    block: str
    count: int
    role: Role = Role.OTHER
    is_lookup: bool = False


@dataclass(frozen=True)
class Coverage:
    """How much of the blocks that some targets name can be compressed.

    dense:  what cannot.
    sites:  numbers of the matrices that can, as if nothing had been compressed yet.
    """

    dense: tuple[DenseParameter, ...]
    sites: int

    @property
    def count(self) -> int:
        """Numbers that stay dense."""
        return sum(parameter.count for parameter in self.dense)

    @property
    def total(self) -> int:
        """And of all that the targets name in the blocks."""
        return self.count + self.sites

    @property
    def share(self) -> float:
        """What stays dense, as a part of all."""
        return self.count / self.total if self.total else 0.0

    @property
    def kinds(self) -> tuple[str, ...]:
        """Their paths inside a block, the largest first, each once whatever the number of the layer or the expert."""
        sizes: dict[str, int] = {}
        for parameter in self.dense:
            path = re.sub(r"(?<=\.)\d+(?=\.)", "*", parameter.name.removeprefix(f"{parameter.block}."))
            sizes[path] = sizes.get(path, 0) + parameter.count
        return tuple(sorted(sizes, key=lambda path: -sizes[path]))

    @property
    def named(self) -> str:
        """The largest of them, as "mlp.experts.gate_up_proj, mlp.experts.down_proj and 2 more"."""
        more = len(self.kinds) - NAMED
        return ", ".join(self.kinds[:NAMED]) + (f" and {more} more" if more > 0 else "")


def dense_in(model: PreTrainedModel, anatomy: Anatomy) -> list[DenseParameter]:
    """Every parameter of two or more dimensions in the blocks of `model` that is in no site, in forward order.

    Embeddings are none: they are looked up in and not multiplied by. Nor are layers that a run over text never calls.
    """
    usage = usage_of(model, globally=anatomy.global_attention)
    idle = frozenset[str]() if usage is None else usage.idle
    covered = idle | {name for site in sites_of(model, anatomy) for name in site.names}
    found: dict[int, DenseParameter] = {}
    for _, blocks in stacks_of(model, anatomy):
        for block, module in blocks:
            for path, part in _wholes(block, module):
                if not isinstance(part, (Format, nn.Embedding)) and path not in covered:
                    for name, parameter in part.named_parameters(prefix=path, recurse=False):
                        if parameter.dim() > 1 and id(parameter) not in found:
                            group = group_of(name.removeprefix(block))
                            found[id(parameter)] = DenseParameter(name, group, block, parameter.numel())
    return list(found.values())


def coverage_of(model: PreTrainedModel, anatomy: Anatomy, targets: Sequence[str], sites: Sequence[Site]) -> Coverage:
    """How much of what `targets` name in the blocks of `model` is in `sites`, which are all that they name."""
    named = {site.name for site in sites}
    numbers: dict[int, int] = {}
    for _, blocks in stacks_of(model, anatomy):
        for block, module in blocks:
            for path, part in _wholes(block, module):
                if path in named or any(name.startswith(f"{path}.") for name in named if isinstance(part, Format)):
                    numbers[id(part)] = _numbers(part)
    every = dense_in(model, anatomy)
    dense = [one for one in every if any(names(target, one) for target in targets)]
    return Coverage(tuple(dense), sum(numbers.values()))


def _wholes(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """`module` and what lies in it, each by its path; a format is one, whatever it is made of."""
    yield path, module
    if not isinstance(module, Format):
        for name, child in module.named_children():
            yield from _wholes(f"{path}.{name}", child)


def _numbers(module: nn.Module) -> int:
    """Of the matrix that `module` is or stands for."""
    if isinstance(module, Format):
        return module.shape[0] * module.shape[1]
    return module.get_parameter("weight").numel()
