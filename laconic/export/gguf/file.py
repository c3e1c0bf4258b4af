"""Write a GGUF file with the package `gguf`, and read it back with the same package's reader."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from laconic.errors import UserError
from laconic.export.gguf.encoding import FLOATS, Encoded
from laconic.export.gguf.metadata import Value
from laconic.export.gguf.vocabulary import Vocabulary

FILE = "model.gguf"
_DTYPES = {name: dtype for dtype, name in FLOATS.items()}


def write_file(
    path: Path, architecture: str, metadata: Mapping[str, Value], vocabulary: Vocabulary, tensors: Mapping[str, Encoded]
) -> None:
    """Write a GGUF file.

    Args:
        path: the file.
        architecture: the value of `general.architecture`.
        metadata: the metadata of the model, by key without the architecture.
        vocabulary: the tokenizer.
        tensors: the tensors by name.
    """
    import gguf  # noqa: PLC0415 (an extra, whose presence is checked before)

    writer = gguf.GGUFWriter(path, architecture)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, value in metadata.items():
        _add(writer, f"{architecture}.{key}", value)
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
    for key, value in vocabulary.values.items():
        _add(writer, f"tokenizer.{key}", value)
    for name, tensor in tensors.items():
        kind = gguf.GGMLQuantizationType[tensor.kind.upper()]
        writer.add_tensor(name, tensor.data.numpy(), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def check_numbers(path: Path, tensors: Mapping[str, Encoded], expected: Mapping[str, Encoded]) -> None:
    """Check that the reader of the package `gguf` finds the numbers of the model in a file.

    Args:
        path: the file.
        tensors: the tensors that were written.
        expected: the same tensors as float32, from the layers of the model.

    Raises:
        UserError: a number differs by a bit from the number of the model in the type of the tensor.
    """
    import gguf  # noqa: PLC0415 (an extra, whose presence is checked before)

    read = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for name, tensor in tensors.items():
        numbers = torch.from_numpy(gguf.dequantize(read[name].data, read[name].tensor_type).copy()).reshape(
            tensor.shape
        )
        own: Tensor = expected[name].data.view(torch.float32).reshape(tensor.shape)
        rounded = own.to(_DTYPES.get(tensor.kind, torch.float32)).float()
        if not torch.equal(numbers, rounded):
            raise UserError(
                f"The package gguf reads other numbers in the tensor '{name}' than the model has; nothing was written; "
                "export the model to onnx or openvino."
            )


def library() -> str:
    """Name and version of the package that reads and writes."""
    return f"gguf {version('gguf')}"


def _add(writer: Any, key: str, value: Value | bytes) -> None:
    """Add one value in the type of llama.cpp for it."""
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case bytes():
            writer.add_array(key, value)
        case Sequence():
            writer.add_array(key, list(value))
