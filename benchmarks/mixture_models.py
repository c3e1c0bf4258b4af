"""A small mixture of experts and dense models beside it, trained on real text: stories, and articles of Wikipedia.

The mixture is a Qwen3-MoE of 4 blocks with 16 experts each, 2 of which read a token; a small load-balancing loss keeps
the router from using few of them. The dense models are Qwen3 models with the same attention: `dense` has as many
parameters as the mixture, `dense-active` as many as the mixture uses for one token. All read the same rows in the same
order: TinyStories (900 of 1,000 stories), the test set of WikiText-2 and passages of WikiText-103, in the vocabulary of
mico-tinyllama-1m. Every tenth story and the validation set of WikiText-2 are held out.

Training takes minutes on one core. Each model is stored in the cache, and trained again if it is missing.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor
from torch.nn import functional
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

from benchmarks.common import models_folder
from benchmarks.masked_lm import plain
from laconic.cache import cache_folder
from laconic.calibrate.corpus import Corpus, Example
from laconic.calibrate.sources import data_folder, read
from laconic.model import LanguageModel
from laconic.store import save

TOKENIZER = "mico-tinyllama-1m"
DATA = ("tinystories/tinystories_1000.json", "wikitext-2/wiki.test.tokens", "wikitext-2/wiki.valid.tokens",
        "wikitext-2/wikitext103_train_passages_1000.json")  # fmt: skip
HELD_OUT_EVERY = 10
LENGTH, BATCH, EPOCHS = 128, 16, 3
RATE, WARM_UP, DECAY = 3e-3, 0.05, 0.1
SEED = 0

EXPERTS, PER_TOKEN, CHANNELS = 16, 2, 128
SHAPE = {
    "vocab_size": 4096, "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 32, "max_position_embeddings": 256, "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": None,
}  # fmt: skip
BALANCE = 0.01
"""Weight of the load-balancing loss, as in the Switch Transformer (W. Fedus et al., 2021)."""


def _mixture() -> PreTrainedModel:
    return Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            **SHAPE,
            num_experts=EXPERTS,
            num_experts_per_tok=PER_TOKEN,
            moe_intermediate_size=CHANNELS,
            norm_topk_prob=True,
        )
    )


def _dense(channels: int) -> PreTrainedModel:
    return Qwen3ForCausalLM(Qwen3Config(**SHAPE, intermediate_size=channels))


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "mixture": _mixture,
    "dense": lambda: _dense(EXPERTS * CHANNELS),
    "dense-active": lambda: _dense(PER_TOKEN * CHANNELS),
}


def main(argv: Sequence[str]) -> None:
    """Train the models that are not in the cache, and print their folders."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=list(MODELS), help="one of the models")
    options = parser.parse_args(argv)
    if (reason := missing_data()) is not None:
        print(f"The models were not trained: {reason}.")
        return
    for name in [options.only] if options.only else MODELS:
        print(trained_model(name))


def missing_data() -> str | None:
    """The reason why the models cannot be trained, as a clause; None if all data is there."""
    folder = data_folder()
    if folder is None:
        return "the environment variable LACONIC_DATA is not set"
    missing = [name for name in DATA if not (folder / name).is_file()]
    if missing:
        return f"'{folder}' has no {missing[0]}"
    if not (models_folder() / TOKENIZER).is_dir():
        return f"'{models_folder()}' has no {TOKENIZER}, whose tokenizer they need"
    return None


def trained_model(name: str, seed: int = SEED) -> Path:
    """The folder of a model of `MODELS`, which is trained first if it is missing.

    Args:
        name: a key of `MODELS`.
        seed: seed of the initial weights and of the order of the rows.
    """
    folder = cache_folder() / "benchmarks" / f"mixture-{name}-{seed}"
    if not folder.is_dir():
        save(train(name, seed), folder)
    return folder


def tokenizer() -> PreTrainedTokenizerBase:
    """The tokenizer of all the models."""
    return AutoTokenizer.from_pretrained(models_folder() / TOKENIZER)


