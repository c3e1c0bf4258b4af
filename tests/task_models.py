"""Tiny random models for token classification, question answering and multiple choice, by architecture."""

from collections.abc import Callable

from transformers import PreTrainedModel

from laconic.model import ModelTask
from laconic.model.task import AUTO_CLASSES
from tests.architectures import BY_NAME, Architecture

TOKENS, ANSWER, CHOICE = ModelTask.TOKEN_CLASSIFICATION, ModelTask.QUESTION_ANSWERING, ModelTask.MULTIPLE_CHOICE
TASKS = (TOKENS, ANSWER, CHOICE)

_ENCODERS = (
    "bert-classifier", "roberta-masked", "distilbert-masked", "electra-classifier", "albert-groups", "deberta-masked",
    "deberta-v3-classifier", "longformer-classifier", "modernbert-masked",
)  # fmt: skip
_NAMED = {
    **{f"{name.partition('-')[0]}": (name, TASKS) for name in _ENCODERS},
    "deberta": ("deberta-masked", (TOKENS, ANSWER)),
    "deberta-v2": ("deberta-v3-classifier", TASKS),
    "gpt2": ("gpt2", (TOKENS, ANSWER)),
    "gpt-neo": ("gpt-neo", (TOKENS, ANSWER)),
    "opt": ("opt", (ANSWER,)),
    "llama": ("llama", (TOKENS, ANSWER)),
    "qwen3": ("qwen3", (TOKENS, ANSWER)),
    "gemma": ("gemma", (TOKENS,)),
    "t5": ("t5", (TOKENS, ANSWER)),
    "bart": ("bart", (ANSWER,)),
    "led": ("led", (ANSWER,)),
}


def _builder(name: str, task: ModelTask) -> Callable[[], PreTrainedModel]:
    def build() -> PreTrainedModel:
        config = BY_NAME[name].build().config
        # The head of an answer has two outputs, whatever the configuration says.
        config.num_labels = 2 if task is ANSWER else 3
        _, mapping = AUTO_CLASSES[task]
        return mapping[type(config)](config)

    return build


TASK_MODELS = {
    f"{family}-{task.value}": Architecture(f"{family}-{task.value}", _builder(name, task))
    for family, (name, tasks) in _NAMED.items()
    for task in tasks
}
"""By names such as `bert-token-classification`."""
