"""Engines that serve causal language models: llama.cpp, vLLM, ONNX Runtime and OpenVINO. A new one is a line here.

Internal: it may change with any version.
"""

from laconic.runtime.engine.distributions import Distributions
from laconic.runtime.engine.engine import Engine, Written
from laconic.runtime.engine.graphs import OnnxEngine, OpenVinoEngine
from laconic.runtime.engine.llama_cpp import LlamaCpp
from laconic.runtime.engine.vllm import Vllm

ENGINES: dict[str, type[Engine]] = {engine.name: engine for engine in (LlamaCpp, Vllm, OnnxEngine, OpenVinoEngine)}
"""The engines by the values of `--runtime`."""

__all__ = ["ENGINES", "Distributions", "Engine", "Written"]
