"""All tensors of a model under the names of llama.cpp, with rows in its order."""

from collections.abc import Iterator, Mapping

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from laconic.errors import UserError
from laconic.export.gguf.architectures import Architecture, RowOrder
from laconic.export.gguf.encoders import HEADS, from_first_position
from laconic.export.gguf.encoding import Encoded, Encoder, stack
from laconic.export.gguf.rows import file_rows
from laconic.export.gguf.shape import Shape
from laconic.formats import Format
from laconic.formats.expert_layer import find_expert_stacks, is_experts
from laconic.model import LanguageModel
from laconic.model.tables import has_tied_head

HEAD, EMBEDDING = "output.weight", "token_embd.weight"
"""The names of the head and of the word embeddings."""
OUTPUT_NORM = "dec.output_norm.weight"
"""The name of the last norm of a decoder that reads an encoder."""
COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
"""The word embeddings of the two stacks in transformers, for which a file has one matrix."""


def file_tensors(lm: LanguageModel, architecture: Architecture, *, decoded: bool = False) -> dict[str, Encoded]:
    """The tensors of a model, by their names in the file; rows are still in the order of transformers.

    Args:
        lm: the model.
        architecture: the architecture to write.
        decoded: give every tensor as float32, to compare a file with.

    Raises:
        UserError: llama.cpp has no tensor for a part of the model.
    """
    names = FileNames(architecture, lm.model.config)
    tensors: dict[str, Encoded] = {}
    is_tied, head = (False, None) if architecture.embeds else (has_tied_head(lm.model), _head_path(lm.model))
    if architecture.head_is_tied and not is_tied:
        raise UserError(
            f"llama.cpp reads the word embeddings of {architecture.name} as its head, and those of this model are two "
            "matrices; export it to onnx or openvino."
        )
    for path, encoded in _model_tensors(lm, Encoder(torch.float32 if decoded else lm.dtype, blocks=not decoded)):
        is_head = path.startswith(HEADS) if architecture.embeds else is_tied and path == f"{head}.weight"
        if path in COPIES:
            _check_copy(encoded, tensors[EMBEDDING], path)
        elif not is_head:
            tensors[names(path)] = encoded
    if is_tied and architecture.head_is_required:
        tensors[HEAD] = tensors[EMBEDDING]
    return from_first_position(_with_norms(tensors, lm.model.config, architecture), lm.model.config, architecture)


def _with_norms(
    tensors: Mapping[str, Encoded], config: PreTrainedConfig, architecture: Architecture
) -> dict[str, Encoded]:
    """The tensors with the norms that make llama.cpp's graph compute what transformers does."""
    norms = {name: tensor.data.view(torch.float32) for name, tensor in tensors.items() if name.endswith("norm.weight")}
    if architecture.norm_offset:
        norms = {name: values + architecture.norm_offset for name, values in norms.items()}
    if architecture.output_scale is not None and getattr(config, architecture.output_scale):
        # The last norm is the only input of the head.
        norms[OUTPUT_NORM] = norms[OUTPUT_NORM] * config.hidden_size**-0.5
    return {**tensors, **{name: Encoder(torch.float32).floats(values) for name, values in norms.items()}}


def _check_copy(copy: Encoded, shared: Encoded, path: str) -> None:
    """Check that the word embedding of a stack is the shared one."""
    if copy.kind != shared.kind or not torch.equal(copy.data, shared.data):
        raise UserError(
            f"A GGUF file has one word embedding for encoder and decoder, and '{path}' is another matrix than "
            "'shared.weight'; export the model to onnx or openvino."
        )


def to_file_order(tensors: dict[str, Encoded], architecture: Architecture, shape: Shape) -> dict[str, Encoded]:
    """The tensors with rows in the order of the file.

    Args:
        tensors: the tensors in the order of transformers.
        architecture: the architecture to write.
        shape: the numbers of heads of each block.
    """
    ordered = dict(tensors)
    for name, tensor in tensors.items():
        order, block = _order(name, architecture)
        if order is not None:
            heads, groups = shape.heads[block], shape.groups[block]
            own = groups if name.split(".")[2] == "attn_k" else heads
            ordered[name] = tensor.take(file_rows(order, own, groups, shape.head_size))
    return ordered


