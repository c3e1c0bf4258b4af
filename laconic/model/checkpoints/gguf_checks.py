"""Check that transformers uses everything in a GGUF file that changes the outputs: metadata, and tensors.

llama.cpp stores the scaled frequencies of Llama 3.1 and later as a tensor of factors, and other scalings as metadata;
transformers 5.23 reads neither. Llama's formula is recognised here and written into the configuration; a file with
anything else is refused. Tensors are compared with the model by names and sizes alone.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from laconic.errors import UserError
from laconic.model.checkpoints.report import check_report
from laconic.model.stock import MODEL_ERRORS

FACTORS = "rope_freqs.weight"
"""The tensor by which llama.cpp divides the frequencies of rotary positions."""
LOW, HIGH, BEFORE = 1.0, 4.0, 8192
"""Of Llama 3.1 to 3.3: the frequency factors between which it is interpolated, and the context before scaling."""
_EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon")
_SAME = {
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "logit_scale": "logit_scale",
    "attention.clamp_kqv": "clip_qkv",
}
"""Keys of a GGUF file after its architecture's name, and what transformers calls the same."""


def llama3_factors(frequencies: Tensor, factor: float) -> Tensor:
    """The factors by which llama.cpp divides the rotary frequencies of Llama 3.1.

    1 for wavelengths below BEFORE / HIGH, `factor` above BEFORE / LOW, and linear in the frequency between them.

    Args:
        frequencies: the unscaled frequencies.
        factor: the scale of the longest wavelengths.

    Reference:
        `convert_hf_to_gguf.py` of llama.cpp.
    """
    wavelengths = 2 * math.pi / frequencies
    smooth = (BEFORE / wavelengths - LOW) / (HIGH - LOW)
    between = 1 / ((1 - smooth) / factor + smooth)
    factors = torch.where(wavelengths > BEFORE / LOW, torch.full_like(frequencies, factor), between)
    return torch.where(wavelengths < BEFORE / HIGH, torch.ones_like(frequencies), factors)


def set_rope_scaling(config: PreTrainedConfig, factors: Tensor, source: str) -> None:
    """Write the rotary scaling that a tensor of factors stands for into a configuration, in place.

    Args:
        config: the configuration.
        factors: the factor of each frequency.
        source: the file, as errors name it.

    Raises:
        UserError: they are not those of Llama 3.
    """
    if torch.equal(factors, torch.ones_like(factors)):
        return
    rope = config.rope_parameters
    count = 2 * len(factors)
    frequencies = rope["rope_theta"] ** (-torch.arange(0, count, 2, dtype=torch.float64) / count)
    factor = float(factors.max())
    if not torch.allclose(llama3_factors(frequencies, factor), factors.double(), rtol=1e-4):
        raise _left_out(source, FACTORS, "factors of frequencies that are not Llama 3's")
    config.rope_parameters = {
        **rope,
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": LOW,
        "high_freq_factor": HIGH,
        "original_max_position_embeddings": BEFORE,
    }


def check_metadata(metadata: Mapping[str, Any], names: Sequence[str], config: PreTrainedConfig, source: str) -> None:
    """Check that a configuration has everything in the metadata that changes the outputs.

    Args:
        metadata: the metadata of the file.
        names: the names of its tensors.
        config: the configuration that transformers read from it.
        source: the file, as errors name it.

    Raises:
        UserError: the configuration lacks something.
    """
    if longer := [name for name in names if name.startswith("rope_factors_")]:
        raise _left_out(source, longer[0], "factors of frequencies for long contexts")
    architecture = metadata["general.architecture"]
    for name, value, heard in _said(metadata, architecture, config):
        if not heard:
            raise _left_out(source, f"{architecture}.{name}", value)


def _said(metadata: Mapping[str, Any], architecture: str, config: PreTrainedConfig) -> Iterator[tuple[str, Any, bool]]:
    """What decides the outputs: its name in the file, its value, and whether `config` has it."""
    said = {name.removeprefix(f"{architecture}."): value for name, value in metadata.items()}
    rope = _rope(config)
    if (kind := said.get("rope.scaling.type", "none")) != "none":
        yield (
            "rope.scaling.type",
            kind,
            rope.get("rope_type") == kind and _near(rope.get("factor"), said.get("rope.scaling.factor")),
        )
    if (base := said.get("rope.freq_base")) is not None:
        yield "rope.freq_base", base, _near(rope.get("rope_theta"), base)
    if (turned := said.get("rope.dimension_count")) is not None and rope:
        yield "rope.dimension_count", turned, turned == _turned(config, rope)
    for name in ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"):
        if (epsilon := said.get(name)) is not None:
            yield name, epsilon, any(_near(getattr(config, own, None), epsilon) for own in _EPSILONS)
    for name, own in _SAME.items():
        if (value := said.get(name)) is not None and not _reaches_everywhere(name, value, said):
            yield name, value, _near(getattr(config, own, None), value)


