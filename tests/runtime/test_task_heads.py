"""Exported classifiers of tokens, models that find answers and models that choose, against the same models in torch."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from laconic.export.agreement import Agreement, check_agreement
from laconic.export.graph_target import OnnxTarget
from laconic.export.target import ExportedModel
from laconic.model import ModelTask, divergence, predict
from laconic.model.embedding_modules import ATTENTION_MASK
from laconic.progress import silent
from laconic.runtime import ONNX, OPENVINO, LoadedExport, serve
from laconic.runtime.engines import load_program
from laconic.runtime.graph import build_graph, write_model
from laconic.runtime.signature import Signature
from tests.architectures import VOCABULARY, batch_for
from tests.runtime.mixed import EXACT, mixed
from tests.task_models import ANSWER, CHOICE, TASK_MODELS, TASKS, TOKENS
from tests.tokens import letters

AXES = {
    TOKENS: {"input_ids": ("batch", "length"), "logits": ("batch", "length", "3")},
    ANSWER: {"input_ids": ("batch", "length"), "start_logits": ("batch", "length"), "end_logits": ("batch", "length")},
    CHOICE: {"input_ids": ("batch", "choices", "length"), "logits": ("batch", "choices")},
}


@pytest.mark.parametrize("task", TASKS)
def test_what_an_export_reads_and_gives(task: ModelTask) -> None:
    lm = TASK_MODELS[f"bert-{task.value}"].lm()
    signature = Signature.of(lm)
    assert signature.outputs == tuple(name for name in AXES[task] if name != "input_ids")
    batch = batch_for(lm.model)
    labels = {"labels": torch.zeros(2), "start_positions": torch.zeros(2), "context_mask": batch[ATTENTION_MASK]}
    assert signature.feeds(lm, batch | labels).keys() == {"input_ids", ATTENTION_MASK, "token_type_ids"}
    assert signature.example(lm)["input_ids"].shape == ((2, 4, 7) if task is CHOICE else (2, 7))


@pytest.mark.parametrize("name", [f"bert-{TOKENS.value}", f"bert-{CHOICE.value}", f"bart-{ANSWER.value}"])
@pytest.mark.slow
def test_every_head_is_exported(tmp_path: Path, name: str) -> None:
    pytest.importorskip("onnxscript")
    lm = TASK_MODELS[name].lm()
    graph = build_graph(lm, ONNX)
    values = (*graph.program.model.graph.inputs, *graph.program.model.graph.outputs)
    axes = {value.name: tuple(map(str, value.shape)) for value in values}
    assert axes.items() >= AXES[lm.task].items()
    batch = batch_for(lm.model)
    for runtime in (ONNX, OPENVINO):
        program = load_program(runtime, write_model(lm, graph, runtime, tmp_path), exact=True)
        assert check_agreement(lm, program, graph.signature, runtime, silent).error < 1e-5
        served = serve(lm, runtime, LoadedExport(program, graph.signature, 0, {})).lm
        with torch.no_grad():
            ours, theirs = predict(lm, batch)[0], predict(served, batch)[0]
        assert divergence(ours, theirs).max() < 1e-6


@pytest.mark.slow
def test_the_hidden_states_of_a_compressed_model_that_finds_answers(tmp_path: Path) -> None:
    """Those of the decoder, as in torch."""
    pytest.importorskip("onnxscript")
    lm = mixed(TASK_MODELS[f"bart-{ANSWER.value}"].lm(), EXACT)
    with torch.no_grad():
        (ours, states), (theirs, served) = (
            predict(each, batch_for(lm.model), hidden=True) for each in (lm, serve(lm, ONNX).lm)
        )
    assert divergence(ours, theirs).max() < 1e-5
    torch.testing.assert_close(states, served, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("task", TASKS)
def test_the_card_says_how_to_make_the_inputs(task: ModelTask) -> None:
    lm = replace(TASK_MODELS[f"bert-{task.value}"].lm(), tokenizer=letters("pair"))
    signature = Signature.of(lm)
    model = ExportedModel(
        file="model.onnx", runtime=ONNX, library="onnxruntime", bytes=1, layers={}, inputs=signature.inputs,
        outputs=signature.outputs, agreement=Agreement(error=0, tolerance=1, rows=1, batches=1),
    )  # fmt: skip
    card = "\n".join(OnnxTarget().card(lm, model))
    lines = card.partition('path/to/this/folder")\n')[2].partition("outputs = ")[0]
    names: dict[str, Any] = {"tokenizer": lm.tokenizer}
    exec(lines, names)
    ids = torch.from_numpy(names["inputs"]["input_ids"])
    with torch.no_grad():
        lm.model(ids.clamp(max=VOCABULARY - 1))
    assert ids.dim() == (3 if task is CHOICE else 2)
