"""Find every site of a model by its anatomy, which of them read the same input, and which share a tied matrix.

transformers declares tied tensors in `_tied_weights_keys` and `all_tied_weights_keys` of the model and of each
sub-model, which map a target tensor to its source by dotted path. It saves tied tensors once, and ties them after
loading.
"""

from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from laconic.formats import Format
from laconic.formats.expert_layer import find_expert_stacks, is_experts
from laconic.model.anatomy import Anatomy, Attention, Experts, Stack
from laconic.model.site import (
    Group,
    InputTokens,
    Linear,
    Place,
    Role,
    Site,
    find_expert_matrices,
    find_matrices,
    get_submodule,
    has_module,
)
from laconic.model.usage import trace_usage

Blocks = list[tuple[str, nn.Module]]
Projections = tuple[tuple[Role, str | None], ...]


@dataclass(frozen=True)
class _SharedInput:
    """Projections that read the same input.

    Args:
        group: attention or feed-forward.
        projections: role and path of each; None for a path that the architecture lacks.
        reads: as in `Place`.
        tokens_first: as in `Place`.
        same_as: path of an earlier projection that reads the same input, if any.
    """

    group: Group
    projections: Projections
    reads: tuple[InputTokens, ...]
    tokens_first: bool = False
    same_as: str | None = None


def find_stacks(model: PreTrainedModel, anatomy: Anatomy) -> Iterator[tuple[Stack, Blocks]]:
    """Find each stack of a model with the path and module of each of its blocks, in forward order."""
    for stack in anatomy.stacks:
        blocks = [
            (f"{path}.{name}", block)
            for path in _expand(model, stack.blocks)
            for name, block in model.get_submodule(path).named_children()
        ]
        if blocks:
            yield stack, blocks


def find_sites(model: PreTrainedModel, anatomy: Anatomy) -> Iterator[Site]:
    """Find the sites: embeddings, the linears of each block, then the linears outside; without `find_excluded`."""
    excluded = find_excluded(model, anatomy)
    for site in _all_sites(model, anatomy):
        if not any(_is_inside(name, excluded) for name in site.names):
            yield site


def find_excluded(model: PreTrainedModel, anatomy: Anatomy) -> dict[str, str]:
    """Find the linears and embeddings that cannot be compressed, by path, each with the reason as a clause."""
    usage = trace_usage(model, globally=anatomy.global_attention)
    if usage is None:
        return {}
    reasons = {path: usage.obstacle(path) for path in usage.matrices if has_module(model, path)}
    return {path: reason for path, reason in reasons.items() if reason is not None}


def _is_inside(path: str, modules: Container[str]) -> bool:
    """Whether the module at `path` is one of `modules` or lies inside one."""
    parts = path.split(".")
    return any(".".join(parts[:count]) in modules for count in range(1, len(parts) + 1))


def _all_sites(model: PreTrainedModel, anatomy: Anatomy) -> Iterator[Site]:
    yield from _embeddings(model, anatomy)
    in_blocks: list[str] = []
    for stack, blocks in find_stacks(model, anatomy):
        for path, block in blocks:
            in_blocks.append(path)
            yield from _block_sites(stack, path, block)
    yield from _outer_linears(model, anatomy, in_blocks)


def _embeddings(model: PreTrainedModel, anatomy: Anatomy) -> Iterator[Site]:
    tables = {path: table for table in anatomy.embeddings if (path := full_path(model, table.path))}
    seen: set[str] = set()
    for first in tables:
        module = model.get_submodule(first)
        parameter = module.matrix_parameter if isinstance(module, Format) else "weight"
        if first in seen or parameter is None:
            continue
        tied = tied_modules(model, first, parameter)
        seen |= tied
        shared = {path: table for path, table in tables.items() if path in tied}
        if any(table.is_called for table in shared.values()):
            places = tuple(Place(path, model.get_submodule(path), (table.reads,)) for path, table in shared.items())
            yield Site(group=Group.EMBEDDING, role=Role.OTHER, input=first, block=None, places=places)


