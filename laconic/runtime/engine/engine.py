"""The contract of an engine: a program that serves causal language models from files of its own format.

Each engine is a file of this package. It says which files it reads, what must be installed, and how a model is served;
it loads a model, predicts tokens and writes text. `laconic.evaluate.in_engine` measures any of them.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from laconic.runtime.engine.distributions import Distributions

GROWTH = "growth of this process's resident memory, from before loading until after writing text"
"""The memory of an engine that runs in this process, as `Engine.memory` describes it."""


@dataclass(frozen=True)
class Written:
    """Text that an engine wrote greedily.

    Args:
        tokens: its tokens.
        seconds: the time of each token; the first includes the prompt.
    """

    tokens: Sequence[int]
    seconds: Sequence[float]


class Engine(ABC):
    """A model that is loaded in an engine.

    The constructor takes the path that `find` returned, and the largest number of tokens of a text. It raises UserError
    if the engine cannot read the model. An engine computes with as many threads as torch has in this process.
    """

    name: ClassVar[str]
    """The value of `--runtime`."""
    target: ClassVar[str]
    """The target of `laconic export` that writes for this engine."""
    files: ClassVar[str]
    """The files that the engine reads, for errors."""

    version: str
    """Name and version of the engine."""
    vocabulary: int
    """The number of tokens that the model predicts."""
    has_cache: bool
    """Whether the model keeps keys and values of earlier tokens, so that writing text can be timed."""
    memory: str
    """The measure of `memory_bytes`, in words."""
    listed: int | None = None
    """The number of likeliest tokens in a distribution; None if a distribution has all logits."""

    @classmethod
    @abstractmethod
    def check_installed(cls) -> None:
        """Check that the engine can run on this machine.

        Raises:
            UserError: a library or a program is missing.
        """

    @classmethod
    @abstractmethod
    def find(cls, source: Path) -> Path | None:
        """The file or folder that the engine loads.

        Args:
            source: a file, or a folder such as `laconic export` writes.

        Returns:
            The path; None if `source` is not in a format of the engine.

        Raises:
            UserError: the folder has several such files.
        """

    @classmethod
    @abstractmethod
    def check_config(cls, config: Mapping[str, Any], source: str) -> None:
        """Check that the engine can run a model on this machine, as far as its configuration says.

        Args:
            config: the configuration, as in config.json.
            source: the model, as errors name it.

        Raises:
            UserError: it cannot.
        """

    @classmethod
    @abstractmethod
    def positions(cls, path: Path) -> int | None:
        """The largest number of tokens that a model reads; None if its files do not say.

        Args:
            path: the result of `find`.
        """

    @classmethod
    @abstractmethod
    def size(cls, path: Path) -> int:
        """The bytes of the weights on disk.

        Args:
            path: the result of `find`.
        """

    @classmethod
    @abstractmethod
    def server(cls, path: Path, port: int, context: int) -> list[str]:
        """The command that serves a model on this machine, with OpenAI's interface of HTTP.

        Args:
            path: the result of `find`.
            port: the port.
            context: the largest number of tokens of a question with its answer.

        Returns:
            The program, which this machine may lack, and its arguments.
        """

    @abstractmethod
    def __init__(self, path: Path, context: int) -> None: ...

    @abstractmethod
    def predict(self, tokens: Sequence[int], start: int) -> Iterator[Distributions]:
        """The distributions of the tokens from a position on, each after all tokens before it.

        Args:
            tokens: a text of at least two tokens.
            start: the position of the first predicted token, at least 1.

        Yields:
            The distributions of consecutive positions, in parts. Their number depends on `tokens` and `start` only.
        """

    @abstractmethod
    def write(self, prompt: Sequence[int], count: int) -> Written:
        """Write tokens greedily after a prompt, without a stop at an end token.

        Args:
            prompt: tokens.
            count: the number of tokens to write.
        """

    @abstractmethod
    def memory_bytes(self) -> int | None:
        """The memory that the model takes now, measured as `memory` says; None if this system does not tell it."""

    @abstractmethod
    def close(self) -> None:
        """Free the model."""
