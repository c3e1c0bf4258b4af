"""Write a model for ONNX Runtime or OpenVINO, and load what was written: one graph, or an encoder and a decoder."""

from dataclasses import dataclass
from pathlib import Path

from laconic.model import Batch, LanguageModel, ModelTask
from laconic.runtime.axes import SOURCE_MASK, STATES_READ
from laconic.runtime.cache_layout import PAST, PRESENT
from laconic.runtime.engines import ONNX, OPENVINO, Program, load_program
from laconic.runtime.graph import FILE_NAMES, build_graph, write_model
from laconic.runtime.portable import ExportedLayers
from laconic.runtime.seq2seq_parts import Form, build_decoder, build_encoder
from laconic.runtime.sessions import CachedProgram, Session, load_cached
from laconic.runtime.signature import STATES, TARGETS, Signature
from laconic.runtime.stateful import BEAM

ENCODER_FILES = {ONNX: "encoder_model.onnx", OPENVINO: "openvino_encoder_model.xml"}
DECODER_FILES = {ONNX: "decoder_with_past_model.onnx", OPENVINO: "openvino_decoder_model.xml"}
"""The decoder that reads a cache."""
FIRST_FILE = "decoder_model.onnx"
"""The decoder for the first tokens in ONNX Runtime."""


class Seq2SeqProgram(Program):
    """An encoder-decoder with a cache, as two or three graphs.

    Args:
        encoder: the encoder.
        decoder: the decoder with its head.
    """

    def __init__(self, encoder: Program, decoder: CachedProgram) -> None:
        self.version, self.encoder, self.decoder = encoder.version, encoder, decoder

    def read_source(self, feeds: Batch) -> Batch:
        """Run the encoder.

        Args:
            feeds: `input_ids` and `attention_mask`.

        Returns:
            The inputs of the decoder that stay the same for all its tokens.
        """
        states = self.encoder({name: feeds[name] for name in ("input_ids", "attention_mask")})[STATES]
        return {STATES_READ: states, SOURCE_MASK: feeds["attention_mask"]}

    def __call__(self, feeds: Batch) -> Batch:
        return self.decoder({**self.read_source(feeds), "input_ids": feeds[TARGETS]})

    def start(self) -> Session:
        """Start a decoder with an empty cache."""
        return self.decoder.start()


@dataclass(frozen=True)
class WrittenModel:
    """The files of an exported model.

    Args:
        runtime: `ONNX` or `OPENVINO`.
        folder: where they lie.
        signature: inputs and outputs. Those of an encoder-decoder are of both stacks together.
        layers: how quantized layers were exported, by label.
        cached: whether the model has a cache.
        parts: whether encoder and decoder are graphs of their own.
    """

    runtime: str
    folder: Path
    signature: Signature
    layers: dict[str, ExportedLayers]
    cached: bool
    parts: bool

    @property
    def file(self) -> str:
        """The name of the file that is loaded, that of the decoder if there are several."""
        return (DECODER_FILES if self.parts else FILE_NAMES)[self.runtime]

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the inputs for reports, those of all layers of a cache by one name each."""
        cache = self.signature.cache
        if cache is None:
            return self.signature.inputs
        plain = tuple(name for name in self.signature.inputs if name not in cache.past)
        return (*plain, BEAM) if self.runtime == OPENVINO else (*plain, f"{PAST}.N.key", f"{PAST}.N.value")

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the outputs for reports."""
        has_present = self.signature.cache is not None and self.runtime == ONNX
        return (*self.signature.predictions, *((f"{PRESENT}.N.key", f"{PRESENT}.N.value") if has_present else ()))

    def load(self, *, exact: bool = False) -> Program:
        """Load the model.

        Args:
            exact: disable the dynamic quantization of inputs, even if that is slower.

        Raises:
            UserError: the runtime cannot read a file.
        """
        if self.parts:
            return load_seq2seq(self.runtime, self.folder, exact=exact)
        load = load_cached if self.cached else load_program
        return load(self.runtime, self.folder / self.file, exact=exact)


def write_graphs(
    lm: LanguageModel, runtime: str, folder: Path, *, hidden: bool = False, cached: bool = False
) -> WrittenModel:
    """Export a model, and write it.

    Args:
        lm: the model; it is not changed.
        runtime: `ONNX` or `OPENVINO`.
        folder: an existing folder.
        hidden: whether the last hidden states are an additional output; not with a cache.
        cached: whether a model that writes text has a cache. An encoder-decoder is then several graphs.

    Raises:
        UserError: the model cannot be traced, does not run, or has no cache; or OpenVINO cannot read a graph.
    """
    if cached and lm.task is ModelTask.SEQ2SEQ:
        return _write_parts(lm, runtime, folder)
    graph = build_graph(lm, runtime, hidden, cached)
    write_model(lm, graph, runtime, folder)
    return WrittenModel(runtime, folder, graph.signature, graph.layers, cached, parts=False)


def _write_parts(lm: LanguageModel, runtime: str, folder: Path) -> WrittenModel:
    encoder = build_encoder(lm, runtime)
    write_model(lm, encoder, runtime, folder, ENCODER_FILES[runtime])
    if runtime == ONNX:
        write_model(lm, build_decoder(lm, runtime, Form.FIRST), runtime, folder, FIRST_FILE)
    form = Form.FOLLOWING if runtime == ONNX else Form.STATEFUL
    write_model(lm, build_decoder(lm, runtime, form), runtime, folder, DECODER_FILES[runtime])
    return WrittenModel(runtime, folder, Signature.of(lm), encoder.layers, cached=True, parts=True)


def load_seq2seq(runtime: str, folder: Path, *, exact: bool = False) -> Seq2SeqProgram:
    """Load an encoder-decoder that was written as several graphs.

    Args:
        runtime: `ONNX` or `OPENVINO`.
        folder: the folder with its files.
        exact: as in `load_program`.

    Raises:
        UserError: the runtime cannot read a file.
    """
    encoder = load_program(runtime, folder / ENCODER_FILES[runtime], exact=exact)
    first = folder / FIRST_FILE if runtime == ONNX else None
    return Seq2SeqProgram(encoder, load_cached(runtime, folder / DECODER_FILES[runtime], first, exact=exact))
