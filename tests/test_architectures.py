"""The sweep over model classes: its page has every class, and its checks find what they should find."""

import re
from pathlib import Path

import pytest
import torch

from benchmarks.architectures import PAGE, choose
from benchmarks.architectures.cells import ABSENT, FAILED, OPERATIONS, PART, REFUSED, WORKS
from benchmarks.architectures.classes import ModelClass, model_classes
from benchmarks.architectures.coverage import matrices_in_blocks, share_compressed
from benchmarks.architectures.functions import check_scales, kill_half, skipping
from benchmarks.architectures.inputs import outputs_of
from benchmarks.architectures.page import page, shorten
from benchmarks.architectures.processes import run_class, run_classes
from laconic.model import LanguageModel

BY_LABEL = {model_class.label: model_class for model_class in model_classes()}
SWEPT = (
    "BertForMaskedLM", "XLNetLMHeadModel", "BertForTokenClassification", "BertForMultipleChoice", "LlamaForCausalLM",
    "FalconForCausalLM, grouped", "UMT5ForConditionalGeneration", "MixtralForCausalLM", "PhimoeForCausalLM",
    "MambaForCausalLM", "Qwen3NextForCausalLM, experts", "LlavaForConditionalGeneration",
)  # fmt: skip
QUICK = tuple(name for name in OPERATIONS if name != "export")


def documented() -> list[str]:
    """The labels of the classes in the tables of the page."""
    rows = re.findall(r"^\| `(\w+)`(?:, ([^|]+?))? \|", PAGE.read_text(), flags=re.M)
    return [f"{name}, {form}" if form else name for name, form in rows]


def test_the_page_has_every_class_of_the_sweep() -> None:
    assert len(BY_LABEL) >= 70
    assert documented() == list(BY_LABEL), "run `python -m benchmarks architectures`"


def test_the_page_says_no_failure_and_gives_each_refusal_its_sentence() -> None:
    text = PAGE.read_text()
    assert "**failed**" not in text
    numbers = {int(number) for number in re.findall(r"(?:no|\d+%) \[(\d+)\]", text)}
    told = [int(number) for number in re.findall(r"^(\d+)\. \S.*\.$", text, flags=re.M)]
    assert sorted(numbers) == told == list(range(1, len(told) + 1)) != []


def test_a_sentence_is_numbered_once_and_states_are_counted() -> None:
    refused = {"state": REFUSED, "sentence": "No.", "share": None}
    cells = {"rtn": {"state": PART, "sentence": "Dense.", "share": 0.368}, "heads": refused, "channels": refused}
    cells |= {"inspect": {"state": WORKS}, "experts": {"state": ABSENT}, "shorten": {"state": FAILED}}
    text = page({"A, b": {"cells": cells}}, [ModelClass("Group", "A, b", {})])
    assert "1 classes, 5 cells: 1 work, 1 work on a part of the matrices, 2 are refused, 1 failed." in text
    assert "| `A`, b | yes | 37% [1] |  |  |  | no [2] | no [2] | – | **failed** |" in text
    assert text.endswith("## Refusals\n\n1. Dense.\n2. No.\n")


def test_sentences_lose_lists_of_other_architectures() -> None:
    assert shorten("method: 'bert' cannot; supported are a, b; leave 'it' out.") == "'…' cannot; leave 'it' out."


def test_classes_are_chosen_by_glob_or_because_they_have_no_line() -> None:
    classes = list(BY_LABEL.values())
    assert {one.label for one in choose(classes, ["Mpt*", "Bloom*"], {})} == {"MptForCausalLM", "BloomForCausalLM"}
    assert choose(classes, None, dict.fromkeys([one.label for one in classes[1:]])) == classes[:1]


def test_half_of_a_block_is_half_of_the_matrices() -> None:
    model = BY_LABEL["LlamaForCausalLM"].build()
    matrices = matrices_in_blocks(model)
    names = {name.removesuffix(".weight") for name in matrices}
    assert share_compressed(matrices, names) == 1
    assert 0.4 < share_compressed(matrices, {name for name in names if ".0." in name}) < 0.6
    experts = matrices_in_blocks(BY_LABEL["MixtralForCausalLM"].build())
    assert any(name.endswith("experts.down_proj") for name in experts)
    assert share_compressed(experts, {f"model.layers.{n}.mlp.experts.down_proj" for n in range(2)}) > 0.2


def test_text_reaches_no_tower_of_images() -> None:
    matrices = matrices_in_blocks(BY_LABEL["LlavaForConditionalGeneration"].build())
    assert matrices and all(".language_model." in name for name in matrices)


def test_dead_channels_and_skipped_blocks_change_the_outputs() -> None:
    for part in ("heads", "channels"):
        model = BY_LABEL["LlamaForCausalLM"].build()
        before = outputs_of(model)
        kill_half(model, part)
        assert not torch.allclose(outputs_of(model), before, rtol=1e-2, atol=1e-2)
    with skipping(model, {"blocks": (1,)}):
        shorter = outputs_of(model)
    model.model.layers = model.model.layers[:1]
    assert torch.equal(outputs_of(model), shorter)


def test_a_wrong_reader_of_a_norm_is_found() -> None:
    """GPT-2 as if its feed-forward read the input of the attention's norm, which scales then change."""
    model = BY_LABEL["GPT2LMHeadModel"].build()
    check_scales(model)
    with torch.no_grad():
        for block in LanguageModel.of(model).model.transformer.h:
            block.mlp.register_forward_pre_hook(lambda _, args, block=block: (block.ln_1(args[0]),))
        with pytest.raises(AssertionError, match="folded scales: the outputs differ by"):
            check_scales(model)


def test_a_process_that_dies_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.architectures.processes.run_class", lambda *_: __import__("os")._exit(3))
    ((model_class, results),) = run_classes([BY_LABEL["BertModel"]], ["inspect"], workers=1)
    assert model_class.label == "BertModel"
    assert results["inspect"]["state"] == FAILED and "ended with status 3" in results["inspect"]["sentence"]


@pytest.mark.slow
@pytest.mark.parametrize("label", SWEPT)
def test_classes_work_or_are_refused(label: str) -> None:
    results = run_class(BY_LABEL[label], QUICK)
    failed = {name: cell["sentence"] for name, cell in results.items() if cell["state"] == FAILED}
    assert not failed
    assert results["inspect"]["state"] in (WORKS, REFUSED)
    assert all(cell["sentence"] for cell in results.values() if cell["state"] in (REFUSED, PART))


def test_the_page_is_in_the_navigation() -> None:
    root = Path(__file__).parents[1]
    assert "architectures.md" in (root / "mkdocs.yml").read_text()
    assert "(architectures.md)" in (root / "docs" / "models.md").read_text()
