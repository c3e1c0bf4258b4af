"""A Transformers model seen as stacks of blocks and sites, with the surgery that compression needs."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from laconic.errors import UserError, unknown
from laconic.formats import Format
from laconic.model import ties
from laconic.model.anatomy import Anatomy, Attention, Stack, anatomy_of
from laconic.model.site import Group, Linear, Place, Site, linears_within
from laconic.model.task import Task, task_of

DEFAULT_TARGETS = ("attention", "ffn")


@dataclass(frozen=True)
class LanguageModel:
    """A `PreTrainedModel` with its tokenizer and anatomy. The model itself is changed in place.

    dtype is that of the stored weights: what laconic computes in float32 is rounded to it before it is put in
    place, so that the model in memory equals the one that is reloaded.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    anatomy: Anatomy
    task: Task
    dtype: torch.dtype
    source: str = ""
    target_tokenizer: PreTrainedTokenizerBase | None = None

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None) -> "LanguageModel":
        """See any loaded model; UserError for an architecture without an entry or a class without predictions."""
        anatomy = anatomy_of(model.config.model_type)
        return cls(model, tokenizer, anatomy, task_of(model), model.dtype, model.config.name_or_path or "")

    @property
    def device(self) -> torch.device:
        return self.model.device

    def stacks(self) -> Iterator[tuple[Stack, list[tuple[str, nn.Module]]]]:
        """Each stack that this model has, with the path and module of each of its blocks, in forward order."""
        for stack in self.anatomy.stacks:
            path = self._path(stack.blocks)
            if path is not None:
                blocks = self.model.get_submodule(path)
                yield stack, [(f"{path}.{name}", block) for name, block in blocks.named_children()]

    def sites(self, targets: Sequence[str] = DEFAULT_TARGETS) -> list[Site]:
        """The sites that any of `targets` names, in forward order.

        A target is a group (`attention`, `ffn`, `head`, `embedding`), `all` (every linear inside the blocks), a
        glob over site names, or a regular expression after `re:`.

        Raises:
            UserError: a target matches nothing.
        """
        every = list(self._every_site())
        wanted = {site.name for target in targets for site in _matching(every, target)}
        return [site for site in every if site.name in wanted]

    def replace(self, site: Site, format: Format) -> None:
        """Put `format` where `site` is, with its bias; a tied matrix is untied from all but its own aliases."""
        if isinstance(site.module, nn.Embedding):
            format = format.for_lookup(site.module.padding_idx)
        else:
            format.set_bias(site.bias())
        # Rounding through the stored dtype makes the model in memory equal to the reloaded one.
        format = format.to(self.dtype).to(site.weight().dtype).to(self.device)
        format.train(self.model.training).requires_grad_(site.module.get_parameter("weight").requires_grad)
        ties.release(self.model, set(site.names))
        for name in site.names:
            self.model.set_submodule(name, format)
        ties.share(self.model, site.names[0], list(site.names[1:]))

    def untied_by(self, sites: Sequence[Site]) -> list[str]:
        """Names of those sites whose matrix is now shared with a module that is not replaced with them."""
        return [
            site.name
            for site in sites
            if any(
                name.rpartition(".")[0] not in site.names for name in ties.tied_names(self.model, f"{site.name}.weight")
            )
        ]

    def with_dtype(self, dtype: torch.dtype) -> "LanguageModel":
        """The same model, to be stored in `dtype`."""
        return replace(self, dtype=dtype)

    def _path(self, path: str) -> str | None:
        """`path` below the base model, from the whole model; None where this model lacks it."""
        prefix = self.model.base_model_prefix
        whole = f"{prefix}.{path}" if self.model.base_model is not self.model else path
        for candidate in (whole, path):
            try:
                self.model.get_submodule(candidate)
            except AttributeError:
                continue
            return candidate
        return None

    def _every_site(self) -> Iterator[Site]:
        yield from self._embeddings()
        in_blocks: list[str] = []
        for stack, blocks in self.stacks():
            for block_path, block in blocks:
                in_blocks.append(block_path + ".")
                yield from _block_sites(stack, block_path, block)
        yield from self._heads(tuple(in_blocks))

    def _embeddings(self) -> Iterator[Site]:
        tables = [(path, table.reads) for table in self.anatomy.embeddings if (path := self._path(table.path))]
        seen: set[str] = set()
        for first, _ in tables:
            if first in seen or isinstance(self.model.get_submodule(first), Format):
                continue
            same = {name.rpartition(".")[0] for name in ties.tied_names(self.model, f"{first}.weight")} | {first}
            seen |= same
            places = [Place(path, self.model.get_submodule(path), reads) for path, reads in tables if path in same]
            # Where nothing is tied, the first of several tables is a copy that no stack reads.
            if len(places) > 1 or len(tables) == 1 or first != tables[0][0]:
                yield Site(group=Group.EMBEDDING, input=first, block=None, places=tuple(places))

    def _heads(self, in_blocks: tuple[str, ...]) -> Iterator[Site]:
        reads = next(stack.reads for stack in reversed(self.anatomy.stacks))
        inside = tuple(f"{path}." for table in self.anatomy.embeddings if (path := self._path(table.path)))
        for name, module in self.model.named_modules():
            if isinstance(module, Linear) and not name.startswith((*in_blocks, *inside)):
                yield _site(name, Group.HEAD, name, reads, None, module)


def _site(name: str, group: Group, key: str, reads: str, block: str | None, module: nn.Module) -> Site:
    return Site(group=group, input=key, block=block, places=(Place(name, module, reads),))


def _block_sites(stack: Stack, block_path: str, block: nn.Module) -> Iterator[Site]:
    for group, paths, reads in _readings(stack):
        # The path of the first reader names the shared input.
        key = f"{block_path}.{paths[0]}"
        for path in paths:
            try:
                module = block.get_submodule(path)
            except AttributeError:
                continue
            for name, input_key, linear in linears_within(module, key, f"{block_path}.{path}"):
                yield _site(name, group, input_key, reads, block_path, linear)


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


def _matching(sites: list[Site], target: str) -> list[Site]:
    groups = [group.value for group in Group]
    if target == "all":
        matched = [site for site in sites if site.block is not None]
    elif target in groups:
        matched = [site for site in sites if site.group == target]
    elif target.startswith("re:"):
        matched = [site for site in sites if _pattern(target).search(site.name)]
    else:
        matched = [site for site in sites if fnmatchcase(site.name, target)]
    if not matched:
        raise _no_match(sites, target, groups)
    return matched


def _no_match(sites: list[Site], target: str, groups: list[str]) -> UserError:
    if target in groups or target.startswith("re:") or set(target) & set("*?["):
        return UserError(
            f"The target '{target}' matches no site of this model; sites are named like '{sites[0].name}'."
        )
    return unknown("target", target, [*groups, "all", *(site.name for site in sites[-2:])])


def _pattern(target: str) -> re.Pattern[str]:
    try:
        return re.compile(target.removeprefix("re:"))
    except re.error as error:
        raise UserError(f"The target '{target}' is not a regular expression: {error}.") from error
