"""The training loop: transformers' Trainer with checkpoints of the trained parameters only.

This module is imported only when a training begins, because Trainer is slow to import. An interrupted training
continues at its last checkpoint with the same rows, optimizer, schedule and random numbers. At the end the parameters
with the least held-out loss are kept, or the last ones.
"""

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import Sampler
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations.integration_utils import TensorBoardCallback

from laconic.calibrate import Calibration
from laconic.errors import UserError, must_be
from laconic.processes import all_reduce_sum, barrier, is_rank_zero, on_rank_zero, shard, world_size
from laconic.recover.checkpoints import (
    BEFORE,
    CHECKPOINTS,
    LOGS,
    WEIGHTS,
    last_checkpoint,
    load_trained,
    save_trained,
)
from laconic.recover.distillation_loss import DistillationLoss
from laconic.recover.rows import LengthGroupedSampler, RowDataset, TrainingData, collate_rows
from laconic.recover.training import Training


def train(
    loss_module: DistillationLoss, training_data: TrainingData, step: Training, folder: Path, data: Calibration
) -> list[dict[str, float]]:
    """Train the trainable parameters of a loss module.

    The initial parameters are restored if the final loss is not finite, or if the best checkpoint is no better.

    Args:
        loss_module: the student with its loss, changed in place.
        training_data: the rows and the models that read them.
        step: the settings.
        folder: folder for checkpoints and logs.
        data: calibration data, for its seed and progress bar.

    Returns:
        The log: one entry for each log event, with values by name; values that are not finite are None.
    """
    checkpoint = on_rank_zero(last_checkpoint)(folder)
    if checkpoint is None:
        on_rank_zero(save_trained)(loss_module, folder / BEFORE)
    trainer = _trainer(loss_module, training_data, step, folder, data.seed, from_start=checkpoint is None)
    total = trainer.args.max_steps
    trainer.add_callback(_ProgressCallback(loss_module, iter(data.track(range(total), "Training")), total))
    trainer.train(resume_from_checkpoint=checkpoint)
    history = [{name: _finite(value) for name, value in line.items()} for line in trainer.state.log_history]
    before, *_, last = (line["eval_loss"] for line in history if "eval_loss" in line)
    best = trainer.state.best_metric if step.checkpoint == "best" else last
    no_gain = step.checkpoint == "best" and before is not None and best is not None and best >= before
    if best is None or not math.isfinite(best) or no_gain:
        load_trained(loss_module, load_file(folder / BEFORE))
    # The first process removes the checkpoints next, so wait until all processes have read them.
    barrier()
    return history


def _trainer(
    loss_module: DistillationLoss,
    training_data: TrainingData,
    step: Training,
    folder: Path,
    seed: int,
    from_start: bool,
) -> "DistillationTrainer":
    if step.batch_size % world_size():
        raise must_be("batch_size", f"a multiple of {world_size()}, the number of processes", step.batch_size)
    trainer = DistillationTrainer(
        loss_module,
        _arguments(training_data, step, folder, seed, from_start),
        data_collator=partial(collate_rows, student=training_data.student, teacher=training_data.teacher),
        train_dataset=training_data.train,
        eval_dataset=training_data.held_out,
        callbacks=[TensorBoardCallback(_writer(folder))] if is_rank_zero() else [],
    )
    if trainer.args.world_size != world_size():
        raise UserError(
            f"{world_size()} processes work together, and accelerate has {trainer.args.world_size}; "
            "start them by torchrun or accelerate launch to train on all of them."
        )
    if step.patience is not None:
        trainer.add_callback(EarlyStoppingCallback(step.patience))
    # PrinterCallback would print log entries to standard output, among the results.
    trainer.remove_callback(PrinterCallback)
    return trainer


