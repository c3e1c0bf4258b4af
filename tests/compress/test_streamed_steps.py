"""Steps that drop blocks and narrow layers change streamed models as those in memory."""

from typing import Any

import pytest
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from laconic.calibrate import Calibration
from laconic.compress import AwqScale, Narrow, Shorten, SmoothQuant, Step, scales
from laconic.compress.depth.cuts import Parts, all_cuts
from laconic.compress.depth.importance import distances, influences
from laconic.model import LanguageModel, load
from laconic.model.loading import load_streamed
from laconic.model.scale_folding import find_absorbers
from laconic.store.part_structures import PartStructures
from tests.architectures import BY_NAME, GPT2, SMALL
from tests.calibrate.test_collect_stats import labelled_batches
from tests.loaned import MODELS, assert_equal
from tests.stopped import StopError, stop_at

SHORTER = {
    "influence": Shorten(drop=1, select="influence"),
    "angular": Shorten(drop=1, select="angular"),
    "taylor": Shorten(drop=1, select="taylor"),
    "influence of parts": Shorten(drop=2, select="influence", parts="sublayers"),
    "taylor of parts": Shorten(drop=2, select="taylor", parts="sublayers"),
    "first": Shorten(drop={"encoder": 1, "decoder": 1}, select="first"),
}


def check_equal(model: PreTrainedModel, step: Step, tmp_path) -> None:
    """The step has the same outcome on the streamed model and on the one in memory, and gives the same model."""
    model.save_pretrained(tmp_path / "model")
    lm = load(str(tmp_path / "model"))
    streamed = load_streamed(str(tmp_path / "model"), tmp_path / "scratch", structures=PartStructures())
    assert streamed.loans is not None
    streamed.loans.begin("0")
    data = Calibration(labelled_batches(lm, 2))
    assert step.stream_obstacle(lm) is None
    assert step.apply(streamed, data) == step.apply(lm, data)
    for path in (path for _, found in lm.stacks() for path, _ in found):
        assert all(tensor.is_meta for tensor in streamed.model.get_submodule(path).parameters())
    with streamed.on_loan(""):
        assert_equal(streamed.model, lm.model)
    assert streamed.model.config.to_dict() == lm.model.config.to_dict()


@pytest.mark.parametrize(
    ("name", "step"),
    [
        *(("llama", step) for step in list(SHORTER)[:5]),
        ("bert-classifier", "angular"),
        ("bert-classifier", "taylor of parts"),
        ("t5", "influence of parts"),
        ("t5", "taylor"),
        ("mixtral", "influence"),
        ("mixtral", "taylor"),
        ("t5", "first"),
    ],
)
def test_a_streamed_model_is_shortened_as_the_one_in_memory(name: str, step: str, tmp_path) -> None:
    check_equal(MODELS[name](), SHORTER[step], tmp_path)


@pytest.mark.parametrize("parts", ["blocks", "sublayers"])
@pytest.mark.parametrize("name", ["llama", "bert-classifier", "longformer-masked"])
def test_scores_of_a_streamed_model_are_those_in_memory(name: str, parts: Parts, tmp_path) -> None:
    """The hidden states that are compared lie in files, two points or a whole block apart."""
    MODELS[name]().save_pretrained(tmp_path / "model")
    lm, streamed = load(str(tmp_path / "model")), load_streamed(str(tmp_path / "model"), tmp_path / "scratch")
    data, cuts = Calibration(labelled_batches(lm, 2)), all_cuts(lm, parts)
    assert influences(streamed, data, cuts) == influences(lm, data, cuts)
    for length in (1, 2):
        assert distances(streamed, data, cuts, length) == distances(lm, data, cuts, length)


def test_queries_are_scaled_where_scores_depend_on_the_number_of_the_block(tmp_path) -> None:
    sizes: dict[str, Any] = {**GPT2, **SMALL, "n_layer": 3}
    config = GPT2Config(**sizes, scale_attn_by_inverse_layer_idx=True)
    check_equal(GPT2LMHeadModel(config), Shorten(blocks=(0, "2.ffn")), tmp_path)


