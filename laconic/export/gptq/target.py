"""The target `gptq`: a checkpoint in the GPTQ format, for engines that know no other format of codes."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from math import gcd
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from laconic.errors import UserError
from laconic.export.code_checks import check_widths, quantized_layers
from laconic.export.coded_checkpoint import (
    compare_outputs,
    read_folder,
    replace_layers,
    write_folder,
)
from laconic.export.gptq.layers import GptqLinear, GptqScheme
from laconic.export.target import ExportedModel, Target, Written, card_opening, layers_table
from laconic.formats import Format, Quantized
from laconic.imports import installed_version
from laconic.model import LanguageModel, ModelTask
from laconic.model.checkpoints.quantized.integers import BITS, V1, V2, WORD
from laconic.model.mixture import experts_paths
from laconic.model.stock import build_stock
from laconic.progress import Track
from laconic.runtime.signature import Signature
from laconic.store.folder import file_bytes, to_dtype

NAME = "gptq"
MULTIPLE = 32
"""Columns and groups are multiples of this, which engines require."""
INSTEAD = "export to compressed-tensors"


class GptqTarget(Target):
    """The GPTQ format."""

    name = NAME

    def check_installed(self, device: str) -> None:
        """Nothing is needed: laconic writes and reads the format itself."""

    def check_model(self, lm: LanguageModel) -> None:
        plain = build_stock(lm.model)
        _scheme(lm, _layers(lm.model, plain))
        check_widths(lm.model, plain)

    def write(self, lm: LanguageModel, folder: Path, track: Track) -> Written:
        stored = to_dtype(lm.model, lm.dtype)
        found = _layers(stored, build_stock(stored))
        # The layout `gptq` stores zero points less one, and engines read a stored −1 as 2^bits: not as 0.
        lowest = min(layer.grid.zero.min().item() for layer in found.values())
        scheme = replace(_scheme(lm, found), zero_offset=1 if lowest >= 1 else 0)
        layers = replace_layers(stored, {path: _maker(stored, layer, scheme) for path, layer in found.items()})
        write_folder(stored, folder, quantization_config(scheme))
        loaded = read_folder(stored, folder, NAME)
        signature = Signature.of(lm)
        model = ExportedModel(
            file="config.json",
            runtime=NAME,
            library=f"the layout {V1 if scheme.zero_offset else V2}",
            inputs=signature.inputs,
            outputs=signature.outputs,
            bytes=file_bytes(folder),
            layers=layers,
            agreement=compare_outputs(lm, stored, loaded, NAME, track),
        )
        return Written(model, replace(lm, model=loaded, original=None))

    def card(self, lm: LanguageModel, model: ExportedModel) -> Iterator[str]:
        yield card_opening(lm, f"engines that read GPTQ, in {model.library}", model.bytes)
        yield ""
        agreement = model.agreement
        yield (
            f"Read again, all weights are equal bit for bit, and outputs on {agreement.rows} rows in "
            f"{agreement.batches} batches differ by at most {agreement.error:.1e} of the largest output."
        )
        yield from layers_table(model, "quantized layers")
        if lm.task is ModelTask.CAUSAL:
            yield from ("", "```sh", "vllm serve path/to/this/folder", "```")


def quantization_config(scheme: GptqScheme) -> dict[str, Any]:
    """The `quantization_config` of a GPTQ checkpoint.

    Args:
        scheme: the scheme of its layers.

    Example:
        >>> found = quantization_config(GptqScheme(4, None, True, zero_offset=0))
        >>> found["bits"], found["group_size"], found["sym"], found["checkpoint_format"]
        (4, -1, True, 'gptq_v2')
    """
    return {
        "quant_method": NAME,
        "bits": scheme.bits,
        "group_size": -1 if scheme.group is None else scheme.group,
        "sym": scheme.symmetric,
        "desc_act": False,
        "lm_head": False,
        "checkpoint_format": V1 if scheme.zero_offset else V2,
        "meta": {"quantizer": [f"laconic:{installed_version()}"]},
    }


def _layers(model: PreTrainedModel, plain: PreTrainedModel) -> dict[str, Quantized]:
    """The layers that are stored as codes, by path.

    Raises:
        UserError: the format cannot hold a layer.
    """
    for path in experts_paths(model):
        raise UserError(
            f"The model has experts in '{path}', and laconic writes none in the GPTQ format, which has one scheme for "
            f"all layers of the blocks: {INSTEAD}."
        )
    layers: dict[str, Quantized] = {}
    for path, layer in quantized_layers(model, plain):
        if not isinstance(layer, Quantized):
            raise UserError(
                f"The layer '{path}' is stored as {layer.kind}, which the GPTQ format does not have: quantize it on an "
                f"even grid of 4 bits, as rtn and gptq do, or {INSTEAD}."
            )
        _check_layer(path, layer)
        layers[path] = layer
    return layers


def _check_layer(path: str, layer: Quantized) -> None:
    """Raise UserError if the format cannot hold a layer."""
    if layer.bits not in BITS:
        nearest = min(BITS, key=lambda bits: abs(bits - layer.bits))
        raise UserError(
            f"The layer '{path}' has codes of {layer.bits} bits, and the GPTQ format has 2, 3, 4 and 8: compress with "
            f"bits={nearest}."
        )
    rows, columns = layer.shape
    group = _group(layer)
    whole = WORD // gcd(layer.bits, WORD)
    if rows % whole or columns % MULTIPLE:
        raise UserError(
            f"The layer '{path}' has {rows} × {columns} weights, and the GPTQ format packs codes of {layer.bits} bits "
            f"in multiples of {whole} rows and {MULTIPLE} columns: leave the layer out with targets, or export to onnx."
        )
    if group % MULTIPLE or columns % group:
        sizes = [size for size in (32, 64, 128) if columns % size == 0]
        raise UserError(
            f"The layer '{path}' has groups of {group} among its {columns} columns, and engines read GPTQ in groups of "
            f"a multiple of {MULTIPLE} that divides the columns: compress with group_size="
            f"{min(sizes, key=lambda size: abs(size - group))}."
        )


def _scheme(lm: LanguageModel, layers: Mapping[str, Quantized]) -> GptqScheme:
    """The scheme of all layers; a larger group than that of another layer becomes several groups with one scale.

    Raises:
        UserError: no scheme holds all layers of the blocks, or a layer is outside of them.
    """
    blocks = [path for _, found in lm.stacks() for path, _ in found]
    inner = tuple(f"{path}." for path in blocks)
    linears = [
        name
        for name, module in lm.model.named_modules()
        if isinstance(module, (nn.Linear, Format)) and name.startswith(inner)
    ]
    inside = [name for name in linears if not any(name.startswith(f"{path}.") for path in linears)]
    if not layers:
        raise UserError(
            "The model has no quantized layer, so it is a plain checkpoint, which engines read: save it, or compress "
            "with rtn or gptq first."
        )
    for path in (*inside, *layers):
        if path not in layers or not path.startswith(inner):
            raise UserError(
                f"The layer '{path}' is {'outside of the blocks' if path in layers else 'not quantized'}, and a GPTQ "
                f"checkpoint has one scheme for all layers of the blocks: compress them alike, or {INSTEAD}."
            )
    first, layer = next(iter(layers.items()))
    for path, other in layers.items():
        if other.bits != layer.bits:
            raise UserError(
                f"'{first}' has codes of {layer.bits} bits and '{path}' of {other.bits}, and a GPTQ checkpoint has one "
                f"number of bits: compress all layers alike, or {INSTEAD}."
            )
    whole = all(_group(each) == each.shape[1] for each in layers.values())
    group = None if whole else gcd(*(_group(each) for each in layers.values()))
    return GptqScheme(layer.bits, group, all(each.symmetric for each in layers.values()))


def _group(layer: Quantized) -> int:
    """The columns of a row that share a scale."""
    columns = layer.shape[1]
    return columns if layer.group is None else min(layer.group, columns)


def _maker(stored: PreTrainedModel, layer: Quantized, scheme: GptqScheme) -> tuple[str, Callable[[], GptqLinear]]:
    """The label of a layer, and what makes the tensors of the file."""
    return scheme.label, lambda: GptqLinear(layer, scheme, stored.dtype)
