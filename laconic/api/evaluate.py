"""`laconic.evaluate`: quality and cost of a model, and its distance to the original."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from os import PathLike
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from laconic.api.arguments import check_kinds, to_counts, to_model_input, to_tasks
from laconic.api.in_engine import TorchArguments, evaluate_engine_models, runs_in_engine
from laconic.api.results import Part, Result
from laconic.calibrate.classes import share_label_order
from laconic.calibrate.row import tokenizer_of
from laconic.errors import UserError
from laconic.evaluate import Conditions, Cost, Evaluation, Fidelity, calibration_sources, check_comparable, check_tasks
from laconic.evaluate.cost import BATCHES, LENGTHS
from laconic.evaluate.engine_cost import EngineCost
from laconic.evaluate.in_engine import EngineSettings
from laconic.evaluate.metrics import Interval
from laconic.evaluate.paired import Difference
from laconic.evaluate.products import FLOAT32
from laconic.evaluate.run import EvaluationSettings, evaluate_in_turn
from laconic.evaluate.tasks import check_window_tasks, load_corpus
from laconic.model import LanguageModel
from laconic.model.loading import load_streamed
from laconic.progress import Track, silent
from laconic.recipe.checks import check_label_order
from laconic.recipe.entry import ModelInput
from laconic.report.evaluation import evaluation_remarks, evaluation_tables
from laconic.report.tables import Table
from laconic.runtime import EAGER, check_runtime

SHOWN = 4
"""The largest number of figures in a headline."""
SIZES = ("parameters", "bytes", "memory_bytes")


@dataclass(frozen=True, repr=False, eq=False)
class EvaluateResult(Result):
    """Quality and cost of a model.

    Args:
        results: the value of each metric with its 95 % interval, by task and metric.
        cost: parameters, bytes, operations, time and memory; in an engine without parameters and operations.
        fidelity: distance between the predictions of the model and of the original; None without an original.
        difference: the change of each metric from the original, with interval and p-value; None without an original.
        evaluation: all other results, such as the figures of the original.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
        >>> result = evaluate(BertModel(BertConfig(vocab_size=50, **shape)), batch=1, length=8)
        >>> result.cost.parameters, result.results, result.fidelity
        (36256, {}, None)
        >>> result.to_frame()["parameters"].tolist()
        [36256]
    """

    results: Mapping[str, Mapping[str, Interval]]
    cost: Cost | EngineCost | None
    fidelity: Fidelity | None
    difference: Mapping[str, Mapping[str, Difference]] | None
    evaluation: Evaluation

    def to_dict(self) -> dict[str, Any]:
        """The values that `laconic evaluate --json` prints."""
        return self.evaluation.to_json()

    def _rows(self) -> Sequence[Mapping[str, Any]]:
        """One row for each metric of each task; the sizes of the models if there are no tasks."""
        found = self.to_dict()
        if not found["results"]:
            costs = {"this model": found.get("cost"), "original": found.get("original", {}).get("cost")}
            sizes = {name: {key: cost[key] for key in SIZES if key in cost} for name, cost in costs.items() if cost}
            return [{"model": name, **size} for name, size in sizes.items()]
        changes = found.get("difference", {})
        return [
            {"task": task, "metric": metric, **figure, **_prefixed(changes.get(task, {}).get(metric, {}))}
            for task, metrics in found["results"].items()
            for metric, figure in metrics.items()
        ]

    def _headline(self) -> str:
        """The first metrics, or the size of the model."""
        results = self.results.items()
        found = [f"{task} {name} {figure.value:.4f}" for task, figures in results for name, figure in figures.items()]
        if self.fidelity is not None:
            found.append(f"KL {self.fidelity.kl:.4g} nats to the original")
        if self.cost is not None and not found:
            parameters = f"{self.cost.parameters:,d} parameters in " if isinstance(self.cost, Cost) else ""
            found.append(f"{parameters}{self.cost.bytes:,d} bytes")
        return ", ".join(found[:SHOWN]) + (f" and {len(found) - SHOWN} more" if len(found) > SHOWN else "")

    def _table(self) -> Table | None:
        """The first table: quality, or cost if there are no tasks."""
        return next(iter(evaluation_tables(self.to_dict()).values()), None)

    def _notes(self) -> Sequence[str]:
        """Remarks on the figures."""
        return evaluation_remarks(self.to_dict())

    def parts(self) -> Iterator[Part]:
        """All tables, and remarks on the figures."""
        yield from evaluation_tables(self.to_dict()).items()
        yield from self._notes()


def evaluate(
    model: PreTrainedModel | str | PathLike[str],
    tasks: str | Sequence[str] = (),
    *,
    against: PreTrainedModel | str | PathLike[str] | None = None,
    limit: int | None = None,
    label_order: Sequence[str | int] | None = None,
    batch: int | Sequence[int] | None = None,
    length: int | Sequence[int] | None = None,
    runtime: str = "eager",
    context: int | None = None,
    dtype: str = "float32",
    stream: bool = False,
    tokenizer: PreTrainedTokenizerBase | None = None,
    device: str = "cpu",
    track: Track = silent,
) -> EvaluateResult:
    """Measure quality and cost of a model.

    For a model that is given by its name, tasks that an earlier evaluation finished are not measured again if model,
    rows and versions are the same.

    Args:
        model: a loaded model, or a folder or hub name. It is evaluated in float32. For an engine also a file or folder
            in its own format, such as a GGUF file.
        tasks: tasks, such as `glue/sst2`, `token-classification:SOURCE`, `question-answering:SOURCE`,
            `multiple-choice:SOURCE`, `multi-label:SOURCE`, `lama/trex`, `blimp`, `harness/boolq`, `perplexity:SOURCE`
            or `seq2seq:SOURCE`; `fidelity:SOURCE` names the rows on which the model is compared with `against`. Without
            tasks only the cost is measured.
        against: the original model, to compare with.
        limit: maximum rows of each task; None for all.
        label_order: class names in the order of the model's outputs, as the task spells them. None for the order in the
            model's configuration.
        batch: one or several batch sizes to time; None for 1 and 8. An engine is timed with one row.
        length: one or several sequence lengths to time, each with every batch size; None for 128.
        runtime: the runtime of the models: `eager`, `compile`, `onnx` or `openvino`; or the engine that measures them
            itself, `llama.cpp` or `vllm`, or `onnx` and `openvino` for folders that were exported for them. An engine
            measures perplexity, the distance in its windows, and the speed of one row. Models that are not in its
            format are exported into a temporary folder first.
        context: number of tokens in a window of perplexity; None for the context of the model, up to 2048.
        dtype: dtype of the matrix products of perplexity and of the comparison in its windows: `float32`, or
            `bfloat16`, which is faster on processors that have it and changes figures by about a thousandth of a nat.
        stream: read the weights of each block from the files of the models when it runs, so that a model may be larger
            than memory. Only perplexity and the distance in its windows can be measured, and no cost.
        tokenizer: tokenizer of both models. None for those in the folders that they were loaded from.
        device: device for models that are given by their names.
        track: reports progress.

    Returns:
        Figures with intervals, the cost, and the distance to the original.

    Raises:
        UserError: an argument has a wrong value, or a model cannot be measured on a task. Arguments are checked before
            a model is loaded.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
        >>> result = evaluate(BertModel(BertConfig(vocab_size=50, **shape)), batch=1, length=8)
        >>> result.cost.parameters
        36256
    """
    check_kinds(tasks=tasks, limit=limit, label_order=label_order, batch=batch, length=length)
    check_kinds(runtime=runtime, context=context, dtype=dtype, track=track)
    check_kinds(stream=stream)
    names = to_tasks(tasks, limit, label_order)
    batches = None if batch is None else to_counts("batch", batch)
    lengths = None if length is None else to_counts("length", length)
    for name, counts in (("batch", batches), ("length", lengths)):
        if stream and counts is not None:
            raise UserError(f"{name} is a condition of timing, and with stream nothing is timed; leave it out.")
    model_input = to_model_input(model, tokenizer, label_order, device)
    original = None if against is None else to_model_input(against, tokenizer, None, device, place="against")
    models = [model_input, *([] if original is None else [original])]
    if runs_in_engine(runtime, models):
        arguments = TorchArguments(dtype, stream, label_order, batches)
        settings = EngineSettings(limit=limit, lengths=lengths or LENGTHS, context=context, track=track)
        found = evaluate_engine_models(models, runtime, names, arguments, settings)
        return EvaluateResult(found.results, found.cost, found.fidelity, found.difference, found)
    check_runtime(runtime, model_input.device)
    conditions = Conditions(batch=batches or BATCHES, length=lengths or LENGTHS, runtime=runtime)
    if dtype != FLOAT32 and runtime != EAGER:
        raise UserError(f"dtype is a setting of the runtime '{EAGER}', and the runtime is '{runtime}'; leave it out.")
    # The structure of both models is checked before the tokenizer or the weights of either are loaded.
    structure, other = model_input.structure(), None if original is None else original.structure()
    structure = model_input.with_inputs(structure)
    check_label_order(structure)
    if other is not None and names:
        check_comparable(structure, other)
    if names:
        tokenizer_of(structure)
    check_tasks(
        names,
        structure,
        compared=other is not None,
        calibration=calibration_sources(model_input.name, *(() if original is None else (original.name,))),
        runtime=runtime,
        context=context,
        dtype=dtype,
        load=partial(load_corpus, limit=limit),
    )
    if stream:
        _check_streamed(names, models, runtime)
    settings = EvaluationSettings(
        limit=limit,
        cost=False if stream else conditions,
        resume=model_input.loaded is None and (original is None or original.loaded is None),
        context=context,
        dtype=dtype,
        track=track,
    )
    found = evaluate_in_turn(
        partial(_open_model, model_input, structure, stream),
        None if original is None else partial(_open_model, original, structure, stream),
        names,
        settings,
        sources=[model_input.name, *([] if original is None else [original.name])],
    )
    return EvaluateResult(found.results, found.cost, found.fidelity, found.difference, found)


@contextmanager
def _open_model(model_input: ModelInput, structure: LanguageModel, stream: bool) -> Iterator[LanguageModel]:
    """Open a model, with the order of the classes of the evaluated one.

    Args:
        model_input: the model to open.
        structure: the evaluated model.
        stream: as in `evaluate`.
    """
    if stream:
        yield model_input.with_inputs(load_streamed(model_input.name, device=model_input.device))
    else:
        with model_input.open_model(restore=False, packed=True) as lm:
            yield share_label_order(lm, structure)


def _check_streamed(names: Sequence[str], models: Sequence[ModelInput], runtime: str) -> None:
    """Check that an evaluation can read its models block by block.

    Args:
        names: the names of the tasks.
        models: the model, and the original if there is one.
        runtime: the runtime.

    Raises:
        UserError: a task is no perplexity, a model is loaded already, or the runtime reads whole models.
    """
    if runtime != EAGER:
        raise UserError(f"With stream, models run in torch block by block; got the runtime '{runtime}'; use '{EAGER}'.")
    check_window_tasks(names, compared=len(models) > 1)
    if any(model.loaded is not None for model in models):
        raise UserError("stream reads models from their files; give their folders or hub names.")


def _prefixed(change: Mapping[str, Any]) -> dict[str, Any]:
    return {("change" if name == "value" else f"change_{name}"): value for name, value in change.items()}
