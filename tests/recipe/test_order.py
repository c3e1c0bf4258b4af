"""The order of steps: every step after every other, checked on the structure without weights."""

import copy
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import laconic
from laconic.calibrate import Calibration
from laconic.compress import SHRINKING, AwqScale, Compress, Narrow, Shorten, ShrinkHeads, SmoothQuant, Step
from laconic.errors import UserError
from laconic.methods import METHODS, Int8, Magnitude, Method, Plus, Rtn, Svd, Wanda
from laconic.model import LanguageModel
from laconic.recipe import recipe_from, run
from laconic.recipe.checks import check_order
from laconic.store import save, skeleton
from laconic.store.densify import dense_to_linears
from laconic.store.structure import describe
from tests.architectures import ARCHITECTURES, BY_NAME, GPT2, SMALL, Architecture, outputs
from tests.calibrate.test_collect_stats import labelled_batches
from tests.tokens import letters
from tests.unread import spoil

MODELS = ("bert-classifier", "llama")
# One method for each form that a matrix can take, and every step.
PAIRED: dict[str, Step] = {
    "svd": Compress(method=Svd(), keep=0.5),
    "shared": Compress(method=Svd(), keep=0.6, share_inputs=True),
    "magnitude": Compress(method=Magnitude(sparsity=0.5)),
    "2:4": Compress(method=Wanda(pattern="2:4")),
    "rtn": Compress(method=Rtn(bits=4, group_size=16, clip=False)),
    "int8": Compress(method=Int8()),
    "plus": Compress(method=Plus(base=Rtn(bits=3, clip=False), residual=Svd(rank=2), rounds=1)),
    "plus pruned": Compress(
        method=Plus(base=Magnitude(sparsity=0.5), residual=Svd(rank=2), rounds=1, factor_bits=None)
    ),
    "shrink-heads": ShrinkHeads(keep=0.5),
    "narrow": Narrow(heads=0.5, channels=0.5),
    "shorten": Shorten(drop=1, select="influence"),
    "shorten, mapped": Shorten(drop=1, select="last", replace="linear"),
    "sublayers": Shorten(blocks=("0.ffn",)),
    "awq-scale": AwqScale(group_size=8),
    "smoothquant": SmoothQuant(),
}  # fmt: skip


def data_for(lm: LanguageModel) -> Calibration:
    return Calibration(labelled_batches(lm, 1))


@cache
def after(model: str, first: str) -> LanguageModel | None:
    """The model once one step is done; None where it cannot be."""
    lm = BY_NAME[model].lm()
    try:
        PAIRED[first].apply(lm, data_for(lm))
    except UserError:
        return None
    return lm


def refused(lm: LanguageModel, steps: Sequence[Step]) -> str | None:
    """The sentence, from the structure alone."""
    try:
        check_order(lm, steps, [f"steps[{index}]" for index in range(len(steps))])
    except UserError as error:
        return str(error)
    return None


def test_every_step_and_every_form_is_paired() -> None:
    assert {type(step) for step in PAIRED.values()} == set(SHRINKING)
    kinds = {step.method.meta_format((32, 32)).kind for step in PAIRED.values() if isinstance(step, Compress)}
    others = {method().meta_format((32, 32)).kind for method in METHODS} - kinds
    assert others == {"codebook"}, "which is codes, as what rtn leaves is"


# Factors of a low rank are narrower than the groups of `rtn` here, and that is said.
@pytest.mark.filterwarnings("ignore:group_size 16 is more than:laconic.errors.Notice")
@pytest.mark.parametrize("first", PAIRED)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.slow
def test_what_is_told_beforehand_is_what_happens(model: str, first: str, tmp_path: Path) -> None:
    made, empty = after(model, first), BY_NAME[model].lm().to_meta()
    if made is None:
        assert refused(empty, [PAIRED[first]])
        return
    assert refused(empty, [PAIRED[first]]) is None
    for name, second in PAIRED.items():
        if model != "llama" and isinstance(PAIRED[first], Compress) and isinstance(second, Compress):
            # Two methods, each of which changes single matrices, meet in the same way in both models.
            continue
        lm = replace(made, model=copy.deepcopy(made.model))
        said = refused(empty, [PAIRED[first], second])
        if said is not None:
            assert said.startswith("steps[1]"), (first, name)
            before = lm.model.state_dict()
            with pytest.raises(UserError):
                second.apply(lm, data_for(lm))
            assert all(torch.equal(before[key], tensor) for key, tensor in lm.model.state_dict().items())
            continue
        second.apply(lm, data_for(lm))
        if model != "llama":
            # What a pair of forms writes depends on no architecture.
            continue
        save(lm, tmp_path / name.replace(":", "-"))
        again = type(lm.model).from_pretrained(tmp_path / name.replace(":", "-"))
        torch.testing.assert_close(outputs(again), outputs(lm.model), rtol=0, atol=2e-6)
        # A bias that a switch of the class gives a place to lies in a plain linear.
        dense_to_linears(lm.model)
        state = again.state_dict()
        assert all(torch.equal(state[key], tensor) for key, tensor in lm.model.state_dict().items())


