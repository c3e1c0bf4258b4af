"""Running the head where predictions count alone changes nothing, whatever the architecture and the head."""

import pytest
import torch

from laconic.calibrate.collation import collate
from laconic.calibrate.row import IGNORED, Row
from laconic.evaluate.prediction import predict_batches
from laconic.model import LanguageModel, ModelTask
from laconic.progress import silent
from tests.architectures import ARCHITECTURES, VOCABULARY, Architecture, compress_everything

SPEAKING = [
    model for model in ARCHITECTURES if model.lm().task in (ModelTask.MASKED, ModelTask.CAUSAL, ModelTask.SEQ2SEQ)
]


def rows_of(lm: LanguageModel) -> list[Row]:
    """Rows of several lengths, with the labels that a task of this kind has."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for length in (9, 4, 7):
        ids = torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()
        some = [token if at in (2, 3) else IGNORED for at, token in enumerate(ids)]
        rows.append(Row(ids, labels=ids[:3] if lm.task is ModelTask.SEQ2SEQ else some))
    return rows


@pytest.mark.parametrize("architecture", SPEAKING, ids=lambda model: model.name)
def test_predictions_are_those_of_the_whole_pass(architecture: Architecture):
    lm = architecture.lm()
    batch = collate(lm, rows_of(lm))
    for model in (lm, compress_everything(architecture.lm(), rank=6)):
        ((_, expected),) = predict_batches(model, [batch], silent, "x")
        ((_, found),) = predict_batches(model, [batch], silent, "x", labelled_only=True)
        assert torch.allclose(found.values, expected.values, atol=1e-5)
        assert torch.equal(found.rows, expected.rows)
        assert found.labels is not None and expected.labels is not None
        assert torch.equal(found.labels, expected.labels)


def test_the_head_sees_few_rows():
    lm = next(model for model in SPEAKING if model.name == "bert-masked").lm()
    seen: list[torch.Size] = []
    lm.model.get_output_embeddings().register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    list(predict_batches(lm, [collate(lm, rows_of(lm))], silent, "x", labelled_only=True))
    assert seen == [(6, VOCABULARY)]