def _outer_linears(model: PreTrainedModel, anatomy: Anatomy, in_blocks: list[str]) -> Iterator[Site]:
    """The linears outside the blocks.

    The last one outside the base model gives the predictions; without such a one, the last one after the blocks.
    """
    tables = [path for table in anatomy.embeddings if (path := full_path(model, table.path))]
    outer: dict[str, nn.Module] = {}
    blocks = frozenset(in_blocks)
    inside = {*blocks, *tables}
    last = None
    for name, module in model.named_modules():
        if name in blocks:
            last = None
        if isinstance(module, (Format, Linear)) and not _is_inside(name, inside):
            outer[name] = module
            inside.add(name)
            last = name
    # Some classes make their head before the base model.
    own = {id(module) for module in model.base_model.modules()}
    last = next((name for name, module in reversed(outer.items()) if id(module) not in own), last)
    reads = (anatomy.stacks[-1].reads,)
    for name, module in outer.items():
        role = Role.OUTPUT if name == last else Role.OTHER
        for path, key, linear in find_matrices(module, name, name):
            yield Site(group=Group.HEAD, role=role, input=key, block=None, places=(Place(path, linear, reads),))


def _block_sites(stack: Stack, block_path: str, block: nn.Module) -> Iterator[Site]:
    for shared in _shared_inputs(stack, block):
        paths = [(role, path) for role, path in shared.projections if path is not None]
        # The path of the first projection is the key of the shared input.
        key = f"{block_path}.{shared.same_as or paths[0][1]}" if paths else ""
        for role, path in paths:
            module = get_submodule(block, path)
            if module is None:
                continue
            for name, input_key, linear in find_matrices(module, key, f"{block_path}.{path}"):
                # The output of a factor, which the next factor reads, has the axes of the input.
                place = Place(name, linear, shared.reads, shared.tokens_first)
                yield Site(group=shared.group, role=role, input=input_key, block=block_path, places=(place,))
    for experts in stack.experts:
        yield from _expert_sites(experts, stack.reads, block_path, block)


def _expert_sites(experts: Experts, reads: InputTokens, block_path: str, block: nn.Module) -> Iterator[Site]:
    module = get_submodule(block, experts.module)
    if module is None or not is_experts(module):
        return
    for role, (name, stack) in zip((Role.INNER, Role.OUTPUT), find_expert_stacks(module).items(), strict=True):
        path = f"{block_path}.{experts.module}.{name}"
        for input_key, place in find_expert_matrices(stack, path, path, reads):
            yield Site(group=Group.EXPERTS, role=role, input=input_key, block=block_path, places=(place,))


def _shared_inputs(stack: Stack, block: nn.Module) -> Iterator[_SharedInput]:
    """The projections of a block by input, in forward order."""
    own = (stack.reads,)
    first: str | None = None
    if stack.attention is not None:
        yield from _self_attention(stack.attention, own)
        first = stack.attention.fused or stack.attention.query
    if stack.cross_attention is not None:
        cross = stack.cross_attention
        memory = ((Role.KEY, cross.key), (Role.VALUE, cross.value))
        yield _SharedInput(Group.ATTENTION, ((Role.QUERY, cross.query),), own)
        yield _SharedInput(Group.ATTENTION, memory, (InputTokens.SOURCE,))
        yield _SharedInput(Group.ATTENTION, ((Role.OUTPUT, cross.output),), own)
    for feed_forward in stack.feed_forward:
        inner = tuple((Role.INNER, path) for path in feed_forward.inner)
        shares = stack.parallel and not any(has_module(block, norm) for norm in feed_forward.norm)
        yield _SharedInput(Group.FFN, inner, own, same_as=first if shares else None)
    for output in dict.fromkeys(feed_forward.output for feed_forward in stack.feed_forward):
        yield _SharedInput(Group.FFN, ((Role.OUTPUT, output),), own)
    for other in stack.other_linears:
        yield _SharedInput(other.group, ((Role.OTHER, other.path),), own, same_as=other.same_as)


