"""Measure what a model costs in an engine: bytes on disk, memory, and the time of reading a prompt and of writing text.

The prompt is one row of random tokens. It is read, and tokens are written greedily after it, once to warm up and then
up to five times. The time to the first token is that of the prompt (prefill); each token after it is one decode step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from laconic.calibrate.passes import describe_machine
from laconic.evaluate.timing import GENERATION_RUNS, MIN_TOKENS, NEW_TOKENS, Generation, Quartiles, repeat
from laconic.progress import Track
from laconic.runtime.engine import Engine

NO_CACHE = "The speed of decoding was not measured: the exported model has no key-value cache."


@dataclass(frozen=True, kw_only=True)
class EngineCost:
    """The cost of a model in an engine.

    Args:
        bytes: the size of the weights on disk.
        memory_bytes: the memory of the model; None if the system does not tell it.
        memory: how `memory_bytes` was measured.
        generations: the speed of reading and writing, for each length of the prompt.
        missing: sentences about measurements that were not possible.
        runtime: the name of the engine, and its library.
        machine: the hardware and settings that timings depend on.
    """

    bytes: int
    memory_bytes: int | None
    memory: str
    generations: tuple[Generation, ...]
    missing: tuple[str, ...]
    runtime: dict[str, Any]
    machine: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The cost as JSON values, with the names of `Cost.to_json`."""
        return {
            "bytes": self.bytes,
            "memory_bytes": self.memory_bytes,
            "memory": self.memory,
            "generation": [generation.to_json() for generation in self.generations],
            **({"missing": list(self.missing)} if self.missing else {}),
            "runtime": self.runtime,
            "machine": self.machine,
        }


def written_tokens(longest: int | None) -> int:
    """The number of tokens to write after a prompt.

    Args:
        longest: the largest number of tokens of a text; None if it is not limited.

    Example:
        >>> written_tokens(None), written_tokens(40)
        (32, 20)
    """
    return NEW_TOKENS if longest is None else min(NEW_TOKENS, max(MIN_TOKENS, longest // 2))


def prompt_lengths(lengths: Sequence[int], longest: int | None) -> tuple[int, ...]:
    """The lengths of prompts that leave room for the tokens to write, each once.

    Args:
        lengths: the lengths that were asked for.
        longest: as for `written_tokens`.

    Example:
        >>> prompt_lengths((16, 128, 512), 100)
        (16, 68)
    """
    room = None if longest is None else max(1, longest - written_tokens(longest))
    return tuple(dict.fromkeys(length if room is None else min(length, room) for length in lengths))


def measure_engine(engine: Engine, nbytes: int, lengths: Sequence[int], new: int, track: Track) -> EngineCost:
    """Measure what a model costs in an engine.

    Args:
        engine: the loaded model; nothing has run yet.
        nbytes: the bytes of its weights on disk.
        lengths: the lengths of the prompts in tokens.
        new: the number of tokens to write.
        track: reports progress.
    """
    generations = tuple(_time_writing(engine, length, new, track) for length in lengths)
    return EngineCost(
        bytes=nbytes,
        memory_bytes=engine.memory_bytes(),
        memory=engine.memory,
        generations=generations,
        missing=() if engine.has_cache else (NO_CACHE,),
        runtime={"name": engine.name, "library": engine.version},
        machine=describe_machine(torch.device("cpu")),
    )


def _time_writing(engine: Engine, length: int, new: int, track: Track) -> Generation:
    generator = torch.Generator().manual_seed(0)
    prompt: list[int] = torch.randint(engine.vocabulary, (length,), generator=generator).tolist()
    count, label = new if engine.has_cache else 1, f"Writing after {length} tokens in {engine.name}"
    warm_up = list(engine.write(prompt, count).seconds)
    seconds = repeat(lambda: list(engine.write(prompt, count).seconds), warm_up, GENERATION_RUNS, track, label)
    steps = [step for _, *further in seconds for step in further]
    prefill = Quartiles.of([first for first, *_ in seconds])
    return Generation(1, length, count, prefill, Quartiles.of(steps) if steps else None, len(seconds))
