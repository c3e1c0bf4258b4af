"""Find every site of a model by its anatomy: which linears it has, and which of them share an input."""

from collections.abc import Container, Iterator
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from laconic.formats import Format
from laconic.model import ties
from laconic.model.anatomy import Anatomy, Attention, Stack
from laconic.model.site import Group, InputTokens, Linear, Place, Role, Site, find_matrices
from laconic.model.usage import trace_usage

Blocks = list[tuple[str, nn.Module]]
Projections = tuple[tuple[Role, str | None], ...]


@dataclass(frozen=True)
class _Reading:
    """Projections that read the same input, and whose tokens that holds, call by call."""

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
            for path in _expanded(model, stack.blocks)
            for name, block in model.get_submodule(path).named_children()
        ]
        if blocks:
            yield stack, blocks


def find_sites(model: PreTrainedModel, anatomy: Anatomy) -> Iterator[Site]:
    """Find the sites: embeddings, the linears of each block, then those outside; without `find_excluded`."""
    obstacles = find_excluded(model, anatomy)
    for site in _with_obstacles(model, anatomy):
        if not any(_around(name, obstacles) for name in site.names):
            yield site


def find_excluded(model: PreTrainedModel, anatomy: Anatomy) -> dict[str, str]:
    """Find the linears and embeddings that cannot be compressed, by path, each with the reason as a clause."""
    usage = trace_usage(model, globally=anatomy.global_attention)
    paths = () if usage is None else (path for path in usage.matrices if _submodule(model, path) is not None)
    return {path: why for path in paths if usage is not None and (why := usage.obstacle(path)) is not None}


def _around(site: str, obstacles: Container[str]) -> bool:
    """Whether the site is, or lies in, one of `obstacles`."""
    parts = site.split(".")
    return any(".".join(parts[:count]) in obstacles for count in range(1, len(parts) + 1))


def _with_obstacles(model: PreTrainedModel, anatomy: Anatomy) -> Iterator[Site]:
    yield from _embeddings(model, anatomy)
    in_blocks: list[str] = []
    for stack, blocks in find_stacks(model, anatomy):
        for path, block in blocks:
            in_blocks.append(path)
            yield from _block_sites(stack, path, block)
    yield from _heads(model, anatomy, in_blocks)


def _embeddings(model: PreTrainedModel, anatomy: Anatomy) -> Iterator[Site]:
    tables = {path: table for table in anatomy.embeddings if (path := _path(model, table.path))}
    seen: set[str] = set()
    for first in tables:
        module = model.get_submodule(first)
        holds = module.matrix_parameter if isinstance(module, Format) else "weight"
        if first in seen or holds is None:
            continue
        same = ties.tied_modules(model, first, holds)
        seen |= same
        if any(table.is_called for path, table in tables.items() if path in same):
            places = tuple(
                Place(path, model.get_submodule(path), (table.reads,)) for path, table in tables.items() if path in same
            )
            yield Site(group=Group.EMBEDDING, role=Role.OTHER, input=first, block=None, places=places)


def _heads(model: PreTrainedModel, anatomy: Anatomy, in_blocks: list[str]) -> Iterator[Site]:
    """The linears outside the blocks; the last one, if it comes after the blocks, gives the predictions."""
    tables = [path for table in anatomy.embeddings if (path := _path(model, table.path))]
    found: list[tuple[str, nn.Module]] = []
    blocks_follow = False
    for name, module in model.named_modules():
        if name in in_blocks:
            blocks_follow = True
        outside = not any(f"{name}.".startswith(f"{path}.") for path in (*in_blocks, *tables, *(n for n, _ in found)))
        if outside and isinstance(module, (Format, Linear)):
            found.append((name, module))
            blocks_follow = False
    reads = (anatomy.stacks[-1].reads,)
    for number, (name, module) in enumerate(found, start=1):
        last = number == len(found) and not blocks_follow
        role = Role.OUTPUT if last else Role.OTHER
        for path, key, linear in find_matrices(module, name, name):
            yield Site(group=Group.HEAD, role=role, input=key, block=None, places=(Place(path, linear, reads),))


