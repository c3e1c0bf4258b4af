"""The distance of compressed folders from their original, on texts that none was calibrated on: in torch and in vLLM.

It runs in a process of its own, which prints JSON: `python -m benchmarks.vllm_quality KIND ORIGINAL TEXTS FOLDERS`.

`exact` computes KL from all logits. Every folder is decoded by laconic's reader and runs in float32. Where the folder
rounds inputs to 8 bits, so does this: each token has the scale max |x| / 127, as in vLLM. `engine` reads the 64
likeliest tokens of vLLM, which computes in bfloat16. Its KL is a lower bound, and both of its models contain the errors
of bfloat16.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoTokenizer

from laconic.cli.terminal import silence_libraries
from laconic.model import load
from laconic.numerics.softmax_kl import softmax_kl
from laconic.runtime.engine import Distributions
from laconic.runtime.engine.vllm import Vllm

ROWS, TOKENS = 12, 128
"""The texts, the last of the file, and the tokens of each."""
EXACT, ENGINE = "exact", "engine"
Predicted = TypeVar("Predicted")
Compared = tuple[Tensor, Tensor]
"""The KL at each place of a text, and whether the likeliest token is the same."""
LEVELS = 127
"""The largest code of an input that is rounded to 8 bits without a zero point."""


def main() -> None:
    """Print the distances as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=(EXACT, ENGINE))
    parser.add_argument("original", help="the model before compression")
    parser.add_argument("texts", type=Path, help="a file with a text in each line; the last ones are read")
    parser.add_argument("folders", type=json.loads, help="the folders of compressed models by name, as JSON")
    options = parser.parse_args()
    silence_libraries()
    rows = token_rows(options.original, options.texts)
    measure = exact_distances if options.kind == EXACT else engine_distances
    print(json.dumps(measure(options.original, options.folders, rows)))


def token_rows(model: str, texts: Path, tokens: int = TOKENS) -> list[list[int]]:
    """The first tokens of the last texts of a file."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    return [tokenizer(text)["input_ids"][:tokens] for text in texts.read_text().splitlines()[-ROWS:]]


@torch.inference_mode()
def exact_distances(original: str, folders: dict[str, str], rows: list[list[int]]) -> dict[str, Any]:
    """KL from all logits, its standard error over the texts, and how often the likeliest token is the same."""

    def compare(expected: Tensor, logits: Tensor) -> Compared:
        return softmax_kl(expected, logits), expected.argmax(-1) == logits.argmax(-1)

    return distances(original, folders, lambda folder: all_logits(folder, rows), compare)


def distances(
    original: str,
    folders: dict[str, str],
    read: Callable[[str], Iterator[Predicted]],
    compare: Callable[[Predicted, Predicted], Compared],
) -> dict[str, Any]:
    """The summary of each folder beside the original.

    Args:
        original: the model before compression.
        folders: the folders by name.
        read: the predictions of a folder, one text at a time.
        compare: KL and agreement at each place of a text.
    """
    reference = list(read(original))
    found = {}
    for name, folder in folders.items():
        texts = [compare(expected, own) for expected, own in zip(reference, read(folder), strict=True)]
        kls, same = (torch.stack([part.double().mean() for part in parts]) for parts in zip(*texts, strict=True))
        found[name] = summary(kls, same)
    return found


def all_logits(folder: str, rows: list[list[int]]) -> Iterator[Float[Tensor, "n vocabulary"]]:
    """The logits after each token of a row but the last, one row at a time."""
    lm = load(folder)
    with rounding_inputs(lm.model, Path(folder)):
        for row in rows:
            yield lm.model(torch.tensor([row]), use_cache=False).logits[0, :-1]


@contextmanager
def rounding_inputs(model: nn.Module, folder: Path) -> Iterator[None]:
    """Within the context, layers whose weights are stored as int8 with rounded inputs round their inputs."""
    with ExitStack() as hooks:
        for name in int8_layers(folder):
            hooks.callback(model.get_submodule(name).register_forward_pre_hook(_round_inputs).remove)
        yield


def int8_layers(folder: Path) -> list[str]:
    """The paths of layers whose weights are int8 in a file."""
    found = []
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (the file is no mapping)
                if name.endswith(".weight") and tensors.get_slice(name).get_dtype() == "I8":
                    found.append(name.removesuffix(".weight"))
    return found


def _round_inputs(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    x, *others = inputs
    scale = (x.abs().amax(-1, keepdim=True) / LEVELS).clamp(min=torch.finfo(x.dtype).tiny)
    return (x.div(scale).round_().mul_(scale), *others)


def engine_distances(original: str, folders: dict[str, str], rows: list[list[int]]) -> dict[str, Any]:
    """The lower bound of KL from vLLM's likeliest tokens, and how often the likeliest one is the same."""

    def compare(expected: Distributions, predicted: Distributions) -> Compared:
        return predicted.kl_from(expected), expected.best() == predicted.best()

    return distances(original, folders, lambda folder: engine_predictions(folder, rows), compare)


def engine_predictions(folder: str, rows: list[list[int]]) -> Iterator[Distributions]:
    """vLLM's predictions after each token of a row but the last, one row at a time."""
    with closing(Vllm(Path(folder), max(map(len, rows)))) as engine:
        for row in rows:
            yield from engine.predict(row, 1)


def summary(kls: Float[Tensor, " texts"], same: Float[Tensor, " texts"]) -> dict[str, Any]:
    """The means over the texts, and the standard error of the mean KL."""
    return {
        "kl": kls.mean().item(),
        "error": (kls.std() / len(kls) ** 0.5).item(),
        "same_token": same.mean().item(),
        "texts": len(kls),
        "tokens": TOKENS,
    }


if __name__ == "__main__":
    main()
