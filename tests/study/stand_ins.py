"""Tiny random models under the names of those that the seed studies take from the hub, laid out as they are there.

Each has the configuration, the names of tensors and the files of its original, weights in pytorch_model.bin alone:
what `transformers` of that day saved, old names and heads that nobody loads among them.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from torch import Tensor
from transformers import PreTrainedModel
from transformers.convert_slow_tokenizer import bytes_to_unicode

COMMIT = "0" * 40
VOCABULARY, WIDTH, INNER = 320, 32, 64
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": INNER,
    "max_position_embeddings": 130,
}
SPECIAL = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
MARKS = ".,'?!-()\"$%&:;/`"

Tensors = dict[str, Tensor]
StandIn = tuple[PreTrainedModel, Callable[[Tensors], Tensors], dict[str, Any]]
"""The model, what its original calls its tensors, and what its config.json says otherwise (None for nothing)."""


def _as_it_is(tensors: Tensors) -> Tensors:
    return tensors


def _of_old(tensors: Tensors) -> Tensors:
    """Layer norms as they were called before 2019."""
    return {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in tensors.items()
    }


def _bert() -> hf.BertConfig:
    return hf.BertConfig(**SHAPE)


def _roberta() -> hf.RobertaConfig:
    return hf.RobertaConfig(**SHAPE, **SPECIAL, type_vocab_size=1)


def _tinybert() -> StandIn:
    def named(tensors: Tensors) -> Tensors:
        return {**tensors, "fit_dense.weight": torch.zeros(WIDTH * 2, WIDTH), "fit_dense.bias": torch.zeros(WIDTH * 2)}

    extra = {"architectures": None, "cell": {}, "emb_size": WIDTH, "structure": [], "pre_trained": "", "training": ""}
    return hf.BertForPreTraining(_bert()), named, extra


def _bert_of_2018() -> StandIn:
    return hf.BertForPreTraining(_bert()), _of_old, {"architectures": ["BertForMaskedLM"]}


def _deberta() -> StandIn:
    config = hf.DebertaConfig(
        **SHAPE, type_vocab_size=0, relative_attention=True, pos_att_type=["c2p", "p2c"], position_biased_input=False
    )

    def named(tensors: Tensors) -> Tensors:
        return {name.replace("cls.predictions", "lm_predictions.lm_head"): tensor for name, tensor in tensors.items()}

    return hf.DebertaForMaskedLM(config), named, {"architectures": None, "pos_att_type": "c2p|p2c"}


def _gpt2() -> StandIn:
    config = hf.GPT2Config(
        vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=4, n_head=4, n_positions=130, bos_token_id=2, eos_token_id=2
    )

    def named(tensors: Tensors) -> Tensors:
        masks = {f"h.{block}.attn.bias": torch.ones(1, 1, 130, 130).tril() for block in range(4)}
        bare = {
            name.removeprefix("transformer."): tensor for name, tensor in tensors.items() if name != "lm_head.weight"
        }
        return {**bare, **masks}

    return hf.GPT2LMHeadModel(config), named, {}


def _led() -> StandIn:
    config = hf.LEDConfig(
        vocab_size=VOCABULARY, d_model=WIDTH, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=INNER, decoder_ffn_dim=INNER, attention_window=[16, 16],
        max_encoder_position_embeddings=144, max_decoder_position_embeddings=130, decoder_start_token_id=2, **SPECIAL,
    )  # fmt: skip
    return hf.LEDForConditionalGeneration(config), _as_it_is, {}


def _distilbert() -> StandIn:
    config = hf.DistilBertConfig(
        vocab_size=VOCABULARY, dim=WIDTH, n_layers=4, n_heads=4, hidden_dim=INNER, max_position_embeddings=130
    )
    return hf.DistilBertForMaskedLM(config), _as_it_is, {}


def _albert() -> StandIn:
    config = hf.AlbertConfig(**SHAPE, embedding_size=24)

    def named(tensors: Tensors) -> Tensors:
        return {**tensors, "albert.pooler.weight": torch.zeros(WIDTH, WIDTH), "albert.pooler.bias": torch.zeros(WIDTH)}

    return hf.AlbertForMaskedLM(config), named, {}


STAND_INS: dict[str, Callable[[], StandIn]] = {
    "huawei-noah/TinyBERT_General_4L_312D": _tinybert,
    "textattack/bert-base-uncased-SST-2": lambda: (hf.BertForSequenceClassification(_bert()), _as_it_is, {}),
    "microsoft/deberta-base": _deberta,
    "gpt2": _gpt2,
    "allenai/led-base-16384": _led,
    "textattack/roberta-base-SST-2": lambda: (hf.RobertaForSequenceClassification(_roberta()), _as_it_is, {}),
    "bert-base-uncased": _bert_of_2018,
    "roberta-base": lambda: (hf.RobertaForMaskedLM(_roberta()), _as_it_is, {}),
    "distilbert-base-uncased": _distilbert,
    "albert-base-v2": _albert,
}


def stand_in(name: str, cache: Path) -> None:
    """Put the stand-in for the model `name` into the hub's `cache`, where `from_pretrained(name)` finds it."""
    torch.manual_seed(0)
    model, named, extra = STAND_INS[name]()
    repository = cache / f"models--{name.replace('/', '--')}"
    folder = repository / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    model.config.architectures = [type(model).__name__]
    said = {**model.config.to_diff_dict(), **extra}
    said.pop("dtype", None)
    (folder / "config.json").write_text(json.dumps({key: value for key, value in said.items() if value is not None}))
    torch.save(named(dict(model.state_dict())), folder / "pytorch_model.bin")
    if isinstance(model.config, hf.BertConfig | hf.DistilBertConfig | hf.AlbertConfig):
        _save_pieces(folder)
    else:
        _save_bytes(folder)


def _save_pieces(folder: Path) -> None:
    """vocab.txt of letters."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *MARKS, *(f"##{one}" for one in LETTERS)]
    tokenizer = hf.BertTokenizerFast(vocab={word: number for number, word in enumerate(words)})
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    tokenizer.save_pretrained(folder)


def _save_bytes(folder: Path) -> None:
    """vocab.json of bytes and of letters after a space, which merges.txt makes."""
    alphabet = sorted(bytes_to_unicode().values())
    words = ["<s>", "<pad>", "</s>", "<unk>", *alphabet, *(f"Ġ{one}" for one in LETTERS), "<mask>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(f"Ġ {one}" for one in LETTERS)]) + "\n")