@dataclass(frozen=True)
class Texts:
    """Texts of both kinds.

    Args:
        stories: whole stories.
        articles: articles of Wikipedia, or passages of them.
    """

    stories: tuple[str, ...]
    articles: tuple[str, ...]

    def corpus(self, split: str) -> Corpus:
        """All texts as rows."""
        return Corpus("stories and articles", split, tuple(map(Example, (*self.stories, *self.articles))))


def training_texts() -> Texts:
    """The texts that the models are trained on."""
    stories = _texts("tinystories/tinystories_1000.json")
    articles = [*_texts("wikitext-2/wiki.test.tokens"), *_texts("wikitext-2/wikitext103_train_passages_1000.json")]
    seen = [story for number, story in enumerate(stories) if number % HELD_OUT_EVERY]
    return Texts(tuple(seen), tuple(map(_plain, articles)))


def held_out_texts() -> Texts:
    """The texts that no model was trained on."""
    stories = _texts("tinystories/tinystories_1000.json")[::HELD_OUT_EVERY]
    return Texts(tuple(stories), tuple(map(_plain, _texts("wikitext-2/wiki.valid.tokens"))))


def _texts(source: str) -> list[str]:
    return [example.text for example in read(source, "train").examples]


def _plain(article: str) -> str:
    # An unknown word is one token of the vocabulary.
    return "\n".join(line for line in map(plain, article.split("\n")) if line).replace("[UNK]", "<unk>")


def rows_of(texts: Texts, encode: PreTrainedTokenizerBase, length: int = LENGTH) -> Tensor:
    """All texts, one after another, in rows of `length` tokens, (rows, length)."""
    ids = [token for text in (*texts.stories, *texts.articles) for token in encode(text, verbose=False)["input_ids"]]
    whole = len(ids) // length * length
    return torch.tensor(ids[:whole]).reshape(-1, length)


def train(name: str, seed: int = SEED) -> LanguageModel:
    """Train a model of `MODELS` from random weights.

    Args:
        name: a key of `MODELS`.
        seed: seed of the initial weights and of the order of the rows.
    """
    torch.manual_seed(seed)
    encode, model = tokenizer(), MODELS[name]()
    rows = rows_of(training_texts(), encode)
    steps = EPOCHS * (len(rows) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=DECAY)
    pace = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _pace(step / steps))
    model.train()
    start, recent = time.monotonic(), 0.0
    for step, batch in enumerate(track(_batches(rows, seed), f"training {name}", total=steps), start=1):
        # bfloat16 halves the time of the products on processors that have it.
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = _loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        pace.step()
        recent = loss.item() if step == 1 else 0.98 * recent + 0.02 * loss.item()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    seconds = time.monotonic() - start
    print(f"{name}: {parameters:,} parameters, {steps} steps in {seconds:.0f} s, last loss {recent:.3f}")
    return LanguageModel.of(model.eval(), encode)


def _loss(model: PreTrainedModel, batch: Tensor) -> Tensor:
    """Cross-entropy of the next token, and for a mixture the balancing loss of each block."""
    is_mixture = isinstance(model, Qwen3MoeForCausalLM)
    outputs = model(input_ids=batch, use_cache=False, **({"output_router_logits": True} if is_mixture else {}))
    loss = functional.cross_entropy(outputs.logits[:, :-1].flatten(0, 1).float(), batch[:, 1:].flatten())
    if is_mixture:
        # transformers sums the use of an expert over all blocks, so that one block could use few of its experts.
        balance = [load_balancing_loss_func((logits,), EXPERTS, PER_TOKEN) for logits in outputs.router_logits]
        loss = loss + BALANCE * sum(balance) / len(balance)
    return loss


def _batches(rows: Tensor, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(EPOCHS):
        order = torch.randperm(len(rows), generator=generator)[: len(rows) // BATCH * BATCH]
        yield from rows[order].reshape(-1, BATCH, rows.shape[1])


def _pace(done: float) -> float:
    """The factor of the learning rate: it rises for the first twentieth of the steps, then falls to zero."""
    return min(done / WARM_UP, (1 - done) / (1 - WARM_UP))
