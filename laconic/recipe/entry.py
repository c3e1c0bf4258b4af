"""The Python entry: compress a model that is already in memory, and get the same class back."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from os import PathLike

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from laconic.calibrate.batching import check_readable
from laconic.calibrate.corpus import Corpus, Example, read
from laconic.compress import Allocation, Step
from laconic.errors import UserError
from laconic.methods import Method
from laconic.model import DEFAULT_TARGETS, LanguageModel, Task, load
from laconic.model.loading import load_pipeline, load_tokenizers
from laconic.progress import Track, silent
from laconic.recipe.arguments import check_kinds, methods_given, model_given, texts_given
from laconic.recipe.flow import Sampling, apply_steps, steps_of, takes_keep, walk_of
from laconic.recipe.labels import check_labels
from laconic.recipe.order import check_order
from laconic.recipe.parse import method_or_step
from laconic.store import attach, skeleton

DEFAULT_KEEP = 0.5


def compress(
    model: PreTrainedModel | str | PathLike[str],
    method: Method | Step | str | Sequence[Method | Step | str] = "kfac-svd",
    keep: float | Mapping[str, float] | None = None,
    *,
    data: str | PathLike[str] | Iterable[str] | None = None,
    allocate: Allocation = "uniform",
    targets: str | Sequence[str] = DEFAULT_TARGETS,
    samples: int = 128,
    seed: int = 0,
    max_length: int = 128,
    batch_size: int = 16,
    sequential: bool = False,
    anchored: bool = False,
    allow_dense: bool = False,
    label_order: Sequence[str | int] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    track: Track = silent,
) -> PreTrainedModel:
    """Compress `model` in place and return it; `save_pretrained` and `from_pretrained` then work on it as on any other.

    As of any model, `save_pretrained` writes no tokenizer: save it into the same folder, where commands look for it.

    Args:
        model: a loaded model, or a folder or hub name, which is loaded in the dtype it is stored in.
        method: one, or several that run in order; `"svd"`, `"svd:rank=64"` or an object of `laconic.methods`; or a
            step, `"shrink-heads:keep=0.75"` or an object of `laconic.compress`.
        keep: fraction of the targeted bytes kept, or one for each group; a half where the method says no size itself.
        data: source of calibration texts, as on the command line, or the texts themselves.
        allocate: `uniform`, `spectrum` or, for pruning, `global`.
        targets: groups, `blocks`, `all`, globs over the names of sites, or `re:` and a regular expression.
        samples: rows of `data` that are used, drawn with `seed`.
        max_length: tokens of a row at most.
        batch_size: rows that the model runs at once while it is measured.
        sequential: solve block by block, each on inputs that carry the errors of those before.
        anchored: the same, matrix by matrix, and aim at the outputs of the original.
        allow_dense: go on where more than a tenth of the targeted parameters in the blocks can only stay dense, such as
            the experts of a mixture.
        label_order: classes of the model in the order of its outputs, as `data` calls them, for steps that learn from
            labels; by the names in the model's configuration where not given.
        tokenizer: that of the model; looked for where the model was loaded from when not given.

    Raises:
        UserError: an argument that cannot be, or a model or source that is not there, or a model that would be loaded
            as another one, whatever its configuration said.
    """
    check_kinds(
        keep=keep, allocate=allocate, targets=targets, samples=samples, seed=seed, max_length=max_length,
        batch_size=batch_size, sequential=sequential, anchored=anchored, allow_dense=allow_dense,
        label_order=label_order, tokenizer=tokenizer, track=track,
    )  # fmt: skip
    model, texts_or_source = model_given(model), None if data is None else texts_given(data)
    lines = [method_or_step(one, "method") if isinstance(one, str) else one for one in methods_given(method)]
    if keep is None and any(takes_keep(line) for line in lines):
        keep = DEFAULT_KEEP
    aims = (targets,) if isinstance(targets, str) else tuple(targets)
    walk = walk_of(sequential=sequential, anchored=anchored)
    steps = steps_of(lines, keep, allocate, aims, walk, allow_dense=allow_dense)
    if texts_or_source is None and any(step.needs_data for step in steps):
        raise UserError("data is missing, and the method needs calibration texts; name their source.")
    places = ["method"] if len(steps) == 1 else [f"method[{index}]" for index in range(len(steps))]
    empty = skeleton(model) if isinstance(model, str) else LanguageModel.of(model).to_meta()
    empty = empty.with_label_order(label_order)
    check_order(empty, steps, places)
    sampling = Sampling(samples=samples, seed=seed, max_length=max_length, batch_size=batch_size)
    texts = None if texts_or_source is None else _corpus(texts_or_source)
    check_labels(empty, steps, places, sampling, lambda: texts or _corpus(()))
    if texts is not None:
        own = empty if tokenizer is None else replace(empty, tokenizer=tokenizer)
        check_readable(_with_tokenizers(own), texts, max_length)
    with _in_float32(model, tokenizer) as loaded:
        lm = loaded.with_label_order(label_order)
        calibration = None if texts is None else sampling.of(_with_tokenizers(lm), texts, track)
        changed, _ = apply_steps(lm, steps, calibration)
    attach(changed.model)
    return changed.model


def _corpus(data: str | Sequence[str]) -> Corpus:
    if isinstance(data, str):
        return read(data, "train")
    return Corpus("memory", "train", tuple(Example(text) for text in data))


@contextmanager
def _in_float32(model: PreTrainedModel | str, tokenizer: PreTrainedTokenizerBase | None) -> Iterator[LanguageModel]:
    """The model in float32 and in evaluation mode; afterwards every tensor has its own dtype and the model its mode."""
    lm = load(model) if isinstance(model, str) else LanguageModel.of(model)
    lm = _with_declared(lm if tokenizer is None else replace(lm, tokenizer=tokenizer))
    # A path was loaded in float32 whatever is in the file; buffers such as rotary frequencies stay as they are.
    dtypes = {name: lm.dtype if isinstance(model, str) else part.dtype for name, part in lm.model.named_parameters()}
    dtypes |= {name: part.dtype for name, part in lm.model.named_buffers()}
    training = lm.model.training
    lm.model.float().eval()
    try:
        yield lm
    finally:
        for name, part in (*lm.model.named_parameters(), *lm.model.named_buffers()):
            if part.is_floating_point():
                part.data = part.data.to(dtypes.get(name, lm.dtype))
        lm.model.train(training)


def _with_declared(lm: LanguageModel) -> LanguageModel:
    """With what is declared of its vectors where the model was loaded from, such as in a SentenceTransformer."""
    if lm.task is not Task.EMBEDDING or lm.pipeline is not None or not lm.source:
        return lm
    pipeline = load_pipeline(lm.source)
    return lm if pipeline is None else replace(lm, pipeline=pipeline.to(lm.device))


def _with_tokenizers(lm: LanguageModel) -> LanguageModel:
    """With those that lie where the model was loaded from."""
    tokenizer, target_tokenizer = load_tokenizers(lm.source, lm.tokenizer)
    if tokenizer is None:
        where = f"at '{lm.source}', where the model came from" if lm.source else "with a model that was made in memory"
        raise UserError(f"There is no tokenizer {where}; pass tokenizer=.")
    return replace(lm, tokenizer=tokenizer, target_tokenizer=target_tokenizer)