def _self_attention(attention: Attention, own: tuple[InputTokens, ...]) -> Iterator[_SharedInput]:
    query, key, value = (Role.QUERY, attention.query), (Role.KEY, attention.key), (Role.VALUE, attention.value)
    by_input: list[tuple[Projections, tuple[InputTokens, ...]]]
    if attention.fused is not None:
        by_input = [(((Role.FUSED, attention.fused),), own)]
    elif attention.shares_positions:
        by_input = [((query, key), (*own, InputTokens.OWN)), ((value,), own)]
    else:
        global_input = ((Role.KEY, attention.global_key), (Role.VALUE, attention.global_value))
        by_input = [((query, key, value, *global_input), own)]
    positions = ((Role.KEY, attention.position_key), (Role.QUERY, attention.position_query))
    by_input += [(((Role.QUERY, attention.global_query),), (InputTokens.OWN,)), (positions, (InputTokens.OWN,))]
    for projections, reads in by_input:
        yield _SharedInput(Group.ATTENTION, projections, reads, attention.tokens_first)
    yield _SharedInput(Group.ATTENTION, ((Role.OUTPUT, attention.output),), own)


def _expand(model: PreTrainedModel, path: str) -> list[str]:
    """The paths from the whole model that match `path`, which may have one `*`."""
    head, star, tail = path.partition(".*.")
    full = full_path(model, head)
    if full is None or not star:
        return [] if full is None else [full]
    return [f"{full}.{name}.{tail}" for name, _ in model.get_submodule(full).named_children()]


def full_path(model: PreTrainedModel, path: str) -> str | None:
    """The path from the whole model of `path` below the base model; None if this model has no such module."""
    full = f"{model.base_model_prefix}.{path}" if model.base_model is not model else path
    return next((candidate for candidate in (full, path) if has_module(model, candidate)), None)


def is_below(path: str, part: str) -> bool:
    """Whether the module at `path` is the one at `part` or inside it; "" is the whole model."""
    return not part or f"{path}.".startswith(f"{part}.")


def tied_modules(model: PreTrainedModel, path: str, parameter: str) -> set[str]:
    """The paths of all modules that share a parameter.

    Args:
        model: the model.
        path: one of these modules.
        parameter: the name of the parameter in it.
    """
    ties = model.all_tied_weights_keys
    source = ties.get(f"{path}.{parameter}", f"{path}.{parameter}")
    tensors = {source} | {target for target, other in ties.items() if other == source}
    return {tensor.removesuffix(f".{parameter}") for tensor in tensors}


def untie(model: PreTrainedModel, modules: set[str]) -> None:
    """Remove every declared tie of the tensors in the modules at these paths; no tensor is changed."""

    def is_free(tensor: str) -> bool:
        return not any(tensor.startswith(f"{module}.") for module in modules)

    copy_ties(model, model, lambda target, source: is_free(target) and is_free(source))


def copy_ties(model: PreTrainedModel, origin: PreTrainedModel, is_kept: Callable[[str, str], bool]) -> None:
    """Declare the ties of another model of the same class, except some.

    Args:
        model: the model, changed in place; no tensor is changed.
        origin: the other model, which may be the model itself.
        is_kept: whether to keep a tie, by the full names of the target and the source tensor.
    """
    for path, part in model.named_modules():
        if isinstance(part, PreTrainedModel):
            prefix = f"{path}." if path else ""
            for attribute in ("_tied_weights_keys", "all_tied_weights_keys"):
                ties: dict[str, str] = getattr(origin.get_submodule(path), attribute) or {}
                setattr(part, attribute, {t: s for t, s in ties.items() if is_kept(prefix + t, prefix + s)})


def tie(model: PreTrainedModel, first: str, others: list[str]) -> None:
    """Declare every tensor of the modules at `others` to be the same tensor as in the module at `first`."""
    tensors = [name for name, _ in model.get_submodule(first).named_parameters()]
    ties = {f"{other}.{tensor}": f"{first}.{tensor}" for other in others for tensor in tensors}
    model._tied_weights_keys = {**(model._tied_weights_keys or {}), **ties}
    model.all_tied_weights_keys = {**model.all_tied_weights_keys, **ties}
