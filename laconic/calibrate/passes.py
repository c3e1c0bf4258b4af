"""Time forward passes over random tokens, and the share of each matrix in the time.

A batch has no padding; each row ends with the end token, if the model has one. A causal model reads a whole prompt
without a cache; an encoder-decoder reads as many target tokens as source tokens. Matrices are timed inside passes of
the whole model, so that other load on the machine slows both and their ratio stays the same.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

from laconic.calibrate.batching import max_positions
from laconic.calibrate.collation import to_device
from laconic.formats.expert_layer import expert_layers
from laconic.model import Batch, LanguageModel, ModelTask, Site, global_token_mask
from laconic.model.predictions import check_named, report_run_errors
from laconic.model.stock import reset_attention_type, text_config
from laconic.model.tokens import special_token_ids, vocabulary_size
from laconic.progress import Track, silent
from laconic.system import short_numbers
from laconic.typed import Typed

CHOICES = 4
"""Choices in each random row of a multiple-choice model, as many as in RACE and SWAG."""
SHORT = 8
"""Number of tokens of the row on which `check_runs` runs a model."""
LENT_PADDING = 0
"""Pad token that a model without one gets during a pass; random batches do not contain it."""


def random_batch(lm: LanguageModel, batch: int, length: int, seed: int = 0) -> Batch:
    """Return a batch of random tokens on the model's device.

    Args:
        lm: the model.
        batch: number of rows; a row of a multiple-choice model has `CHOICES` choices.
        length: tokens of each row or choice, reduced to the number of positions of the model.
        seed: seed of the tokens.
    """
    generator = torch.Generator().manual_seed(seed)
    length = min(length, max_positions(lm) or length)
    config, vocabulary = lm.model.config, vocabulary_size(lm.model)
    padding = special_token_ids(config, "pad_token_id") or (LENT_PADDING,)
    ends = special_token_ids(config, "eos_token_id")
    # Pad and end tokens would change how the model reads a row.
    words = [token for token in range(vocabulary) if token not in (*padding, *ends)] or list(range(vocabulary))
    shape = (batch, CHOICES, length) if lm.task is ModelTask.MULTIPLE_CHOICE else (batch, length)
    ids = torch.tensor(words)[torch.randint(len(words), shape, generator=generator)]
    if ends and 0 <= ends[0] < vocabulary and ends[0] not in padding:
        # Encoder-decoder classifiers (BART) read the hidden state at the end token, and need exactly one in each row.
        ids[..., -1] = ends[0]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if lm.anatomy.global_attention:
        inputs["global_attention_mask"] = global_token_mask(lm, ids)
    if lm.task is ModelTask.SEQ2SEQ or (lm.task is ModelTask.EMBEDDING and config.is_encoder_decoder):
        inputs["decoder_input_ids"] = ids
    return to_device(inputs, lm.device)


def forward(lm: LanguageModel, inputs: Batch) -> ModelOutput:
    """Run one forward pass without a key-value cache and return the outputs.

    Args:
        lm: the model.
        inputs: a batch without padding, such as `random_batch` returns.

    Raises:
        UserError: the forward pass fails.
    """
    caching = {"use_cache": False} if lm.task in (ModelTask.CAUSAL, ModelTask.SEQ2SEQ) else {}
    reset_attention_type(lm.model)
    with _temporary_padding(lm), report_run_errors(lm, inputs["input_ids"]):
        return check_named(lm, lm.model(**inputs, **caching))


@torch.no_grad()
def check_runs(lm: LanguageModel) -> None:
    """Run the model once, on one short row.

    Raises:
        ModelRunError: the forward pass fails.
    """
    forward(lm, random_batch(lm, 1, SHORT))


def read_clock(device: torch.device) -> float:
    """Return a clock reading in seconds, after all kernels that were launched on `device` have finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter()


def time_call(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that a call of `work` takes on `device`."""
    start = read_clock(device)
    work()
    return read_clock(device) - start


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return everything that a timing on `device` depends on: device, threads, instruction set and torch version."""
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else device.type,
        "threads": torch.get_num_threads(),
        "instructions": " ".join((torch.backends.cpu.get_cpu_capability(), *short_numbers())),
        "torch": torch.__version__,
    }


