"""Vectors of a folder of sentence-transformers are those that the library makes of it, and of what laconic saves."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import laconic
from laconic.formats import PackedEmbedding
from laconic.model import load
from laconic.store import save
from tests.architectures import BY_NAME, WIDTH, compress_everything
from tests.model.embedding.sentence_transformers_reference import encoded, installed_package, predicted
from tests.sentences import NORMALIZE, dense, pooling, sentence_folder

MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
PROMPT = {"prompts": {"query": "so: ", "document": ""}, "default_prompt_name": "query"}


def check(folder: Path) -> None:
    """The library and laconic agree on `folder`, and the library on what laconic makes of it."""
    wanted = encoded(folder)
    lm = load(str(folder))
    torch.testing.assert_close(predicted(lm), wanted, rtol=1e-4, atol=2e-6)
    out = folder.with_name("out")
    save(lm, out)
    assert torch.equal(encoded(out), wanted)
    torch.testing.assert_close(predicted(load(str(out))), wanted, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("prompted", [False, True])
def test_pooling(mode: str, prompted: bool, tmp_path: Path) -> None:
    parts = [pooling(mode, include_prompt=not prompted)]
    check(sentence_folder(tmp_path / "model", parts, top=PROMPT if prompted else None))


@pytest.mark.parametrize(
    "parts",
    [
        [pooling("cls"), NORMALIZE],
        [pooling("mean", "cls", "max"), dense(3 * WIDTH, 16), NORMALIZE],
        [pooling("mean"), dense(WIDTH, 16, "torch.nn.modules.linear.Identity")],
        [pooling("mean"), dense(WIDTH, 16, "torch.nn.modules.activation.GELU"), dense(16, 8)],
    ],
)
def test_what_comes_behind_it(parts: list[Any], tmp_path: Path) -> None:
    check(sentence_folder(tmp_path / "model", parts))


def test_what_is_said_of_texts(tmp_path: Path) -> None:
    settings = {"max_seq_length": 9, "do_lower_case": True}
    check(sentence_folder(tmp_path / "model", [pooling("mean")], settings=settings, top={**PROMPT, "truncate_dim": 7}))


def test_the_layout_of_the_first_versions(tmp_path: Path) -> None:
    flags = {"word_embedding_dimension": WIDTH, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}
    parts = [pooling()._replace(config=flags), dense(2 * WIDTH, 8), NORMALIZE]
    folder = sentence_folder(tmp_path / "model", parts, layout={}, inside="0_Transformer", pickled=True)
    check(folder)
    out = tmp_path / "out"
    # As the library saves it: the transformer at the top, and nothing pickled.
    assert json.loads((out / "modules.json").read_text())[0]["path"] == ""
    assert not list(out.rglob("*.bin")) and (out / "2_Dense" / "model.safetensors").is_file()


@pytest.mark.parametrize("name", ["llama", "qwen3", "bert-masked", "roberta-masked", "t5", "modernbert-masked", "opt"])
def test_transformers_saved_with_a_head(name: str, tmp_path: Path) -> None:
    check(sentence_folder(tmp_path / "model", [pooling("lasttoken"), NORMALIZE], model=BY_NAME[name].model()))


@pytest.mark.parametrize("build", ["residual", "tokens", "norm"])
def test_folders_that_the_library_wrote(build: str, tmp_path: Path) -> None:
    sentence_folder(tmp_path / "base", [])
    (tmp_path / "base" / "modules.json").unlink()
    torch.manual_seed(0)
    with installed_package() as package:
        from sentence_transformers.sentence_transformer import modules as made

        parts: dict[str, Callable[[], list[Any]]] = {
            "residual": lambda: [
                made.Pooling(WIDTH, "mean"),
                made.Dense(WIDTH, 16, use_residual=True, activation_function=torch.nn.PReLU()),
                made.Dense(16, 16, bias=False, use_residual=True),
            ],
            "tokens": lambda: [
                made.Dense(WIDTH, 16, module_input_name="token_embeddings"),
                made.Normalize(module_input_name="token_embeddings"),
                made.Pooling(16, "mean"),
            ],
            "norm": lambda: [made.Pooling(WIDTH, "mean"), made.LayerNorm(WIDTH), made.Dropout(0.5), made.Normalize()],
        }
        transformer = made.Transformer(str(tmp_path / "base"), max_seq_length=9, do_lower_case=True)
        package.SentenceTransformer(modules=[transformer, *parts[build]()]).save(str(tmp_path / "model"))
    check(tmp_path / "model")


def test_an_adapter_behind_which_vectors_are_declared(tmp_path: Path) -> None:
    sentence_folder(tmp_path / "base", [])
    (tmp_path / "base" / "modules.json").unlink()
    with installed_package() as package:
        from peft import LoraConfig
        from sentence_transformers.sentence_transformer import modules as made

        torch.manual_seed(0)
        transformer = made.Transformer(str(tmp_path / "base"))
        model = package.SentenceTransformer(modules=[transformer, made.Pooling(WIDTH, "cls")], device="cpu")
        model.add_adapter(LoraConfig(r=4, target_modules=["query"], init_lora_weights=False))
        model.save(str(tmp_path / "model"))
    assert not (tmp_path / "model" / "config.json").exists()
    lm = load(str(tmp_path / "model"))
    wanted = encoded(tmp_path / "model")
    torch.testing.assert_close(predicted(lm), wanted, rtol=1e-4, atol=2e-6)
    save(lm, tmp_path / "out")
    torch.testing.assert_close(encoded(tmp_path / "out"), wanted, rtol=1e-4, atol=2e-6)


def test_a_compressed_model_is_read_by_the_library(tmp_path: Path) -> None:
    folder = sentence_folder(tmp_path / "model", [pooling("cls"), dense(WIDTH, 16), NORMALIZE])
    lm = compress_everything(load(str(folder)), rank=6)
    save(lm, tmp_path / "out")
    made = encoded(tmp_path / "out")
    torch.testing.assert_close(made, predicted(lm), rtol=1e-4, atol=2e-6)
    assert (made - encoded(folder)).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["bert-base", "qwen3"])
@pytest.mark.parametrize("method", ["rtn:bits=4,group_size=16", "dynamic-int8"])
def test_word_embeddings_of_codes_are_read_by_the_library(name: str, method: str, tmp_path: Path) -> None:
    parts = [pooling("mean"), dense(WIDTH, 16), NORMALIZE]
    folder = sentence_folder(tmp_path / "model", parts, model=BY_NAME[name].model())
    with installed_package() as package:
        model = package.SentenceTransformer(str(folder), device="cpu")
        laconic.compress(model.transformers_model, method, targets="all")
        model.save(str(tmp_path / "out"))
    lm = load(str(tmp_path / "out"))
    assert any(isinstance(module, PackedEmbedding) for module in lm.model.modules())
    torch.testing.assert_close(encoded(tmp_path / "out"), predicted(lm), rtol=1e-4, atol=2e-6)


def test_a_transformer_is_compressed_inside_the_library(tmp_path: Path) -> None:
    folder = sentence_folder(tmp_path / "model", [pooling("cls"), NORMALIZE])
    with installed_package() as package:
        model = package.SentenceTransformer(str(folder), device="cpu")
        before = model.encode(["it was"])
        laconic.compress(model.transformers_model, "svd:rank=6")
        changed = model.encode(["it was"])
        model.save(str(tmp_path / "out"))
    assert abs(changed - before).max() > 1e-3
    torch.testing.assert_close(encoded(tmp_path / "out", ["it was"]), torch.tensor(changed))
    torch.testing.assert_close(predicted(load(str(tmp_path / "out")), ["it was"]), torch.tensor(changed))
