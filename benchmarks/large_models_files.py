"""Models of random numbers that are written one block at a time, and texts and a tokenizer for them.

Memory and seconds of compression depend on shapes alone, so random weights measure them as real ones do.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from pydoc_data.topics import topics

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.common import calibration
from laconic.calibrate.corpus import sample
from laconic.calibrate.sources import read
from laconic.errors import UserError
from laconic.recipe.entry import ModelInput

WORDS = 4096
WORDS_IN_A_TEXT = 200
"""So many that every text has more than 128 tokens in any tokenizer."""
END = "</s>"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Shape:
    """The shape of a Llama whose heads have 64 or 128 numbers.

    Args:
        width: size of the hidden states.
        channels: channels of a feed-forward.
        blocks: number of blocks.
        words: size of the vocabulary.
        head: size of a head.
        tied: whether embedding and head are one matrix.
    """

    width: int
    channels: int
    blocks: int
    words: int = WORDS
    head: int = 64
    tied: bool = True

    @property
    def config(self) -> LlamaConfig:
        """The configuration of a model of this shape."""
        return LlamaConfig(
            vocab_size=self.words,
            hidden_size=self.width,
            intermediate_size=self.channels,
            num_hidden_layers=self.blocks,
            num_attention_heads=self.width // self.head,
            num_key_value_heads=self.width // self.head,
            tie_word_embeddings=self.tied,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
            dtype="bfloat16",
        )


SHAPES = {
    "27M": Shape(width=512, channels=1344, blocks=8),
    "116M": Shape(width=768, channels=2048, blocks=16),
    "317M": Shape(width=1024, channels=2880, blocks=24),
    "7B": Shape(width=4096, channels=11008, blocks=32, words=32000, head=128, tied=False),
}
"""By number of parameters. The last has the shape of Llama 2 7B."""


def write_model(shape: Shape, folder: Path) -> None:
    """Write a model with random weights in bfloat16, one block in memory at a time. A folder that exists is kept."""
    if (folder / INDEX).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):
        model = LlamaForCausalLM(shape.config)
    model.config.architectures = [LlamaForCausalLM.__name__]
    model.config.save_pretrained(folder)
    train_tokenizer().save_pretrained(folder)
    written = [name for name in model.state_dict() if not (shape.tied and name == "lm_head.weight")]
    shapes = {name: tuple(model.state_dict()[name].shape) for name in written}
    weight_map: dict[str, str] = {}
    total = 0
    for part, names in groupby(written, key=_part):
        file = f"model-{part}.safetensors"
        tensors = dict(_random_tensors(names, shapes))
        save_file(tensors, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
        total += sum(tensor.nbytes for tensor in tensors.values())
    # Written last: a folder with an index is complete.
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")


def _part(name: str) -> str:
    """The part of the model that a tensor belongs to: a block, or another module."""
    parts = name.split(".")
    return "-".join(parts[1:3]) if "layers" in parts else parts[-2]


def _random_tensors(names: Iterator[str], shapes: dict[str, tuple[int, ...]]) -> Iterator[tuple[str, Tensor]]:
    """Norms of ones, and matrices from a normal distribution, each with its own seed."""
    order = list(shapes)
    for name in names:
        if len(shapes[name]) == 1:
            yield name, torch.ones(shapes[name], dtype=torch.bfloat16)
        else:
            generator = torch.Generator().manual_seed(order.index(name))
            numbers = torch.randn(shapes[name], generator=generator, dtype=torch.bfloat16)
            yield name, numbers.mul_(0.02)


def train_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of `WORDS` words, trained on the English text that ships with Python."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(topics.values(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END)


def write_rows(source: Path, texts: Path, file: Path, rows: int, tokens: int) -> None:
    """Write the batches of tokens that `laconic compress` reads with these sizes; no row has padding."""
    data = calibration(ModelInput(name=str(source)).skeleton(), str(texts), rows, seed=0)
    batches = [batch["input_ids"] for batch in data.batches]
    assert all(batch.shape[1] == tokens for batch in batches)
    file.write_text(json.dumps([batch.tolist() for batch in batches]))


def write_texts(file: Path) -> None:
    """Write the text that ships with Python, one text of `WORDS_IN_A_TEXT` words in each line."""
    words = " ".join(topics[name] for name in sorted(topics)).split()
    starts = range(0, len(words) - WORDS_IN_A_TEXT, WORDS_IN_A_TEXT)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(" ".join(words[at : at + WORDS_IN_A_TEXT]) + "\n" for at in starts))


def check_held_out(texts: Path, samples: int, compared: int) -> None:
    """Check that models are compared on texts that `laconic compress` does not calibrate on.

    Args:
        texts: the file of the texts.
        samples: number of calibration rows, drawn with the default seed.
        compared: number of texts that models are compared on, at the end of the file.

    Raises:
        UserError: a text is used for both.
    """
    calibrated = {example.text for example in sample(read(str(texts), "train"), samples, seed=0).examples}
    for number, text in list(enumerate(texts.read_text().splitlines(), 1))[-compared:]:
        if text in calibrated:
            raise UserError(
                f"Line {number} of '{texts}' is a calibration text, and models are compared on it; give another number "
                f"of calibration rows than {samples}."
            )
