"""`laconic.compress` applies methods to a model, `laconic.run` runs a recipe; both return a `CompressResult`."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike, fsdecode
from pathlib import Path
from typing import Any, Literal, overload

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from laconic.allocate import parse_plan, read_plan
from laconic.api.arguments import check_kinds, to_corpus, to_folder, to_methods, to_model_input, to_texts
from laconic.api.compressed import CompressResult, compress_result
from laconic.api.estimated import CompressEstimate
from laconic.api.inputs import Document, local_device, read_document
from laconic.compress import Step
from laconic.errors import UserError
from laconic.methods import Method
from laconic.model import DEFAULT_TARGETS
from laconic.processes import sync_errors
from laconic.progress import Track, silent
from laconic.recipe import Recipe, parse_recipe
from laconic.recipe import run as run_recipe
from laconic.recipe.checked import check_run
from laconic.recipe.estimate.estimate import estimate
from laconic.recipe.flow import apply_steps, methods_in, to_steps
from laconic.recipe.parse import method_or_step
from laconic.recipe.run import estimate_run, prepare_run
from laconic.recipe.sampling import LENGTH, Sampling, usual_length
from laconic.recipe.schema import IN_MEMORY, with_plan

DEFAULT_KEEP = 0.5
"""The fraction that `keep="auto"` means for methods that need a size."""


@overload
def compress(
    model: PreTrainedModel | str | PathLike[str],
    method: Method | Step | str | Sequence[Method | Step | str] = "kfac-svd",
    keep: float | Mapping[str, float] | Literal["auto"] | None = "auto",
    *,
    data: str | PathLike[str] | Iterable[str] | None = None,
    allocate: str = "uniform",
    targets: str | Sequence[str] = DEFAULT_TARGETS,
    samples: int = 128,
    seed: int = 0,
    max_length: int | None = None,
    batch_size: int = 16,
    sequential: bool = False,
    anchored: bool = False,
    allow_dense: bool = False,
    stream: bool | None = None,
    label_order: Sequence[str | int] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    output: str | PathLike[str] | None = None,
    device: str = "cpu",
    dry_run: Literal[False] = False,
    track: Track = silent,
) -> CompressResult: ...
@overload
def compress(
    model: PreTrainedModel | str | PathLike[str],
    method: Method | Step | str | Sequence[Method | Step | str] = "kfac-svd",
    keep: float | Mapping[str, float] | Literal["auto"] | None = "auto",
    *,
    data: str | PathLike[str] | Iterable[str] | None = None,
    allocate: str = "uniform",
    targets: str | Sequence[str] = DEFAULT_TARGETS,
    samples: int = 128,
    seed: int = 0,
    max_length: int | None = None,
    batch_size: int = 16,
    sequential: bool = False,
    anchored: bool = False,
    allow_dense: bool = False,
    stream: bool | None = None,
    label_order: Sequence[str | int] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    output: str | PathLike[str] | None = None,
    device: str = "cpu",
    dry_run: Literal[True],
    track: Track = silent,
) -> CompressEstimate: ...
def compress(
    model: PreTrainedModel | str | PathLike[str],
    method: Method | Step | str | Sequence[Method | Step | str] = "kfac-svd",
    keep: float | Mapping[str, float] | Literal["auto"] | None = "auto",
    *,
    data: str | PathLike[str] | Iterable[str] | None = None,
    allocate: str = "uniform",
    targets: str | Sequence[str] = DEFAULT_TARGETS,
    samples: int = 128,
    seed: int = 0,
    max_length: int | None = None,
    batch_size: int = 16,
    sequential: bool = False,
    anchored: bool = False,
    allow_dense: bool = False,
    stream: bool | None = None,
    label_order: Sequence[str | int] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    output: str | PathLike[str] | None = None,
    device: str = "cpu",
    dry_run: bool = False,
    track: Track = silent,
) -> CompressResult | CompressEstimate:
    """Compress a model with one or several methods.

    A loaded model is changed in place; `save_pretrained` and `from_pretrained` work on it as on any other.

    Args:
        model: a loaded model, or a folder or hub name, which is loaded in the dtype in which it is stored.
        method: a method or step, or several that run in order: `"svd"`, `"svd:rank=64"`, an object of
            `laconic.methods`, `"shrink-heads:keep=0.75"`, or an object of `laconic.compress` or `laconic.recover`.
        keep: fraction of the targeted bytes to keep, in (0, 1], or one for each group of matrices. None if every method
            has a size of its own. Default: `"auto"`, which is 0.5 for methods that need a size, and None otherwise.
        data: calibration texts: the name of a source, as on the command line, or the texts themselves.
        allocate: distribution of the budget over matrices: `uniform`, `spectrum`, `global` for pruning, or a file type
            of llama.cpp such as `Q4_K_M` for `rtn`, `gptq` and `yaqa`.
        targets: which matrices: groups (`attention`, `ffn`, `experts`, `head`, `embedding`), `blocks`, `all`, globs
            over their names, or `re:` and a regular expression.
        samples: number of calibration rows, drawn with `seed`.
        seed: seed for all random numbers.
        max_length: maximum tokens of a row; longer rows are truncated. None for 512 if the model is a causal language
            model, and 128 if not.
        batch_size: rows in a batch.
        sequential: compress block by block, each on the outputs of the compressed blocks before it.
        anchored: compress layer by layer, and fit each to the outputs of the original model.
        allow_dense: continue if more than a tenth of the targeted parameters in the blocks cannot be compressed, such
            as the experts of a mixture.
        stream: load one block at a time, for a model that is larger than memory; needs `output`. The result has a model
            whose weights are read from the output when they are needed. None: if the model needs more memory than is
            free.
        label_order: class names in the order of the model's outputs, as `data` spells them, for steps that learn from
            labels. None for the order in the model's configuration.
        tokenizer: tokenizer of the model. None for the one in the folder that the model was loaded from.
        output: new folder for the result, as for `save`. None keeps the result in memory only.
        device: device for a model that is given by its name: `cpu`, `cuda` or `cuda:1`.
        dry_run: only estimate time, memory and disk space. One block of the model is compressed for it.
        track: reports progress.

    Returns:
        The model with its tokenizer, and the method and size of each matrix; for a dry run the estimate.

    Raises:
        UserError: an argument has a wrong value, a model or source does not exist, or the method cannot be applied to
            the model; arguments are checked before a model is loaded.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
        >>> result = compress(BertModel(BertConfig(vocab_size=50, **shape)), "svd", keep=0.5)
        >>> type(result.model).__name__, result.bytes <= 0.5 * result.dense_bytes
        ('BertModel', True)
        >>> result.sites["encoder.layer.0.attention.self.query"].method
        Svd(rank=8, rank_ratio=None, multiple=8)
    """
    check_kinds(
        keep=keep, allocate=allocate, targets=targets, samples=samples, seed=seed, max_length=max_length,
        batch_size=batch_size, sequential=sequential, anchored=anchored, allow_dense=allow_dense,
        stream=stream, label_order=label_order, dry_run=dry_run, track=track,
    )  # fmt: skip
    model_input = to_model_input(model, tokenizer, label_order, device)
    texts = None if data is None else to_texts(data)
    lines = [method_or_step(line, "method") if isinstance(line, str) else line for line in to_methods(method)]
    if keep == "auto":
        keep = None if all(method.has_size for method in methods_in(lines)) else DEFAULT_KEEP
    names = (targets,) if isinstance(targets, str) else tuple(targets)
    mode = "anchored" if anchored else "sequential" if sequential else None
    steps = to_steps(lines, keep, allocate, names, sequential=mode, allow_dense=allow_dense)
    if texts is None and any(step.needs_data for step in steps):
        raise UserError("data is missing, and the method needs calibration texts; name a source, like builtin:pydoc.")
    if max_length is None:
        max_length = LENGTH if texts is None else usual_length(model_input.structure().task)
    sampling = Sampling(samples=samples, seed=seed, max_length=max_length, batch_size=batch_size)
    recipe = Recipe(
        model=model_input.name,
        data=IN_MEMORY if isinstance(texts, tuple) else texts,
        samples=sampling.samples,
        seed=sampling.seed,
        max_length=sampling.max_length,
        batch_size=sampling.batch_size,
        steps=steps,
        label_order=None if label_order is None else tuple(label_order),
        stream=stream,
    )
    corpus = to_corpus(texts) if isinstance(texts, tuple) else None
    places = ["method"] if len(steps) == 1 else [f"method[{index}]" for index in range(len(steps))]
    folder = None if output is None else to_folder(output)
    shared = [place for place, line in zip(places, lines, strict=True) if isinstance(line, Method)]
    with _arguments_in_errors(shared):
        with sync_errors():
            checked = check_run(recipe, folder, model_input, corpus=corpus, places=places, track=track)
        if dry_run:
            return CompressEstimate(estimate(checked))
        with prepare_run(checked) as prepared:
            record = prepared.finish(*apply_steps(prepared.lm, steps, prepared.data))
    return compress_result(record)


ARGUMENTS = ("keep", "targets", "allocate", "sequential", "anchored", "allow_dense")
"""The arguments of `compress` that are parameters of the steps that it makes of methods."""


@contextmanager
def _arguments_in_errors(places: Sequence[str]) -> Iterator[None]:
    """Within the block, an error about an argument of `compress` begins with its name, not with that of the method.

    Args:
        places: the names in errors of the methods that these arguments apply to.
    """
    try:
        yield
    except UserError as error:
        prefix = rf"^({'|'.join(map(re.escape, places))})(\.|: )(?=({'|'.join(ARGUMENTS)})\b)"
        error.args = (re.sub(prefix, "", str(error)) if places else str(error),)
        raise


@overload
def run(
    recipe: str | PathLike[str] | Mapping[str, Any] | Document,
    output: str | PathLike[str] | None = None,
    *,
    plan: str | PathLike[str] | Mapping[str, Any] | None = None,
    device: str = "cpu",
    dry_run: Literal[False] = False,
    track: Track = silent,
    **changes: Any,
) -> CompressResult: ...
@overload
def run(
    recipe: str | PathLike[str] | Mapping[str, Any] | Document,
    output: str | PathLike[str] | None = None,
    *,
    plan: str | PathLike[str] | Mapping[str, Any] | None = None,
    device: str = "cpu",
    dry_run: Literal[True],
    track: Track = silent,
    **changes: Any,
) -> CompressEstimate: ...
def run(
    recipe: str | PathLike[str] | Mapping[str, Any] | Document,
    output: str | PathLike[str] | None = None,
    *,
    plan: str | PathLike[str] | Mapping[str, Any] | None = None,
    device: str = "cpu",
    dry_run: bool = False,
    track: Track = silent,
    **changes: Any,
) -> CompressResult | CompressEstimate:
    """Run a recipe.

    Args:
        recipe: a YAML file, the name of a recipe that comes with laconic (`laconic run --list`), or a mapping with the
            same content as such a file.
        output: new folder for the model, written whole or not at all. None keeps the model in memory only; the recipe's
            `evaluate` is then skipped, because it measures the saved model.
        plan: a plan or the path of one. It replaces the budget of the recipe's compress step.
        device: `cpu`, `cuda` or `cuda:1`.
        dry_run: only estimate time, memory and disk space. One block of the model is compressed for it.
        track: reports progress.
        changes: values that replace those of the recipe, by their position: `samples=64`, or
            `**{"steps[0].compress.keep": 0.3}`.

    Returns:
        The model with its tokenizer, and the method and size of each matrix; for a dry run the estimate.

    Raises:
        UserError: the recipe cannot be read, or a part of it cannot be done. Most mistakes are found before weights are
            loaded.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
        >>> BertModel(BertConfig(vocab_size=50, **shape)).save_pretrained("model")
        >>> recipe = {"model": "model", "steps": [{"compress": {"method": "svd", "keep": 0.5}}]}
        >>> result = run(recipe, "small", **{"steps[0].compress.keep": 0.3})
        >>> result.bytes <= 0.3 * result.dense_bytes
        True
    """
    check_kinds(dry_run=dry_run, track=track)
    own_device = local_device(device)
    document = read_document(recipe, "recipe", changes)
    parsed = parse_recipe(document.text, document.path, document.overrides)
    if plan is not None:
        methods = parse_plan(dict(plan), "plan") if isinstance(plan, Mapping) else read_plan(Path(fsdecode(plan)))
        parsed = with_plan(parsed, methods)
    folder = None if output is None else to_folder(output)
    if dry_run:
        return CompressEstimate(estimate_run(parsed, folder, track=track, device=own_device))
    return compress_result(run_recipe(parsed, folder, track=track, device=own_device))
