"""Read some tensors of a model from its safetensors files, with the names and shapes that its class gives them.

The names in a checkpoint may differ from those in the class: transformers adds or removes prefixes, renames norms, and
merges the experts that a file stores one by one. Its function `convert_and_load_state_dict_in_model`, by which
`from_pretrained` sets tensors, does all that for the tensors that it is given, so it is called here with those of one
part. The tensors go into a model on the meta device, from which they are taken at once.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
)
from transformers.modeling_utils import LoadStateDictConfig

from laconic.errors import UserError, quote
from laconic.model.checkpoints.checkpoint import report_load_errors
from laconic.model.checkpoints.fit import check_report
from laconic.model.checkpoints.weights import Header, Weights, read_headers
from laconic.model.loans_rows import CHUNK, read_chunks, read_rows
from laconic.model.stock import silence_transformers

REMEDY = "fetch its files again"
"""The remedy for files that cannot be read."""


@dataclass(frozen=True)
class _Group:
    """Tensors of the files that are converted together.

    Args:
        sources: their names in the files.
        targets: the names in the model of the tensors that are made of them.
        is_plain: whether one tensor of the file is one of the model, under another name or the same.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    is_plain: bool


class CheckpointReader:
    """The tensors of a checkpoint by their names in the model.

    Args:
        empty: the model on the meta device in float32, in the form in which it is stored.
        weights: its safetensors files.
        source: the model, as errors name it.

    Raises:
        UserError: tensors are missing, have another shape, or have no place in the model.
    """

    def __init__(self, empty: PreTrainedModel, weights: Weights, source: str) -> None:
        self.empty, self.source = empty, source
        self._files = {name: file for file in weights.files for name in read_headers(file, weights.are_safe)}
        self._stored = {name: _empty_tensor(name, header, source) for name, header in weights.headers().items()}
        self._mapping: Any = get_model_conversion_mapping(empty)
        self._groups = {target: group for group in self._find_groups() for target in group.targets}
        report = self._convert(self._stored)
        state = empty.state_dict(keep_vars=True)
        read = {id(state[target]) for target in self._groups}
        # A module in several places has its tensors in the file once.
        self.missing = {name for name in report.missing_keys if id(state[name]) not in read}
        self._tie()
        report.missing_keys = set(self.missing)
        empty._adjust_missing_and_unexpected_keys(report)
        check_report(empty, report.to_dict(), source, weights.integer_names)

    @property
    def names(self) -> Collection[str]:
        """The names of the tensors that can be read; of tied tensors, one."""
        return self._groups.keys()

    def read(self, names: Collection[str]) -> dict[str, Tensor]:
        """Read tensors; see `TensorReader`."""
        groups = dict.fromkeys(self._groups[name] for name in names)
        found: dict[str, Tensor] = {}
        with (
            report_load_errors(self.source, REMEDY),
            self._slices([name for group in groups for name in group.sources]) as slices,
        ):
            # One group after another, as all parts of a merged tensor are in memory at once.
            for group in groups:
                own = {name: slices[name] for name in group.sources}
                found |= self._copy(group, own) if group.is_plain else self._merge(group, own)
        return {name: found[name] for name in names}

    def read_chunks(self, name: str) -> Iterator[Tensor]:
        """Read a tensor in chunks; see `TensorReader`. A tensor that is merged from others is read whole."""
        group = self._groups[name]
        if not group.is_plain:
            yield self.read([name])[name]
            return
        dtype = self.empty.get_parameter_or_buffer(name).dtype
        with report_load_errors(self.source, REMEDY):
            for chunk in self._stored_chunks(group.sources[0]):
                yield chunk.to(dtype)

    def read_rows(self, name: str, numbers: Sequence[int]) -> Tensor:
        """Read rows of a matrix; see `TensorReader`. A matrix that is merged from others is read whole."""
        group = self._groups[name]
        if not group.is_plain:
            return self.read([name])[name][numbers]
        (source,) = group.sources
        with report_load_errors(self.source, REMEDY):
            return read_rows(self._files[source], source, numbers).to(self.empty.get_parameter_or_buffer(name).dtype)

    def _stored_chunks(self, source: str) -> Iterator[Tensor]:
        return read_chunks(self._files[source], source, self._stored[source].shape)

    def _copy(self, group: _Group, slices: Mapping[str, Any]) -> dict[str, Tensor]:
        (source,), (target,) = group.sources, group.targets
        stored, expected = self._stored[source], self.empty.get_parameter_or_buffer(target)
        if stored.dtype == expected.dtype or stored.numel() <= CHUNK:
            return {target: slices[source][...].to(expected.dtype)}
        tensor, start = torch.empty(expected.shape, dtype=expected.dtype), 0
        for chunk in self._stored_chunks(source):
            tensor[start : start + len(chunk)] = chunk
            start += len(chunk)
        return {target: tensor}

    def _merge(self, group: _Group, slices: Mapping[str, Any]) -> dict[str, Tensor]:
        placeholders = {name: self.empty.get_parameter_or_buffer(name) for name in group.targets}
        try:
            report = self._convert(slices)
            if report.conversion_errors:
                name, error = next(iter(report.conversion_errors.items()))
                raise UserError(
                    f"The tensor '{name}' of '{self.source}' cannot be made from those in its files: "
                    f"{error.strip().splitlines()[-1]}; use files that were saved together."
                )
            return {name: self.empty.get_parameter_or_buffer(name) for name in group.targets}
        finally:
            for name, tensor in placeholders.items():
                _set(self.empty, name, tensor)

    def _convert(self, tensors: Mapping[str, Any]) -> Any:
        """Set tensors of a file, or slices of them, in `empty`; tensors without values stay on the meta device."""
        is_meta = all(isinstance(tensor, Tensor) and tensor.is_meta for tensor in tensors.values())
        config = LoadStateDictConfig(
            device_map={"": "meta" if is_meta else "cpu"},
            dtype=torch.float32,
            dtype_plan=self.empty._get_dtype_plan(torch.float32),
            weight_mapping=self._mapping,
        )
        with silence_transformers():
            report, _ = convert_and_load_state_dict_in_model(self.empty, dict(tensors), config)
        return report

    @contextmanager
    def _slices(self, names: Collection[str]) -> Iterator[dict[str, Any]]:
        """Tensors in the files that are not read yet, while the files are open."""
        with ExitStack() as stack:
            # Positioned reads: the pages of a mapped file would count as memory of the process.
            opened = {
                file: stack.enter_context(safe_open(file, framework="pt", backend="pread"))
                for file in {self._files[name] for name in names}
            }
            slices = {name: opened[self._files[name]].get_slice(name) for name in names if self._stored[name].numel()}
            # safetensors refuses to slice a tensor without elements when it reads by position.
            empty = {name: torch.empty_like(self._stored[name], device="cpu") for name in names if name not in slices}
            yield slices | empty

    def _find_groups(self) -> Iterator[_Group]:
        state = self.empty.state_dict()
        renamings = [entry for entry in self._mapping if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in self._mapping if isinstance(entry, WeightConverter)]
        by_pattern = {pattern: entry for entry in converters for pattern in entry.source_patterns}
        prefix = self.empty.base_model_prefix
        sources: dict[str, list[str]] = {}
        used: dict[str, WeightConverter] = {}
        for name in self._files:
            # As `convert_and_load_state_dict_in_model` does: a name that the class has may need only a prefix.
            target, pattern = rename_source_key(name, renamings, converters, prefix, state)
            if target not in state and name in state:
                target, pattern = rename_source_key(name, [], [], prefix, state)
            if target in state:
                sources.setdefault(target, []).append(name)
                if pattern is not None:
                    used[target] = by_pattern[pattern]
        for target, names in sources.items():
            targets = (target,)
            if target in used and len(used[target].target_patterns) > 1:
                targets = self._find_targets(names)
            yield _Group(tuple(names), targets, is_plain=target not in used and len(names) == 1)

    def _find_targets(self, names: Collection[str]) -> tuple[str, ...]:
        """The names in the model of the tensors that are made of some tensors in the files."""
        before = {name: id(tensor) for name, tensor in self.empty.state_dict(keep_vars=True).items()}
        self._convert({name: self._stored[name] for name in names})
        after = self.empty.state_dict(keep_vars=True)
        return tuple(name for name, tensor in after.items() if id(tensor) != before[name])

    def _tie(self) -> None:
        """Tie tensors as `from_pretrained` does: not those that are in the files with different values."""
        ties = self.empty.all_tied_weights_keys
        for target, source in list(ties.items()):
            if target not in self._groups or source not in self._groups:
                continue
            if self._are_equal(target, source):
                del self._groups[target]
                self.missing.add(target)
            else:
                del ties[target]
        with silence_transformers():
            self.empty.tie_weights(missing_keys=self.missing, recompute_mapping=False)

    def _are_equal(self, one: str, other: str) -> bool:
        groups = [self._groups[name] for name in (one, other)]
        if self.empty.get_parameter_or_buffer(one).shape != self.empty.get_parameter_or_buffer(other).shape:
            return False
        if not all(group.is_plain for group in groups):
            tensors = self.read([one, other])
            return torch.equal(tensors[one], tensors[other])
        (first,), (second,) = (group.sources for group in groups)
        with report_load_errors(self.source):
            chunks = zip(self._stored_chunks(first), self._stored_chunks(second), strict=True)
            return all(torch.equal(a.float(), b.float()) for a, b in chunks)


def _empty_tensor(name: str, header: Header, source: str) -> Tensor:
    if isinstance(header.dtype, str):
        raise UserError(
            f"The model '{source}' cannot be streamed: '{name}' is of the type {quote(header.dtype)}, which torch does "
            "not have; convert its weights."
        )
    return torch.empty(header.shape, dtype=header.dtype, device="meta")


def _set(model: PreTrainedModel, name: str, tensor: Tensor) -> None:
    path, _, last = name.rpartition(".")
    setattr(model.get_submodule(path), last, tensor)
