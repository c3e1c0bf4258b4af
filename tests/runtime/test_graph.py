"""Exported models against the same models in torch: every kind of prediction, every format, any batch and length."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

from laconic.errors import UserError
from laconic.model import Batch, LanguageModel, run_model
from laconic.runtime import ONNX, OPENVINO
from laconic.runtime.engines import Program, load_program
from laconic.runtime.graph import build_graph, exported_bytes, write_model
from laconic.runtime.portable import to_exact
from laconic.runtime.signature import Signature
from laconic.runtime.tracing import explain
from tests.architectures import BY_NAME, batch_for
from tests.runtime.mixed import EXACT, ROUNDING, int8, mixed, plain, quantized

for name in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(name)
openvino = pytest.importorskip("openvino")

CLOSE = 2e-5
ONE_OF_EACH = ("bert-classifier", "bert-base", "bert-masked", "llama", "bart")


def exported(lm: LanguageModel, runtime: str, folder: Path, hidden: bool = False) -> tuple[Signature, Program]:
    graph = build_graph(lm, runtime, hidden)
    file = write_model(lm, graph, runtime, folder)
    return graph.signature, load_program(runtime, file, exact=True)


def batch_of(lm: LanguageModel, rows: int, length: int) -> Batch:
    """Random tokens, every row but the first with padding, and targets of another length."""
    generator = torch.Generator().manual_seed(rows + 10 * length)
    batch = batch_for(lm.model)
    batch["input_ids"] = torch.randint(3, 40, (rows, length), generator=generator)
    batch["attention_mask"] = torch.ones(rows, length, dtype=torch.long)
    for row in range(1, rows):
        batch["attention_mask"][row, length - min(row, length - 1) :] = 0
    if "decoder_input_ids" in batch:
        batch["decoder_input_ids"] = torch.randint(3, 40, (rows, length + 3), generator=generator)
    return batch


@torch.no_grad()
def worst(lm: LanguageModel, signature: Signature, ran: Program, reference: LanguageModel) -> float:
    """The largest error of any output that is read, as part of the largest."""
    error, largest = 0.0, 0.0
    for rows, length in ((1, 1), (2, 8), (3, 5), (5, 20)):
        batch = batch_of(lm, rows, length)
        found = ran(signature.feeds(lm, batch))
        hidden = {"output_hidden_states": True} if len(signature.outputs) > 1 else {}
        output = run_model(reference, batch, **hidden)
        for name in signature.outputs:
            ours = output[name] if name in output else output["hidden_states"][-1]
            counted = batch["attention_mask"].bool() if _by_token(ours, batch) else ...
            error = max(error, (ours - found[name])[counted].abs().max().item())
            largest = max(largest, ours[counted].abs().max().item())
    return error / largest


def _by_token(output: Tensor, batch: Batch) -> bool:
    return output.shape[:2] == batch["attention_mask"].shape and "decoder_input_ids" not in batch


@pytest.mark.parametrize("name", ONE_OF_EACH)
@pytest.mark.slow
def test_every_kind_of_prediction_is_exported(tmp_path: Path, name: str) -> None:
    lm, graph = plain(name)
    for runtime in (ONNX, OPENVINO):
        ran = load_program(runtime, write_model(lm, graph, runtime, tmp_path))
        assert worst(lm, graph.signature, ran, lm) < CLOSE


@pytest.mark.parametrize("runtime", [ONNX, OPENVINO])
@pytest.mark.slow
def test_every_format_is_exported(tmp_path: Path, runtime: str) -> None:
    lm = mixed(BY_NAME["bert-classifier"].lm(), EXACT, quantized(8, None))
    signature, ran = exported(lm, runtime, tmp_path)
    assert worst(lm, signature, ran, to_exact(lm, runtime)) < CLOSE
    assert worst(lm, signature, ran, lm) < 0.02


@pytest.mark.parametrize("runtime", [ONNX, OPENVINO])
@pytest.mark.slow
def test_int8_is_computed_as_it_is_in_torch(tmp_path: Path, runtime: str) -> None:
    lm = mixed(BY_NAME["llama"].lm(), ROUNDING, int8)
    signature, ran = exported(lm, runtime, tmp_path, hidden=True)
    # Rounding goes another way here and there, but not on most numbers.
    assert worst(lm, signature, ran, to_exact(lm, runtime)) < (0.02 if runtime == ONNX else CLOSE)


@pytest.mark.parametrize(("maker", "group"), [(int8, "128"), (quantized(4, 16), "0")])
def test_the_file_says_in_which_groups_inputs_are_rounded(tmp_path: Path, maker: Callable, group: str) -> None:
    # Only one format of laconic rounds inputs; OpenVINO would round those of all codes, in groups of its own.
    lm = mixed(BY_NAME["bert-classifier"].lm(), {"one": maker})
    file = write_model(lm, build_graph(lm, OPENVINO), OPENVINO, tmp_path)
    written = openvino.Core().read_model(file)
    assert written.get_rt_info(["runtime_options", "DYNAMIC_QUANTIZATION_GROUP_SIZE"]).astype(str) == group


@pytest.mark.slow
def test_codes_are_smaller_in_the_file(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {}
    for name, maker in {"dense": None, "four": quantized(4, 16), "int8": int8}.items():
        folder = tmp_path / name
        folder.mkdir()
        if maker is None:
            write_model(*plain("bert-classifier"), ONNX, folder)
        else:
            exported(mixed(BY_NAME["bert-classifier"].lm(), {name: maker}), ONNX, folder)
        sizes[name] = exported_bytes(folder)
    matrices = sum(site.shape[0] * site.shape[1] for site in BY_NAME["bert-classifier"].lm().sites(("blocks",)))
    assert sizes["dense"] - sizes["int8"] > matrices
    assert sizes["dense"] - sizes["four"] > 2 * matrices


def test_nothing_of_this_machine_is_in_the_file(tmp_path: Path) -> None:
    write_model(*plain("bert-classifier"), ONNX, tmp_path)
    written = (tmp_path / "model.onnx").read_bytes()
    assert b"site-packages" not in written and b".py" not in written


@pytest.mark.slow
def test_weights_stored_in_16_bits_take_16_bits(tmp_path: Path) -> None:
    lm = BY_NAME["bert-classifier"].lm()
    lm.model.half().float()
    sizes = []
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        folder = tmp_path / str(dtype)
        folder.mkdir()
        signature, ran = exported(lm.with_dtype(dtype), ONNX, folder)
        assert worst(lm, signature, ran, lm) < CLOSE
        sizes.append(exported_bytes(folder))
    # What bfloat16 cannot hold exactly stays as it is.
    assert sizes[1] < 0.75 * sizes[0] and sizes[2] == pytest.approx(sizes[0], rel=0.05)


def test_what_torch_cannot_trace_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"architecture 'longformer' cannot be exported: .*use it in torch"):
        build_graph(BY_NAME["longformer-classifier"].lm(), ONNX)


@pytest.mark.parametrize("maker", [*EXACT.values(), *ROUNDING.values()])
def test_no_tensor_is_shared_with_the_model(maker: Callable) -> None:
    lm = mixed(BY_NAME["bert-classifier"].lm(), {"one": maker})
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    twin = to_exact(lm, ONNX)
    assert twin.model is not lm.model
    assert all(torch.equal(tensor, before[name]) for name, tensor in lm.model.state_dict().items())


@pytest.mark.slow
def test_slopes_in_bfloat16_are_computed(tmp_path: Path) -> None:
    lm, graph = plain("falcon-alibi")
    ran = load_program(ONNX, write_model(lm, graph, ONNX, tmp_path))
    assert worst(lm, graph.signature, ran, lm) < CLOSE


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::laconic.errors.StructureNotice")
def test_a_mask_of_integers_is_subtracted_from_one(tmp_path: Path) -> None:
    config = hf.XLNetConfig(vocab_size=50, d_model=16, n_layer=1, n_head=2, d_inner=16)
    lm = LanguageModel.of(hf.XLNetLMHeadModel(config).eval())
    signature, ran = exported(lm, ONNX, tmp_path)
    assert worst(lm, signature, ran, lm) < CLOSE


def test_the_attention_of_big_bird_depends_on_the_length() -> None:
    config = hf.BigBirdConfig(vocab_size=80, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    lm = LanguageModel.of(hf.BigBirdForMaskedLM(config).eval())
    with pytest.raises(
        UserError, match=r"cannot be exported with its block-sparse attention: .* 'original_full' in its"
    ):
        build_graph(lm, ONNX)


@pytest.mark.filterwarnings("ignore::laconic.errors.StructureNotice")
def test_chunks_of_linear_attentions_are_refused_before_they_are_traced() -> None:
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
    linear: dict[str, Any] = {
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    }
    types = ["linear_attention", "full_attention"]
    config = hf.Qwen3_5TextConfig(vocab_size=50, intermediate_size=16, layer_types=types, **sizes, **linear)
    with pytest.raises(UserError, match=r"as its state spaces or linear attentions compute one"):
        build_graph(LanguageModel.of(hf.Qwen3_5ForCausalLM(config)), ONNX)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("tracing inferred a static shape of 7 for dimension inputs[0].shape[1]", "which fixes their number"),
        ("Could not guard on data-dependent expression 4*u1 < 8", "the numbers in a text decide"),
        ("Error when translating node %x[target=torch.ops.aten.unsqueeze.default]", "operation aten.unsqueeze is not"),
        ("_apply(): Couldn't swap Linear.weight", "torch does not follow its code"),
    ],
)
def test_a_message_of_the_exporter_is_a_reason(message: str, reason: str) -> None:
    assert reason in explain(message)