def every_method() -> Iterator[Method]:
    for method in METHODS:
        yield method() if method().has_size else method().with_keep(0.5, (32, 32))


@pytest.mark.slow
def test_methods_of_one_form_have_one_verdict() -> None:
    empty = BY_NAME["bert-classifier"].lm().to_meta()
    verdicts: dict[tuple[object, ...], bool] = {}
    # What is refused of one matrix is refused of all.
    targets = ("*.layer.0.intermediate.*",)
    for first in every_method():
        here = empty.shallow_copy()
        Compress(method=first, targets=targets).dry_run(here)
        for second in every_method():
            forms = [(method.meta_format((32, 32)).kind, method.keeps_support) for method in (first, second)]
            verdict = refused(here, [Compress(method=second, targets=targets)]) is None
            assert verdicts.setdefault(tuple(forms), verdict) == verdict, (first.name, second.name)
    # Low rank, pruned, codes and their sums, each after low rank and after pruned; low rank only after low rank.
    assert 0 < sum(verdicts.values()) < len(verdicts)


STRUCTURES: tuple[Step, ...] = (
    Compress(method=Svd(multiple=1), keep=0.5, targets=("*",), share_inputs=True),
    Compress(method=Magnitude(sparsity=0.5), targets=("*",)),
    Compress(method=Rtn(bits=3, clip=False), targets=("*",)),
    Narrow(channels=0.5, importance="magnitude", refit=False),
)


@pytest.mark.parametrize("step", STRUCTURES, ids=lambda step: getattr(step, "method", step).name)
@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.name)
@pytest.mark.slow
def test_a_rehearsal_leaves_the_structure_that_the_step_does(architecture: Architecture, step: Step) -> None:
    lm = architecture.lm()
    empty = lm.to_meta()
    said = refused(empty, [step])
    if said is not None:
        with pytest.raises(UserError):
            step.apply(lm, None)
        return
    step.dry_run(empty)
    step.apply(lm, None)
    assert describe(empty.model) == describe(lm.model)
    assert [(site.name, site.shape) for site in empty.sites(("*",))] == [(s.name, s.shape) for s in lm.sites(("*",))]
    assert {parameter.device.type for parameter in empty.model.parameters()} == {"meta"}


@pytest.mark.parametrize("step", [ShrinkHeads(keep=0.5), Narrow(heads=0.5, channels=0.5, add_bias=True)],
                         ids=lambda step: step.name)  # fmt: skip
@pytest.mark.parametrize("name", ["bert-classifier", "gpt2", "t5"])
def test_so_do_those_that_measure(name: str, step: Step) -> None:
    lm = BY_NAME[name].lm()
    empty = lm.to_meta()
    step.dry_run(empty)
    step.apply(lm, data_for(lm))
    assert describe(empty.model) == describe(lm.model)


def compress(method: str, **fields: object) -> dict[str, object]:
    return {"compress": {"method": method, **fields}}


DROP = {"shorten": {"drop": 1}}
HALF = "magnitude:sparsity=0.5"


