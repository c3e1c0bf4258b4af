"""`laconic.run`: run a recipe from a file, by its name, or from a mapping."""

from collections.abc import Mapping
from os import PathLike, fsdecode
from pathlib import Path
from typing import Any

from laconic.allocate import parse_plan, read_plan
from laconic.api.arguments import check_kinds, to_folder
from laconic.api.compressed import CompressResult, compress_result
from laconic.api.inputs import Document, local_device, read_document
from laconic.progress import Track, silent
from laconic.recipe import parse_recipe
from laconic.recipe import run as run_recipe
from laconic.recipe.schema import with_plan


def run(
    recipe: str | PathLike[str] | Mapping[str, Any] | Document,
    output: str | PathLike[str] | None = None,
    *,
    plan: str | PathLike[str] | Mapping[str, Any] | None = None,
    device: str = "cpu",
    track: Track = silent,
    **changes: Any,
) -> CompressResult:
    """Run a recipe.

    Args:
        recipe: a YAML file, the name of a recipe that comes with laconic (`laconic run --list`), or a mapping as YAML
            would give it.
        output: new folder to write the model to, whole or not at all; None leaves it in memory, and then the recipe's
            `evaluate` is skipped, which measures what was saved.
        plan: a plan, or the file of one, that replaces the budget of the recipe's one compress step.
        device: where to compute: `cpu`, `cuda` or `cuda:1`.
        track: reports progress.
        changes: values that replace those of the recipe, by their place: `samples=64`, or
            `**{"steps[0].compress.keep": 0.3}`.

    Returns:
        The model with its tokenizer, and what became of each matrix.

    Raises:
        UserError: the recipe cannot be read, or something in it cannot be done; what can be checked is checked before
            weights are loaded.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
        >>> BertModel(BertConfig(vocab_size=50, **shape)).save_pretrained("model")
        >>> recipe = {"model": "model", "steps": [{"compress": {"method": "svd", "keep": 0.5}}]}
        >>> result = run(recipe, "small", **{"steps[0].compress.keep": 0.3})
        >>> result.bytes <= 0.3 * result.dense_bytes
        True
    """
    check_kinds(track=track)
    own = local_device(device)
    document = read_document(recipe, "recipe", changes)
    parsed = parse_recipe(document.text, document.path, document.overrides)
    if plan is not None:
        spelled = parse_plan(dict(plan), "plan") if isinstance(plan, Mapping) else read_plan(Path(fsdecode(plan)))
        parsed = with_plan(parsed, spelled)
    folder = None if output is None else to_folder(output)
    return compress_result(run_recipe(parsed, folder, track=track, device=own))