def _rope(config: PreTrainedConfig) -> Mapping[str, Any]:
    """The parameters of rotary positions, of full attention where a layer's kind decides; none where there are none."""
    rope = getattr(config, "rope_parameters", None) or {}
    return rope.get("full_attention", rope)


def _turned(config: PreTrainedConfig, rope: Mapping[str, Any]) -> int:
    """How many numbers of a head are turned by their position."""
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    share = rope.get("partial_rotary_factor", getattr(config, "partial_rotary_factor", None))
    return int(width * (1.0 if share is None else share))


def _reaches_everywhere(name: str, value: Any, said: Mapping[str, Any]) -> bool:
    """Whether a window is no smaller than the context, or 0 for none."""
    return name == "attention.sliding_window" and (value == 0 or value >= said.get("context_length", math.inf))


def _near(mine: object, theirs: object) -> bool:
    return (
        isinstance(mine, (int, float)) and isinstance(theirs, (int, float)) and math.isclose(mine, theirs, rel_tol=1e-4)
    )


def _left_out(source: str, name: str, value: object) -> UserError:
    return UserError(
        f"The GGUF file '{source}' says {name} = {value}, which transformers leaves out when it reads one, so it would "
        "compute something else; use the folder that the file was made from."
    )


BESIDE = "rope_"
"""Begins the names of tensors that are no weights."""


def check_tensors(
    model: PreTrainedModel,
    architecture: str,
    stored: dict[str, tuple[int, ...]],
    source: str,
    given: Collection[str] = (),
) -> None:
    """Check the tensors of a file by names and sizes; no weight is read.

    Args:
        model: the model that the file describes, on the meta device.
        architecture: its architecture, as the file names it.
        stored: the shape (out, in) of each tensor, by its name in the file.
        source: the file, as errors name it.
        given: names of tensors that come from elsewhere and may be missing.

    Raises:
        UserError: a tensor is missing or of another shape, or weights are left over.
    """
    places = _places(model, architecture)
    parameters = {name: tuple(one.shape) for name, one in model.named_parameters()}
    # Several tensors of the file may become one of the model, whose name ends otherwise, as experts do.
    by_name = stored | {name.removesuffix(".weight"): shape for name, shape in stored.items()}
    found = {ours: [by_name[name] for name in theirs if name in by_name] for ours, theirs in places.items()}
    missing = [ours for ours in parameters if ours in found and not found[ours]]
    odd = [
        (ours, shapes[0], parameters[ours])
        for ours, shapes in found.items()
        if ours in parameters and len(places[ours]) == 1 and shapes and _size(shapes[0]) != _size(parameters[ours])
    ]
    check_report(model, {"missing_keys": missing, "mismatched_keys": odd, "unexpected_keys": []}, source, given=given)
    check_count(model, stored, source)


def check_count(model: PreTrainedModel, stored: Mapping[str, tuple[int, ...]], source: str) -> None:
    """Raise UserError where the file has more or fewer weights than the model has parameters."""
    there = sum(_size(shape) for name, shape in stored.items() if not name.startswith(BESIDE))
    taken = sum(parameter.numel() for parameter in model.parameters())
    if there != taken:
        raise UserError(
            f"The GGUF file '{source}' holds {there:,} numbers, and transformers' {type(model).__name__} takes "
            f"{taken:,}; use the folder that it was made from."
        )


def _places(model: PreTrainedModel, architecture: str) -> dict[str, list[str]]:
    """The names in the file of each tensor of the model, as transformers reads them; none where it does not say."""
    places: dict[str, list[str]] = {}
    try:
        reading: Any = import_module("transformers.modeling_gguf_pytorch_utils")
        processor = reading.TENSOR_PROCESSORS.get(architecture, reading.TensorProcessor)(config={})
        names: Mapping[str, Any] = reading.get_gguf_hf_weights_map(model, processor)
    except MODEL_ERRORS:
        # transformers maps the same names at loading, and the error is told there.
        return {}
    for theirs, ours in names.items():
        if isinstance(ours, str):
            places.setdefault(ours, []).append(theirs)
    return places


def _size(shape: tuple[int, ...]) -> int:
    return math.prod(shape)
