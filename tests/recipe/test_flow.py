"""Steps that are made of methods and options, and the drawing of rows."""

import pytest

from laconic.compress import Compress, Narrow
from laconic.errors import UserError
from laconic.methods import KfacSvd, Rtn, Wanda
from laconic.progress import silent
from laconic.recipe import recipe_from
from laconic.recipe.flow import to_steps
from laconic.recipe.sampling import Sampling
from tests.calibrate.test_batching import TEXTS, lm_of

FFN = ("ffn",)


def test_sequential_applies_to_the_methods_that_it_changes() -> None:
    lines = [Wanda(sparsity=0.5), Rtn(bits=4), Narrow(heads=0.5)]
    one, other, narrow = to_steps(lines, None, "uniform", FFN, sequential="sequential")
    assert isinstance(one, Compress) and isinstance(other, Compress)
    assert (one.sequential, other.sequential, one.anchored) == (True, False, False)
    assert narrow is lines[2]
    anchored = to_steps(lines, None, "uniform", FFN, sequential="anchored")[:2]
    assert all(isinstance(step, Compress) and step.anchored for step in anchored)


def test_a_way_to_share_a_budget_is_for_the_methods_that_have_one() -> None:
    lines = [KfacSvd(), Rtn(bits=4), Narrow(heads=0.5)]
    one, other, _ = to_steps(lines, 0.5, "spectrum", FFN)
    assert isinstance(one, Compress) and isinstance(other, Compress)
    assert (one.allocate, one.keep, other.allocate, other.keep) == ("spectrum", 0.5, "uniform", None)
    with pytest.raises(UserError, match=r"allocate: spectrum divides keep .* 'rtn' has a size of its own"):
        to_steps(lines[1:], None, "spectrum", FFN)


@pytest.mark.parametrize("lines", [[Rtn(bits=4)], [Narrow(heads=0.5)], [Narrow(heads=0.5), Rtn(bits=4)]])
def test_sequential_that_changes_nothing_is_refused(lines: list) -> None:
    with pytest.raises(UserError, match="sequential must be left out, because it changes nothing for"):
        to_steps(lines, None, "uniform", FFN, sequential="sequential")


def test_a_step_that_sequential_changes_nothing_for_is_refused_in_a_recipe() -> None:
    step = {"compress": {"method": {"rtn": {"bits": 4}}, "sequential": True}}
    with pytest.raises(UserError, match=r"sequential has no effect, because 'rtn' uses no inputs"):
        recipe_from({"model": "MODEL", "steps": [step]})
    assert recipe_from({"model": "MODEL", "steps": [{"compress": {"method": {"rtn": {"bits": 4}}, "anchored": True}}]})
    # A plan is what is solved, whatever the method beside it.
    planned = {"method": "gptq", "sequential": True, "plan": {"a.layer": {"rtn": {"bits": 4}}}}
    with pytest.raises(UserError, match="'rtn' uses no inputs"):
        recipe_from({"model": "MODEL", "steps": [{"compress": planned}]})


def test_rows_are_drawn_as_the_recipe_says() -> None:
    recipe = recipe_from(
        {
            "model": "MODEL",
            "samples": 3,
            "max_length": 5,
            "batch_size": 2,
            "steps": [{"compress": {"method": "gptq:bits=4"}}],
        }
    )
    data = recipe.sampling.of(lm_of("llama"), TEXTS, silent)
    assert [tuple(batch["input_ids"].shape) for batch in data.batches] == [(2, 5), (1, 5)]
    assert (data.samples, data.max_length, data.batch_size) == (3, 5, 2)


@pytest.mark.parametrize(("name", "value"), [("samples", 0), ("max_length", 1), ("batch_size", 0)])
def test_a_size_that_draws_nothing_is_one_sentence(name: str, value: int) -> None:
    with pytest.raises(UserError, match=f"{name} must be at least {value + 1}; got {value}."):
        Sampling(**{name: value})
