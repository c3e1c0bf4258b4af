"""Statistics of a pass over the data equal those of forward and backward passes by hand, on every architecture."""

import pytest
import torch

from laconic.calibrate import (
    AbsMax,
    Calibration,
    Fisher,
    GradCovariance,
    InputCovariance,
    Mean,
    SequentialConfig,
    collect_stats,
    merge,
    sequential_calibrate,
)
from laconic.errors import UserError
from laconic.model import Batch, LanguageModel, Role, Site, predict
from tests.architectures import ARCHITECTURES, BY_NAME, VOCABULARY, factors
from tests.problems import MULTI_LABEL, classifier

every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.name)
INPUT_KINDS = frozenset({InputCovariance, Mean, AbsMax})
ALL_KINDS = INPUT_KINDS | {GradCovariance, Fisher}
EVERYTHING = ("*",)


def labelled_batches(lm: LanguageModel, count: int = 2) -> list[Batch]:
    """Batches of two rows, the second padded, with target tokens where the task has any."""
    generator = torch.Generator().manual_seed(7)
    made = []
    for _ in range(count):
        tokens = torch.randint(3, VOCABULARY, (2, 7), generator=generator)
        batch = {"input_ids": tokens, "attention_mask": torch.tensor([[1] * 7, [1] * 5 + [0] * 2])}
        if lm.task.value in ("seq2seq", "masked"):
            width = 7 if lm.task.value == "masked" else 6
            batch["labels"] = torch.randint(3, VOCABULARY, (2, width), generator=generator)
            batch["labels"][1, 4:] = -100
        made.append(batch)
    return made


def stats_of(lm: LanguageModel, kinds=ALL_KINDS, batches=None, labels="sampled"):
    sites = lm.sites(EVERYTHING)
    return collect_stats(lm, Calibration(batches or labelled_batches(lm), labels), kinds, sites)


@every_architecture
def test_every_site_is_measured_and_finite(architecture):
    lm = architecture.lm()
    known = stats_of(lm)
    for site in lm.sites(EVERYTHING):
        out_features, in_features = site.shape
        assert known[site.name][InputCovariance].matrix.shape[0] == in_features
        assert known[site.name][InputCovariance].count > 0
        assert known[site.name][GradCovariance].matrix.shape == (out_features, out_features)
        assert known[site.name][Fisher].matrix.shape == site.shape
        assert torch.isfinite(known[site.name][Fisher].matrix).all()


@every_architecture
def test_projections_of_one_input_share_its_statistics(architecture):
    lm = architecture.lm()
    known = stats_of(lm, {InputCovariance})
    by_input: dict[str, set[int]] = {}
    for site in lm.sites(EVERYTHING):
        by_input.setdefault(site.input, set()).add(id(known[site.name][InputCovariance]))
    assert all(len(objects) == 1 for objects in by_input.values())
    fused = any(site.role is Role.FUSED for site in lm.sites())
    assert len(by_input) < len(lm.sites(EVERYTHING)) or fused


@every_architecture
def test_the_model_is_left_as_it_was(architecture):
    lm = architecture.lm()
    lm.model.train()
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    # Marian's positions are sines, and frozen.
    trained = [parameter for parameter in lm.model.parameters() if parameter.requires_grad]
    stats_of(lm)
    assert lm.model.training
    assert [id(p) for p in trained] == [id(parameter) for parameter in lm.model.parameters() if parameter.requires_grad]
    assert all(parameter.grad is None for parameter in lm.model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in lm.model.state_dict().items())
    assert not any(module._forward_hooks for module in lm.model.modules())


def one_site(lm: LanguageModel, name: str) -> Site:
    (site,) = lm.sites((name,))
    return site