def _arguments(
    training_data: TrainingData, step: Training, folder: Path, seed: int, from_start: bool
) -> TrainingArguments:
    interval, total = step.updates(len(training_data.train))
    arguments = TrainingArguments(
        output_dir=str(folder / CHECKPOINTS),
        max_steps=total,
        per_device_train_batch_size=step.batch_size // world_size(),
        per_device_eval_batch_size=max(1, 2 * step.batch_size // world_size()),
        gradient_accumulation_steps=step.accumulate,
        learning_rate=step.learning_rate,
        lr_scheduler_type=step.decay if step.decay != "constant" else "constant_with_warmup",
        warmup_steps=math.ceil(step.warmup * total),
        weight_decay=step.weight_decay,
        bf16=step.precision == "bf16",
        fp16=step.precision == "fp16",
        eval_strategy="steps",
        eval_steps=interval,
        # Evaluate within `train`: before it, accelerate would prepare the model without gradient synchronisation.
        eval_on_start=from_start,
        save_strategy="steps",
        save_steps=interval,
        save_total_limit=2,
        load_best_model_at_end=step.checkpoint == "best",
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        logging_steps=max(1, interval // 5),
        seed=seed,
        data_seed=seed,
        use_cpu=training_data.student.device.type == "cpu",
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to="none",
        dataloader_pin_memory=training_data.student.device.type != "cpu",
        # An unused pooler, or blocks after the last matched one, get no gradients.
        ddp_find_unused_parameters=True,
        # The buffers (masks) do not change.
        ddp_broadcast_buffers=False,
        restore_callback_states_from_checkpoint=True,
    )
    # Override settings from the launcher's configuration: precision, and the number of GPUs.
    arguments.mixed_precision = {"fp32": "no"}.get(step.precision, step.precision)
    _on_one_device(arguments, training_data.student.device)
    return arguments


def _on_one_device(arguments: TrainingArguments, device: torch.device) -> None:
    """Make Trainer use one GPU; by default it uses all, with the model on the first one."""
    default = arguments.device
    arguments._n_gpu = min(1, arguments.n_gpu)
    if device.type == "cuda" and (device.index or 0) != (default.index or 0):
        raise must_be("device", f"{default} for a training; choose a GPU by CUDA_VISIBLE_DEVICES", str(device))


def _finite(value: Any) -> Any:
    """Replace NaN and infinity by None, because JSON cannot represent them."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _writer(folder: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 (an extra)

    return SummaryWriter(str(folder / LOGS))


class DistillationTrainer(Trainer):
    """Trainer that saves the trained parameters only, and batches rows of similar length."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler:
        lines, size = self.train_dataset, self.args.per_device_train_batch_size * self.args.world_size
        assert isinstance(lines, RowDataset)
        return LengthGroupedSampler(lines.lengths, size, self.args.seed)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir or ".")
            folder.mkdir(parents=True, exist_ok=True)
            save_trained(self._loss_module, folder / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_trained(self._loss_module, load_file(Path(resume_from_checkpoint) / WEIGHTS))

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        assert best is not None
        load_trained(self._loss_module, load_file(Path(best) / WEIGHTS))

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Return the mean loss of the held-out rows; the batches do not depend on the number of processes."""
        lines, size = self.eval_dataset, self.args.eval_batch_size * self.args.world_size
        assert isinstance(lines, RowDataset)
        starts = shard(range(0, len(lines), size))
        rows = [range(start, min(start + size, len(lines))) for start in starts]
        total = torch.zeros(2, dtype=torch.float64)
        self._loss_module.eval()
        for numbers in rows:
            inputs = self._prepare_inputs(lines.batch(numbers, *self._loss_module.readers))
            with torch.no_grad(), self.compute_loss_context_manager():
                loss = self._loss_module(**inputs)["loss"].item()
            total += torch.tensor((loss * len(numbers), len(numbers)), dtype=torch.float64)
        summed_loss, count_of_rows = all_reduce_sum(total).tolist()
        metrics = {"eval_loss": summed_loss / count_of_rows}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @property
    def _loss_module(self) -> DistillationLoss:
        assert isinstance(self.model, DistillationLoss)
        return self.model


class _ProgressCallback(TrainerCallback):
    """Passes the progress of the training to the loss module and to the progress bar."""

    def __init__(self, loss_module: DistillationLoss, bar: Iterator[int], total: int) -> None:
        self._loss_module, self._bar, self._total, self._shown = loss_module, bar, total, 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._loss_module.done = state.global_step / self._total
        while self._shown <= state.global_step:
            next(self._bar, None)
            self._shown += 1
