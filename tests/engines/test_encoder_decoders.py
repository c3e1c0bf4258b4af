"""llama.cpp computes T5 from exported files as torch does: logits, text, tokens, and the vectors of an encoder."""

from pathlib import Path
from typing import Any

import pytest
import torch

from laconic.calibrate import LayerStats
from laconic.methods import Rtn
from laconic.model import LanguageModel
from tests.engines.llama_cpp import ask
from tests.engines.llama_cpp_python import encode_decode
from tests.export.gguf.encoder_decoders import ENCODERS, MODELS, encoder_decoder, t5_encoder, unigram
from tests.export.gguf.encoders import TEXTS
from tests.export.gguf.models import exported

pytestmark = pytest.mark.engines
pytest.importorskip("gguf")
SOURCE = torch.randint(3, 100, (1, 40), generator=torch.Generator().manual_seed(0))
"""Positions from 8 on, or 3 of 12, share buckets."""


def difference(lm: LanguageModel, file: Path) -> float:
    """The KL divergence of llama.cpp's predictions from torch's, in nats; the largest of all positions."""
    target = torch.cat([torch.zeros(1, 1, dtype=torch.long), SOURCE.flip(1)], 1)
    found = encode_decode(file, SOURCE[0].tolist(), target[0].tolist()).log_softmax(-1)
    with torch.no_grad():
        expected = lm.model(input_ids=SOURCE, decoder_input_ids=target).logits[0].log_softmax(-1)
    return (expected.exp() * (expected - found)).sum(-1).abs().max().item()


@pytest.mark.parametrize("name", MODELS)
def test_logits(name: str, tmp_path: Path) -> None:
    lm = encoder_decoder(name)
    assert difference(lm, exported(lm, tmp_path)) < 1e-4


def test_blocks(tmp_path: Path) -> None:
    lm = encoder_decoder("t5-gated")
    for site in lm.sites():
        layer = Rtn(bits=4, group_size=32, symmetric=True).compress(site.weight().detach(), LayerStats())
        lm.replace(site, layer)
    # llama.cpp rounds inputs of blocks to 8 bits.
    assert difference(lm, exported(lm, tmp_path)) < 1e-2


def test_greedy_text(tmp_path: Path) -> None:
    lm = encoder_decoder("t5")
    model: Any = lm.model
    expected = model.generate(SOURCE, max_new_tokens=12, do_sample=False, eos_token_id=None)[0].tolist()
    file, found = exported(lm, tmp_path), [0]
    while len(found) < len(expected):
        found.append(int(encode_decode(file, SOURCE[0].tolist(), found)[-1].argmax()))
    assert found == expected


def test_tokens(tmp_path: Path) -> None:
    expected = [unigram()(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    assert ask(exported(encoder_decoder("t5"), tmp_path), texts=TEXTS)["tokens"] == expected


@pytest.mark.parametrize("name", ENCODERS)
def test_vectors(name: str, tmp_path: Path) -> None:
    lm = t5_encoder(name)
    tokens = torch.cat([SOURCE, torch.ones(1, 1, dtype=torch.long)], 1)
    (vector,) = ask(exported(lm, tmp_path), embedded=tokens.tolist())["vectors"]
    with torch.no_grad():
        expected = lm.model(tokens).last_hidden_state[0].mean(0)
    found = torch.tensor(vector)
    assert (found / found.norm() - expected / expected.norm()).norm() < 2e-2
