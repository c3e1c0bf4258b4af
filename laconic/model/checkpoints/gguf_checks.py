"""Check that transformers uses all metadata and all tensors of a GGUF file that change the outputs.

llama.cpp stores the scaled frequencies of Llama 3.1 and later as a tensor of factors, and other scalings as metadata;
transformers 5.23 reads neither. The formula of Llama is recognised and written into the configuration; files with other
scalings are refused. Tensors are compared with the model only by names and sizes.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from laconic.errors import UserError
from laconic.model.checkpoints.fit import check_report
from laconic.model.checkpoints.gguf_t5 import HEAD
from laconic.model.stock import MODEL_ERRORS
from laconic.model.tables import has_tied_head

FACTORS = "rope_freqs.weight"
"""The tensor by which llama.cpp divides the frequencies of rotary positions."""
LOW_FACTOR, HIGH_FACTOR, ORIGINAL_CONTEXT = 1.0, 4.0, 8192
"""Llama 3.1 to 3.3: the frequency factors between which the scale is interpolated, and the context before scaling."""
_EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon")
_CONFIG_KEYS = {
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "logit_scale": "logit_scale",
    "attention.clamp_kqv": "clip_qkv",
}
"""Keys of a GGUF file, without the name of the architecture, and the keys of a configuration for the same values."""


def llama3_factors(frequencies: Tensor, factor: float) -> Tensor:
    """The factors by which llama.cpp divides the rotary frequencies of Llama 3.1.

    A factor is 1 for wavelengths below ORIGINAL_CONTEXT / HIGH_FACTOR, `factor` for those above ORIGINAL_CONTEXT /
    LOW_FACTOR, and linear in the frequency between them.

    Args:
        frequencies: the unscaled frequencies.
        factor: the scale of the longest wavelengths.

    Reference:
        `convert_hf_to_gguf.py` of llama.cpp.
    """
    wavelengths = 2 * math.pi / frequencies
    smooth = (ORIGINAL_CONTEXT / wavelengths - LOW_FACTOR) / (HIGH_FACTOR - LOW_FACTOR)
    between = 1 / ((1 - smooth) / factor + smooth)
    factors = torch.where(wavelengths > ORIGINAL_CONTEXT / LOW_FACTOR, torch.full_like(frequencies, factor), between)
    return torch.where(wavelengths < ORIGINAL_CONTEXT / HIGH_FACTOR, torch.ones_like(frequencies), factors)


def set_rope_scaling(config: PreTrainedConfig, factors: Tensor, source: str) -> None:
    """Write the rotary scaling of a tensor of factors into a configuration, in place.

    Args:
        config: the configuration.
        factors: the factor of each frequency.
        source: the file, as errors name it.

    Raises:
        UserError: the factors do not follow the formula of Llama 3.
    """
    if torch.equal(factors, torch.ones_like(factors)):
        return
    rope = config.rope_parameters
    count = 2 * len(factors)
    frequencies = rope["rope_theta"] ** (-torch.arange(0, count, 2, dtype=torch.float64) / count)
    factor = float(factors.max())
    if not torch.allclose(llama3_factors(frequencies, factor), factors.double(), rtol=1e-4):
        raise _unused_error(source, FACTORS, "factors of frequencies that are not Llama 3's")
    config.rope_parameters = {
        **rope,
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": LOW_FACTOR,
        "high_freq_factor": HIGH_FACTOR,
        "original_max_position_embeddings": ORIGINAL_CONTEXT,
    }


def check_metadata(metadata: Mapping[str, Any], names: Sequence[str], config: PreTrainedConfig, source: str) -> None:
    """Check that a configuration has all values of the metadata that change the outputs.

    Args:
        metadata: the metadata of the file.
        names: the names of its tensors.
        config: the configuration that transformers read from the file.
        source: the file, as errors name it.

    Raises:
        UserError: the configuration lacks a value.
    """
    if longer := [name for name in names if name.startswith("rope_factors_")]:
        raise _unused_error(source, longer[0], "factors of frequencies for long contexts")
    architecture = metadata["general.architecture"]
    for name, value, is_used in _values(metadata, architecture, config):
        if not is_used:
            raise _unused_error(source, f"{architecture}.{name}", value)


def _values(
    metadata: Mapping[str, Any], architecture: str, config: PreTrainedConfig
) -> Iterator[tuple[str, Any, bool]]:
    """The values that change the outputs: the key in the file, the value, and whether `config` has it."""
    values = {name.removeprefix(f"{architecture}."): value for name, value in metadata.items()}
    rope = getattr(config, "rope_parameters", None) or {}
    # If rotary parameters differ by kind of layer, those of full attention are compared.
    rope = rope.get("full_attention", rope)
    if (kind := values.get("rope.scaling.type", "none")) != "none":
        is_used = rope.get("rope_type") == kind and _near(rope.get("factor"), values.get("rope.scaling.factor"))
        yield "rope.scaling.type", kind, is_used
    if (base := values.get("rope.freq_base")) is not None:
        yield "rope.freq_base", base, _near(rope.get("rope_theta"), base)
    if (count := values.get("rope.dimension_count")) is not None and rope:
        yield "rope.dimension_count", count, count == _rotary_dimensions(config, rope)
    for name in ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"):
        if (epsilon := values.get(name)) is not None:
            yield name, epsilon, any(_near(getattr(config, key, None), epsilon) for key in _EPSILONS)
    for name, key in _CONFIG_KEYS.items():
        if (value := values.get(name)) is None:
            continue
        # A window of 0 stands for none, and a window of the whole context changes nothing.
        is_window = name == "attention.sliding_window"
        if not (is_window and (value == 0 or value >= values.get("context_length", math.inf))):
            yield name, value, _near(getattr(config, key, None), value)


def _rotary_dimensions(config: PreTrainedConfig, rope: Mapping[str, Any]) -> int:
    """The number of dimensions of a head that rotary embeddings rotate."""
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    share = rope.get("partial_rotary_factor", getattr(config, "partial_rotary_factor", None))
    return int(width * (1.0 if share is None else share))


def _near(value: object, other: object) -> bool:
    if not isinstance(value, (int, float)) or not isinstance(other, (int, float)):
        return False
    return math.isclose(value, other, rel_tol=1e-4)


def _unused_error(source: str, name: str, value: object) -> UserError:
    return UserError(
        f"The GGUF file '{source}' says {name} = {value}, which transformers ignores, so the model would have other "
        "outputs; use the folder that the file was made from."
    )


NOT_WEIGHTS = "rope_"
"""The prefix of tensors that are no weights."""


def check_tensors(
    model: PreTrainedModel,
    architecture: str,
    stored: dict[str, tuple[int, ...]],
    source: str,
    external_names: Collection[str] = (),
) -> None:
    """Check the tensors of a file by names and sizes; no weights are read.

    Args:
        model: the model that the file describes, on the meta device.
        architecture: its architecture, as the file names it.
        stored: the shape (out, in) of each tensor, by its name in the file.
        source: the file, as errors name it.
        external_names: names of tensors that come from elsewhere and may be missing.

    Raises:
        UserError: a tensor is missing or of another shape, or weights are left over.
    """
    names = _file_names(model, architecture)
    parameters = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    # Several tensors of the file may become one of the model, such as experts. Its name then has no ".weight".
    shapes = stored | {name.removesuffix(".weight"): shape for name, shape in stored.items()}
    found = {name: [shapes[file_name] for file_name in names[name] if file_name in shapes] for name in names}
    missing = [name for name in parameters if name in found and not found[name]]
    mismatched = [
        (name, found[name][0], shape)
        for name, shape in parameters.items()
        if len(names.get(name, ())) == 1 and found[name] and math.prod(found[name][0]) != math.prod(shape)
    ]
    report = {"missing_keys": missing, "mismatched_keys": mismatched, "unexpected_keys": []}
    check_report(model, report, source, external_names=external_names)
    check_count(model, stored, source)


def check_count(model: PreTrainedModel, stored: Mapping[str, tuple[int, ...]], source: str) -> None:
    """Check that a file has as many weights as the model has parameters.

    Args:
        model: the model that the file describes.
        stored: the shape of each tensor, by its name in the file.
        source: the file, as errors name it.

    Raises:
        UserError: it has more or fewer.
    """
    count = sum(math.prod(shape) for name, shape in stored.items() if not name.startswith(NOT_WEIGHTS))
    expected = sum(parameter.numel() for parameter in model.parameters())
    if HEAD in stored and has_tied_head(model):
        # The class ties the head until it reads another one, as that of T5 does.
        expected += math.prod(stored[HEAD])
    if count != expected:
        raise UserError(
            f"The GGUF file '{source}' holds {count:,} numbers, and transformers' {type(model).__name__} takes "
            f"{expected:,}; use the folder that it was made from."
        )


def _file_names(model: PreTrainedModel, architecture: str) -> dict[str, list[str]]:
    """The names in the file of each tensor of the model, as transformers maps them; empty if it has no mapping."""
    names: dict[str, list[str]] = {}
    try:
        gguf_utils: Any = import_module("transformers.modeling_gguf_pytorch_utils")
        processor = gguf_utils.TENSOR_PROCESSORS.get(architecture, gguf_utils.TensorProcessor)(config={})
        mapping: Mapping[str, Any] = gguf_utils.get_gguf_hf_weights_map(model, processor)
    except MODEL_ERRORS:
        # transformers maps the same names at loading and raises the error then.
        return {}
    for file_name, name in mapping.items():
        if isinstance(name, str):
            names.setdefault(name, []).append(file_name)
    return names
