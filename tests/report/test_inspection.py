"""Reports on weights count each of them once, in every format."""

import json
from dataclasses import replace

import pytest
import torch

from laconic.calibrate import Calibration
from laconic.calibrate.batching import batches
from laconic.calibrate.corpus import Corpus, Example
from laconic.compress import Compress
from laconic.methods import Magnitude, Rtn, Svd
from laconic.model import LanguageModel
from laconic.report import plots
from laconic.report.inspection.activity import Powers, measure_activity
from laconic.report.inspection.figures import head_heatmap
from laconic.report.inspection.narrative import paragraphs
from laconic.report.inspection.page import draw_figures, inspection_page, inspection_tables
from laconic.report.inspection.parts import measure_parts
from laconic.report.inspection.weights import ModelWeights, weight_statistics
from tests.architectures import BY_NAME
from tests.evaluate.models import with_tokenizer

NAMES = ("bert-classifier", "bert-masked", "gpt2", "llama-tied", "bart", "t5", "albert-groups", "distilbert-masked")
TEXTS = Corpus("dickens", "train", tuple(Example(f"it was the {word} of times, it was") for word in ("best", "worst")))


def data(lm: LanguageModel, times: int = 4) -> Calibration:
    return Calibration(batches(lm, replace(TEXTS, examples=TEXTS.examples * times), batch_size=3))


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_counted_once(name: str) -> None:
    lm = BY_NAME[name].lm()
    found = weight_statistics(lm)
    assert sum(tally.magnitudes.number for tally in found.tallies) == lm.model.num_parameters()
    assert all(tally.bits == 32 for tally in found.tallies)
    assert set(found.by_layer) == set(found.layers)


@pytest.mark.parametrize("method", [Svd(rank=4), Magnitude(sparsity=0.5), Rtn(bits=4)])
def test_a_compressed_matrix_is_what_is_multiplied_by(method) -> None:
    lm = BY_NAME["llama"].lm()
    Compress(method=method).apply(lm, None)
    found = [tally for tally in weight_statistics(lm).tallies if tally.kind == "ffn out"]
    if isinstance(method, Svd):
        assert {tally.name.rpartition(".")[2] for tally in found} == {"left", "right"}
        assert all(tally.spectrum is not None and tally.spectrum.full == 4 for tally in found)
    elif isinstance(method, Magnitude):
        assert all(tally.magnitudes.zeros == tally.magnitudes.number / 2 and 16 < tally.bits < 18 for tally in found)
    else:
        assert all(4 < tally.bits < 5.5 for tally in found)
    assert len([tally for tally in weight_statistics(lm).tallies if tally.kind == "norm"]) == 5


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("albert-groups", ["0", "1", "2", "3"]),
        *(
            (name, [*("encoder 0", "encoder 1"), *(f"decoder {at}{kind}" for at in (0, 1) for kind in ("", " cross"))])
            for name in ("t5", "bart")
        ),
    ],
)
def test_every_attention_has_a_row_of_its_own(name: str, rows: list[str]) -> None:
    lm = with_tokenizer(name)
    (axes,) = head_heatmap(measure_activity(lm, data(lm), "dickens").heads).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == rows
    assert len(axes.texts) == 4 * len(rows)


@pytest.mark.parametrize("name", ["bert-classifier", "gpt2", "bart", "albert-groups"])
def test_every_model_is_drawn_and_said(name: str) -> None:
    lm = with_tokenizer(name)
    seen, weights, found = measure_parts(lm), weight_statistics(lm), measure_activity(lm, data(lm), "dickens")
    drawn = draw_figures(seen, weights, found)
    assert {"magnitudes", "far-from-zero", "top-l1", "effective-rank", "spectra", "outliers"} <= set(drawn)
    html = inspection_page(seen, weights, found, drawn)
    assert html.count("<figure>") == len(drawn) and "far from zero?" in html and "vary by layer?" in html
    assert inspection_tables(weights, found).keys() >= {"Weights by part", "Outliers among the inputs"}
    told = {"words": paragraphs(weights, found), "weights": weights.to_json(), "activity": found.to_json()}
    assert json.loads(json.dumps(told, allow_nan=False))["activity"]["rows"] == found.rows


