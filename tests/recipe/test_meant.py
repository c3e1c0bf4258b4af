"""A line of a recipe in another form than a step is answered with how the step is written."""

import pytest

from laconic.errors import UserError
from laconic.recipe import recipe_from


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (
            {"compress": {"method": "rtn", "bits": 4, "group_size": 32}},
            "recipe.steps[0].compress: There is no key 'bits' here: it is a parameter of the method 'rtn', so write "
            "method: {'rtn': {'bits': 4, 'group_size': 32}}.",
        ),
        (
            {"compress": {"method": {"method": "rtn", "bits": 4}}},
            "recipe.steps[0].compress.method must be a method's name or {name: {parameter: value}}, so {'rtn': "
            "{'bits': 4}}; got {'method': 'rtn', 'bits': 4}.",
        ),
        ({"compress": {"method": "rtn", "bit": 4}}, "recipe.steps[0].compress: There is no key 'bit': "),
        *(
            (line, f"recipe.steps[0] must be {form}, so {meant}; got ")
            for form, meant, lines in (
                (
                    "a step's name or {name: {parameter: value}}",
                    "{'compress': {'method': {'rtn': {'bits': 4}}}}",
                    (
                        {"method": "rtn", "bits": 4},
                        {"rtn": {"bits": 4}},
                        {"method": {"rtn": {"bits": 4}}},
                        {"method": {"name": "rtn", "bits": 4}},
                        {"compress": "rtn", "bits": 4},
                        {"method": "rtn:bits=4"},
                        "rtn:bits=4",
                    ),
                ),
                (
                    "{compress: {method: …}}",
                    "{'compress': {'method': {'rtn': {'bits': 4}}, 'targets': ['ffn']}}",
                    ({"compress": {"rtn": {"bits": 4}, "targets": ["ffn"]}},),
                ),
                (
                    "a step's name or {name: {parameter: value}}",
                    "{'compress': {'method': {'rtn': {'bits': 4}}, 'targets': ['ffn']}}",
                    ({"method": "rtn", "bits": 4, "targets": ["ffn"]},),
                ),
                (
                    "a step's name or {name: {parameter: value}}",
                    "{'finetune': {'epochs': 1}}",
                    ({"finetune": {}, "epochs": 1}, {"step": "finetune", "epochs": 1}, "finetune:epochs=1"),
                ),
            )
            for line in lines
        ),
        # Nothing is guessed of what is of no step.
        ({"method": "rtn", "bit": 4}, "recipe.steps[0] must be a step's name or {name: {parameter: value}}; got "),
        ({"compress": ["svd"]}, "recipe.steps[0].compress must be a mapping of parameters; got ['svd']."),
        ("compres", "recipe.steps[0]: There is no step 'compres': did you mean 'compress'? "),
        (
            {"distil": {"temperature": "1e309"}},
            "recipe.steps[0].distil.temperature must be a finite number; got inf.",
        ),
        (
            {"compress": {"method": "svd", "keep": "1/2"}},
            "recipe.steps[0].compress.keep must be a number or a mapping; got '1/2'.",
        ),
        (
            {"shorten": {"drop": 0.5}},
            "recipe.steps[0].shorten.drop must be a whole number or a mapping; got 0.5.",
        ),
    ],
)
def test_a_parameter_beside_its_method_is_shown_where_it_belongs(step: object, said: str) -> None:
    with pytest.raises(UserError) as caught:
        recipe_from({"model": "m", "steps": [step]})
    assert str(caught.value).startswith(said)
