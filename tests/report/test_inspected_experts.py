"""Results for mixtures: `inspect` lists a stack of experts as one entry; a step without matrices says so."""

from dataclasses import replace

import laconic
from tests.architectures import Architecture
from tests.experts import EXPERTS, MIXTURES


def test_a_stack_of_experts_is_one_entry() -> None:
    model = Architecture("mixtral", MIXTURES["mixtral"][0]).model()
    name = "model.layers.0.mlp.experts.down_proj"
    down = model.get_parameter(name)
    # Every other row of the last expert is zero, which is an eighth of the stack.
    down.data[-1, ::2] = 0
    found = laconic.inspect(model).to_dict()
    (entry,) = [site for site in found["sites"] if site["name"].startswith(name)]
    assert entry == {
        "name": name,
        "group": "experts",
        "shape": list(down.shape[1:]),
        "nbytes": down.numel() * 4,
        "sparsity": 1 / 2 / EXPERTS,
        "experts": EXPERTS,
    }
    dense = [site for site in found["sites"] if site["group"] == "attention"]
    assert dense and all(set(site) == {"name", "group", "shape", "nbytes", "sparsity"} for site in dense)
    matrices = sum(site.get("experts", 1) for site in found["sites"])
    assert matrices == sum(part["sites"] for part in found["parts"])


def test_a_step_that_compresses_no_matrix_says_so() -> None:
    step = "narrow:heads=1,importance=magnitude,refit=false"
    result = laconic.compress(Architecture("mixtral", MIXTURES["mixtral"][0]).model(), step)
    # As after `finetune`, `distil` or `correct` alone, which have no matrices.
    changes = replace(result.record.changes, matrices=0, nbytes=0, dense_nbytes=0)
    untouched = replace(result, record=replace(result.record, changes=changes))
    assert next(untouched.parts()) == "No matrix was compressed"
