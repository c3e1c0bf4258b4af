"""Predictions of which few places of a row count: the head, the largest matrix of a small model, sees no others.

The result is that of `laconic.evaluate.eval_task.predicted`. Encoder-decoders, whose own loss wants every place, and
models whose head is no module of its own are run in full.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from laconic.calibrate.batching import IGNORED
from laconic.calibrate.passes import evaluating
from laconic.evaluate.eval_task import check_finite, on_cpu, predict_on, to_device
from laconic.model import Batch, LanguageModel, Predictions, Task
from laconic.model.predictions import gather_predictions, run_model
from laconic.progress import Track


def predicted_where_counted(
    lm: LanguageModel, batches: Sequence[Batch], track: Track, what: str
) -> Iterator[tuple[Batch, Predictions]]:
    """Each batch with what the model says where its labels exclude nothing, both on the CPU."""
    with evaluating(lm):
        for batch in track(batches, what):
            yield batch, on_cpu(_predict(lm, batch))


@torch.inference_mode()
def _predict(lm: LanguageModel, batch: Batch) -> Predictions:
    head = lm.model.get_output_embeddings()
    if lm.task not in (Task.MASKED, Task.CAUSAL) or not isinstance(head, nn.Module):
        return predict_on(lm, batch)[0]
    batch = to_device(batch, lm.device)
    true = batch["labels"] if lm.task is Task.MASKED else functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)
    counted = true != IGNORED

    def narrow(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0][counted], *inputs[1:])

    hook = head.register_forward_pre_hook(narrow)
    try:
        output = run_model(lm, batch)
    finally:
        hook.remove()
    if output["logits"].dim() == 3:
        # The model multiplied with the matrix itself.
        predictions = gather_predictions(lm, output, batch)
    else:
        predictions = Predictions(output["logits"], counted.nonzero()[:, 0], true[counted], lm.task.distribution)
    check_finite(lm, predictions)
    return predictions
