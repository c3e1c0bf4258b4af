"""The sites of one block, from the anatomy of its stack: which linears it has, and which of them share an input."""

from collections.abc import Iterator

from torch import nn

from laconic.model.anatomy import Attention, Stack
from laconic.model.site import Group, Place, Site, linears_within


def plain_site(name: str, group: Group, key: str, reads: str, block: str | None, module: nn.Module) -> Site:
    return Site(group=group, input=key, block=block, places=(Place(name, module, reads),))


def block_sites(stack: Stack, block_path: str, block: nn.Module) -> Iterator[Site]:
    for group, paths, reads in _readings(stack):
        # The path of the first reader names the shared input.
        key = f"{block_path}.{paths[0]}"
        for path in paths:
            try:
                module = block.get_submodule(path)
            except AttributeError:
                continue
            for name, input_key, linear in linears_within(module, key, f"{block_path}.{path}"):
                yield plain_site(name, group, input_key, reads, block_path, linear)


def _readings(stack: Stack) -> Iterator[tuple[Group, tuple[str, ...], str]]:
    """(group, paths that read one and the same input, whose tokens it holds), in forward order."""
    own = stack.reads
    for paths in _attention_readings(stack.attention, cross=False):
        yield Group.ATTENTION, paths, own
    if stack.cross_attention is not None:
        for paths in _attention_readings(stack.cross_attention, cross=True):
            memory = paths[0] == stack.cross_attention.key
            yield Group.ATTENTION, paths, "source" if memory else own
    outputs: set[str] = set()
    for feed_forward in stack.feed_forward:
        yield Group.FFN, feed_forward.inner, own
        if feed_forward.output not in outputs:
            outputs.add(feed_forward.output)
    for output in sorted(outputs):
        yield Group.FFN, (output,), own


def _attention_readings(attention: Attention, cross: bool) -> Iterator[tuple[str, ...]]:
    if attention.fused is not None:
        yield (attention.fused,)
    elif attention.query and attention.key and attention.value:
        if cross:
            yield (attention.query,)
            yield (attention.key, attention.value)
        else:
            yield (attention.query, attention.key, attention.value)
    yield (attention.output,)
