"""However a model lays out its rows, those of padding do not count."""

import pytest
import torch

from laconic.calibrate import Calibration, Fisher, GradCovariance, InputCovariance, collect_stats
from laconic.calibrate.token_rows import token_rows
from laconic.model import InputTokens, predict
from tests.architectures import BY_NAME
from tests.calibrate.test_collect_stats import labelled_batches

SOURCE = torch.tensor([[1, 1, 1], [1, 0, 0]]).bool()
TARGET = torch.tensor([[1, 1], [1, 0]]).bool()


@pytest.mark.parametrize(
    ("shape", "reads", "tokens_first", "counted"),
    [
        ((2, 3), InputTokens.SOURCE, False, [[1, 1, 1], [1, 0, 0]]),
        ((2, 2), InputTokens.TARGET, False, [[1, 1], [1, 0]]),
        ((6,), InputTokens.SOURCE, False, [[1, 1, 1], [1, 0, 0]]),  # folded, as OPT does
        ((2, 4), InputTokens.SOURCE, False, [[1, 1, 1, 0], [1, 0, 0, 0]]),  # padded to a window
        ((4, 2), InputTokens.SOURCE, True, [[1, 1, 1, 0], [1, 0, 0, 0]]),
        ((2, 3, 2), InputTokens.SOURCE, False, [[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]]),  # head by head
        ((2,), InputTokens.SOURCE, False, [[1], [1]]),  # pooled
        ((2, 1), InputTokens.SOURCE, False, [[1], [1]]),
        ((1, 6), InputTokens.OWN, False, [[1, 1, 1, 1, 1, 1]]),  # as many positions as tokens, by chance
        ((1, 2), InputTokens.OWN, True, [[1], [1]]),  # a global token in each row
        ((2, 2), InputTokens.EITHER, False, [[1, 1], [1, 0]]),
        ((2, 3), InputTokens.EITHER, False, [[1, 1, 1], [1, 0, 0]]),
    ],
)
def test_rows(shape: tuple[int, ...], reads: InputTokens, tokens_first: bool, counted: list[list[int]]) -> None:
    rows = token_rows(shape, reads, tokens_first, SOURCE, TARGET)
    assert rows.counted.int().tolist() == counted
    x = torch.arange(torch.Size(shape).numel()).reshape(*shape, 1)
    lines = rows.lines(x)
    assert lines.shape[:2] == rows.counted.shape
    assert torch.equal(lines[0, 0], x.flatten(0, -2)[0])
    if tokens_first:
        assert torch.equal(lines[1, 0, 0], x[0, 1, 0])


UNUSUAL = [
    "longformer-masked",
    "longformer-classifier",
    "led",
    "opt",
    "opt-norm-after",
    "modernbert-masked",
    "albert-masked",
]


@pytest.mark.parametrize("name", UNUSUAL)
def test_statistics_are_those_of_each_row_alone_and_unpadded(name: str) -> None:
    """Longformer pads to its window and holds tokens first, OPT folds its rows, ALBERT calls a block several times."""
    lm = BY_NAME[name].lm()
    (batch,) = labelled_batches(lm, 1)
    sites = [site for site in lm.sites(("blocks", "embedding"))]
    together = collect_stats(lm, Calibration([batch]), {InputCovariance}, sites)
    apart = collect_stats(lm, Calibration([_alone(lm, batch, row) for row in range(2)]), {InputCovariance}, sites)
    for site in sites:
        a, b = together[site.name][InputCovariance], apart[site.name][InputCovariance]
        assert a.count == b.count, site.name
        assert torch.allclose(a.matrix, b.matrix, rtol=1e-4, atol=1e-5), site.name


def _alone(lm, batch, row):
    source = int(batch["attention_mask"][row].sum())
    lengths = {"labels": int((batch["labels"][row] != -100).sum())} if lm.task.value == "seq2seq" else {}
    return {name: tensor[row : row + 1, : lengths.get(name, source)] for name, tensor in batch.items()}


