"""The base class of the steps that train: rows, schedule, trainable parts of the model, and the training itself."""

import hashlib
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from laconic.calibrate import Calibration
from laconic.calibrate.corpus import Corpus
from laconic.calibrate.labels import convert_labels
from laconic.compress import Outcome, Step
from laconic.compress.solver_cache import key_of
from laconic.errors import UserError, install, must_be
from laconic.fingerprint import hash_packages
from laconic.model import LanguageModel
from laconic.model.tokens import pad_token_id
from laconic.processes import all_true, on_rank_zero, world_size
from laconic.recover.checkpoints import load_finished, load_trained, read_logs, save_finished, training_folder
from laconic.recover.distillation_loss import DistillationLoss, Terms
from laconic.recover.observe import eager
from laconic.recover.rows import DistillationBatch, TrainingData, precompute_predictions, split, tokenize_corpus
from laconic.recover.trainable import QuantizedTraining, check_lora, frozen_parameters, trainable

NEEDED = ("accelerate", "tensorboard")
Precision = Literal["fp32", "bf16", "fp16"]
Decay = Literal["linear", "cosine", "constant"]
Checkpoint = Literal["best", "last"]


def check_installed() -> None:
    """Raise UserError if a package that training needs is not installed."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise UserError(f"Training needs {' and '.join(missing)}, not installed here: {install('train')}.")


Positive = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, kw_only=True)
class Training(Step):
    """A step that trains with transformers' Trainer, on one process or several.

    Args:
        epochs: passes over the rows; a fraction is allowed.
        rows: rows of the training split to use, drawn with the seed. None for all but those held out.
        held_out: rows that the loss is evaluated on. The parameters with the least loss on them are kept.
        batch_size: rows of a batch, over all processes; an update has `accumulate` batches.
        accumulate: batches whose gradients are summed before an update.
        learning_rate: the largest learning rate, in (0, 1].
        warmup: fraction of the updates for which the learning rate rises, in [0, 1].
        weight_decay: weight decay of AdamW.
        decay: schedule of the learning rate after the warmup: `linear`, `cosine` or `constant`.
        precision: `fp32`, or `bf16` or `fp16` with weights in fp32.
        evaluations: number of evaluations of the held-out loss.
        patience: evaluations without improvement after which the training stops. None for no early stopping.
        checkpoint: keep the parameters with the `best` held-out loss, or the `last` ones, as an overconfident head may
            classify better although its loss is larger.
        quantized: `frozen` keeps codes; `straight-through` trains them with the straight-through estimator.
        lora: rank of low-rank adapters. Only these are trained; at the end they are merged into plain matrices.
        dropout: apply the dropout of the model's configuration.
        freeze: globs over names of parameters that are not trained, such as `*embeddings*`.
    """

    epochs: Annotated[float, Field(gt=0)] = 1.0
    rows: Positive | None = None
    held_out: Positive = 500
    batch_size: Positive = 32
    accumulate: Positive = 1
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 5e-5
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.1
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    decay: Decay = "linear"
    precision: Precision = "fp32"
    evaluations: Positive = 8
    patience: Positive | None = None
    checkpoint: Checkpoint = "best"
    quantized: QuantizedTraining = "frozen"
    lora: Positive | None = None
    dropout: bool = True
    freeze: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.patience is not None and self.checkpoint == "last":
            raise must_be("patience", "left out with checkpoint: last, which ignores the loss", self.patience)
        if self.lora is not None and self.quantized != "frozen":
            raise must_be("quantized", "frozen with lora, which trains only adapters", self.quantized)

    def updates(self, rows: int) -> tuple[int, int]:
        """The updates between two evaluations, and in total; the total is a multiple of the first number.

        Args:
            rows: number of training rows.
        """
        total = self.epochs * math.ceil(rows / (self.batch_size * self.accumulate))
        interval = max(1, round(total / self.evaluations))
        return interval, interval * max(1, round(total / interval))

    @property
    def needs_data(self) -> bool:
        return True

    @abstractmethod
    def load_teacher(self, lm: LanguageModel) -> LanguageModel | None:
        """Return the teacher on the device of `lm`, or None for training without one."""

    @abstractmethod
    def loss_terms(
        self, lm: LanguageModel, teacher: LanguageModel | None, batch: DistillationBatch, classes: Sequence[str] = ()
    ) -> Terms:
        """Return the terms of the loss.

        Args:
            lm: the student.
            teacher: its teacher, or None.
            batch: a batch with one row, to find out the numbers of layers.
            classes: class names of the data, in the order of their numbers; empty if unknown.
        """

    @property
    @abstractmethod
    def compares_layers(self) -> bool:
        """True if layers of the teacher are compared, so that precomputed predictions are not enough."""

    def check(self, lm: LanguageModel) -> None:
        check_installed()
        check_lora(self.lora)
        if self.precision == "fp16" and lm.device.type == "cpu":
            raise must_be(f"{self.name}.precision", "fp32 or bf16 on a CPU", self.precision)
        frozen_parameters(lm, self.freeze)
        if lm.task.is_sequence_classification and pad_token_id(lm) is None:
            raise UserError(
                f"The model '{lm.source}' has no pad token, by which it finds the end of each text in a batch; set "
                "pad_token_id in its config.json."
            )

    def check_data(self, data: Calibration | None) -> None:
        split(self._require_data(data), self.rows, self.held_out)

    def check_labels(self, lm: LanguageModel, corpus: Corpus, seed: int) -> None:
        if lm.task.reads_labels:
            for part in split(Calibration([], seed=seed, corpus=corpus), self.rows, self.held_out):
                convert_labels(lm, part)

    def _require_data(self, data: Calibration | None) -> Calibration:
        if data is None:
            raise UserError(f"The step '{self.name}' needs training texts; name a source of them as data.")
        return data

    def dry_run(self, lm: LanguageModel) -> None:
        """The structure does not change; adapters beside pruned or quantized matrices do not affect later checks."""

    def apply(self, lm: LanguageModel, data: Calibration | None) -> Outcome:
        """Train the model in place, or continue a training that was interrupted.

        Args:
            lm: the model, changed in place.
            data: calibration data with its corpus.

        Returns:
            The history of the training, its log files, and the bytes of matrices whose size changed.

        Raises:
            UserError: there are too few rows, labels that the loss needs are missing, or a library is not installed.
        """
        data = self._require_data(data)
        self.check(lm)
        before, teacher = lm.stored_nbytes(lm.sites()), self.load_teacher(lm)
        key = self._key(lm, data, teacher)
        with (
            training_folder(key) as folder,
            trainable(lm, quantized=self.quantized, lora=self.lora, freeze=self.freeze, seed=data.seed),
            eager(lm, teacher) if self.compares_layers and teacher is not None else nullcontext(),
        ):
            training_data = self._training_data(lm, teacher, data)
            first = training_data.first()
            classes = () if data.corpus is None else data.corpus.classes
            loss_module = DistillationLoss(lm, teacher, self.loss_terms(lm, teacher, first, classes), self.dropout)
            loss_module.prepare(first, data.seed)
            done = load_finished(folder, loss_module)
            if all_true(done is not None) and done is not None:
                history, tensors = done
                load_trained(loss_module, tensors)
            else:
                history = self._train(loss_module, self._with_predictions(training_data, data), data, folder)
            files = {f"{self.name}/{name}": content for name, content in read_logs(folder).items()}
        before, after = _changed(before, lm.stored_nbytes(lm.sites()))
        return Outcome(plan={}, before=before, after=after, found={self.name: history}, files=files)

    def _train(
        self, loss_module: DistillationLoss, training_data: TrainingData, data: Calibration, folder: Path
    ) -> dict[str, Any]:
        """Train, save the result in `folder`, and return the history."""
        from laconic.recover.loop import train  # noqa: PLC0415 (it brings Trainer with it)

        lines = train(loss_module, training_data, self, folder, data)
        history = {"rows": len(training_data.train), "held_out": len(training_data.held_out), "lines": lines}
        on_rank_zero(save_finished)(folder, loss_module, history)
        return history

    def _training_data(self, lm: LanguageModel, teacher: LanguageModel | None, data: Calibration) -> TrainingData:
        train_rows, held_out = (
            tokenize_corpus(corpus, data, lm, teacher, self.needs_labels)
            for corpus in split(data, self.rows, self.held_out)
        )
        return TrainingData(train=train_rows, held_out=held_out, student=lm, teacher=teacher)

    def _with_predictions(self, training_data: TrainingData, data: Calibration) -> TrainingData:
        """Precompute the teacher's predictions if they are used in more than one epoch."""
        teacher = training_data.teacher
        if teacher is None or self.compares_layers or self.epochs <= 1:
            return training_data
        train_rows, held_out = (
            precompute_predictions(teacher, lines, self.batch_size, data.track)
            for lines in (training_data.train, training_data.held_out)
        )
        return replace(training_data, train=train_rows, held_out=held_out)

    def _key(self, lm: LanguageModel, data: Calibration, teacher: LanguageModel | None) -> str | None:
        """A hash of everything that determines the result; None if the source code of a class is not available."""
        rows = hashlib.blake2b(repr(data.corpus).encode(), digest_size=16).hexdigest()
        teacher_key = "" if teacher is None else key_of(teacher, data, ())
        if teacher_key is None:
            return None
        versions = [f"{name} {version(name)}" for name in ("accelerate", "transformers")]
        # The corpus has labels as the data spells them; their class numbers also depend on label_order.
        classes = repr(lm.label_order)
        code = hash_packages("recover")
        question = [repr(self), rows, str(data.max_length), teacher_key, classes, str(world_size()), code, *versions]
        return key_of(lm, data, question, [type(self)])


def _changed(before: Mapping[str, int], after: Mapping[str, int]) -> tuple[dict[str, int], dict[str, int]]:
    """The bytes before and after of the matrices whose size changed, because adapters stay beside them."""
    now = {
        name: sum(size for other, size in after.items() if other == name or other.startswith(f"{name}."))
        for name in before
    }
    changed = [name for name in before if now[name] != before[name]]
    return {name: before[name] for name in changed}, {name: now[name] for name in changed}
