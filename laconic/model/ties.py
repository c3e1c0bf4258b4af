"""Tied embeddings: transformers declares which tensors are one; replacing one of them ends that.

`_tied_weights_keys` and `all_tied_weights_keys` map a target tensor to its source, by dotted path, on the model and on
each sub-model. Everything that transformers does about tying (saving once, tying after loading) follows them, so
they are the one place to change.
"""

from transformers import PreTrainedModel


def tied_tensors(model: PreTrainedModel, tensor: str) -> set[str]:
    """Every tensor declared to be the same as `tensor`, itself included."""
    ties = model.all_tied_weights_keys
    source = ties.get(tensor, tensor)
    return {source} | {target for target, its_source in ties.items() if its_source == source}


def tied_modules(model: PreTrainedModel, place: str, holds: str) -> set[str]:
    """The module at `place` and every other whose parameter of the name `holds` is declared to be the same."""
    return {name.removesuffix(f".{holds}") for name in tied_tensors(model, f"{place}.{holds}")}


def untie(model: PreTrainedModel, modules: set[str]) -> None:
    """Forget every tie into or out of the tensors of the modules at these paths, and of what lies in them."""

    def is_free(prefix: str, tensor: str) -> bool:
        return not any((prefix + tensor).startswith(f"{module}.") for module in modules)

    for path, part in model.named_modules():
        if isinstance(part, PreTrainedModel):
            prefix = f"{path}." if path else ""
            for declared in ("_tied_weights_keys", "all_tied_weights_keys"):
                ties: dict[str, str] = getattr(part, declared) or {}
                kept = {t: s for t, s in ties.items() if is_free(prefix, t) and is_free(prefix, s)}
                setattr(part, declared, kept)


def tie(model: PreTrainedModel, first: str, others: list[str]) -> None:
    """Declare every tensor of the modules at `others` to be that of the module at `first`."""
    tensors = [name for name, _ in model.get_submodule(first).named_parameters()]
    ties = {f"{other}.{tensor}": f"{first}.{tensor}" for other in others for tensor in tensors}
    model._tied_weights_keys = {**(model._tied_weights_keys or {}), **ties}
    model.all_tied_weights_keys = {**model.all_tied_weights_keys, **ties}
