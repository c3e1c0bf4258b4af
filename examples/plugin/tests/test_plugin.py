"""The checks of `laconic.testing` for the method, the step and the architecture, and a test of each object."""

import torch
from laconic_example.architecture import Relu2Config, Relu2ForCausalLM
from laconic_example.method import Coala
from laconic_example.step import ClipWeights
from laconic_example.task import NextToken

from laconic.calibrate import InputCovariance, LayerStats
from laconic.testing import check_architecture, check_method, check_step, random_matrix

CONFIG = Relu2Config(
    vocab_size=50,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)


def test_the_method_keeps_the_contract() -> None:
    check_method(Coala(multiple=1))


def test_the_architecture_keeps_the_contract() -> None:
    check_architecture(Relu2ForCausalLM(CONFIG))


def test_the_step_keeps_the_contract() -> None:
    check_step(ClipWeights(deviations=1.5), Relu2ForCausalLM(CONFIG))


def test_the_task_is_found_by_its_name() -> None:
    task = NextToken.from_name("next-token:builtin:pydoc")
    assert task.name == "next-token:builtin:pydoc" and task.source == "builtin:pydoc"


def test_the_method_solves_the_regularized_problem() -> None:
    """No other matrix of the rank has a lower value of the objective: its gradient is zero on both factors."""
    matrix = random_matrix("", (24, 40))
    W, C = matrix.weight.double(), matrix.stats[InputCovariance].matrix.double()
    mu = 0.3 * C.trace() / len(C)
    stats = LayerStats([InputCovariance.from_moment(C, count=1)])
    A, B = Coala(mu=0.3).components(W, stats)
    A, B = A[:, :5].clone().requires_grad_(), B[:5].clone().requires_grad_()
    E = W - A @ B
    ((E @ C * E).sum() + mu * E.square().sum()).backward()
    assert A.grad is not None and B.grad is not None
    assert torch.stack([A.grad.abs().max(), B.grad.abs().max()]).max() < 1e-9
