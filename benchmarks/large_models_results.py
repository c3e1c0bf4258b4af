"""Compare compressed models: their tensors bit for bit, and their predictions by KL.

It runs in a process of its own, which prints JSON: `python -m benchmarks.large_models_results ORIGINAL RESULT TEXTS`.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from laconic.cli.terminal import silence_libraries
from laconic.errors import UserError
from laconic.model import LanguageModel
from laconic.model.loading import check_parts, load, load_streamed
from laconic.model.predictions import run_model

ROWS, TOKENS = 24, 128


def main() -> None:
    """Print the comparison as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("original", help="the model before compression")
    parser.add_argument("result", type=Path, help="the compressed model")
    parser.add_argument("texts", type=Path, help="a file with a text in each line; the last ones are read")
    parser.add_argument("--reference", type=Path, help="another compressed model, which should be equal")
    options = parser.parse_args()
    silence_libraries()
    texts = options.texts.read_text().splitlines()[-ROWS:]
    result = log_probabilities(str(options.result), texts)
    found: dict[str, object] = {"kl": kl(log_probabilities(options.original, texts), result), "texts": len(texts)}
    if options.reference is not None:
        unequal = unequal_tensors(options.reference, options.result)
        # Equal tensors give equal predictions.
        between = kl(log_probabilities(str(options.reference), texts), result) if unequal else 0.0
        found |= {"unequal": unequal, "kl_to_reference": between}
    print(json.dumps(found))


@torch.inference_mode()
def log_probabilities(source: str, texts: list[str]) -> Tensor:
    """The logarithms of the predicted probabilities of every word, at the first tokens of some texts.

    One block of the model is in memory at a time, where its format allows that.
    """
    lm = _load(source)
    assert lm.tokenizer is not None
    rows = [lm.tokenizer(text, return_tensors="pt")["input_ids"][:, :TOKENS] for text in texts]
    batch = {"input_ids": torch.cat(rows), "attention_mask": torch.ones(len(rows), TOKENS, dtype=torch.long)}
    with lm.loaned_on_call():
        return run_model(lm, batch)["logits"].log_softmax(-1)


def _load(source: str) -> LanguageModel:
    try:
        check_parts(source)
    except UserError:
        # Codes of another library.
        return load(source)
    return load_streamed(source)


def kl(reference: Tensor, other: Tensor) -> float:
    """Mean KL(reference ‖ other) in nats."""
    rows = [(row.exp() * (row - beside)).sum(-1).mean() for row, beside in zip(reference, other, strict=True)]
    return torch.stack(rows).mean().item()


def unequal_tensors(first: Path, second: Path) -> list[str]:
    """The names of tensors that are in one of two folders, or have other values there."""
    mine, others = files_by_name(first), files_by_name(second)
    shared = [name for name in sorted(mine) if name in others]
    alone = sorted(mine.keys() ^ others.keys())
    return [*alone, *(name for name in shared if not _is_equal(name, mine[name], others[name]))]


def files_by_name(folder: Path) -> dict[str, Path]:
    """The safetensors file of each tensor in a folder."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            found |= dict.fromkeys(tensors.keys(), file)
    return found


def _is_equal(name: str, first: Path, second: Path) -> bool:
    with safe_open(first, "pt") as mine, safe_open(second, "pt") as other:
        a, b = mine.get_tensor(name), other.get_tensor(name)
    return a.dtype == b.dtype and torch.equal(a, b)


if __name__ == "__main__":
    main()
