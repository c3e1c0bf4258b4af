"""Int8 on minilm-sst2 and minilm-stsb: laconic's, torch's and ONNX Runtime's, each with its defaults.

Measured are the metric on the development set, KL to the dense model, the relative error of the last hidden states, and
milliseconds at 8 × 128 and 1 × 16 tokens on a CPU, dense and int8 in turn. `ours` is laconic, each layer on its fastest
kernel. With `always int8` all layers compute with integers, as the other libraries do. `smoothquant` runs this step
before, calibrated on 128 training rows.

Each finished variant is one line of benchmarks/results/int8.jsonl, with the machine. An interrupted run continues;
another machine measures everything again. `python -m benchmarks int8_tables` writes the tables.

ONNX Runtime takes part if `onnxruntime`, `onnx` and `onnxscript` are installed, and torch's `quantize_dynamic` if torch
has it.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from statistics import quantiles
from time import perf_counter

import torch
from torch import Tensor, nn

from benchmarks.common import RESULTS, calibration, clone, development, kl, load_model
from benchmarks.lowrank import CALIBRATION_ROWS, METRICS, MODELS
from laconic.calibrate.passes import evaluating, random_batch
from laconic.compress import Compress, SmoothQuant
from laconic.formats import DynamicInt8
from laconic.formats.autotune import Choice, machine
from laconic.formats.int8 import INT8, Int8Matrix
from laconic.formats.kernels import working_kernels
from laconic.methods import Int8
from laconic.model import Batch, LanguageModel, Predictions
from laconic.numerics.distributions import CATEGORICAL, GAUSSIAN

Model = Callable[[Batch], tuple[Tensor, Tensor]]
"""(logits, last hidden states) of a batch."""

TARGETS = {"blocks": ("blocks",), "attention": ("attention",), "ffn": ("ffn",)}
SHAPES = ((8, 128), (1, 16))
WARM_UP = 3
COMPARED_ROWS = 128
PATH = RESULTS / "int8.jsonl"


def main(argv: Sequence[str]) -> None:
    """Measure, print and store each variant that was not measured on this machine yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--runs", type=int, default=30, help="timed runs of each; at least 2")
    parser.add_argument("--only", choices=list(MODELS), help="one of the models")
    parser.add_argument("--like", default="", help="only variants with this in their name")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    RESULTS.mkdir(exist_ok=True)
    for name in [options.only] if options.only else MODELS:
        for row in measure(name, options.runs, options.like):
            print(describe(row), flush=True)
            with PATH.open("a") as file:
                file.write(json.dumps(row) + "\n")


def rows_of_all() -> list[dict]:
    """All measurements, in the order of the file."""
    return [json.loads(line) for line in PATH.read_text().splitlines()] if PATH.exists() else []


def done(name: str) -> set[str]:
    """The variants of one model that were measured on this machine."""
    return {row["way"] for row in rows_of_all() if row["model"] == name and row["machine"] == machine()}


@torch.inference_mode()
def measure(name: str, runs: int, like: str) -> Iterator[dict]:
    """One row for each missing variant of a model whose name contains `like`."""
    lm = load_model(name)
    data = development(lm, MODELS[name])
    some = development(lm, MODELS[name], COMPARED_ROWS)
    dense = plain(lm.model)
    reference, hidden = predicted(lm, dense, data), states(dense, some)
    with evaluating(lm):
        for variant, small in variants(lm, MODELS[name]).items():
            if variant in done(name) or like not in variant:
                continue
            said = predicted(lm, small, data)
            error = (states(small, some) - hidden).norm() / hidden.norm()
            row = {"model": name, "way": variant, "metric": METRICS[name], "value": metric(said), "error": error.item()}
            row |= {"kl": kl(reference, said)}
            for batch, length in SHAPES:
                row[f"{batch}x{length}"] = alternating(dense, small, random_batch(lm, batch, length), runs)
            yield row | {"runs": runs, "machine": machine()}


def describe(row: dict) -> str:
    """One line of the table; a speed is the ratio of the medians."""
    times = "".join(
        f"  {shape} {row[shape]['ms'][1]:6.1f} ms ({row[shape]['dense_ms'][1] / row[shape]['ms'][1]:.2f}×)"
        for shape in (f"{batch}x{length}" for batch, length in SHAPES)
    )
    return (
        f"{row['model']:12} {row['way']:46} {row['metric']} {row['value']:.2f}  KL {row['kl']:.5f}"
        f"  hidden states off by {row['error']:.1%}{times}"
    )


def variants(lm: LanguageModel, source: str) -> dict[str, Model]:
    """The models to compare, by name."""
    kernel = whole_numbers()
    smooth = clone(lm)
    SmoothQuant().apply(smooth, calibration(lm, source, CALIBRATION_ROWS, seed=0))
    always = {
        f"ours, always int8 ({kernel})": plain(on(kernel, ours(lm, TARGETS["blocks"])).model),
        f"ours, smoothquant + int8 always ({kernel})": plain(on(kernel, ours(smooth, TARGETS["blocks"])).model),
    }
    chosen = {f"ours, {name}": plain(ours(lm, targets).model) for name, targets in TARGETS.items()}
    others = of_torch(lm) | of_onnx_runtime(lm)
    return {"dense": plain(lm.model), **always, **chosen, **others}


def on(kernel: str, small: LanguageModel) -> LanguageModel:
    """`small`, with this kernel for all its int8 layers."""
    for layer in small.model.modules():
        if isinstance(layer, DynamicInt8):
            layer.kernel_choice = lambda rows, dtype=torch.float32: Choice(kernel, 1.0)
    return small


