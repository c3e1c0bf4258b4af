"""Vectors of sentence-transformers itself, to compare with."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from laconic.calibrate.batching import batches
from laconic.calibrate.corpus import Corpus, Example
from laconic.model import LanguageModel, predict

TEXTS = ("it was the best of times", "A Tale", "of two cities, of the worst", "wisdom", "an age of it")


@contextmanager
def installed_package() -> Iterator[Any]:
    """sentence-transformers without its warnings; where it is not installed the test is skipped."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield pytest.importorskip("sentence_transformers")


def encoded(folder: Path, texts: Sequence[str] = TEXTS) -> Tensor:
    """The vectors that the library makes of texts with the model in `folder`."""
    with installed_package() as package:
        return torch.tensor(package.SentenceTransformer(str(folder), device="cpu").encode(list(texts), batch_size=2))


@torch.no_grad()
def predicted(lm: LanguageModel, texts: Sequence[str] = TEXTS) -> Tensor:
    """Those that laconic predicts."""
    corpus = Corpus("memory", "dev", tuple(map(Example, texts)))
    return torch.cat([predict(lm, batch)[0].values for batch in batches(lm, corpus, batch_size=2)])