@pytest.mark.parametrize(
    ("lines", "places", "sentence"),
    [
        ([compress("rtn:bits=4"), {"narrow": {"heads": 0.5}}], "[1].narrow cannot follow [0].compress",
         "The layer .* is compressed already; heads and channels must be removed before that"),
        ([compress(HALF), DROP, compress("svd:rank=2")], "[2].compress cannot follow [0].compress",
         "The layer .* is pruned, and 'svd' would fill its zeros; prune after 'svd', or choose other targets"),
        ([DROP, DROP], "[1].shorten cannot follow [0].shorten", "drop must be at most 0"),
        ([DROP, compress("svd:rank=2", targets=["*.layer.1.*"])], "[1].compress cannot follow [0].shorten",
         "The target .* matches no site"),
        ([compress("svd:rank=2"), compress(HALF, targets=["nothing"])], "[1].compress.targets", "There is no target"),
        ([compress("svd:rank=6"), compress("wanda:pattern=2:4")], "[1].compress cannot follow [0].compress",
         "wanda.pattern must be N:M with an M that divides the 6 inputs of .*left'; got '2:4'"),
    ],
)  # fmt: skip
def test_an_order_that_cannot_be_is_refused_before_weights_are_loaded(
    tiny_model: Path,
    texts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lines: list,
    places: str,
    sentence: str,
) -> None:
    monkeypatch.setattr(sys.modules["laconic.recipe.entry"], "load", pytest.fail)
    recipe = recipe_from({"model": str(tiny_model), "data": str(texts), "samples": 4, "steps": lines})
    places = re.escape(places.replace("[", "recipe.steps["))
    with pytest.raises(UserError, match=f"^{places}: {sentence}"):
        run(recipe, tmp_path / "small")


def test_a_folder_that_is_compressed_already_is_looked_at_as_it_is(tmp_path: Path) -> None:
    for number, step in enumerate(STRUCTURES[:3]):
        lm = BY_NAME["llama-tied"].lm()
        step.apply(lm, None)
        save(lm, tmp_path / str(number))
        assert describe(skeleton(str(tmp_path / str(number))).model) == describe(lm.model)
    with pytest.raises(UserError, match=r"recipe\.steps\[0\]\.compress: The layer .* is quantized already"):
        run(
            recipe_from({"model": str(tmp_path / "2"), "steps": [{"compress": {"method": "svd:rank=2"}}]}),
            tmp_path / "x",
        )


def test_the_python_entry_refuses_before_any_work(tmp_path: Path) -> None:
    model = BY_NAME["bert-classifier"].model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sentence = r"^method\[1\] cannot follow method\[0\]: The layer '.*' is pruned, and 'kfac-svd' would fill its zeros"
    with pytest.raises(UserError, match=sentence):
        laconic.compress(model, ["magnitude", "kfac-svd"], 0.5, data=["a cat"], tokenizer=letters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    model.save_pretrained(tmp_path)
    spoil(tmp_path)
    with pytest.raises(UserError, match=sentence):
        laconic.compress(str(tmp_path), ["magnitude", "kfac-svd"], 0.5, data=["a cat"], tokenizer=letters())
    small = laconic.compress(model, "rtn:bits=4").model
    with pytest.raises(UserError, match=r"^method: The layer '.*' is quantized already"):
        laconic.compress(small, "svd:rank=2")


def test_a_block_that_must_be_scaled_anew_goes_first() -> None:
    """The scores of this GPT-2 depend on the number of the block."""
    lm = LanguageModel.of(GPT2LMHeadModel(GPT2Config(**GPT2, **SMALL, scale_attn_by_inverse_layer_idx=True)).eval())
    coded = Compress(method=Rtn(bits=4))
    for step in (Shorten(blocks=(0,)), Shorten(drop=1), Shorten(drop=1, select="first")):
        said = refused(lm.to_meta(), [coded, step])
        assert said is not None and "must be dropped before that" in said
    assert refused(lm.to_meta(), [coded, Shorten(blocks=(1,))]) is None


def test_heads_shrink_where_narrowing_gave_a_bias() -> None:
    lm = BY_NAME["t5"].lm()
    data = data_for(lm)
    steps = [Narrow(heads=0.5, add_bias=True), ShrinkHeads(keep=0.5, multiple=1)]
    assert refused(lm.to_meta(), steps) is None
    for step in steps:
        step.apply(lm, data)
    assert torch.isfinite(outputs(lm.model)).all()


def test_a_model_that_no_configuration_describes_is_refused_before_any_work() -> None:
    model = BY_NAME["llama"].model()
    model.model.layers[1].self_attn.scaling *= 2
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(
        UserError, match=r"^method: The configuration does not describe the model.*layers\.1\.self_attn"
    ):
        laconic.compress(model, "rtn:bits=4")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
