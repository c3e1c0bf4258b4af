"""An exported encoder-decoder as a model that its runtime runs, for tasks that read and write texts.

The folder has the configuration of the model and its tokenizers, but no weights that torch reads. The model has
parameters of the right shapes that take no memory, and its forward pass runs the exported graphs (`laconic.runtime.
serve`).
"""

from pathlib import Path

import torch
from torch import nn

from laconic.model import LanguageModel
from laconic.runtime.graph import exported_bytes
from laconic.runtime.serve import LoadedExport, serve
from laconic.runtime.signature import Signature
from laconic.runtime.written import Seq2SeqProgram


def exported_model(structure: LanguageModel, folder: Path, runtime: str, program: Seq2SeqProgram) -> LanguageModel:
    """A model whose forward pass runs an exported encoder-decoder; it reads, predicts and generates as in torch.

    Args:
        structure: the model without weights, as `laconic.model.loading.load_outline` builds it; it is not changed.
        folder: the folder.
        runtime: `ONNX` or `OPENVINO`.
        program: the loaded encoder-decoder.
    """
    lm = structure.shallow_copy()
    for module in lm.model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            module.register_parameter(name, nn.Parameter(_stand_in(parameter), requires_grad=False))
        for name, buffer in module.named_buffers(recurse=False):
            module.register_buffer(name, _stand_in(buffer), persistent=name not in module._non_persistent_buffers_set)
    loaded = LoadedExport(program, Signature.of(lm), exported_bytes(folder), {}, cached=True, is_only=True)
    lm.model.eval()
    return serve(lm, runtime, loaded).lm


def _stand_in(tensor: torch.Tensor) -> torch.Tensor:
    """Zeros of the shape of a tensor, all of which are the same number in memory."""
    return torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)