def test_padding_is_left_out():
    lm = BY_NAME["bert-classifier"].lm()
    (batch,) = labelled_batches(lm, 1)
    site = one_site(lm, "bert.encoder.layer.0.intermediate.dense")
    gram = stats_of(lm, {InputCovariance}, [batch])[site.name][InputCovariance]
    assert gram.count == int(batch["attention_mask"].sum()) == 12
    rows = []
    for row in range(2):
        length = int(batch["attention_mask"][row].sum())
        alone = {name: tensor[row : row + 1, :length] for name, tensor in batch.items()}
        seen: list[torch.Tensor] = []
        hook = site.module.register_forward_hook(lambda module, args, output, seen=seen: seen.append(args[0]))
        with torch.no_grad():
            predict(lm, alone)
        hook.remove()
        rows.append(seen[0][0])
    x = torch.cat(rows).double()
    assert torch.allclose(gram.matrix, x.T @ x / len(x), atol=1e-5)


def test_the_head_of_a_multi_label_model_has_the_fisher_of_its_sigmoids():
    lm = classifier(3, problem_type=MULTI_LABEL)
    (batch,) = labelled_batches(lm, 1)
    site = one_site(lm, "classifier")
    with torch.no_grad():
        p = predict(lm, batch)[0].values.double().sigmoid()
    exact = stats_of(lm, {GradCovariance}, [batch], "enumerated")[site.name][GradCovariance].matrix
    assert torch.allclose(exact, (p * (1 - p)).mean(0).diag(), atol=1e-6)
    batch["labels"] = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    g = p - batch["labels"]
    empirical = stats_of(lm, {GradCovariance}, [batch], "data")[site.name][GradCovariance].matrix
    assert torch.allclose(empirical, g.T @ g / 2, atol=1e-6)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_one_table_object_in_several_places_counts_each_call_with_its_own_mask(name):
    """Resizing the vocabulary leaves encoder and decoder with one and the same module."""
    lm = BY_NAME[name].lm()
    batches = labelled_batches(lm)
    apart = stats_of(lm, {InputCovariance}, batches)
    (site,) = lm.sites(("embedding",))
    for place in site.names[1:]:
        lm.model.set_submodule(place, site.module)
    together = stats_of(lm, {InputCovariance}, batches)
    assert together[site.name][InputCovariance].count == apart[site.name][InputCovariance].count
    assert torch.equal(together[site.name][InputCovariance].matrix, apart[site.name][InputCovariance].matrix)


def test_cross_attention_reads_the_sources_tokens():
    lm = BY_NAME["t5"].lm()
    batches = labelled_batches(lm, 1)
    known = stats_of(lm, {InputCovariance}, batches)
    source, target = int(batches[0]["attention_mask"].sum()), int((batches[0]["labels"] != -100).sum())
    assert known["decoder.block.0.layer.1.EncDecAttention.k"][InputCovariance].count == source
    assert known["decoder.block.0.layer.1.EncDecAttention.q"][InputCovariance].count == target
    assert known["shared"][InputCovariance].count == source + target


@pytest.mark.parametrize("name", ["bert-classifier", "gpt2", "llama-tied", "bart"])
def test_the_element_wise_fisher_is_the_squared_gradient_of_the_weight(name):
    """With the data's labels, Φ is what autograd gives for the weight itself, one sequence at a time, squared."""
    lm = BY_NAME[name].lm()
    (batch,) = labelled_batches(lm, 1)
    if lm.task.value == "classification":
        batch["labels"] = torch.tensor([2, 0])
    site = lm.sites(("ffn",))[1]
    known = stats_of(lm, {Fisher}, [batch], labels="data")[site.name][Fisher]
    expected = torch.zeros(site.shape)
    predictions_seen = 0
    for row in range(2):
        alone = {name: tensor[row : row + 1] for name, tensor in batch.items()}
        predictions, _ = predict(lm, alone)
        assert predictions.labels is not None
        loss = torch.nn.functional.cross_entropy(predictions.values, predictions.labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, site.module.weight)
        expected += (gradient if gradient.shape == site.shape else gradient.T).square()
        predictions_seen += len(predictions.values)
    assert torch.allclose(known.matrix.float(), expected / predictions_seen, rtol=1e-3, atol=1e-8)


