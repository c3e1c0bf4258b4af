"""The model card of a saved model (README.md): its base model, its compressed layers, and how to load it."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from transformers import PreTrainedModel

from laconic.errors import DISTRIBUTION
from laconic.formats import DenseExpertStack, ExpertStack, Format, LinearReplacement
from laconic.markdown import code, plain
from laconic.model.active_parameters import count_active
from laconic.model.embedding import Pipeline
from laconic.model.stock import build_stock
from laconic.model.task import ModelTask, find_auto_class, infer_task
from laconic.store.shapes import RESIZED, changed_shapes

HUB_TASKS = {
    ModelTask.CLASSIFICATION: "text-classification",
    ModelTask.MULTI_LABEL: "text-classification",
    ModelTask.REGRESSION: "text-classification",
    ModelTask.CAUSAL: "text-generation",
    ModelTask.MASKED: "fill-mask",
    ModelTask.SEQ2SEQ: "text2text-generation",
    ModelTask.EMBEDDING: "feature-extraction",
    ModelTask.TOKEN_CLASSIFICATION: "token-classification",
    ModelTask.QUESTION_ANSWERING: "question-answering",
    ModelTask.MULTIPLE_CHOICE: "multiple-choice",
}
SENTENCE_TASKS = {"SentenceTransformer": "sentence-similarity", "CrossEncoder": "text-ranking"}
"""Entries of the model card, by the class of sentence-transformers that loads the folder."""


def model_card(model: PreTrainedModel, name: str, source: str, nbytes: int, pipeline: Pipeline | None = None) -> str:
    """The text of README.md, with front matter for the Hugging Face hub.

    Args:
        model: the saved model.
        name: the name of its folder, used as the title.
        source: the folder or hub name of the original model, or "". A hub name becomes `base_model`. Of a folder only
            the last part is shown, as its path is private.
        nbytes: bytes of the weights in the folder.
        pipeline: the modules of sentence-transformers that follow the transformer; None for a plain transformer.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, vocab_size=9))
        >>> print(model_card(model, "small", "org/bert", 1234).partition("---\\n# ")[2])
        small
        <BLANKLINE>
        Compressed from `org/bert` with laconic.
        <BLANKLINE>
        Weights: 1,234 bytes in float32.
        <BLANKLINE>
        ```python
        from transformers import AutoModel
        <BLANKLINE>
        model = AutoModel.from_pretrained("path/to/this/folder")
        ```
        <BLANKLINE>
    """
    lines = [*_front_matter(model, source, pipeline), f"# {plain(name)}", ""]
    shown = source if _is_hub_name(source) else Path(source).name
    if shown:
        lines += [f"Compressed from {code(shown)} with laconic.", ""]
    return "\n".join([*lines, *_body(model, nbytes, pipeline)]) + "\n"


def _front_matter(model: PreTrainedModel, source: str, pipeline: Pipeline | None) -> Iterator[str]:
    yield "---"
    task = HUB_TASKS[infer_task(model)] if pipeline is None else SENTENCE_TASKS[pipeline.settings.model_type]
    yield f"library_name: {'transformers' if pipeline is None else 'sentence-transformers'}"
    yield f"pipeline_tag: {task}"
    if _is_hub_name(source):
        yield f"base_model: {source}"
    yield from ("tags:", "- laconic", "- compressed", "---")


def _body(model: PreTrainedModel, nbytes: int, pipeline: Pipeline | None) -> Iterator[str]:
    formats = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (Format, ExpertStack)) and not isinstance(module, DenseExpertStack)
    }
    stock_model = build_stock(model)
    shapes = changed_shapes(model, stock_model)
    yield f"Weights: {nbytes:,} bytes in {str(model.dtype).removeprefix('torch.')}."
    yield ""
    if (active := count_active(model)) is not None:
        yield f"A mixture of experts: {active}."
        yield ""
    if formats:
        yield from _format_lines(formats)
    if names := [name for name, entry in shapes.items() if entry["kind"] == RESIZED]:
        yield from _resized_lines(model, stock_model, names)
    if maps := [module for module in model.modules() if isinstance(module, LinearReplacement)]:
        yield (
            f"Dropped blocks are replaced by a linear map behind {len(maps)} of the norms: "
            f"{sum(linear_map.nbytes() for linear_map in maps):,} bytes."
        )
        yield ""
    if pipeline is not None and pipeline.stage_list:
        prompts = pipeline.describe_prompts()
        yield f"The vector of a text: {plain(pipeline.describe())}." + (
            "" if prompts is None else f" Prompts: {plain(prompts)}."
        )
        yield ""
    yield "```python"
    if formats or shapes:
        yield f"import laconic  # pip install {DISTRIBUTION}; transformers needs it to read the compressed layers"
    if pipeline is None:
        library, loader = "transformers", find_auto_class(model.config, [type(model).__name__]).__name__
        call = f"{loader}.from_pretrained"
    else:
        library, loader = "sentence_transformers", pipeline.settings.model_type
        call = loader
    yield f"from {library} import {loader}"
    yield ""
    yield f'model = {call}("path/to/this/folder")'
    yield "```"


def _format_lines(formats: Mapping[str, Format | ExpertStack]) -> Iterator[str]:
    """A sentence about all compressed matrices, and a table with one row for each matrix or stack of experts."""
    outer = [format for name, format in formats.items() if not any(name.startswith(f"{other}.") for other in formats)]
    nbytes, dense_nbytes = sum(format.nbytes() for format in outer), sum(map(_dense_nbytes, outer))
    matrices = sum(format.experts if isinstance(format, ExpertStack) else 1 for format in outer)
    yield (
        f"{matrices} matrices are compressed, from {dense_nbytes:,} to {nbytes:,} bytes "
        f"({nbytes / dense_nbytes:.1%} of their dense size)."
    )
    yield ""
    yield "<details><summary>Every compressed matrix</summary>"
    yield ""
    yield "| layer | format | shape | bytes | of dense |"
    yield "|---|---|---|---:|---:|"
    for name, format in formats.items():
        sizes = (*((format.experts,) if isinstance(format, ExpertStack) else ()), *format.shape)
        shape, part = " × ".join(map(str, sizes)), format.nbytes() / _dense_nbytes(format)
        size = f"{shape} | {format.nbytes():,} | {part:.1%}"
        yield f"| {code(name, in_table=True)} | {format.kind} | {size} |"
    yield ""
    yield "</details>"
    yield ""


def _dense_nbytes(format: Format | ExpertStack) -> int:
    matrices, one = (format.experts, format.slice(0)) if isinstance(format, ExpertStack) else (1, format)
    return matrices * format.shape[0] * format.shape[1] * one.weight.element_size()


def _resized_lines(model: PreTrainedModel, stock_model: PreTrainedModel, names: list[str]) -> Iterator[str]:
    weights = [f"{name}.weight" for name in names]
    nbytes = sum(model.get_parameter(name).nbytes for name in weights)
    before = sum(stock_model.get_parameter(name).numel() * model.get_parameter(name).element_size() for name in weights)
    yield f"{len(names)} matrices were made smaller, from {before:,} to {nbytes:,} bytes ({nbytes / before:.1%})."
    yield ""


def _is_hub_name(source: str) -> bool:
    return source.count("/") == 1 and not source.startswith((".", "/", "~")) and not Path(source).exists()
