"""Export a model to a GGUF file; it is read again and compared before it appears."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from laconic.export.gguf.architectures import Architecture
from laconic.export.gguf.checks import check_gguf, check_gguf_library
from laconic.export.gguf.encoders import pooling_type, with_kinds
from laconic.export.gguf.encoding import Encoded, Encoder
from laconic.export.gguf.file import FILE, check_numbers, library, write_file
from laconic.export.gguf.metadata import model_metadata
from laconic.export.gguf.rope import rope_tensors
from laconic.export.gguf.tensors import file_tensors, to_file_order
from laconic.export.gguf.verify import GGUF, check_logits, rounded_copy
from laconic.export.gguf.vocabulary import read_vocabulary
from laconic.export.gguf.widths import find_shape, fit
from laconic.export.target import ExportedModel, Target, Written, card_opening, layers_table
from laconic.model import LanguageModel, ModelTask
from laconic.numerics.ggml_blocks import BLOCK_TYPES
from laconic.progress import Track
from laconic.runtime.portable import ExportedLayers
from laconic.runtime.signature import TARGETS

PROGRAMS = {ModelTask.EMBEDDING: "llama-embedding", ModelTask.SEQ2SEQ: "llama-completion"}
"""The programs of llama.cpp for other models than causal ones; `llama-cli` runs no encoder."""


class GgufTarget(Target):
    """A GGUF file with the tokenizer in it."""

    name = GGUF
    single_file = FILE

    def check_installed(self, device: str) -> None:
        check_gguf_library()

    def check_model(self, lm: LanguageModel) -> None:
        check_gguf(lm)

    def write(self, lm: LanguageModel, folder: Path, track: Track) -> Written:
        file = folder / FILE
        architecture, layers = write_numbers(lm, check_gguf(lm), file)
        # The numbers in the file are those of this model, so that tasks judge them in torch.
        served = rounded_copy(lm)
        model = ExportedModel(
            file=file.name,
            runtime=GGUF,
            library=library(),
            inputs=("input_ids", TARGETS) if architecture.task is ModelTask.SEQ2SEQ else ("input_ids",),
            outputs=("embedding",) if architecture.embeds else ("logits",),
            bytes=file.stat().st_size,
            layers=layers,
            agreement=check_logits(served, architecture, file, library(), track),
        )
        return Written(model, served)

    def card(self, lm: LanguageModel, model: ExportedModel) -> Iterator[str]:
        yield card_opening(lm, "llama.cpp", model.bytes)
        yield ""
        yield f"The reader of {model.library} finds the numbers of the model in torch in the file, bit for bit."
        if model.agreement.rows:
            yield (
                f"Read by transformers, its logits on {model.agreement.rows} rows differ by at most "
                f"{model.agreement.error:.1e} of the largest from those of the model in torch."
            )
        yield from layers_table(model, "compressed layers")
        yield ""
        yield "```sh"
        yield f'{PROGRAMS.get(lm.task, "llama-cli")} -m {model.file} -p "A text."'
        yield "```"


def write_numbers(
    lm: LanguageModel, architecture: Architecture, file: Path
) -> tuple[Architecture, Mapping[str, ExportedLayers]]:
    """Write the file and compare its numbers.

    Args:
        lm: the model.
        architecture: the architecture of the model, from `check_gguf`.
        file: the file.

    Returns:
        The architecture that was written, and the count and bytes of the compressed layers by type.

    Raises:
        UserError: llama.cpp has no tensor for a part of the model or does not take its widths, or a number in the
            file differs.
    """
    config = lm.model.config
    tensors = file_tensors(lm, architecture)
    shape = find_shape(lm, architecture)
    architecture = fit(architecture, shape)
    ordered = to_file_order(tensors, architecture, shape)
    expected = to_file_order(file_tensors(lm, architecture, decoded=True), architecture, shape)
    for name, factors in rope_tensors(config).items():
        ordered[name] = expected[name] = Encoder(lm.dtype).floats(factors)
    metadata = model_metadata(config, architecture, shape)
    vocabulary = read_vocabulary(lm.tokenizer, config.vocab_size)
    if architecture.embeds:
        metadata |= {"attention.causal": False, "pooling_type": pooling_type(lm)}
        vocabulary = with_kinds(vocabulary, config)
    write_file(file, architecture.name, metadata, vocabulary, ordered)
    check_numbers(file, ordered, expected)
    return architecture, _summary(ordered)


def _summary(tensors: Mapping[str, Encoded]) -> dict[str, ExportedLayers]:
    """The count and bytes of the compressed layers, by the type of their numbers in the file."""
    layers: dict[str, ExportedLayers] = {}
    for tensor in tensors.values():
        if tensor.stored_bytes is not None:
            label = f"{tensor.kind} blocks, exact" if tensor.kind in BLOCK_TYPES else f"decoded, {tensor.kind}"
            total = layers.get(label, ExportedLayers(0, 0, 0))
            stored, size = total.stored_bytes + tensor.stored_bytes, total.bytes + tensor.data.numel()
            layers[label] = ExportedLayers(total.count + 1, stored, size)
    return layers