def ours(lm: LanguageModel, targets: tuple[str, ...]) -> LanguageModel:
    """A copy with these matrices in `dynamic-int8`."""
    small = clone(lm)
    Compress(method=Int8(), targets=targets).apply(small, None)
    return small


def whole_numbers() -> str:
    """The integer kernel with the most input levels that gives correct sums on this machine."""
    codes = torch.full((64, 64), 127, dtype=torch.int8)
    x = torch.ones(4, 64)
    x[:, 0] = 0
    return next(
        name for name in working_kernels(INT8, Int8Matrix(codes, torch.ones(64)), x) if name.startswith("onednn")
    )


def of_torch(lm: LanguageModel) -> dict[str, Model]:
    """torch's dynamic quantization: one scale for each weight matrix, one range for all rows of inputs."""
    if find_spec("torch.ao.quantization") is None:
        print("torch has no quantize_dynamic any more; it is left out")
        return {}
    model = import_module("torch.ao.quantization").quantize_dynamic(clone(lm).model, {nn.Linear}, dtype=torch.qint8)
    return {"torch quantize_dynamic": plain(model)}


def of_onnx_runtime(lm: LanguageModel) -> dict[str, Model]:
    """ONNX Runtime with the dense model and with its dynamic quantization."""
    missing = [name for name in ("onnxruntime", "onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        print(f"ONNX Runtime is left out: {', '.join(missing)} not installed")
        return {}
    quantization = import_module("onnxruntime.quantization")
    with tempfile.TemporaryDirectory() as folder:
        dense, small = Path(folder) / "dense.onnx", Path(folder) / "small.onnx"
        export(lm, dense)
        quantization.quantize_dynamic(without_shapes(dense), small, weight_type=quantization.QuantType.QInt8)
        return {"ONNX Runtime, dense": session(dense), "ONNX Runtime quantize_dynamic": session(small)}


class Answers(nn.Module):
    """The module that is exported; its inputs and outputs are tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> tuple[Tensor, Tensor]:
        inputs = {"attention_mask": attention_mask, "token_type_ids": token_type_ids}
        output = self.model(input_ids, **inputs, output_hidden_states=True)
        return output.logits, output.hidden_states[-1]


def export(lm: LanguageModel, file: Path) -> None:
    """Write `lm` for ONNX Runtime."""
    # Three separate tensors: the exporter would make one input of a tensor that is passed twice.
    inputs = (torch.ones(2, 16).long(), torch.ones(2, 16).long(), torch.zeros(2, 16).long())
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=512)}
    model = Answers(clone(lm).model).eval()
    with torch.inference_mode(False), torch.no_grad():
        program = torch.onnx.export(model, inputs, dynamic_shapes=(axes, axes, axes), dynamo=True)
    assert program is not None
    program.save(file)


def without_shapes(file: Path) -> object:
    """The exported model without the shapes of inner tensors, which the quantizer infers again."""
    model = import_module("onnx").load(file)
    del model.graph.value_info[:]
    return model


def session(file: Path) -> Model:
    """Run a model by ONNX Runtime on as many threads as torch has."""
    onnxruntime = import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    run = onnxruntime.InferenceSession(file.read_bytes(), options)
    names = [node.name for node in run.get_inputs()]

    def answers(batch: Batch) -> tuple[Tensor, Tensor]:
        inputs = {name: batch.get(name, torch.zeros_like(batch["input_ids"])).numpy() for name in names}
        logits, hidden = run.run(None, inputs)
        return torch.from_numpy(logits), torch.from_numpy(hidden)

    return answers


def plain(model: nn.Module) -> Model:
    """Run a model by torch."""

    def answers(batch: Batch) -> tuple[Tensor, Tensor]:
        output = model(**batch, output_hidden_states=True)
        return output.logits, output.hidden_states[-1]

    return answers


def without_labels(batch: Mapping[str, Tensor]) -> Batch:
    return {name: tensor for name, tensor in batch.items() if name != "labels"}


def predicted(lm: LanguageModel, model: Model, data: list[Batch]) -> Predictions:
    """The predictions of `model` on every row."""
    values = torch.cat([model(without_labels(batch))[0] for batch in data])
    labels = torch.cat([batch["labels"] for batch in data])
    return Predictions(values, torch.arange(len(values)), labels, CATEGORICAL if values.shape[1] > 1 else GAUSSIAN)


def states(model: Model, data: list[Batch]) -> Tensor:
    """The last hidden states of all tokens that are not padding."""
    return torch.cat([model(without_labels(batch))[1][batch["attention_mask"].bool()] for batch in data])


def metric(said: Predictions) -> float:
    """Accuracy, or Pearson's correlation, × 100."""
    assert said.labels is not None
    if said.distribution is CATEGORICAL:
        return 100 * (said.values.argmax(1) == said.labels).float().mean().item()
    return 100 * torch.corrcoef(torch.stack([said.values[:, 0], said.labels.float().view(-1)]))[0, 1].item()


def alternating(dense: Model, small: Model, batch: Batch, runs: int) -> dict[str, list[float]]:
    """Quartiles of the milliseconds of each model; they run in turn."""
    times: dict[str, list[float]] = {"dense_ms": [], "ms": []}
    for number in range(WARM_UP + runs):
        for name, model in (("dense_ms", dense), ("ms", small)):
            start = perf_counter()
            model(batch)
            if number >= WARM_UP:
                times[name].append(1e3 * (perf_counter() - start))
    return {name: quantiles(seconds, n=4, method="inclusive") for name, seconds in times.items()}
