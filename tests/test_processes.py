"""Two processes do what one does: the same statistics, plans and weights, and one sentence for a mistake."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import laconic
from laconic import processes
from laconic.calibrate import AbsMax, AbsMean, Calibration, Fisher, GradCovariance, InputCovariance, Mean, collect_stats
from laconic.calibrate.gates import gate_gradients
from laconic.compress import Compress, Narrow, Shorten
from laconic.compress.kl_metric import KLMetric
from laconic.errors import UserError
from laconic.methods import Awq, Drone, Gptq, KfacSvd, SparseGpt, Wanda
from laconic.model import load
from laconic.model.prunable_group import prunable_groups
from laconic.recipe.flow import apply_steps
from tests.architectures import BY_NAME, outputs
from tests.calibrate.test_collect_stats import labelled_batches
from tests.calibrate.test_experts import batches, measure, texts, tiny

KINDS = (InputCovariance, Mean, AbsMean, AbsMax, GradCovariance, Fisher)


@pytest.fixture(autouse=True)
def measured_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process must not find what two have worked out, nor the other way round."""
    monkeypatch.setenv("LACONIC_CACHE", str(tmp_path))


def batches_of(name: str, count: int) -> list[dict[str, Tensor]]:
    batches = labelled_batches(BY_NAME[name].lm(), count)
    if name == "bert-classifier":
        for number, batch in enumerate(batches):
            batch["labels"] = torch.tensor([number % 3, 1])
    return batches


def statistics_of(name: str, labels: str, count: int) -> dict[str, tuple[Tensor, float]]:
    lm = BY_NAME[name].lm()
    known = collect_stats(lm, Calibration(batches_of(name, count), labels, seed=3), set(KINDS), lm.sites(("*",)))
    return {f"{site}.{kind.__name__}": (of[kind].total, of[kind].count) for site, of in known.items() for kind in KINDS}


@pytest.mark.parametrize(
    ("name", "labels", "count"),
    [
        ("bert-classifier", "enumerated", 3),
        ("bert-classifier", "sampled", 4),
        ("bert-classifier", "data", 1),
        ("gpt2", "sampled", 3),
        ("gpt2", "data", 2),
        ("t5", "sampled", 3),
        ("albert-groups", "sampled", 1),
    ],
)
def test_statistics_are_those_of_one_process(pair, name, labels, count):
    one = statistics_of(name, labels, count)
    for two in pair(statistics_of, name, labels, count):
        assert two.keys() == one.keys()
        for key, (total, number) in one.items():
            assert two[key][1] == number, key
            assert torch.allclose(two[key][0], total, rtol=1e-9, atol=1e-12 * float(total.abs().max())), key


def experts_of(count: int) -> dict[str, tuple[Tensor, float]]:
    lm = tiny("qwen3-moe")
    stats = measure(lm, batches(texts(count), 2))
    return {f"{site}.{kind.__name__}": (of[kind].total, of[kind].count) for site, of in stats.items() for kind in KINDS}


@pytest.mark.parametrize("count", [2, 9])
@pytest.mark.filterwarnings("ignore::laconic.errors.Notice")
def test_statistics_of_experts_are_those_of_one_process(pair, count):
    """Also of experts that saw few tokens, and if a process has no batch at all."""
    one = experts_of(count)
    for two in pair(experts_of, count):
        for key, (total, number) in one.items():
            # Norms and routers compute in fp32, and round by where a tensor lies.
            assert two[key][1] == pytest.approx(number, rel=1e-5), key
            assert torch.allclose(two[key][0], total, rtol=1e-5, atol=1e-5 * float(total.abs().max())), key


def test_a_batch_draws_the_same_whatever_the_others_are():
    batches = batches_of("gpt2", 4)
    drawn = [torch.rand(3, generator=generator) for _, generator in Calibration(batches, seed=5).share("")]
    fewer = [torch.rand(3, generator=generator) for _, generator in Calibration(batches[:2], seed=5).share("")]
    assert torch.equal(torch.stack(drawn[:2]), torch.stack(fewer))
    assert len({tuple(numbers.tolist()) for numbers in drawn}) == 4


def gates_of(labels: str) -> dict[str, tuple[Tensor, Tensor]]:
    lm = BY_NAME["llama"].lm()
    found = gate_gradients(lm, Calibration(batches_of("llama", 3), labels), prunable_groups(lm))
    return {key: (gates.absolute, gates.squared) for key, gates in found.items()}


def test_gates_are_those_of_one_process(pair):
    one = gates_of("sampled")
    for two in pair(gates_of, "sampled"):
        assert all(torch.allclose(a, b, rtol=1e-9) for key in one for a, b in zip(one[key], two[key], strict=True))


def divergence_of(count: int) -> float:
    one, other = BY_NAME["gpt2"].lm(seed=0), BY_NAME["gpt2"].lm(seed=1)
    return KLMetric(one, batches_of("gpt2", count))(other)


