"""Tiny random models for token classification, question answering and multiple choice, by architecture."""

from collections.abc import Callable, Mapping
from functools import cache

from transformers import PreTrainedModel

from laconic.model import ModelTask
from laconic.model.task import AUTO_CLASSES
from tests.architectures import BY_NAME, Architecture

TOKENS, ANSWER, CHOICE = ModelTask.TOKEN_CLASSIFICATION, ModelTask.QUESTION_ANSWERING, ModelTask.MULTIPLE_CHOICE
TASKS = (TOKENS, ANSWER, CHOICE)

SHOWN = {
    "bert": "bert-classifier",
    "roberta": "roberta-masked",
    "distilbert": "distilbert-masked",
    "electra": "electra-classifier",
    "albert": "albert-groups",
    "deberta": "deberta-masked",
    "deberta-v2": "deberta-v3-classifier",
    "longformer": "longformer-classifier",
    "modernbert": "modernbert-masked",
    "mpnet": "mpnet-masked",
    "gpt2": "gpt2",
    "opt": "opt",
    "llama": "llama",
    "t5": "t5",
    "bart": "bart",
    "led": "led",
}
"""The architectures that quick tests try, by `model_type`: all that compute something of their own around the head."""


def _builder(name: str, task: ModelTask) -> Callable[[], PreTrainedModel]:
    def build() -> PreTrainedModel:
        config = BY_NAME[name].build().config
        # The head of an answer has two outputs, whatever the configuration says.
        config.num_labels = 2 if task is ANSWER else 3
        _, mapping = AUTO_CLASSES[task]
        return mapping[type(config)](config)

    return build


def _task_models(names: Mapping[str, str]) -> dict[str, Architecture]:
    """The models of every task that the architectures have a class for, by names such as `bert-multiple-choice`."""
    configs = {family: (name, type(BY_NAME[name].build().config)) for family, name in names.items()}
    return {
        f"{family}-{task.value}": Architecture(f"{family}-{task.value}", _builder(name, task))
        for family, (name, config) in configs.items()
        for task in TASKS
        if config in AUTO_CLASSES[task][1]
    }


TASK_MODELS = _task_models(SHOWN)


@cache
def other_task_models() -> dict[str, Architecture]:
    """Those of all other architectures that have an entry."""
    families: dict[str, str] = {}
    for name, architecture in BY_NAME.items():
        families.setdefault(architecture.build().config.model_type, name)
    return _task_models({family: name for family, name in families.items() if family not in SHOWN})
