"""A folder is written whole or not at all, in the stored dtype, and can be saved again."""

import dataclasses
import json
import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers.modeling_utils
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import laconic
from laconic.errors import UserError
from laconic.formats import Format
from laconic.model import LanguageModel, load
from laconic.store import ExtraFiles, file_bytes, save
from laconic.store.atomic import new_folder
from tests.architectures import BY_NAME, compress_everything, factors, outputs

assert laconic


def compressed(name: str = "bert-classifier", dtype: torch.dtype = torch.float32) -> LanguageModel:
    return compress_everything(BY_NAME[name].lm().with_dtype(dtype), rank=4)


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "brevity": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")


def failing(error: BaseException) -> Callable[..., None]:
    """A writer that leaves half a file and fails."""

    def write(tensors: object, filename: str, metadata: object = None) -> None:
        Path(filename).write_bytes(b"half")
        raise error

    return write


def test_everything_that_belongs_to_a_model_is_there(tmp_path: Path) -> None:
    lm = dataclasses.replace(
        compressed("bart"), tokenizer=tokenizer(), target_tokenizer=tokenizer(), source="org/model"
    )
    save(lm, tmp_path / "out", ExtraFiles(recipe="model: org/model\n"))
    assert (tmp_path / "out" / "recipe.yaml").read_text() == "model: org/model\n"
    assert (tmp_path / "out" / "generation_config.json").is_file()
    assert AutoTokenizer.from_pretrained(tmp_path / "out" / "target_tokenizer")("brevity")["input_ids"] == [1]
    again = load(str(tmp_path / "out"))
    assert again.tokenizer is not None
    assert again.target_tokenizer is not None
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith(
        "---\nlibrary_name: transformers\npipeline_tag: text2text-generation\nbase_model: org/model\n"
    )
    assert "import laconic" in card
    assert "AutoModelForSeq2SeqLM.from_pretrained" in card
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_given_card_is_used(tmp_path: Path) -> None:
    save(compressed(), tmp_path / "out", ExtraFiles(card="# Mine\n"))
    assert (tmp_path / "out" / "README.md").read_text() == "# Mine\n"


def test_a_card_shows_names_as_they_are(tmp_path: Path) -> None:
    name = "a|b <i>c"
    save(dataclasses.replace(compressed(), source=str(tmp_path / name)), tmp_path / name)
    card = (tmp_path / name / "README.md").read_text()
    assert "\n# a\\|b &lt;i&gt;c\n" in card and f"`{name}`" in card