@contextmanager
def evaluating(*models: LanguageModel) -> Iterator[None]:
    """Within the context the models are in eval mode; afterwards their mode is restored."""
    training = [lm for lm in models if lm.model.training]
    for lm in training:
        lm.model.eval()
    try:
        yield
    finally:
        for lm in training:
            lm.model.train()


@contextmanager
def _temporary_padding(lm: LanguageModel) -> Iterator[None]:
    """Within the context a classifier without a pad token has one; without it, it accepts only one row at a time."""
    config = text_config(lm.model.config)
    if not lm.task.is_sequence_classification or special_token_ids(config, "pad_token_id"):
        yield
        return
    declared = "pad_token_id" in vars(config)
    config.pad_token_id = LENT_PADDING
    try:
        yield
    finally:
        if declared:
            config.pad_token_id = None
        else:
            vars(config).pop("pad_token_id")


WARM_UP = 2
RUNS = 15
FEWEST_RUNS = 3
PATIENCE = 20.0
"""Seconds after which no further pass is timed, once there are `FEWEST_RUNS`."""

Positive = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, kw_only=True)
class Workload(metaclass=Typed):
    """The forward pass that a latency is measured on.

    Args:
        batch: rows, at least 1.
        length: tokens of each row, at least 1.

    Example:
        >>> Workload(batch=1).length
        128
    """

    name: ClassVar[str] = "workload"

    batch: Positive = 8
    length: Positive = 128


DEFAULT_WORKLOAD = Workload()


@dataclass(frozen=True)
class LayerTiming:
    """The calls of one matrix in a forward pass.

    Args:
        rows: number of input rows (tokens) of each call.
        share: fraction of the time of the pass that the calls take.
    """

    rows: tuple[int, ...]
    share: float


@dataclass(frozen=True)
class Profile:
    """The time of one pass and the share of each matrix in it.

    Args:
        seconds: median time of a pass.
        layers: calls and time share of each matrix, by layer name; those of the experts of a stack together.
    """

    seconds: float
    layers: Mapping[str, LayerTiming]


def profile(lm: LanguageModel, sites: Sequence[Site], workload: Workload, track: Track = silent) -> Profile:
    """Time several passes of a model and the share of each matrix in them.

    Args:
        lm: the model; it is in eval mode during the call.
        sites: the layers to time; an embedding look-up gets a share of 0.
        workload: batch size and length of a pass.
        track: shows progress.

    Returns:
        Medians over the passes.
    """
    inputs = random_batch(lm, workload.batch, workload.length)
    totals: list[float] = []
    shares: dict[str, list[float]] = {site.unit: [] for site in sites}
    with evaluating(lm), expert_layers(lm.model), torch.inference_mode(), _stopwatches(lm, sites) as watches:
        for _ in range(WARM_UP):
            forward(lm, inputs)
        for _ in track(range(RUNS), "Timing the model"):
            for watch in watches.values():
                watch.reset()
            start = read_clock(lm.device)
            forward(lm, inputs)
            totals.append(read_clock(lm.device) - start)
            for name, watch in watches.items():
                shares[name].append(watch.seconds / totals[-1])
            if len(totals) >= FEWEST_RUNS and sum(totals) > PATIENCE:
                break
        rows = {name: tuple(watch.rows) for name, watch in watches.items()}
    return Profile(median(totals), {name: LayerTiming(rows[name], median(shares[name])) for name in shares})


class _Stopwatch:
    """Measures the time of the calls of some modules, by forward hooks."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._start = 0.0
        self.reset()

    def reset(self) -> None:
        self.seconds = 0.0
        self.rows: list[int] = []

    def on_call(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._start = read_clock(self._device)

    def on_return(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        self.seconds += read_clock(self._device) - self._start
        self.rows.append(output.numel() // output.shape[-1])


@contextmanager
def _stopwatches(lm: LanguageModel, sites: Sequence[Site]) -> Iterator[dict[str, _Stopwatch]]:
    units = {site.unit: site for site in sites}
    watches = {unit: _Stopwatch(lm.device) for unit in units}
    with ExitStack() as hooks:
        for unit, site in units.items():
            modules = [lm.model.get_submodule(unit)] if site.stack else [place.module for place in site.places]
            for module in {} if site.is_lookup else dict.fromkeys(modules):
                hooks.callback(module.register_forward_pre_hook(watches[unit].on_call).remove)
                hooks.callback(module.register_forward_hook(watches[unit].on_return).remove)
        yield watches