NARROWER = {
    "obs": Narrow(heads=0.5, channels=0.5),
    "taylor": Narrow(heads=0.5, channels=0.5, importance="taylor", refit=False),
    "taylor, over all": Narrow(keep=0.7, importance="taylor-squared"),
    "magnitude": Narrow(heads=0.5, importance="magnitude", refit=False),
    "magnitude, over all": Narrow(keep=0.7, importance="magnitude", refit=False),
    "variance, over all": Narrow(keep=0.6, importance="variance", add_bias=True),
    "obs, over all": Narrow(keep=0.6),
    "variance, in order": Narrow(channels=0.5, importance="variance", ranking="global", sequential=True),
    "taylor, in order": Narrow(heads=0.5, importance="taylor", sequential=True),
    "experts": Narrow(experts=0.5),
    "experts and heads": Narrow(experts=0.5, expert_importance="frequency", heads=0.5),
}


@pytest.mark.parametrize(
    ("name", "step"),
    [
        *(("llama", step) for step in list(NARROWER)[:-2]),
        *(("t5", step) for step in ("obs", "taylor", "magnitude", "variance, over all")),
        ("bert-classifier", "obs"),
        ("bert-classifier", "variance, over all"),
        # The table of position biases lies outside the blocks, and all attentions lose the same heads.
        ("mpnet-masked", "obs"),
        ("mpnet-masked", "magnitude"),
        ("mixtral", "experts"),
        ("qwen3-moe", "experts and heads"),
        ("qwen3-moe", "taylor"),
    ],
)
def test_a_streamed_model_is_narrowed_as_the_one_in_memory(name: str, step: str, tmp_path) -> None:
    check_equal(MODELS[name](), NARROWER[step], tmp_path)


SCALED = {"smoothquant": SmoothQuant(), "awq-scale": AwqScale(bits=3, group_size=8)}


@pytest.mark.parametrize(
    ("name", "step"),
    [
        *((name, "smoothquant") for name in ("llama", "qwen2", "bert-classifier", "gpt2", "t5", "gemma2", "mixtral")),
        *((name, "awq-scale") for name in ("llama", "bert-classifier", "t5")),
    ],
)
def test_inputs_of_a_streamed_model_are_scaled_as_in_memory(name: str, step: str, tmp_path) -> None:
    check_equal(MODELS[name](), SCALED[step], tmp_path)


def test_scaling_that_was_stopped_goes_on_to_the_same_model(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    MODELS["llama"]().save_pretrained(tmp_path / "model")
    lm, step, fold = load(str(tmp_path / "model")), SCALED["smoothquant"], scales.fold_scales
    data = Calibration(labelled_batches(lm, 2))
    step.apply(lm, data)

    def apply_anew() -> LanguageModel:
        streamed = load_streamed(str(tmp_path / "model"), tmp_path / "scratch", structures=PartStructures())
        assert streamed.loans is not None
        streamed.loans.begin("0")
        step.apply(streamed, data)
        return streamed

    absorbers = len(find_absorbers(lm))
    for stop in (2, absorbers // 2 + 1):
        with monkeypatch.context() as patch, pytest.raises(StopError):
            patch.setattr(scales, "fold_scales", stop_at(stop, fold))
            apply_anew()
    # The first block is finished, and a finished step scales nothing again.
    for left in (absorbers - absorbers // 2, 0):
        with monkeypatch.context() as patch:
            patch.setattr(scales, "fold_scales", stop_at(left, fold))
            streamed = apply_anew()
        with streamed.on_loan(""):
            assert_equal(streamed.model, lm.model)


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (Narrow(heads=0.5, anchored=True), "anchored runs"),
        (Narrow(heads=0.5, sequential=True), "sequential importance: obs needs"),
        (Shorten(drop=1), "select: dp runs"),
        (Shorten(drop=1, select="greedy"), "select: greedy runs"),
        (Shorten(drop=1, select="influence", replace="bias"), "replace: bias runs"),
    ],
)
def test_what_runs_the_whole_model_says_why(step: Step, reason: str) -> None:
    assert str(step.stream_obstacle(BY_NAME["llama"].lm())).startswith(reason)