def test_shards_merge_to_the_whole():
    lm = BY_NAME["bert-classifier"].lm()
    batches = labelled_batches(lm, 3)
    whole = stats_of(lm, {InputCovariance, GradCovariance}, batches, "enumerated")
    left, right = (
        stats_of(lm, {InputCovariance, GradCovariance}, part, "enumerated") for part in (batches[:1], batches[1:])
    )
    merge(left, right)
    for name in whole:
        for kind in (InputCovariance, GradCovariance):
            assert torch.allclose(left[name][kind].matrix, whole[name][kind].matrix, atol=1e-8)


@every_architecture
def test_a_walk_that_replaces_nothing_sees_what_a_survey_sees(architecture):
    lm = architecture.lm()
    data = Calibration(labelled_batches(lm), "sampled")
    sites = lm.sites(EVERYTHING)
    surveyed = collect_stats(lm, data, ALL_KINDS, sites)
    walked = {
        site.name: problem.stats for step in sequential_calibrate(lm, data, ALL_KINDS, sites) for site, problem in step
    }
    assert walked.keys() == surveyed.keys()
    for name in walked:
        for kind in ALL_KINDS:
            here, there = walked[name][kind].total, surveyed[name][kind].total
            # A product of another shape is rounded otherwise: as much as its largest entries, whatever its smallest.
            assert torch.allclose(here, there, atol=1e-6 * max(1.0, there.abs().max().item())), (name, kind)


@every_architecture
def test_a_walk_sees_the_errors_of_the_blocks_it_replaced(architecture):
    """The statistics of every block equal a fresh survey of the model, of which all blocks before it are replaced."""
    lm = architecture.lm()
    data = Calibration(labelled_batches(lm))
    sites = lm.sites()
    dense = collect_stats(lm, data, {InputCovariance}, sites)
    met: list[str | None] = []
    for step in sequential_calibrate(lm, data, {InputCovariance}, sites):
        walked = {site.name: problem.stats for site, problem in step}
        now = collect_stats(lm, data, {InputCovariance}, [site for site, _ in step])
        for name, known in walked.items():
            assert torch.allclose(
                known[InputCovariance].matrix, now[name][InputCovariance].matrix, rtol=1e-3, atol=1e-4
            ), name
        drifts = [
            (known[InputCovariance].matrix - dense[name][InputCovariance].matrix).abs().max()
            for name, known in walked.items()
        ]
        # The first block reads the embeddings, which nothing has changed.
        assert (max(drifts) > 1e-3) == bool(met)
        met.append(step[0][0].block)
        for site, _ in step:
            lm.replace(site, factors(site, rank=3))
    assert met == list(dict.fromkeys(site.block for site in sites))


def test_empty_data_is_one_sentence():
    lm = BY_NAME["gpt2"].lm()
    with pytest.raises(UserError, match="calibration data is empty"):
        collect_stats(lm, Calibration([]), {InputCovariance}, lm.sites())


def test_activations_that_are_not_finite_are_one_sentence():
    lm = BY_NAME["gpt2"].lm()
    with torch.no_grad():
        lm.sites()[0].module.bias.fill_(float("inf"))
    with pytest.raises(UserError, match="is not finite"):
        stats_of(lm, {InputCovariance})


def overflowing() -> LanguageModel:
    """Every weight is finite, and no longer what comes of them."""
    lm = BY_NAME["bert-classifier"].lm()
    with torch.no_grad():
        for site in lm.sites(("ffn",))[:2]:
            site.parameter.mul_(1e30)
    return lm


def test_predictions_that_are_not_finite_are_one_sentence():
    lm = overflowing()
    for labels in ("enumerated", "sampled", "data"):
        with pytest.raises(UserError, match="predictions are not finite"):
            stats_of(lm, {GradCovariance}, labelled_batches(lm, 1), labels)


@pytest.mark.parametrize("course", [SequentialConfig(), SequentialConfig(anchored=True)])
@pytest.mark.parametrize("kind", [InputCovariance, Mean])
def test_a_walk_over_activations_that_are_not_finite_ends_in_one_sentence(course, kind):
    lm = overflowing()
    with pytest.raises(UserError, match="not finite; check the model and the data"):
        list(sequential_calibrate(lm, Calibration(labelled_batches(lm, 1)), {kind}, lm.sites(), course))
