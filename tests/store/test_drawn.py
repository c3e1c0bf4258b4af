"""Whatever is done to the structure of a model of whatever architecture, what is saved of it is it, or is refused.

Layers of several kinds are drawn at random (`tests.drawn`), and so are the steps. A sentence that refuses is no
failure, but of every architecture some drawing is saved.
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import torch
from transformers import PreTrainedModel

from laconic.calibrate import Calibration
from laconic.compress import Compress, Narrow, Shorten, ShrinkHeads, Step
from laconic.errors import StructureNotice, UserError
from laconic.methods import Int8, Magnitude, Rtn, Svd
from laconic.model import LanguageModel, load
from laconic.model.layers import find_layers
from laconic.store import save
from tests.architectures import ARCHITECTURES, Architecture, batch_for
from tests.calibrate.test_collect_stats import labelled_batches
from tests.drawn import DRAWN, drawn_model

MATRICES = (Svd(rank=4), Rtn(bits=4), Magnitude(sparsity=0.5), Int8())


def shorten(lm: LanguageModel, random: Random) -> Step:
    """Some blocks of each stack, at least one of one."""
    numbers = {layers.name: range(len(layers)) for layers in find_layers(lm)}
    blocks: dict[str, tuple[int | str, ...]] = {
        name: tuple(random.sample(row, random.randint(0, len(row) - 1))) for name, row in numbers.items()
    }
    if not any(blocks.values()):
        name, row = next(iter(numbers.items()))
        blocks[name] = (random.choice(row),)
    return Shorten(blocks=blocks)


def narrow(lm: LanguageModel, random: Random) -> Step:
    sizes = random.choice(({"heads": 0.5}, {"channels": 0.5}, {"heads": 0.5, "channels": 0.5}))
    return Narrow(**sizes, importance="magnitude", refit=False)


def compress(lm: LanguageModel, random: Random) -> Step:
    names = [site.name for site in lm.sites(("blocks",))]
    return Compress(method=random.choice(MATRICES), targets=tuple(random.sample(names, min(len(names), 5))))


def shrink(lm: LanguageModel, random: Random) -> Step:
    return ShrinkHeads(size=5)


Chain = tuple[Callable[[LanguageModel, Random], Step], ...]
BY_STRUCTURE: tuple[Chain, ...] = ((shorten,), (shorten, compress), (compress, shorten))
BY_ENTRY: tuple[Chain, ...] = (*BY_STRUCTURE, (narrow, shorten), (shorten, narrow), (shrink, compress))


@torch.no_grad()
def said_by(model: PreTrainedModel) -> torch.Tensor:
    """More tokens than a window has; where no attention is left transformers has nothing to cache."""
    uncached = {"use_cache": False} if model.can_generate() else {}
    return model(**batch_for(model), **uncached)[0]


def is_sentence(error: UserError) -> bool:
    said = str(error)
    return said.endswith(".") and "\n" not in said and len(said) < 1500


# Of these a block may be one that no other place can hold, or that no rule describes.
AT_TIMES = {
    "modernbert", "granite_swa", "hy_v4", "ernie4_5_moe", "jamba", "minimax", "diffllama", "gpt_neox_japanese", "gpt2",
    # The draw may drop every attention, which a hybrid does not allow.
    "lfm2", "recurrent_gemma",
}  # fmt: skip


def is_done(lm: LanguageModel, step: Step) -> bool:
    """False where the step refuses; then the model is for those behind it."""
    try:
        step.apply(lm, Calibration(labelled_batches(lm, 2)))
    except UserError as error:
        assert is_sentence(error), error
        return False
    return True


def saved_or_refused(model: PreTrainedModel, chain: Chain, random: Random, folder: Path) -> list[bool]:
    """Save the model after the steps of a chain, and require that the reloaded model equals it.

    Returns:
        For each step, whether it changed the model; empty if a step or the saving was refused.
    """
    done = []
    try:
        lm = LanguageModel.of(model)
        for draw in chain:
            done.append(is_done(lm, draw(lm, random)))
        save(lm, folder)
    except UserError as error:
        assert is_sentence(error), error
        assert not folder.parent.exists() or not list(folder.parent.iterdir())
        return []
    again = load(str(folder)).model
    torch.testing.assert_close(said_by(again), said_by(lm.model), rtol=1e-5, atol=1e-6)
    return done


@pytest.mark.parametrize("model_type", DRAWN)
@pytest.mark.slow
def test_of_layers_of_several_kinds(model_type: str, tmp_path: Path) -> None:
    done = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StructureNotice)
        for seed, chain in enumerate(BY_STRUCTURE):
            random = Random(f"{model_type} {seed}")
            torch.manual_seed(seed)
            model = drawn_model(model_type, random).eval()
            done.append(saved_or_refused(model, chain, random, tmp_path / str(seed) / "out"))
    assert any(done) or model_type == "jamba"
    assert done[0] == [True] or model_type in AT_TIMES


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.name)
@pytest.mark.slow
def test_of_every_known_architecture(architecture: Architecture, tmp_path: Path) -> None:
    random = Random(architecture.name)
    for seed, chain in enumerate(random.sample(BY_ENTRY, 3)):
        assert saved_or_refused(architecture.model(seed), chain, random, tmp_path / str(seed) / "out")
