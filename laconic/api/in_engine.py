"""Models for an engine such as llama.cpp: found in its own files, or exported into a temporary folder first."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers import PreTrainedTokenizerBase

from laconic.calibrate.row import tokenizer_of
from laconic.errors import UserError, must_be, unknown
from laconic.evaluate import Evaluation, calibration_sources, check_comparable
from laconic.evaluate.eval_task import with_article
from laconic.evaluate.exported import evaluate_exported
from laconic.evaluate.in_engine import EngineModel, EngineSettings, evaluate_in_engine
from laconic.evaluate.products import FLOAT32
from laconic.evaluate.tasks import check_tasks, check_window_tasks, load_corpus
from laconic.export import check_target, export
from laconic.files import expand_user
from laconic.model import LanguageModel, ModelTask
from laconic.model.checkpoints.checkpoint import read_tokenizer
from laconic.model.checkpoints.location import Location
from laconic.model.loading import load_outline, load_tokenizers
from laconic.progress import Track
from laconic.recipe.entry import ModelInput
from laconic.runtime.engine import ENGINES, Engine
from laconic.runtime.engine.graphs import GraphEngine
from laconic.runtime.engines import RUNTIMES


def runs_in_engine(runtime: str, models: Sequence[ModelInput]) -> bool:
    """Whether an engine evaluates these models, and not torch or a graph that is made of them.

    ONNX Runtime and OpenVINO are engines for models that were exported for them.

    Args:
        runtime: the value of `--runtime`.
        models: the model, and the original if there is one.

    Raises:
        UserError: there is no such runtime.
    """
    if runtime not in (*RUNTIMES, *ENGINES):
        raise unknown("runtime", runtime, {*RUNTIMES, *ENGINES})
    if runtime not in RUNTIMES:
        return True
    return runtime in ENGINES and any(_find(ENGINES[runtime], model) is not None for model in models)


@dataclass(frozen=True)
class TorchArguments:
    """The arguments of `laconic.evaluate` that only torch takes."""

    dtype: str
    stream: bool
    label_order: Sequence[str | int] | None
    batch: Sequence[int] | None

    def check(self, engine: str, models: Sequence[ModelInput]) -> None:
        """Raise UserError if an argument does not have its default, or more than one row is to be timed."""
        given = {
            "dtype": self.dtype != FLOAT32,
            "stream": self.stream,
            "label_order": self.label_order is not None,
            "device": any(model.device != "cpu" for model in models),
        }
        if name := next((name for name, is_given in given.items() if is_given), None):
            raise UserError(f"{name} is a setting of torch, and the runtime is '{engine}'; leave it out.")
        if self.batch is not None and any(rows != 1 for rows in self.batch):
            given = self.batch[0] if len(self.batch) == 1 else list(self.batch)
            raise must_be("batch", f"1 in the runtime '{engine}', which is measured with one row", given)


def evaluate_engine_models(
    models: Sequence[ModelInput],
    runtime: str,
    tasks: Sequence[str],
    arguments: TorchArguments,
    settings: EngineSettings,
) -> Evaluation:
    """Evaluate a model in an engine, beside its original in the same engine.

    Args:
        models: the model, and the original if there is one.
        runtime: the name of the engine.
        tasks: names of tasks.
        arguments: the arguments that only torch takes.
        settings: how to measure.

    Raises:
        UserError: the engine is not installed, cannot read a model, or cannot be measured on a task; everything that
            does not need weights is checked before a model is loaded.
    """
    engine = ENGINES[runtime]
    arguments.check(runtime, models)
    kind = ModelTask.SEQ2SEQ if any(_reads_source(engine, model) for model in models) else ModelTask.CAUSAL
    if tasks and kind is ModelTask.CAUSAL:
        check_window_tasks(tasks, len(models) > 1, f"In the runtime '{runtime}'", "evaluate in the runtime eager")
    check_tasks(tasks, None, compared=len(models) > 1, context=settings.context)
    engine.check_installed()
    prepared = [_Prepared.of(engine, model, kind, reads_text=bool(tasks)) for model in models]
    if tasks and kind is ModelTask.SEQ2SEQ:
        _check_encoder_decoders(prepared, tasks, settings)
    with ExitStack() as stack:
        loadable = [stack.enter_context(each.open_model(settings.track)) for each in prepared]
        if kind is ModelTask.SEQ2SEQ:
            return evaluate_exported(loadable, tasks, settings)
        return evaluate_in_engine(loadable[0], loadable[1] if len(loadable) > 1 else None, tasks, settings)


def _reads_source(engine: type[Engine], model: ModelInput) -> bool:
    """Whether a model is an encoder-decoder in the files of an engine."""
    path = _find(engine, model)
    return path is not None and issubclass(engine, GraphEngine) and engine.reads_source(path)


def _check_encoder_decoders(prepared: Sequence["_Prepared"], tasks: Sequence[str], settings: EngineSettings) -> None:
    """Raise UserError if tasks cannot be measured with encoder-decoders, or two of them cannot be compared."""
    structures = [each.structure() for each in prepared]
    first = structures[0]
    if len(structures) > 1:
        check_comparable(first, structures[1])
    tokenizer_of(first)
    check_tasks(
        tasks,
        first,
        compared=len(structures) > 1,
        calibration=calibration_sources(*(each.model.name for each in prepared)),
        context=settings.context,
        load=partial(load_corpus, limit=settings.limit),
    )


@dataclass(frozen=True)
class _Prepared:
    """A model that was checked, but not exported yet."""

    engine: type[Engine]
    model: ModelInput
    path: Path | None
    tokenizer: PreTrainedTokenizerBase | None

    @classmethod
    def of(cls, engine: type[Engine], model: ModelInput, kind: ModelTask, *, reads_text: bool) -> "_Prepared":
        """Find the model in the files of an engine, or check that it can be exported for it.

        Args:
            engine: the engine.
            model: the model.
            kind: the kind of models that are measured together.
            reads_text: whether there are tasks.
        """
        path = _find(engine, model)
        if path is not None:
            tokenizer = model.tokenizer or (_tokenizer_beside(path) if reads_text else None)
            return cls(engine, model, path, tokenizer)
        target = check_target(engine.target)
        structure = model.skeleton()
        if structure.task is not kind:
            raise UserError(
                f"The runtime '{engine.name}' is measured with {kind.value} models; '{model.name}' is "
                f"{with_article(structure.task.value)} model."
            )
        engine.check_config(structure.model.config.to_dict(), model.name)
        target.check_model(structure)
        return cls(engine, model, None, structure.tokenizer)

    def structure(self) -> LanguageModel:
        """The model without weights, with its tokenizers; of an exported one what its folder says."""
        if self.path is None:
            return self.model.skeleton()
        return load_outline(self.path.parent, self.model.name, self.tokenizer)

    @contextmanager
    def open_model(self, track: Track) -> Iterator[EngineModel]:
        """The model in the files of the engine; exported ones exist within the block."""
        described = partial(EngineModel, self.engine, source=self.model.name, tokenizer=self.tokenizer)
        if self.path is not None:
            yield described(path=self.path)
            return
        with TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
            folder = Path(temporary) / "exported"
            with self.model.open_model(restore=False) as lm:
                export(lm, self.engine.target, folder, track=track)
            path = self.engine.find(folder)
            assert path is not None, "the target writes what the engine reads"
            yield described(path=path)


def _find(engine: type[Engine], model: ModelInput) -> Path | None:
    """The files of a model for an engine; None if it is loaded in memory, or has another format."""
    return None if model.loaded is not None or not model.name.strip() else engine.find(expand_user(model.name))


def _tokenizer_beside(path: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer in the folder of an exported model, or that in its file."""
    folder = path if path.is_dir() else path.parent
    beside = read_tokenizer(Location(str(folder), folder))
    if beside is not None or path.is_dir():
        return beside
    return load_tokenizers(str(path))[0]