def _order(name: str, architecture: Architecture) -> tuple[RowOrder | None, int]:
    """The order of the rows of a tensor in the file, and its block."""
    if not name.startswith("blk."):
        return None, 0
    _, block, own, _ = name.split(".")
    return architecture.rows.get(own), int(block)


class FileNames:
    """The names of tensors in the file.

    Args:
        architecture: the architecture to write.
        config: the configuration of the model.
    """

    def __init__(self, architecture: Architecture, config: PreTrainedConfig) -> None:
        import gguf  # noqa: PLC0415 (an extra, whose presence is checked before)

        kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
        # Its table for Llama has the names of the narrowed architecture, too.
        self._kind = architecture.name
        blocks = max(getattr(config, stack.count_key) for stack in architecture.stacks)
        self._names = gguf.get_tensor_name_map(kinds[architecture.name], blocks)

    def __call__(self, path: str) -> str:
        """The name in the file of the tensor at `path`.

        Raises:
            UserError: llama.cpp has no such tensor.
        """
        name = self.find(path)
        if name is None:
            raise UserError(
                f"llama.cpp's {self._kind} has no tensor for '{path}'; export the model to onnx or openvino."
            )
        return name

    def find(self, path: str) -> str | None:
        """The name in the file of the tensor at `path`; None if llama.cpp has no such tensor."""
        name = self._names.get_name(path, (".weight", ".bias"))
        return name if name is None or name.endswith((".weight", ".bias")) else f"{name}.weight"


def _model_tensors(lm: LanguageModel, encoder: Encoder) -> Iterator[tuple[str, Encoded]]:
    """Every tensor of the model by its path in transformers, once for each place of a module."""
    inside: list[str] = []
    for path, module in lm.model.named_modules(remove_duplicate=False):
        if any(path.startswith(f"{outer}.") for outer in inside[-1:]):
            continue
        if isinstance(module, Format):
            inside.append(path)
            yield f"{path}.weight", encoder.layer(module)
            if module.bias is not None:
                yield f"{path}.bias", encoder.floats(module.bias)
        elif is_experts(module):
            inside.append(path)
            yield from _experts(path, module, encoder)
        else:
            for name, parameter in module.named_parameters(recurse=False):
                values = parameter.T if isinstance(module, Conv1D) and parameter.dim() > 1 else parameter
                yield f"{path}.{name}", encoder.floats(values)


def _experts(path: str, module: nn.Module, encoder: Encoder) -> Iterator[tuple[str, Encoded]]:
    """The matrices of experts, with the gates and the inputs that transformers keeps in one matrix apart."""
    for name, experts in find_expert_stacks(module).items():
        matrices = stack([encoder.module(experts.slice(index)) for index in range(experts.experts)])
        if name != "gate_up_proj":
            yield f"{path}.{name}", matrices
            continue
        rows = torch.arange(matrices.shape[-2]).chunk(2)
        for part, own in zip(("gate_proj", "up_proj"), rows, strict=True):
            yield f"{path}.{part}", matrices.take(own)


def _head(model: PreTrainedModel) -> nn.Module:
    head = model.get_output_embeddings()
    assert head is not None, "a causal model has a head"
    return head


def _head_path(model: PreTrainedModel) -> str:
    """The path of the head."""
    head, modules = _head(model), dict(model.named_modules(remove_duplicate=False))
    # The rows of a tied embedding are the head as well.
    formats = [path for path, module in modules.items() if isinstance(module, Format)]
    inside = {path for path in modules for outer in formats if path.startswith(f"{outer}.")}
    return next(path for path, module in modules.items() if module is head and path not in inside)
