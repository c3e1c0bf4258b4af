"""One forward pass over random tokens, and its time: what every measurement of speed is made of.

The pass has no padding; each row ends with the end token, where the model has one. A causal model reads a whole prompt
(no cache); an encoder-decoder reads as many target tokens as source tokens.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import torch
from transformers.utils.generic import ModelOutput

from laconic.cache import short_numbers
from laconic.calibrate.batching import positions
from laconic.model import Batch, LanguageModel, Task, first_token_mask
from laconic.model.predictions import check_named, report_run_errors
from laconic.model.stock import text_config
from laconic.model.tokens import special_token_ids, vocabulary_size

SHORT = 8
"""Tokens of a row that a model is tried on."""
LENT_PADDING = 0
"""The pad token of a model without one; no random batch of it has this token."""


def random_batch(lm: LanguageModel, batch: int, length: int, seed: int = 0) -> Batch:
    """`batch` rows of random tokens on the model's device, `length` long or as long as it can read."""
    generator = torch.Generator().manual_seed(seed)
    length = min(length, positions(lm) or length)
    config, known = lm.model.config, vocabulary_size(lm.model)
    padding = special_token_ids(config, "pad_token_id") or (LENT_PADDING,)
    ends = special_token_ids(config, "eos_token_id")
    # No model may take a random token for padding or for an end.
    words = [token for token in range(known) if token not in (*padding, *ends)] or list(range(known))
    ids = torch.tensor(words)[torch.randint(len(words), (batch, length), generator=generator)]
    if ends and 0 <= ends[0] < known and ends[0] not in padding:
        # The classifiers among the encoder-decoders read their answer at the one end of each row.
        ids[:, -1] = ends[0]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if lm.anatomy.global_attention:
        inputs["global_attention_mask"] = first_token_mask(ids)
    if lm.task is Task.SEQ2SEQ or (lm.task is Task.EMBEDDING and config.is_encoder_decoder):
        inputs["decoder_input_ids"] = ids
    return {name: tensor.to(lm.device) for name, tensor in inputs.items()}


def forward(lm: LanguageModel, inputs: Batch) -> ModelOutput:
    """The outputs of one forward pass without a key-value cache.

    Raises:
        UserError: the class of the model cannot run it.
    """
    caching = {"use_cache": False} if lm.task in (Task.CAUSAL, Task.SEQ2SEQ) else {}
    with _lent_padding(lm), report_run_errors(lm, inputs["input_ids"]):
        return check_named(lm, lm.model(**inputs, **caching))


@torch.no_grad()
def check_runs(lm: LanguageModel) -> None:
    """Run `lm` once, on one short row.

    Raises:
        ModelRunError: it cannot.
    """
    forward(lm, random_batch(lm, 1, SHORT))


def now(device: torch.device) -> float:
    """Seconds on a clock that runs while `device` works: kernels of a GPU run after their calls return."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter()


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """How long `work` takes."""
    start = now(device)
    work()
    return now(device) - start


def machine(device: torch.device) -> dict[str, Any]:
    """What a timing on `device` depends on."""
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else device.type,
        "threads": torch.get_num_threads(),
        "instructions": " ".join((torch.backends.cpu.get_cpu_capability(), *short_numbers())),
        "torch": torch.__version__,
    }


@contextmanager
def evaluating(*models: LanguageModel) -> Iterator[None]:
    """Without dropout; afterwards as it was."""
    training = [lm for lm in models if lm.model.training]
    for lm in training:
        lm.model.eval()
    try:
        yield
    finally:
        for lm in training:
            lm.model.train()


@contextmanager
def _lent_padding(lm: LanguageModel) -> Iterator[None]:
    """A pad token for a classifier without one, which else refuses more than one row; afterwards as it was."""
    config = text_config(lm.model.config)
    if not lm.task.is_sequence_classification or special_token_ids(config, "pad_token_id"):
        yield
        return
    said = "pad_token_id" in vars(config)
    config.pad_token_id = LENT_PADDING
    try:
        yield
    finally:
        if said:
            config.pad_token_id = None
        else:
            vars(config).pop("pad_token_id")
