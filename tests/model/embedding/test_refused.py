"""Modules of sentence-transformers that laconic does not compute are refused before any weight is read."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel

import laconic
from laconic.cli.main import status
from laconic.errors import UserError
from laconic.model import check_model
from tests.architectures import BY_NAME, WIDTH
from tests.sentences import NEW, NORMALIZE, Part, dense, pooling, sentence_folder, write


def refused(folder: Path, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=sentence):
        check_model(str(folder))
    # The bar of the writer of the folder.
    capsys.readouterr()
    assert status(["inspect", str(folder)]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and "Traceback" not in said


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ([Part("WordWeights", {})], "names 'WordWeights' as module 1 of a SentenceTransformer, which laconic does not"),
        ([Part("WeightedLayerPooling", {}), pooling("mean")], "names 'WeightedLayerPooling' as module 1"),
        ([NORMALIZE], r"is out of order: a module \(unit length\) reads 'sentence_embedding', which none before"),
        ([], "names no module that makes one vector of the tokens; add a Pooling module"),
        ([pooling("median")], "pools by 'median', which laconic does not know; it knows cls, max, mean"),
        ([pooling("mean"), dense(WIDTH + 1, 8)], r"\(dense 33 → 8 Tanh\) reads vectors of 33 numbers, and would get"),
        ([pooling("mean", "cls"), dense(WIDTH, 8)], "reads vectors of 32 numbers, and would get vectors of 64"),
        ([pooling("mean"), dense(WIDTH, 8, "own.Curve")], "'own.Curve', which is no class of torch.nn"),
        ([pooling("mean"), dense(WIDTH, 8, "torch.nn.functional.gelu")], "functional.gelu', which is no class"),
        ([pooling("mean"), dense(WIDTH, 8)._replace(tensors=None)], "has neither model.safetensors nor"),
        ([pooling("mean"), Part("Dense", {"in_features": 32})], "config.json in '2_Dense' of .* lacks 'out"),
        (
            [pooling("mean"), dense(WIDTH, 8)._replace(config={**(dense(WIDTH, 9).config or {})})],
            r"'linear.bias' has shape \(8,\) in the file and \(9,\) in the module",
        ),
        (
            [pooling("mean"), dense(WIDTH, 8)._replace(tensors={"linear.weight": torch.zeros(8, WIDTH)})],
            "The weights in '2_Dense' of .* lack 'linear.bias'",
        ),
        ([Part("Pooling", {"pooling_mode": []})], "has an empty pooling_mode"),
        ([pooling("mean"), Part("LayerNorm", {"dimension": -3})], "config.json in '2_LayerNorm' of .* makes no sense"),
        (
            [pooling("mean"), Part("Dense", {"in_features": WIDTH, "out_features": -1})],
            r"config.json in '2_Dense' of .* makes no sense \(Trying to create tensor with negative dimension",
        ),
        ([pooling("mean"), dense(WIDTH, 8, "torch.nn.Module")], "'torch.nn.Module', which cannot be applied to a .*: "),
        ([pooling("mean"), dense(WIDTH, 8, "torch.nn.GLU")], "'torch.nn.GLU', which changes the width of a vector"),
        ([pooling("mean"), dense(WIDTH, 8, "torch.nn.Linear")], "'torch.nn.Linear', which cannot be applied to a .*: "),
        (
            [pooling("mean"), Part("Normalize", {"module_input_name": "image_embeds"})],
            "reads or writes 'image_embeds', and laconic knows token_embeddings and sentence_embedding",
        ),
    ],
)  # fmt: skip
def test_modules(parts: list[Part], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(sentence_folder(tmp_path / "model", parts), sentence, capsys)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"transformer_task": "fill-mask"}, "says transformer_task 'fill-mask', which laconic does not apply"),
        ({"config_args": {"is_causal": False}}, "says config_args.is_causal, .* write it into config.json"),
        ({"tokenizer_args": {"add_eos_token": True}}, "says tokenizer_args.add_eos_token, .* tokenizer_config.json"),
        (
            {"modality_config": {"text": {"method": "get_text_features"}}},
            "another output than the last_hidden_state",
        ),
        (
            {"modality_config": {"message": {"method": "forward", "method_output_name": "last_hidden_state"}}},
            "texts are put into a chat template",
        ),
        ({"modality_config": {"text": "forward"}}, "modality_config.text must be an object; got 'forward'"),
        ({"modality_config": [1]}, "modality_config must be an object; got"),
        ({"config_args": ["is_causal"]}, "config_args must be an object; got"),
        ({"max_seq_length": 0}, "max_seq_length must be a whole number above 0; got 0"),
        ({"max_seq_length": -1}, "max_seq_length must be a whole number above 0; got -1"),
        ({"max_seq_length": "128"}, "max_seq_length must be a whole number above 0; got '128'"),
        ({"max_seq_length": True}, "max_seq_length must be a whole number above 0; got True"),
        ({"tokenizer_args": {"model_max_length": 12.5}}, "model_max_length must be a whole number above 0; got 12.5"),
        (
            {"processing_kwargs": {"text": {"max_length": 0}}},
            r"processing_kwargs\.text\.max_length must be a whole number above 0; got 0",
        ),
        ({"query_expansion": {"length": 32}}, "says query_expansion, which laconic does not apply"),
    ],
)
def test_settings_of_the_transformer(
    settings: dict[str, Any], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(sentence_folder(tmp_path / "model", [pooling("mean")], settings=settings), sentence, capsys)


@pytest.mark.parametrize(
    ("top", "sentence"),
    [
        (
            {"model_type": "SparseEncoder"},
            "is a SparseEncoder of sentence-transformers, whose outputs",
        ),
        ({"model_type": "MultiVectorEncoder"}, "is a MultiVectorEncoder of sentence-transformers"),
        ({"prompts": {"query": "q: "}, "default_prompt_name": "doc"}, "the default prompt 'doc', which is none of its"),
        ({"similarity_fn_name": "maxsim"}, "must be one of cosine, dot, euclidean, manhattan; got 'maxsim'"),
        ({"prompts": {"query": 3}}, "prompts in .* must be an object of texts by name; got {'query': 3}"),
        ({"model_type": ["SentenceTransformer"]}, "model_type in .* must be a text; got"),
        ({"truncate_dim": -3}, "truncate_dim in config_sentence_transformers.json .* must be a number of 1 or more"),
    ],
)
def test_settings_of_the_whole(
    top: dict[str, Any], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(sentence_folder(tmp_path / "model", [pooling("mean")], top=top), sentence, capsys)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"type": "custom_st.Transformer"}, "needs custom code: its modules.json names 'custom_st.Transformer'"),
        ({"type": "sentence_transformers_own.Pooling"}, "needs custom code"),
        ({"type": "sentence_transformers.base.modules.router.Router"}, "names 'Router' as module 0"),
        ({"type": "sentence_transformers.models.StaticEmbedding"}, "names 'StaticEmbedding' as module 0"),
        ({"path": "../elsewhere"}, r"names the folder '../elsewhere', which is not in that of the model"),
        ({"path": "/tmp"}, "names the folder '/tmp', which is not in that of the model"),
        ({"path": "C:\\models"}, "which is not in that of the model"),
        ({"path": None}, "has no type and path"),
    ],
)
def test_entries_of_modules_json(
    change: dict[str, Any], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = sentence_folder(tmp_path / "model", [pooling("mean")])
    listed = json.loads((folder / "modules.json").read_text())
    write(folder / "modules.json", [{**listed[0], **change}, *listed[1:]])
    refused(folder, sentence, capsys)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "it is not JSON"),
        ('{"a": 1}', "must be a JSON list; got"),
        ("[]", "names no module"),
        ("[1]", "has no type"),
    ],
)
def test_a_broken_modules_json(text: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = sentence_folder(tmp_path / "model", [pooling("mean")])
    (folder / "modules.json").write_text(text)
    refused(folder, sentence, capsys)


def test_a_pickle_that_asks_for_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    part = dense(WIDTH, 8)
    folder = sentence_folder(tmp_path / "model", [pooling("mean"), part._replace(tensors=None)])
    torch.save({**(part.tensors or {}), "more": os.path.basename}, folder / "2_Dense" / "pytorch_model.bin")
    refused(folder, "is a pickle that asks to run", capsys)


def test_an_encoder_decoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = sentence_folder(tmp_path / "model", [pooling("mean")], model=BY_NAME["bart"].model())
    refused(folder, "by the architecture 'bart', which has no plain encoder", capsys)


def test_of_a_model_in_memory(tmp_path: Path) -> None:
    folder = sentence_folder(tmp_path / "model", [Part("WordWeights", {}), pooling("mean")])
    model = AutoModel.from_pretrained(folder)
    with pytest.raises(UserError, match="names 'WordWeights' as module 1"):
        laconic.compress(model, "svd", keep=0.5)


def test_a_cross_encoder_of_several_modules(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = [pooling("cls"), dense(WIDTH, 1)]
    top = {"model_type": "CrossEncoder"}
    refused(sentence_folder(tmp_path / "model", parts, top=top, layout=NEW), "names 'Pooling' as module 1 of a", capsys)