def test_a_deep_model_is_drawn_too() -> None:
    found = weight_statistics(BY_NAME["gpt2"].lm())
    first = [tally for tally in found.tallies if tally.layer == "0"]
    labels = tuple(map(str, range(30)))
    deep = ModelWeights(
        tallies=tuple(replace(tally, layer=layer) for tally in first for layer in labels), layers=labels
    )
    drawn = draw_figures(measure_parts(BY_NAME["gpt2"].lm()), deep, None)
    assert ">29<" in plots.inline_svg(drawn["far-from-zero"].figure).replace(" ", "")


def test_the_two_questions_are_answered_with_the_numbers() -> None:
    lm = BY_NAME["gpt2-untied"].lm()
    for at, (_, block) in enumerate(next(lm.stacks())[1]):
        for parameter in block.parameters():
            torch.nn.init.constant_(parameter, (0.05, 0.5)[at])
    overall, variation, *_ = paragraphs(weight_statistics(lm))
    numbers = torch.cat([parameter.detach().flatten().abs() for parameter in lm.model.parameters()])
    assert f"Of {len(numbers):,} parameters {(numbers >= 0.1).double().mean():.0%} are 0.1 or more" in overall
    assert "Of the weights of a layer 0% (layer 0) to 100% (layer 1) are 0.1 or more" in variation


def test_a_model_of_zeros_is_told_without_a_division_by_them() -> None:
    lm = BY_NAME["bert-classifier"].lm()
    for parameter in lm.model.parameters():
        torch.nn.init.zeros_(parameter)
    weights = weight_statistics(lm)
    assert "100% are exactly zero" in paragraphs(weights)[0]
    seen = measure_parts(lm)
    assert "<svg" in inspection_page(seen, weights, None, draw_figures(seen, weights, None))


def test_outliers_are_those_that_were_put_there() -> None:
    lm = with_tokenizer("llama")
    with torch.no_grad():
        lm.model.get_parameter("model.layers.1.post_attention_layernorm.weight")[3] *= 100
    found = {one.name: one for one in measure_activity(lm, data(lm), "dickens").inputs}
    spoilt, usual = (found[f"model.layers.{layer}.mlp.gate_proj"] for layer in (1, 0))
    assert spoilt.outliers == 1 and (spoilt.ratio or 0) > 20 and (usual.ratio or 9) < 6
    assert (spoilt.kurtosis or 0) > (usual.kurtosis or 0)


def test_a_block_that_does_nothing_and_a_head_that_is_a_copy_are_seen() -> None:
    lm = with_tokenizer("gpt2")
    block = next(lm.stacks())[1][1][1]
    with torch.no_grad():
        for path in ("attn.c_proj", "mlp.c_proj"):
            for parameter in block.get_submodule(path).parameters():
                parameter.zero_()
        fused = lm.model.get_submodule("transformer.h.0.attn.c_attn")
        width = fused.get_parameter("weight").shape[0]
        for part in range(3):
            for parameter in fused.parameters():
                start = part * width
                parameter[..., start + 8 : start + 16] = parameter[..., start : start + 8]
    found = measure_activity(lm, data(lm), "dickens")
    (stack,) = found.blocks
    assert abs(stack.influence[1]) < 1e-5 and stack.influence[0] > 0.01
    assert stack.similarity is not None and stack.similarity[1][2] == pytest.approx(1)
    first = next(one for one in found.heads if one.layer == "0")
    assert first.similarity[0][1] == pytest.approx(1) and max(first.nearest[2:]) < 0.99


def test_too_few_tokens_are_said() -> None:
    lm = with_tokenizer("gpt2")
    short = Calibration(batches(lm, Corpus("x", "train", (Example("a tale"),))))
    assert any(
        "were not compared on 7 tokens, fewer than 32; " in sentence
        for sentence in measure_activity(lm, short, "x").missing
    )


def test_kurtosis_is_that_of_all_entries() -> None:
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)).double() ** 3 + 1
    powers = Powers.empty(8, False, torch.device("cpu"))
    for part in x.split(20):
        powers.update(part)
    assert powers.kurtosis == pytest.approx((((x - x.mean()) / x.std(correction=0)) ** 4).mean().item())
