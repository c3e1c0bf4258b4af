"""The model card that lies beside a saved model, written from what the model is."""

from collections.abc import Iterator
from pathlib import Path

from transformers import PreTrainedModel

from laconic.errors import DISTRIBUTION
from laconic.formats import Format, LinearReplacement
from laconic.markdown import code, plain
from laconic.model.embedding import Pipeline
from laconic.model.stock import build_stock
from laconic.model.task import Task, find_auto_class, infer_task
from laconic.store.shapes import RESIZED, deviations

PIPELINES = {
    Task.CLASSIFICATION: "text-classification",
    Task.MULTI_LABEL: "text-classification",
    Task.REGRESSION: "text-classification",
    Task.CAUSAL: "text-generation",
    Task.MASKED: "fill-mask",
    Task.SEQ2SEQ: "text2text-generation",
    Task.EMBEDDING: "feature-extraction",
}


PIPELINES_OF_SENTENCES = {"SentenceTransformer": "sentence-similarity", "CrossEncoder": "text-ranking"}


def default_card(model: PreTrainedModel, name: str, source: str, nbytes: int, pipeline: Pipeline | None = None) -> str:
    """README.md of `model`, saved as `name` from `source` in files of `nbytes`, with the `pipeline` behind it."""
    lines = [
        *_front_matter(model, source, pipeline),
        f"# {plain(name)}",
        "",
        *_origin(source),
        *_body(model, nbytes, pipeline),
    ]
    return "\n".join(lines) + "\n"


def _front_matter(model: PreTrainedModel, source: str, pipeline: Pipeline | None) -> Iterator[str]:
    yield "---"
    if pipeline is None:
        yield "library_name: transformers"
        yield f"pipeline_tag: {PIPELINES[infer_task(model)]}"
    else:
        yield "library_name: sentence-transformers"
        yield f"pipeline_tag: {PIPELINES_OF_SENTENCES[pipeline.settings.model_type]}"
    if _is_hub_name(source):
        yield f"base_model: {source}"
    yield "tags:"
    yield "- laconic"
    yield "- compressed"
    yield "---"


def _origin(source: str) -> list[str]:
    # Of a folder only the name: where it lay is nobody's business.
    shown = source if _is_hub_name(source) else Path(source).name
    return [f"Compressed from {code(shown)} by laconic.", ""] if shown else []


def _body(model: PreTrainedModel, nbytes: int, pipeline: Pipeline | None) -> Iterator[str]:
    auto = find_auto_class(model.config, [type(model).__name__]).__name__
    formats = {name: module for name, module in model.named_modules() if isinstance(module, Format)}
    yield f"Weights: {nbytes:,} bytes in {str(model.dtype).removeprefix('torch.')}."
    yield ""
    plain = build_stock(model)
    shapes = deviations(model, plain)
    if formats:
        yield from _compressed(formats)
    if narrow := [name for name, entry in shapes.items() if entry["kind"] == RESIZED]:
        yield from _narrowed(model, plain, narrow)
    if maps := [module for module in model.modules() if isinstance(module, LinearReplacement)]:
        size = sum(mapped.nbytes() for mapped in maps)
        yield f"Behind {len(maps)} norms a linear map stands for blocks that were dropped: {size:,} bytes."
        yield ""
    if pipeline is not None and pipeline.stage_list:
        yield from _vectors(pipeline)
    yield "```python"
    if formats or shapes:
        yield f"import laconic  # pip install {DISTRIBUTION}; transformers needs it to read the compressed layers"
    if pipeline is None:
        yield f"from transformers import {auto}"
        yield ""
        yield f'model = {auto}.from_pretrained("path/to/this/folder")'
    else:
        yield f"from sentence_transformers import {pipeline.settings.model_type}"
        yield ""
        yield f'model = {pipeline.settings.model_type}("path/to/this/folder")'
    yield "```"


def _vectors(pipeline: Pipeline) -> Iterator[str]:
    prompts = pipeline.describe_prompts()
    yield f"The vector of a text: {plain(pipeline.describe())}." + (
        "" if prompts is None else f" Prompts: {plain(prompts)}."
    )
    yield ""


def _compressed(formats: dict[str, Format]) -> Iterator[str]:
    outer = [format for name, format in formats.items() if not _lies_inside(name, formats)]
    now = sum(format.nbytes() for format in outer)
    before = sum(format.shape[0] * format.shape[1] * format.weight.element_size() for format in outer)
    yield f"{len(outer)} matrices are compressed: {now:,} bytes of {before:,} ({now / before:.1%})."
    yield ""
    yield "<details><summary>Every compressed matrix</summary>"
    yield ""
    yield "| layer | format | shape | bytes | of dense |"
    yield "|---|---|---|---:|---:|"
    for name, format in formats.items():
        rows, columns = format.shape
        share = format.nbytes() / (rows * columns * format.weight.element_size())
        size = f"{format.kind} | {rows} × {columns} | {format.nbytes():,} | {share:.1%}"
        yield f"| {code(name, in_table=True)} | {size} |"
    yield ""
    yield "</details>"
    yield ""


def _narrowed(model: PreTrainedModel, plain: PreTrainedModel, names: list[str]) -> Iterator[str]:
    weights = [f"{name}.weight" for name in names]
    now = sum(model.get_parameter(name).nbytes for name in weights)
    before = sum(plain.get_parameter(name).numel() * model.get_parameter(name).element_size() for name in weights)
    yield f"{len(names)} matrices are smaller than in the class: {now:,} bytes of {before:,} ({now / before:.1%})."
    yield ""


def _lies_inside(name: str, formats: dict[str, Format]) -> bool:
    return any(name.startswith(f"{other}.") for other in formats)


def _is_hub_name(source: str) -> bool:
    return source.count("/") == 1 and not source.startswith((".", "/", "~")) and not Path(source).exists()
