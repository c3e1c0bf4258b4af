"""Experts in compressed-tensors: all matrices of all layers have one scheme, which engines read once for all."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel

from laconic.errors import UserError
from laconic.export.code_checks import quantized_experts
from laconic.export.coded_experts import CodedExperts, ExpertPart, expert_parts
from laconic.export.compressed_tensors.layers import CompressedLinear
from laconic.export.compressed_tensors.schemes import Scheme, scheme_of
from laconic.formats import DynamicInt8, ExpertLayer, Quantized
from laconic.formats.expert_layer import stack_names
from laconic.model.mixture import experts_paths


@dataclass(frozen=True)
class ExpertsInFile:
    """The experts of a layer as a file has them.

    Args:
        path: the path of the experts in the file.
        parts: the matrices in the file, by the names of the stacks.
        scheme: how they are stored; None if they are not quantized.
    """

    path: str
    parts: Mapping[str, tuple[ExpertPart, ...]]
    scheme: Scheme | None

    def to_coded(self, layer: ExpertLayer, dtype: torch.dtype) -> CodedExperts:
        """The experts as the tensors of the file.

        Args:
            layer: the quantized experts.
            dtype: the dtype of the model.
        """
        scheme = self.scheme
        assert scheme is not None, "the experts are quantized"
        return CodedExperts(layer, self.parts, lambda matrix: CompressedLinear(matrix, scheme, dtype))


def experts_in_file(model: PreTrainedModel, plain: PreTrainedModel) -> dict[str, ExpertsInFile]:
    """The experts of every layer, by path; empty if files have all experts of a layer in one tensor.

    Args:
        model: the model, with or without weights.
        plain: its stock model.

    Raises:
        UserError: compressed-tensors or an engine cannot hold quantized experts.
    """
    coded = dict(quantized_experts(model))
    found: dict[str, ExpertsInFile] = {}
    for path in experts_paths(model):
        layer = coded.get(path)
        read = {name: expert_parts(plain, path, name) for name in stack_names(plain.get_submodule(path))}
        parts = {name: part for name, part in read.items() if part is not None}
        if len(parts) < len(read):
            if layer is not None:
                raise UserError(
                    f"The files of {type(plain).__name__} have the experts '{path}' in one tensor, and this export "
                    "writes only experts that have a matrix each: leave them out with targets, or export to onnx or "
                    "openvino."
                )
            continue
        owner = next(iter(parts.values()))[0].path.rsplit(".", 2)[0]
        found[path] = ExpertsInFile(owner, parts, None if layer is None else _scheme(path, layer, parts))
    _check_one_scheme({path: experts.scheme for path, experts in found.items() if experts.scheme is not None})
    return found


def unread_experts(experts: Mapping[str, ExpertsInFile]) -> str | None:
    """A sentence if transformers cannot read the experts of a model; None if it can, or if there are none.

    transformers 5.23 decodes experts while it loads them, from symmetric packed codes only: not from int8, and it does
    not find experts without codes either. vLLM reads them all.

    Args:
        experts: the experts of every layer.
    """
    for path, each in experts.items():
        scheme = each.scheme
        if scheme is None or scheme.rounds_inputs or not scheme.symmetric:
            label = "not quantized" if scheme is None else scheme.label
            return (
                f"The experts '{path}' are {label}, and transformers reads experts beside quantized layers only as "
                "symmetric packed codes (symmetric=true), so that vLLM and laconic alone read the folder."
            )
    return None


def _scheme(path: str, layer: ExpertLayer, parts: Mapping[str, tuple[ExpertPart, ...]]) -> Scheme:
    """The scheme of the matrices of a layer.

    Raises:
        UserError: compressed-tensors does not have such matrices, or they have two schemes.
    """
    schemes: dict[str, Scheme] = {}
    by_row: dict[str, Scheme] = {}
    for name, stack in layer.stacks().items():
        matrix = stack.slice(0)
        if not isinstance(matrix, (Quantized, DynamicInt8)):
            raise UserError(
                f"The experts '{path}' are stored as {stack.kind}, which compressed-tensors does not have: quantize "
                "them on an even grid of 4 bits, as rtn and gptq do, or export to onnx or openvino."
            )
        for part in parts[name]:
            if part.expert == 0:
                scheme = schemes[part.path] = scheme_of(part.path, _with_rows(matrix, part.rows))
                # A group that is a whole row of one matrix, and a part of a row of another.
                by_row[part.path] = replace(scheme, group=None) if scheme.group == matrix.in_features else scheme
    if len({*by_row.values()}) == 1 < len({*schemes.values()}):
        schemes = by_row
    _check_one_scheme(schemes)
    return next(iter(schemes.values()))


def _with_rows(matrix: Quantized | DynamicInt8, rows: slice) -> Quantized | DynamicInt8:
    """A matrix without weights that has as many rows as a part."""
    if isinstance(matrix, DynamicInt8):
        return matrix
    with torch.device("meta"):
        return Quantized((rows.stop - rows.start, matrix.in_features), matrix.bits, matrix.group, matrix.symmetric)


def _check_one_scheme(schemes: Mapping[str, Scheme]) -> None:
    """Raise UserError if two matrices or layers of experts have different schemes."""
    for path, scheme in schemes.items():
        first, other = next(iter(schemes.items()))
        if scheme != other:
            raise UserError(
                f"The experts '{first}' are {other.label} and '{path}' {scheme.label}, and engines read one scheme for "
                "all experts: compress them alike, with a group_size that divides the columns of both matrices."
            )
