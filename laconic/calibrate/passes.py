"""Forward passes over random tokens, their time, and the share of each matrix in it: the basis of every measured speed.

A pass has no padding; each row ends with the end token, if the model has one. A causal model reads a whole prompt
without a cache; an encoder-decoder reads as many target tokens as source tokens. Matrices are timed inside passes of
the whole model, so that a load on the machine slows the parts and the whole alike, and their ratio stays.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

from laconic.cache import short_numbers
from laconic.calibrate.batching import positions, to_device
from laconic.model import Batch, LanguageModel, Site, Task, first_token_mask
from laconic.model.predictions import check_named, report_run_errors
from laconic.model.stock import text_config
from laconic.model.tokens import special_token_ids, vocabulary_size
from laconic.progress import Track, silent
from laconic.typed import Typed

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
    return to_device(inputs, lm.device)


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


WARM_UP = 2
RUNS = 15
FEWEST_RUNS = 3
PATIENCE = 20.0
"""Seconds after which a slow model is run no more, once it has run often enough for a median."""

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


USUAL = Workload()


@dataclass(frozen=True)
class Use:
    """What one pass does with a matrix.

    Args:
        rows: number of input rows of each call.
        share: fraction of the pass that the calls take.
    """

    rows: tuple[int, ...]
    share: float


@dataclass(frozen=True)
class Profile:
    """The time of one pass and the share of each matrix.

    Args:
        seconds: median time of a pass.
        uses: use of each matrix, by layer name.
    """

    seconds: float
    uses: Mapping[str, Use]


def profile(lm: LanguageModel, sites: Sequence[Site], workload: Workload, track: Track = silent) -> Profile:
    """Time several passes of a model, and the share of the matrices in them; looking up an embedding counts 0.

    Args:
        lm: the model.
        sites: the layers to time.
        workload: the pass.
        track: shows progress.
    """
    inputs = random_batch(lm, workload.batch, workload.length)
    wholes: list[float] = []
    shares: dict[str, list[float]] = {site.name: [] for site in sites}
    with evaluating(lm), torch.inference_mode(), _stopwatches(lm, sites) as watches:
        for _ in range(WARM_UP):
            forward(lm, inputs)
        for _ in track(range(RUNS), "Timing the model"):
            for watch in watches.values():
                watch.reset()
            start = now(lm.device)
            forward(lm, inputs)
            wholes.append(now(lm.device) - start)
            for name, watch in watches.items():
                shares[name].append(watch.seconds / wholes[-1])
            if len(wholes) >= FEWEST_RUNS and sum(wholes) > PATIENCE:
                break
        rows = {name: tuple(watch.rows) for name, watch in watches.items()}
    return Profile(median(wholes), {name: Use(rows[name], median(shares[name])) for name in shares})


class _Stopwatch:
    """Runs while any of the modules that it hangs on is called."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._start = 0.0
        self.reset()

    def reset(self) -> None:
        self.seconds = 0.0
        self.rows: list[int] = []

    def on_call(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._start = now(self._device)

    def on_return(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        self.seconds += now(self._device) - self._start
        self.rows.append(output.numel() // output.shape[-1])


@contextmanager
def _stopwatches(lm: LanguageModel, sites: Sequence[Site]) -> Iterator[dict[str, _Stopwatch]]:
    watches = {site.name: _Stopwatch(lm.device) for site in sites}
    hooks = []
    for site in sites:
        for module in dict.fromkeys(place.module for place in site.places):
            if not site.is_lookup:
                watch = watches[site.name]
                hooks.append(module.register_forward_pre_hook(watch.on_call))
                hooks.append(module.register_forward_hook(watch.on_return))
    try:
        yield watches
    finally:
        for hook in hooks:
            hook.remove()