def test_card_names_no_local_path(tmp_path: Path) -> None:
    save(dataclasses.replace(compressed(), source=str(tmp_path / "original")), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "`original`" in card
    assert str(tmp_path) not in card


def test_plain_model_is_saved_as_a_stock_checkpoint(tmp_path: Path) -> None:
    lm = BY_NAME["gpt2"].lm()
    save(lm, tmp_path / "out")
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert torch.equal(outputs(load(str(tmp_path / "out")).model), outputs(lm.model))


def test_stored_dtype(tmp_path: Path) -> None:
    lm = compressed("t5", torch.float16)
    before = outputs(lm.model)
    save(lm, tmp_path / "out")
    assert torch.equal(outputs(lm.model), before)
    assert lm.model.dtype == torch.float32
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float16"
    assert {t.dtype for n, t in load_file(tmp_path / "out" / "model.safetensors").items() if ".wo." not in n} == {
        torch.float16
    }
    assert load(str(tmp_path / "out")).dtype == torch.float16


def test_what_stays_in_float32_is_not_rounded(tmp_path: Path) -> None:
    lm = BY_NAME["t5"].lm().with_dtype(torch.float16)
    save(lm, tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    name = "encoder.block.0.layer.1.DenseReluDense.wo.weight"
    assert torch.equal(stored[name], lm.model.get_parameter(name))
    # One that float16 holds exactly is stored in it, as its size was counted.
    site = lm.sites((name.removesuffix(".weight"),))[0]
    lm.replace(site, factors(site, rank=2))
    save(lm, tmp_path / "compressed")
    left = load_file(tmp_path / "compressed" / "model.safetensors")[name.replace(".weight", ".left.weight")]
    assert left.dtype == torch.float16


@pytest.mark.parametrize("name", ["bert-masked", "t5", "bart-scaled", "llama-tied"])
def test_saving_again_gives_the_same_bytes(tmp_path: Path, name: str) -> None:
    save(compressed(name, torch.float16), tmp_path / "first")
    save(load(str(tmp_path / "first")), tmp_path / "second")
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


def test_shards(tmp_path: Path) -> None:
    lm = compressed("gpt2")
    save(lm, tmp_path / "out", max_shard_size="10KB")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    assert torch.equal(outputs(load(str(tmp_path / "out")).model), outputs(lm.model))


def test_claimed_bytes_are_the_bytes_written(tmp_path: Path) -> None:
    dense, lm = BY_NAME["llama"].lm(), compressed("llama")
    save(lm, tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    formats = [(name, module) for name, module in lm.model.named_modules() if isinstance(module, Format)]
    assert len(formats) == len(dense.sites(("*",)))
    for name, format in formats:
        assert sum(t.nbytes for n, t in stored.items() if n.startswith(f"{name}.")) == format.nbytes()
    assert file_bytes(tmp_path / "out") == os.path.getsize(tmp_path / "out" / "model.safetensors")


def test_existing_folder_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="exists already; name a new folder"):
        save(compressed(), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("error", "raised", "sentence"),
    [
        (
            SafetensorError("I/O error: No space left on device (os error 28)"),
            UserError,
            "The disk is full: .*out' was",
        ),
        (OSError(28, "No space left on device"), UserError, "The disk is full"),
        (PermissionError(13, "Permission denied"), UserError, "cannot be written: Permission denied"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
        (RuntimeError("shared tensors"), RuntimeError, "shared tensors"),
    ],
)
def test_nothing_is_left_of_a_failed_save(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    raised: type[BaseException],
    sentence: str | None,
) -> None:
    monkeypatch.setattr(transformers.modeling_utils, "safe_save_file", failing(error))
    with pytest.raises(raised, match=sentence):
        save(compressed(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("length", [None, 7])
def test_a_tokenizer_cuts_where_it_did_and_not_where_the_last_call_did(tmp_path: Path, length: int | None) -> None:
    words = tokenizer()
    if length is not None:
        words.backend_tokenizer.enable_truncation(length)
    words.save_pretrained(tmp_path / "words")
    lm = dataclasses.replace(compressed("gpt2"), tokenizer=AutoTokenizer.from_pretrained(tmp_path / "words"))
    lm.tokenizer("brevity is the soul of wit", truncation=True, max_length=3)  # type: ignore[misc]
    save(lm, tmp_path / "out")
    cut = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json")).truncation
    assert (cut and cut["max_length"]) == length


@pytest.mark.parametrize("field", ["tokenizer", "target_tokenizer"])
def test_nothing_is_left_where_the_tokenizer_does_not_fit(tmp_path: Path, field: str) -> None:
    """A limit on the size of a file, which the weights keep and a tokenizer of many words does not."""
    words = Tokenizer(models.WordLevel({f"word-{number}": number for number in range(50_000)}, unk_token="word-0"))
    large = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="word-0")
    lm = dataclasses.replace(compressed(), **{field: large})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, hard))
    try:
        with pytest.raises(UserError, match="cannot be written: File too large"):
            save(lm, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []
    save(lm, tmp_path / "out")


def test_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be made: .*file' is not a folder"):
        save(compressed(), tmp_path / "file" / "out")


def test_leftovers_of_killed_runs_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".out.partial-0123").mkdir()
    (tmp_path / ".out.partial-0123" / "model.safetensors").touch()
    (tmp_path / ".out.lock").touch()
    save(compressed(), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_two_writers_of_one_folder(tmp_path: Path) -> None:
    with new_folder(tmp_path / "out") as partial:
        (partial / "mine").touch()
        with pytest.raises(UserError, match="Another run is writing"):
            save(compressed(), tmp_path / "out")
    assert (tmp_path / "out" / "mine").exists()
