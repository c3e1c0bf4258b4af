"""Compare the logits of a written GGUF file, as transformers reads it, with those of the model in torch."""

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from laconic.errors import CheckpointNotice, UserError
from laconic.export.agreement import Agreement, check_agreement
from laconic.export.gguf.architectures import Architecture
from laconic.export.gguf.encoding import is_exact
from laconic.export.gguf.metadata import context_length
from laconic.formats import Format
from laconic.model import Batch, LanguageModel, load
from laconic.progress import Track
from laconic.runtime.engines import Program
from laconic.runtime.signature import Signature

GGUF = "gguf"
"""The value of `--to`."""
NOT_COMPARED = Agreement(error=0.0, tolerance=0.0, rows=0, batches=0)
"""Only the numbers were compared, as transformers cannot read the file."""


class GgufProgram(Program):
    """A GGUF file that transformers has read.

    Args:
        file: the file.
        version: name and version of the library.
    """

    def __init__(self, file: Path, version: str) -> None:
        self.version = version
        with warnings.catch_warnings():
            # The codes are decoded on purpose, and the tokenizer is not needed.
            warnings.simplefilter("ignore", CheckpointNotice)
            self._lm = load(str(file))

    def __call__(self, feeds: Batch) -> dict[str, Tensor]:
        return {"logits": self._lm.model(**feeds, use_cache=False).logits}


def check_logits(lm: LanguageModel, architecture: Architecture, file: Path, library: str, track: Track) -> Agreement:
    """Compare the logits of a file with those of the model, if transformers reads the architecture.

    Args:
        lm: the model with the numbers of the file.
        architecture: the architecture of the file.
        file: the file.
        library: name and version of the package that wrote it.
        track: reports progress.

    Raises:
        UserError: the logits differ.
    """
    if not architecture.readable:
        return NOT_COMPARED
    try:
        program = GgufProgram(file, library)
    except UserError:
        # transformers does not read all metadata, and laconic refuses a file rather than to compute something else.
        return NOT_COMPARED
    twin = lm.shallow_copy()
    twin.model.config.max_position_embeddings = context_length(lm.model.config, architecture)
    return check_agreement(twin, program, Signature.of(lm), GGUF, track)


@torch.no_grad()
def rounded_copy(lm: LanguageModel) -> LanguageModel:
    """A copy with the numbers of the file, where decoded layers are rounded to the dtype of the model.

    Args:
        lm: the model; the copy shares the tensors of the other layers.
    """
    twin = lm.shallow_copy()
    formats = {path: layer for path, layer in twin.model.named_modules() if isinstance(layer, Format)}
    for path, layer in formats.items():
        if any(path.startswith(f"{outer}.") for outer in formats) or layer.is_embedding or is_exact(layer):
            continue
        rows, width = layer.shape
        plain = nn.Linear(width, rows, bias=layer.bias is not None, device="meta")
        plain.weight = nn.Parameter(layer.dense().to(lm.dtype).float(), requires_grad=False)
        plain.register_parameter("bias", None if layer.bias is None else nn.Parameter(layer.bias, requires_grad=False))
        twin.model.set_submodule(path, plain)
    return twin
