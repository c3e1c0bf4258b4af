"""llama.cpp computes from exported files the logits that torch computes from the models."""

from pathlib import Path

import pytest
import torch
from tokenizers import Regex, pre_tokenizers

from laconic.compress import Compress
from laconic.compress.allocators.file_types import FileTypeName
from laconic.export.gguf.pretokenizers import _LLAMA3, _QWEN2
from laconic.methods import Rtn
from laconic.methods.quantize.blocks import BlockGridName
from laconic.model import LanguageModel
from laconic.numerics.ggml_blocks import BLOCK_TYPES
from tests.engines.llama_cpp import ask
from tests.export.gguf.encoders import ENCODERS, encoder
from tests.export.gguf.encoders import TEXTS as ENCODED
from tests.export.gguf.models import CONTEXT, MODELS, ROWS, TEXTS, byte_level, exported, model, sentence_piece
from tests.export.gguf.test_encoders import pooled
from tests.export.gguf.test_export import compressed, in_blocks, narrowed, wide

pytestmark = pytest.mark.engines
pytest.importorskip("gguf")


def difference(lm: LanguageModel, file: Path, length: int = 24) -> float:
    """The mean KL divergence of llama.cpp's predictions from torch's, in nats."""
    ids = torch.randint(2, ROWS - 10, (1, length), generator=torch.Generator().manual_seed(0))
    found = torch.tensor(ask(file, prompts=ids.tolist())["probabilities"][0])
    with torch.no_grad():
        expected = lm.model(ids).logits[0].log_softmax(-1)
    return (expected.exp() * (expected - found.clamp(min=1e-30).log())).sum(-1).abs().max().item()


@pytest.mark.parametrize("name", MODELS)
def test_every_architecture(name: str, tmp_path: Path) -> None:
    lm = model(name)
    assert difference(lm, exported(lm, tmp_path)) < 1e-4


@pytest.mark.parametrize(("bits", "symmetric"), [(3, False), (4, True), (4, False), (5, True), (8, True)])
def test_exact_blocks(bits: int, symmetric: bool, tmp_path: Path) -> None:
    lm = compressed(bits, symmetric)
    # llama.cpp rounds inputs of blocks to 8 bits.
    assert difference(lm, exported(lm, tmp_path)) < 1e-2


@pytest.mark.parametrize("grid", BLOCK_TYPES)
def test_every_type_of_blocks(grid: BlockGridName, tmp_path: Path) -> None:
    lm = in_blocks(grid)
    assert difference(lm, exported(lm, tmp_path)) < 1e-2


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ["Q4_K_M", "Q2_K"])
def test_file_types(name: FileTypeName, tied: bool, tmp_path: Path) -> None:
    lm = wide(tied)
    Compress(method=Rtn(), allocate=name, targets=("all",)).apply(lm, None)
    assert difference(lm, exported(lm, tmp_path)) < 1e-2


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_other_widths_in_each_block(name: str, tmp_path: Path) -> None:
    lm = narrowed(name)
    assert difference(lm, exported(lm, tmp_path)) < 1e-4


SPLITS = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "starcoder": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "falcon": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Punctuation("contiguous"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
            pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
        ]
    ),
    **{
        name: pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(rule), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        for name, rule in {"qwen2": _QWEN2, "smaug-bpe": _LLAMA3}.items()
    },
}


@pytest.mark.parametrize("split", SPLITS)
def test_tokens_of_bytes(split: str, tmp_path: Path) -> None:
    tokenizer = byte_level(SPLITS[split])
    lm = LanguageModel.of(model("llama").model, tokenizer)
    expected = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    assert ask(exported(lm, tmp_path), texts=TEXTS)["tokens"] == expected


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("modes", ["mean", "cls"])
def test_vectors_of_texts(name: str, modes: str, tmp_path: Path) -> None:
    lm = pooled(encoder(name), modes)
    assert lm.tokenizer is not None and lm.pipeline is not None
    # Without a map of characters, a line break is no white space in llama.cpp's Unigram.
    texts = [text.replace("\n", " ") for text in ENCODED] if name == "xlm-roberta" else ENCODED
    ids = [lm.tokenizer(text)["input_ids"] for text in texts]
    answer = ask(exported(lm, tmp_path), texts=texts, embedded=ids)
    assert answer["tokens"] == [lm.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    for tokens, vector in zip(ids, answer["vectors"], strict=True):
        with torch.no_grad():
            states = lm.model(torch.tensor([tokens])).last_hidden_state
            expected = lm.pipeline(states, torch.ones(1, len(tokens)))[0]
        found = torch.tensor(vector)
        assert (found / found.norm() - expected).norm() < 2e-2


def test_tokens_of_pieces(tmp_path: Path) -> None:
    tokenizer = sentence_piece()
    lm = LanguageModel.of(model("llama").model, tokenizer)
    expected = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    assert ask(exported(lm, tmp_path), texts=TEXTS)["tokens"] == expected


def test_the_context_ends_where_the_window_does(tmp_path: Path) -> None:
    lm = model("mistral")
    file = exported(lm, tmp_path)
    assert lm.model.config.max_position_embeddings == CONTEXT
    assert difference(lm, file, length=lm.model.config.sliding_window) < 1e-4