@pytest.mark.parametrize("name", ["albert-masked", "albert-groups"])
def test_a_shared_block_adds_up_its_visits(name: str) -> None:
    lm = BY_NAME[name].lm()
    (batch,) = labelled_batches(lm, 1)
    if lm.task.value == "classification":
        batch["labels"] = torch.tensor([1, 0])
    site = lm.sites(("*.albert_layers.0.attention.query",))[0]
    visits: list[tuple[torch.Tensor, torch.Tensor]] = []

    def visit(_, args, output):
        output.retain_grad()
        visits.append((args[0].detach(), output))

    hook = site.module.register_forward_hook(visit)
    predictions, _ = predict(lm, batch)
    loss = torch.nn.functional.cross_entropy(predictions.values, predictions.labels, reduction="sum")
    loss.backward()
    hook.remove()
    assert len(visits) == (3 if name == "albert-masked" else 2)
    mask = batch["attention_mask"].bool()
    gram = sum(x[mask].double().T @ x[mask].double() for x, _ in visits)
    moment = sum(y.grad[mask].double().T @ y.grad[mask].double() for _, y in visits)
    lm.model.zero_grad()
    known = collect_stats(lm, Calibration([batch], "data"), {InputCovariance, GradCovariance}, [site])[site.name]
    assert known[InputCovariance].count == len(visits) * 12
    assert torch.allclose(known[InputCovariance].matrix, gram / known[InputCovariance].count, rtol=1e-4, atol=1e-6)
    assert torch.allclose(known[GradCovariance].matrix, moment / len(predictions.values), rtol=1e-4, atol=1e-8)


def test_queries_that_read_positions_too_count_them() -> None:
    lm = BY_NAME["deberta-v3-classifier"].lm()
    known = collect_stats(lm, Calibration(labelled_batches(lm)), {InputCovariance, Fisher}, lm.sites())
    query, value = (
        known[f"deberta.encoder.layer.1.attention.self.{name}_proj"][InputCovariance] for name in ("query", "value")
    )
    # Two batches of twelve tokens each, and eight relative positions each.
    assert (query.count, value.count) == (2 * 12 + 2 * 8, 2 * 12)


def test_cross_attention_of_led_reads_the_sources_tokens() -> None:
    lm = BY_NAME["led"].lm()
    (batch,) = labelled_batches(lm, 1)
    known = collect_stats(lm, Calibration([batch]), {InputCovariance}, lm.sites())
    source, target = int(batch["attention_mask"].sum()), int((batch["labels"] != -100).sum())
    counts = {name.removeprefix("led."): statistics[InputCovariance].count for name, statistics in known.items()}
    assert counts["decoder.layers.1.encoder_attn.v_proj"] == counts["encoder.layers.1.fc1"] == source
    assert counts["decoder.layers.1.encoder_attn.q_proj"] == counts["decoder.layers.0.fc2"] == target
    assert counts["encoder.layers.0.self_attn.longformer_self_attn.query_global"] == 2


@pytest.mark.parametrize(
    "name",
    [
        "deberta-masked",
        "longformer-classifier",
        "longformer-masked",
        "led",
        "opt",
        "modernbert-masked",
        "gpt-neox",
        "phi",
    ],
)
def test_the_fisher_of_a_row_is_the_squared_gradient_of_the_weight(name: str) -> None:
    """Also where it is the first to ask for gradients, of a model that changes in place what it returns."""
    lm = BY_NAME[name].lm()
    (batch,) = labelled_batches(lm, 1)
    batch = _alone(lm, batch, 0)
    if lm.task.value == "classification":
        batch["labels"] = torch.tensor([1])
    sites = lm.sites()
    predictions, _ = predict(lm, batch)
    loss = torch.nn.functional.cross_entropy(predictions.values, predictions.labels, reduction="sum")
    gradients = torch.autograd.grad(loss, [site.module.weight for site in sites], materialize_grads=True)
    known = collect_stats(lm, Calibration([batch], "data"), {Fisher}, sites)
    for site, gradient in zip(sites, gradients, strict=True):
        expected = gradient.square() / len(predictions.values)
        assert torch.allclose(known[site.name][Fisher].matrix.float(), expected, rtol=1e-3, atol=1e-8), site.name
