"""An adapter with a head of its own, for each task that peft and laconic have in common."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from laconic.errors import UserError
from laconic.model import ModelTask, load
from laconic.model.task import AUTO_CLASSES
from tests.architectures import BY_NAME
from tests.model.checkpoints.test_adapter import close, outputs, shaken


def adapter(folder: Path, base: Any, task: str) -> Any:
    """Save an adapter of the model in `folder/base` for a task, with the head of `base`."""
    beside = shaken(peft.get_peft_model(base, peft.LoraConfig(r=4, task_type=task, target_modules=["query"])))
    beside.peft_config["default"].base_model_name_or_path = str(folder / "base")
    beside.save_pretrained(folder / "adapter")
    return beside


@pytest.mark.parametrize(
    ("name", "task", "labels"),
    [
        ("SEQ_CLS", ModelTask.CLASSIFICATION, 5),
        ("TOKEN_CLS", ModelTask.TOKEN_CLASSIFICATION, 5),
        ("QUESTION_ANS", ModelTask.QUESTION_ANSWERING, 2),
    ],
)
def test_a_head_of_the_adapter_s_own(tmp_path: Path, name: str, task: ModelTask, labels: int) -> None:
    """The base is a masked model, whose head gives way; the labels are counted in the adapter's file."""
    torch.manual_seed(0)
    BY_NAME["roberta-masked"].model().save_pretrained(tmp_path / "base")
    auto_class: Any = AUTO_CLASSES[task][0]
    beside = adapter(tmp_path, auto_class.from_pretrained(tmp_path / "base", num_labels=labels), name)
    lm = load(str(tmp_path / "adapter"))
    assert (lm.task, lm.model.config.num_labels) == (task, labels)
    assert close(outputs(lm.model), outputs(beside))


def test_a_task_without_such_a_class_is_refused(tmp_path: Path) -> None:
    base = BY_NAME["olmo2"].model()
    base.save_pretrained(tmp_path / "base")
    beside = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=["q_proj"]))
    beside.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    beside.peft_config["default"].task_type = "TOKEN_CLS"
    beside.save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match=r"for the task TOKEN_CLS, .* 'olmo2'; supported are SEQ_CLS, TOKEN_CLS, "):
        load(str(tmp_path / "adapter"))
