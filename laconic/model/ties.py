"""Tied embeddings: which tensors transformers declares to be one, and how that is changed.

`_tied_weights_keys` and `all_tied_weights_keys`, on the model and on each sub-model, map a target tensor to its source
by dotted path. transformers reads them to save tied tensors once and to tie them after loading.
"""

from transformers import PreTrainedModel


def tied_tensors(model: PreTrainedModel, tensor: str) -> set[str]:
    """The paths of all tensors that are declared to be the same as `tensor`, itself included."""
    ties = model.all_tied_weights_keys
    source = ties.get(tensor, tensor)
    return {source} | {target for target, its_source in ties.items() if its_source == source}


def tied_modules(model: PreTrainedModel, path: str, parameter: str) -> set[str]:
    """The paths of all modules whose parameter of the name `parameter` is tied to that of the module at `path`."""
    return {name.removesuffix(f".{parameter}") for name in tied_tensors(model, f"{path}.{parameter}")}


def untie(model: PreTrainedModel, modules: set[str]) -> None:
    """Remove every declared tie of the tensors in the modules at these paths; no tensor is changed."""

    def is_free(prefix: str, tensor: str) -> bool:
        return not any((prefix + tensor).startswith(f"{module}.") for module in modules)

    for path, part in model.named_modules():
        if isinstance(part, PreTrainedModel):
            prefix = f"{path}." if path else ""
            for attribute in ("_tied_weights_keys", "all_tied_weights_keys"):
                ties: dict[str, str] = getattr(part, attribute) or {}
                kept = {t: s for t, s in ties.items() if is_free(prefix, t) and is_free(prefix, s)}
                setattr(part, attribute, kept)


def tie(model: PreTrainedModel, first: str, others: list[str]) -> None:
    """Declare every tensor of the modules at the paths `others` to be that of the module at `first`."""
    tensors = [name for name, _ in model.get_submodule(first).named_parameters()]
    ties = {f"{other}.{tensor}": f"{first}.{tensor}" for other in others for tensor in tensors}
    model._tied_weights_keys = {**(model._tied_weights_keys or {}), **ties}
    model.all_tied_weights_keys = {**model.all_tied_weights_keys, **ties}
