"""A plan survives its file, can be edited there, and says where it is wrong."""

import pytest

from laconic.allocate import read_plan, write_plan
from laconic.errors import UserError
from laconic.methods import KfacSvd, Svd

PLAN = {"layer.0.query": KfacSvd(rank=16), "layer.0.key": Svd(rank=8, multiple=1), "layer.0.value": None}


def test_it_survives_its_file(tmp_path):
    write_plan(PLAN, tmp_path / "plan.yaml")
    assert read_plan(tmp_path / "plan.yaml") == PLAN
    assert "layer.0.value: dense" in (tmp_path / "plan.yaml").read_text()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: {sdv: {rank: 3}}", "There is no method 'sdv': did you mean 'svd'?"),
        ("a: {svd: {rank: -1}}", "plan.yaml', a.svd.rank must be in [1, ∞); got -1."),
        (
            "a: svd",
            "plan.yaml', a must be a method with a size of its own, like {svd: {rank: 64}}, or dense; got 'svd'.",
        ),
        ("a: {rtn: {group_size: 32}}", "a must be a method with a size of its own"),
        ("[1, 2]", "must be a mapping of site names to methods"),
        ("", "must be a mapping of site names to methods"),
        ("a: [", "is not YAML"),
    ],
)
def test_it_says_where_it_is_wrong(tmp_path, text, sentence):
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        read_plan(tmp_path / "plan.yaml")
    assert sentence in str(caught.value)


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(
        UserError, match=r"^The plan .* cannot be read: there is no such file; give the path of a plan in YAML\.$"
    ):
        read_plan(tmp_path / "none.yaml")