@pytest.mark.parametrize("count", [1, 3])
def test_the_judge_has_the_mean_over_all_batches(pair, count):
    assert pair(divergence_of, count) == pytest.approx([divergence_of(count)] * 2, rel=1e-12)


STEPS = {
    "spectrum": ("bert-classifier", Compress(method=KfacSvd(multiple=1), keep=0.5, allocate="spectrum")),
    "walk": ("llama", Compress(method=KfacSvd(multiple=1), keep=0.6, anchored=True, refresh=1)),
    "zeros": ("gpt2", Compress(method=SparseGpt(sparsity=0.5))),
    "codes": ("llama", Compress(method=Gptq(bits=4, group_size=8))),
    "scales": ("llama", Compress(method=Awq(bits=4, group_size=8))),
    "global": ("bert-classifier", Compress(method=Wanda(sparsity=0.5, within="matrix"), allocate="global")),
    "search": ("bert-classifier", Compress(method=Drone(multiple=1), allocate="threshold", error=0.05)),
    "latency": (
        "bert-classifier",
        Compress(method=KfacSvd(multiple=1), keep=1.0, allocate="spectrum", currency="latency"),
    ),
    "narrow": ("llama", Narrow(heads=0.5, channels=0.5, importance="taylor", multiple=1)),
    "shorten": ("bert-classifier", Shorten(drop=1)),
    "gates": ("gpt2", Shorten(drop=1, select="taylor", replace="linear")),
}


def weights_and_outputs(case: str) -> tuple[dict[str, Tensor], Tensor]:
    name, step = STEPS[case]
    data = Calibration(batches_of(name, 4), "sampled")
    changed, _ = apply_steps(BY_NAME[name].lm(), [step], data)
    return dict(changed.model.state_dict()), outputs(changed.model)


@pytest.mark.parametrize("case", STEPS)
def test_a_step_gives_what_it_gives_one_process_and_both_the_same(pair, case):
    (first, said), (second, also_said) = pair(weights_and_outputs, case)
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert torch.equal(said, also_said)
    if case not in ("search", "latency"):
        # Those two go by measured time.
        assert torch.allclose(said, weights_and_outputs(case)[1], rtol=1e-4, atol=1e-5)


def compressed_in_memory(model: Path, texts: list[str]) -> dict[str, Tensor]:
    return laconic.compress(load(str(model)).model, "kfac-svd:multiple=1", 0.5, data=texts).model.state_dict()


def test_a_model_in_memory_is_compressed_by_both(pair, tiny_model, texts):
    first, second = pair(compressed_in_memory, tiny_model, texts.read_text().splitlines())
    assert any(name.endswith("left.weight") for name in first)
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def without_labels_in_the_second() -> None:
    batches = batches_of("bert-classifier", 2)
    del batches[1]["labels"]
    lm = BY_NAME["bert-classifier"].lm()
    collect_stats(lm, Calibration(batches, "data"), {GradCovariance}, lm.sites())


def test_what_one_process_meets_is_the_mistake_of_both(pair):
    first, second = pair(without_labels_in_the_second)
    assert first == second and "which has no labels" in first


def where_it_was_done() -> tuple[int, int, int]:
    def work() -> tuple[int, int]:
        return processes.world_size(), processes.rank()

    return (*processes.on_rank_zero(work)(), processes.world_size())


def refused_by_the_first() -> None:
    def refuse() -> None:
        raise UserError("No.")

    processes.on_rank_zero(refuse)()


def test_what_the_first_does_it_does_as_if_alone_and_the_others_have_it(pair):
    assert pair(where_it_was_done) == [(1, 0, 2), (1, 0, 2)]
    assert pair(refused_by_the_first) == ["No.", "No."]


def tensors_after_a_copy(more: int) -> list[Any]:
    mine = torch.arange(6).reshape(2, 3) + processes.rank()
    kinds = (torch.int8, torch.int16, torch.bool, torch.bfloat16, torch.float64)
    tensors = {str(kind): mine.to(kind) for kind in kinds}
    tensors |= {"turned": mine.T, "one": mine[0, 0], "none": mine[:0], "wide": torch.zeros(2 + more * processes.rank())}
    processes.broadcast_tensors(tensors)
    return [tensor.tolist() for tensor in tensors.values()]


def test_tensors_are_copied_whatever_their_kind(pair):
    first, second = pair(tensors_after_a_copy, 0)
    assert first == second
    assert all("different shapes" in said for said in pair(tensors_after_a_copy, 1))


def test_one_gpu_is_not_for_two(pair):
    assert pair(processes.local_device, "cpu") == ["cpu", "cpu"]
    assert all(re.search(r"got 'cuda:1'", said) for said in pair(processes.local_device, "cuda:1"))
    assert processes.local_device("cuda:1") == "cuda:1"
