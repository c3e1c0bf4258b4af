"""The tools of llama.cpp, as benchmarks/peers/llama_cpp_tools.sh builds them, each on one thread."""

import json
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONTEXT = 512
"""Tokens of a chunk."""
THREADS = "1"
PREFILL, DECODE = 128, 32
"""Tokens that are read and written to measure the speed."""
ROUNDS, REPETITIONS = 4, 2
_FIGURES = {
    "kl": r"Mean +KLD: +(\S+) ± +(\S+)",
    "perplexity": r"Mean PPL\(Q\) +: +(\S+) ± +(\S+)",
    "original_perplexity": r"Mean PPL\(base\) +: +(\S+) ± +(\S+)",
    "same_top": r"Same top p: +(\S+) ± +(\S+)",
}


@dataclass(frozen=True)
class Tools:
    """The programs of llama.cpp in a folder.

    Args:
        folder: their folder.
    """

    folder: Path

    def command(self, tool: str, *arguments: object) -> tuple[str, ...]:
        """The command that runs a tool."""
        return (str(self.folder / f"llama-{tool}"), *map(str, arguments))

    def run(self, tool: str, *arguments: object) -> str:
        """Run a tool and return its output.

        Raises:
            RuntimeError: it fails.
        """
        done = subprocess.run(
            self.command(tool, *arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"llama-{tool} ended with {done.returncode}:\n{done.stdout[-4000:]}")
        return done.stdout

    def imatrix(self, model: Path, texts: Path, chunks: int, result: Path) -> tuple[str, ...]:
        """The command that writes the importance matrix of a model for the first chunks of a text."""
        sizes = ("-c", CONTEXT, "-b", CONTEXT, "--chunks", chunks, "-t", THREADS)
        return self.command("imatrix", "-m", model, "-f", texts, *sizes, "-o", result)

    def quantize(self, model: Path, result: Path, size: str, imatrix: Path | None = None) -> tuple[str, ...]:
        """The command that quantizes a file to one of llama.cpp's mixtures of types."""
        given = () if imatrix is None else ("--imatrix", imatrix)
        return self.command("quantize", *given, model, result, size, THREADS)

    def quantize_purely(self, model: Path, result: Path, kind: str) -> None:
        """Quantize all matrices of a file to one type, or to one near it where a width does not allow it."""
        self.run("quantize", "--pure", model, result, kind, THREADS)

    def write_logits(self, model: Path, texts: Path, chunks: int, result: Path) -> None:
        """Write the logits of a model on the first chunks of a text."""
        sizes = ("-c", CONTEXT, "-b", CONTEXT, "--chunks", chunks, "-t", THREADS)
        self.run("perplexity", "-m", model, "-f", texts, *sizes, "--kl-divergence-base", result)

    def compare(self, model: Path, logits: Path) -> dict[str, tuple[float, float]]:
        """Compare the logits of a model with those that were written.

        Returns:
            The mean KL divergence in nats, both perplexities, and the share of tokens in percent for which both find
            the same token most likely; each with its standard error.
        """
        sizes = ("-c", CONTEXT, "-b", CONTEXT, "-t", THREADS)
        text = self.run("perplexity", "-m", model, *sizes, "--kl-divergence-base", logits, "--kl-divergence")
        found = {name: re.search(pattern, text) for name, pattern in _FIGURES.items()}
        return {name: (float(match[1]), float(match[2])) for name, match in found.items() if match is not None}

    def speeds(self, models: Mapping[str, Path]) -> dict[str, dict[str, list[float]]]:
        """Tokens a second of some models in turn, of every round, for reading (prefill) and for writing (decode)."""
        found = {name: {"prefill": list[float](), "decode": list[float]()} for name in models}
        for _ in range(ROUNDS):
            for name, model in models.items():
                sizes = ("-p", PREFILL, "-n", DECODE, "-t", THREADS, "-r", REPETITIONS)
                text = self.run("bench", "-m", model, *sizes, "-o", "json")
                runs: list[dict[str, Any]] = json.loads(text[text.index("[\n") : text.rindex("]") + 1])
                for run in runs:
                    found[name]["prefill" if run["n_prompt"] else "decode"] += run["samples_ts"]
        return found

    def version(self) -> str:
        """The release of llama.cpp."""
        match = re.search(r"version: (.+)", self.run("perplexity", "--version"))
        return match[1] if match else "unknown"
