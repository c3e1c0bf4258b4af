"""Models that cannot be compared are told apart before any row is judged, and what can be is."""

from dataclasses import replace
from pathlib import Path

import pytest
import transformers as hf

from laconic.calibrate.corpus import Corpus, Example
from laconic.cli.main import status
from laconic.errors import UserError
from laconic.evaluate import Reference, check_comparable, compare_to_reference, evaluate
from laconic.model import LanguageModel
from tests.architectures import BY_NAME
from tests.evaluate.models import with_tokenizer
from tests.odd import saved
from tests.tiny_models import DECODER, SMALL
from tests.tokens import letters
from tests.words import words

TEXTS = Corpus("memory", "dev", (Example("the cat is good and so is the dog"), Example("a dog")))


def llama(**changes: int) -> LanguageModel:
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**{**DECODER, **SMALL, **changes}))
    return with_tokenizer(LanguageModel.of(model.eval()))


def test_models_of_other_vocabularies_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few, many = (saved(tmp_path / str(size), llama(vocab_size=size).model, letters("start")) for size in (50, 60))
    texts = tmp_path / "texts.txt"
    texts.write_text("the cat is good\n")
    capsys.readouterr()
    assert status(["evaluate", str(many), "--against", str(few), "--tasks", f"fidelity:{texts}"]) == 2
    said = capsys.readouterr().err.strip()
    assert said == (
        f"The models cannot be compared: '{many}' has a vocabulary of 60 tokens, and '{few}' one of 50; name the "
        "model that it was made from."
    )
    with pytest.raises(UserError, match="has a vocabulary of 50 tokens"):
        check_comparable(llama(), llama(vocab_size=60))


def test_tokens_that_mean_something_else_are_told() -> None:
    lm = llama()
    other = replace(lm, tokenizer=words("start"))
    with pytest.raises(UserError, match="token 6 is 'b' to the tokenizer of the model and 'c' to that of the model"):
        compare_to_reference(lm, Reference(replace(lm, tokenizer=_shifted()), TEXTS))
    with pytest.raises(UserError, match="token 5 is nothing to the tokenizer of the model and 'a' to that"):
        compare_to_reference(other, Reference(lm, TEXTS))
    # A model in memory may have no tokenizer of its own.
    assert compare_to_reference(replace(lm, tokenizer=None), Reference(lm, TEXTS)).kl == 0


def _shifted() -> hf.PreTrainedTokenizerFast:
    """The letters, each with the number of the one before it."""
    import json

    from tokenizers import Tokenizer

    tokenizer = letters("start")
    spelled = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = spelled["model"]["vocab"]
    spelled["model"]["vocab"] = {
        token: number if number < 5 else 5 + (number - 6) % (len(vocabulary) - 5)
        for token, number in vocabulary.items()
    }
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(spelled))
    return tokenizer


def test_rows_that_are_too_long_for_one_of_them_are_told() -> None:
    short, long = llama(max_position_embeddings=20), llama()
    with pytest.raises(UserError, match="reads 20 tokens at most, and the model reads rows of 34"):
        compare_to_reference(short, Reference(long, TEXTS))
    assert compare_to_reference(long, Reference(short, TEXTS)).context == 20


def test_other_kinds_of_model_and_other_numbers_of_classes_are_told() -> None:
    with pytest.raises(UserError, match="one is a causal, the other a masked model"):
        check_comparable(llama(), BY_NAME["bert-masked"].lm())
    three = BY_NAME["bert-classifier"].lm()
    two = LanguageModel.of(hf.BertForSequenceClassification(hf.BertConfig(**{**_bert(three), "num_labels": 2})))
    with pytest.raises(UserError, match="2 outputs and the model 3, so that they cannot be compared"):
        check_comparable(three, two)


def _bert(lm: LanguageModel) -> dict[str, int]:
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    return {name: getattr(lm.model.config, name) for name in names}


def test_models_of_other_widths_have_a_divergence_and_no_cosine(tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(example.text for example in TEXTS.examples))
    found = evaluate(llama(hidden_size=64, head_dim=16), [f"fidelity:{texts}"], against=llama(), cost=False).to_json()
    assert found["fidelity"]["kl"] > 0 and found["fidelity"].get("cosine") is None
