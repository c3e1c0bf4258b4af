"""The targets of `laconic export`. A new one is a line here."""

from laconic.export.compressed_tensors.target import CompressedTensorsTarget
from laconic.export.gguf import GgufTarget
from laconic.export.gptq.target import GptqTarget
from laconic.export.graph_target import OnnxTarget, OpenVinoTarget
from laconic.export.target import Target

TARGETS: tuple[Target, ...] = (
    OnnxTarget(),
    OpenVinoTarget(),
    GgufTarget(),
    CompressedTensorsTarget(),
    GptqTarget(),
)
NAMES = tuple(target.name for target in TARGETS)
"""The values of `--to`."""
