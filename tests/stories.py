"""Real stories for tests of a real language model."""

from dataclasses import replace
from pathlib import Path

import pytest

from laconic.calibrate.corpus import Corpus
from laconic.calibrate.sources import read


def stories_of(shared_data: Path, part: slice) -> Corpus:
    """This part of the training rows of `tinystories`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LACONIC_DATA", str(shared_data))
        stories = read("tinystories", "train")
    return replace(stories, examples=stories.examples[part])
