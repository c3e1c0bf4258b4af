"""The benchmark of llama.cpp: the time of each type, and types within the bytes and the time of another file."""

from pathlib import Path

import pytest
import yaml

from benchmarks.llama_cpp_make import yaqa_recipe
from benchmarks.llama_cpp_plan import Limits, choose_types
from laconic.compress import Compress
from laconic.methods import Candidate, Rtn, Yaqa
from laconic.recipe.parse import parse_recipe

# Bytes, nanoseconds and relative loss of 64 weights.
TYPES = {"q4_0": (36, 40, 1.3), "iq4_nl": (36, 60, 1.0), "q5_0": (44, 50, 0.3), "q8_0": (68, 120, 0.01)}


def offers(matrices: int) -> dict[str, dict[str, Candidate]]:
    """Matrices that differ in sensitivity."""
    return {
        f"matrix {number}": {
            kind: Candidate(
                method=None, nbytes=nbytes, parameters=64, products=((8, 8),), loss=loss * 2.0**number, nanoseconds=time
            )
            for kind, (nbytes, time, loss) in TYPES.items()
        }
        for number in range(matrices)
    }


@pytest.mark.parametrize(("nbytes", "nanoseconds"), [(44, 120), (68, 50), (44, 50), (50, 60)])
def test_types_keep_to_both_limits(nbytes: int, nanoseconds: int) -> None:
    given = offers(12)
    chosen = choose_types(given, Limits(12 * nbytes, 12 * nanoseconds))
    candidates = {name: given[name][kind] for name, kind in chosen.items()}
    assert sum(candidate.nbytes for candidate in candidates.values()) <= 12 * nbytes
    assert sum(candidate.nanoseconds for candidate in candidates.values()) <= 12 * nanoseconds
    # Giving each matrix q5_0 keeps to all of these limits.
    equal = sum(options["q5_0"].loss for options in given.values())
    assert sum(candidate.loss for candidate in candidates.values()) <= equal


def test_limits_below_every_type_are_refused() -> None:
    with pytest.raises(ValueError, match="within the bytes and the time"):
        choose_types(offers(3), Limits(3 * 36, 3 * 39))


def test_a_recipe_rounds_eight_bits_and_word_embeddings_to_the_nearest_values() -> None:
    recipe = yaqa_recipe("model", "texts.txt", {"a": "q4_0", "b": "q8_0", "embedding": "q6_k"}, ["embedding"])
    step = parse_recipe(yaml.safe_dump(recipe), Path("recipe.yaml")).steps[0]
    assert isinstance(step, Compress)
    assert step.plan == {"a": Yaqa(grid="q4_0"), "b": Rtn(grid="q8_0"), "embedding": Rtn(grid="q6_k")}
