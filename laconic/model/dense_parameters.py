"""The parameters of blocks that are in no site, so that they stay dense, each with the reason."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from laconic.formats import ExpertStack, Format
from laconic.formats.expert_layer import find_expert_stacks, is_experts
from laconic.model.anatomy import Anatomy
from laconic.model.enumeration import find_sites, find_stacks
from laconic.model.mixture import COUNT_KEYS, ROUTERS
from laconic.model.site import Group, Role, Site, guess_group
from laconic.model.stock import text_config
from laconic.model.usage import trace_usage


@dataclass(frozen=True)
class DenseParameter:
    """A parameter of a block with two or more dimensions that is in no site; targets match it like a site.

    Args:
        name: dotted path from the whole model.
        group: the part of the transformer, guessed from the path.
        block: dotted path of its block.
        count: number of elements.
        reason: the reason why it cannot be compressed, as a clause.
        role: always OTHER.
        is_lookup: always False.
    """

    name: str
    group: Group
    block: str
    count: int
    reason: str
    role: Role = Role.OTHER
    is_lookup: bool = False

    @property
    def unit(self) -> str:
        """The path of its module, by which targets name a router, as they name a linear."""
        return self.name.rpartition(".")[0]


def find_dense_parameters(
    model: PreTrainedModel, anatomy: Anatomy, sites: Sequence[Site] | None = None
) -> list[DenseParameter]:
    """Find every parameter with two or more dimensions that is in a block and in no site, in forward order.

    Embeddings are left out, as nothing is multiplied by them, and so are layers that a run over text never calls.

    Args:
        model: the model.
        anatomy: its anatomy.
        sites: all its sites, if they were found before.
    """
    usage = trace_usage(model, globally=anatomy.global_attention)
    covered = {name for site in sites or find_sites(model, anatomy) for name in (site.unit, *site.names)}
    uncalled = frozenset() if usage is None else usage.uncalled
    dense: dict[int, DenseParameter] = {}
    for block, path, module in block_modules(model, anatomy):
        if isinstance(module, (Format, ExpertStack, nn.Embedding)) or path in covered | uncalled:
            continue
        # The biases of all experts are one parameter with two dimensions.
        own = {f"{path}.{name}" for name in (find_expert_stacks(module) if is_experts(module) else {})} & covered
        parts = own | {f"{name}_bias" for name in own}
        for name, parameter in module.named_parameters(prefix=path, recurse=False):
            if parameter.dim() > 1 and id(parameter) not in dense and name not in parts:
                dense[id(parameter)] = _dense_parameter(model, block, module, name, parameter)
    return list(dense.values())


def _dense_parameter(
    model: PreTrainedModel, block: str, module: nn.Module, name: str, parameter: nn.Parameter
) -> DenseParameter:
    """Describe the parameter `name` of `module`, which is in no site."""
    path = name.removeprefix(f"{block}.")
    group, kind = guess_group(path), type(module).__name__
    if any(part in ROUTERS for part in path.split(".")):
        reason = "it belongs to a router, which is small and decides which experts read a token"
    elif parameter.dim() == 3 and not isinstance(module, nn.Conv1d) and _has_experts(model, path, parameter):
        group = Group.EXPERTS if group is Group.FFN else group
        reason = f"the class {kind} computes its experts by code of its own"
    else:
        reason = f"its module, of the class {kind}, is no linear layer"
    return DenseParameter(name, group, block, parameter.numel(), reason)


def _has_experts(model: PreTrainedModel, path: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter with three dimensions is a stack of experts, by its path or by its first dimension."""
    values = vars(text_config(model.config))
    return "experts" in path.split(".") or len(parameter) in {values.get(key) for key in COUNT_KEYS}


def block_modules(model: PreTrainedModel, anatomy: Anatomy) -> Iterator[tuple[str, str, nn.Module]]:
    """Yield the path of each block with the path and module of everything in it, except modules inside a format."""
    for _, blocks in find_stacks(model, anatomy):
        for block, root in blocks:
            formats: tuple[str, ...] = ()
            for path, module in root.named_modules(prefix=block, remove_duplicate=False):
                if path.startswith(formats):
                    continue
                if isinstance(module, (Format, ExpertStack)):
                    formats = (*formats, f"{path}.")
                yield block, path, module
