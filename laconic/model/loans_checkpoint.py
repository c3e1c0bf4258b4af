"""Read some tensors of a model from its safetensors files, with the names and shapes that its class gives them.

The names in a checkpoint may differ from those in the class: transformers adds or removes prefixes, renames norms, and
merges the experts that a file stores one by one. Its function `convert_and_load_state_dict_in_model`, by which
`from_pretrained` sets tensors, does all that for the tensors that it is given, so it is called here with those of one
part. The tensors go into a model on the meta device, from which they are taken at once.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
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
from laconic.model.stock import silence_transformers

ROWS_COMPARED = 4096
"""Rows of two tied matrices that are compared at a time."""


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
        headers = weights.headers()
        self._mapping: Any = get_model_conversion_mapping(empty)
        self._targets: dict[tuple[str, ...], tuple[str, ...]] = {}
        stored = {name: _empty_tensor(name, header, source) for name, header in headers.items()}
        for names, has_several in self._groups().items():
            self._targets[names] = self._find_targets({name: stored[name] for name in names}, has_several)
        report = self._convert(stored)
        self.missing = set(report.missing_keys)
        self._sources = {target: names for names, targets in self._targets.items() for target in targets}
        self._tie()
        report.missing_keys = set(self.missing)
        empty._adjust_missing_and_unexpected_keys(report)
        check_report(empty, report.to_dict(), source, weights.integer_names)

    @property
    def names(self) -> Collection[str]:
        """The names of the tensors that can be read; of tied tensors, one."""
        return self._sources.keys()

    def read(self, names: Collection[str]) -> dict[str, Tensor]:
        """Read tensors; see `TensorReader`."""
        groups = dict.fromkeys(self._sources[name] for name in names)
        # Tensors that are merged are read one group after another, as all parts of a group are in memory at once.
        plain = [group for group in groups if len(group) == 1 and len(self._targets[group]) == 1]
        batches = [plain, *([group] for group in groups if group not in set(plain))]
        found: dict[str, Tensor] = {}
        for batch in filter(None, batches):
            found |= self._read(batch)
        return {name: found[name] for name in names}

    def _read(self, groups: Collection[tuple[str, ...]]) -> dict[str, Tensor]:
        targets = [target for group in groups for target in self._targets[group]]
        sources = [name for group in groups for name in group]
        placeholders = {name: self.empty.get_parameter_or_buffer(name) for name in targets}
        try:
            with report_load_errors(self.source, "fetch its files again"), self._slices(sources) as slices:
                report = self._convert(slices)
            if report.conversion_errors:
                name, error = next(iter(report.conversion_errors.items()))
                raise UserError(
                    f"The tensor '{name}' of '{self.source}' cannot be made from those in its files: "
                    f"{error.strip().splitlines()[-1]}; use files that were saved together."
                )
            return {name: self.empty.get_parameter_or_buffer(name) for name in targets}
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
            yield {name: opened[self._files[name]].get_slice(name) for name in names}

    def _groups(self) -> dict[tuple[str, ...], bool]:
        """The names in the files that are converted together, and whether several tensors may come of them."""
        state = self.empty.state_dict()
        renamings = [entry for entry in self._mapping if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in self._mapping if isinstance(entry, WeightConverter)]
        several = {pattern: len(entry.target_patterns) > 1 for entry in converters for pattern in entry.source_patterns}
        prefix = self.empty.base_model_prefix
        groups: dict[str, list[str]] = {}
        has_several: dict[str, bool] = {}
        for name in self._files:
            # As `convert_and_load_state_dict_in_model` does: a name that the class has may need only a prefix.
            target, pattern = rename_source_key(name, renamings, converters, prefix, state)
            if target not in state and name in state:
                target, pattern = rename_source_key(name, [], [], prefix, state)
            if target in state:
                groups.setdefault(target, []).append(name)
                has_several[target] = pattern is not None and several[pattern]
        self._first = {tuple(names): target for target, names in groups.items()}
        return {tuple(names): has_several[target] for target, names in groups.items()}

    def _find_targets(self, stored: Mapping[str, Tensor], has_several: bool) -> tuple[str, ...]:
        """The names in the model of the tensors that come of some tensors in the files."""
        if not has_several:
            return (self._first[tuple(stored)],)
        before = {name: id(tensor) for name, tensor in self.empty.state_dict(keep_vars=True).items()}
        self._convert(stored)
        after = self.empty.state_dict(keep_vars=True)
        return tuple(name for name, tensor in after.items() if id(tensor) != before[name])

    def _tie(self) -> None:
        """Tie tensors as `from_pretrained` does: not those that are in the files with different values."""
        ties = self.empty.all_tied_weights_keys
        for target, source in list(ties.items()):
            if target not in self._sources or source not in self._sources:
                continue
            if self._are_equal(target, source):
                del self._sources[target]
                self.missing.add(target)
            else:
                del ties[target]
        with silence_transformers():
            self.empty.tie_weights(missing_keys=self.missing, recompute_mapping=False)

    def _are_equal(self, one: str, other: str) -> bool:
        sources = [self._sources[one], self._sources[other]]
        shapes = {tuple(self.empty.get_parameter_or_buffer(name).shape) for name in (one, other)}
        if len(shapes) > 1:
            return False
        if any(len(names) > 1 or len(self._targets[names]) > 1 for names in sources):
            tensors = self.read([one, other])
            return torch.equal(tensors[one], tensors[other])
        with report_load_errors(self.source), self._slices([names[0] for names in sources]) as slices:
            first, second = (slices[names[0]] for names in sources)
            count = first.get_shape()[0]
            chunks = (slice(start, min(start + ROWS_COMPARED, count)) for start in range(0, count, ROWS_COMPARED))
            return all(torch.equal(first[rows].float(), second[rows].float()) for rows in chunks)


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