def _block_sites(stack: Stack, block_path: str, block: nn.Module) -> Iterator[Site]:
    for reading in _readings(stack):
        paths = [(role, path) for role, path in reading.projections if path is not None]
        # The path of the first reader names the shared input.
        key = f"{block_path}.{reading.same_as or paths[0][1]}" if paths else ""
        for role, path in paths:
            module = _submodule(block, path)
            if module is None:
                continue
            for name, input_key, linear in find_matrices(module, key, f"{block_path}.{path}"):
                # What a factor writes for the next one lies as the input does.
                place = Place(name, linear, reading.reads, reading.tokens_first)
                yield Site(group=reading.group, role=role, input=input_key, block=block_path, places=(place,))


def _readings(stack: Stack) -> Iterator[_Reading]:
    """In forward order."""
    own = (stack.reads,)
    first_reader: str | None = None
    if stack.attention is not None:
        yield from _self_attention(stack.attention, own)
        first_reader = stack.attention.fused or stack.attention.query
    if stack.cross_attention is not None:
        yield from _cross_attention(stack.cross_attention, own)
    for feed_forward in stack.feed_forward:
        inner = tuple((Role.INNER, path) for path in feed_forward.inner)
        yield _Reading(Group.FFN, inner, own, same_as=first_reader if stack.parallel else None)
    for output in dict.fromkeys(feed_forward.output for feed_forward in stack.feed_forward):
        yield _Reading(Group.FFN, ((Role.OUTPUT, output),), own)
    for plain in stack.other_linears:
        yield _Reading(plain.group, ((Role.OTHER, plain.path),), own)


def _self_attention(attention: Attention, own: tuple[InputTokens, ...]) -> Iterator[_Reading]:
    query, key, value = (Role.QUERY, attention.query), (Role.KEY, attention.key), (Role.VALUE, attention.value)
    everywhere = ((Role.KEY, attention.global_key), (Role.VALUE, attention.global_value))
    together: tuple[tuple[Projections, tuple[InputTokens, ...]], ...]
    if attention.fused is not None:
        together = ((((Role.FUSED, attention.fused),), own),)
    elif attention.shares_positions:
        together = (((query, key), (*own, InputTokens.OWN)), ((value,), own))
    else:
        together = (((query, key, value, *everywhere), own),)
    positions = ((Role.KEY, attention.position_key), (Role.QUERY, attention.position_query))
    apart = ((((Role.QUERY, attention.global_query),), (InputTokens.OWN,)), (positions, (InputTokens.OWN,)))
    for projections, reads in (*together, *apart):
        yield _Reading(Group.ATTENTION, projections, reads, attention.tokens_first)
    yield _Reading(Group.ATTENTION, ((Role.OUTPUT, attention.output),), own)


def _cross_attention(attention: Attention, own: tuple[InputTokens, ...]) -> Iterator[_Reading]:
    memory = ((Role.KEY, attention.key), (Role.VALUE, attention.value))
    yield _Reading(Group.ATTENTION, ((Role.QUERY, attention.query),), own)
    yield _Reading(Group.ATTENTION, memory, (InputTokens.SOURCE,))
    yield _Reading(Group.ATTENTION, ((Role.OUTPUT, attention.output),), own)


def _expanded(model: PreTrainedModel, path: str) -> list[str]:
    """The paths from the whole model that `path`, which may hold one `*`, stands for; none where it lacks them."""
    head, star, tail = path.partition(".*.")
    whole = _path(model, head)
    if whole is None or not star:
        return [] if whole is None else [whole]
    return [f"{whole}.{name}.{tail}" for name, _ in model.get_submodule(whole).named_children()]


def _path(model: PreTrainedModel, path: str) -> str | None:
    """`path` below the base model, from the whole model; None where this model lacks it."""
    prefix = model.base_model_prefix
    whole = f"{prefix}.{path}" if model.base_model is not model else path
    return next((candidate for candidate in (whole, path) if _submodule(model, candidate) is not None), None)


def _submodule(module: nn.Module, path: str) -> nn.Module | None:
    """The module at `path` below `module`; None where there is none."""
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None
