"""Narrowing whole models: how many stay and where, what importances mean, and sentences where it cannot be."""

import pytest
import torch

from laconic.calibrate import Calibration, InputCovariance, Mean, Problem, collect_stats
from laconic.compress import Narrow
from laconic.compress.width_budget import price_function
from laconic.compress.width_parts import fluctuations
from laconic.model import Group, LanguageModel, Site, divergence, load, predict
from laconic.model.prunable_group import PrunableGroup, couple_groups, prunable_groups
from laconic.numerics.structured import DAMPING
from tests.architectures import BY_NAME, HEADS, INNER, outputs
from tests.calibrate.test_collect_stats import labelled_batches
from tests.narrow import FIXED_HEADS, ONE_OF_EACH, counts

IMPORTANCES = ("magnitude", "taylor", "taylor-squared", "variance", "obs")


def data_for(lm: LanguageModel, count: int = 4) -> Calibration:
    return Calibration(labelled_batches(lm, count))


def head_count(lm: LanguageModel) -> list[int]:
    return counts(lm, Group.ATTENTION)


@pytest.mark.parametrize("name", ONE_OF_EACH)
@pytest.mark.parametrize("importance", ["obs", "taylor"])
def test_every_architecture_narrows(name, importance):
    lm = BY_NAME[name].lm()
    numbers = sum(part.numel() for part in lm.model.parameters())
    heads = None if name in FIXED_HEADS else 0.5
    outcome = Narrow(heads=heads, channels=0.5, importance=importance).apply(lm, data_for(lm))
    assert set(counts(lm, Group.FFN)) == {INNER // 2}
    if heads:
        assert set(head_count(lm)) <= {HEADS // 2, 1}
        assert 2 * outcome.nbytes == outcome.dense_nbytes
    biases = numbers - sum(p.numel() for p in lm.model.parameters()) - (outcome.dense_nbytes - outcome.nbytes) // 4
    assert 0 <= biases < 0.05 * numbers
    assert outputs(lm.model).isfinite().all()


@pytest.mark.parametrize("name", ["bert-classifier", "gpt2", "llama", "t5", "modernbert-masked"])
@pytest.mark.parametrize(
    "arguments", [{"heads": 1.0, "channels": 1.0}, {"keep": 1.0}, {"heads": 1.0, "anchored": True}]
)
def test_keeping_everything_changes_nothing(name, arguments):
    lm = BY_NAME[name].lm()
    before, config = outputs(lm.model), lm.model.config.to_dict()
    outcome = Narrow(**arguments).apply(lm, data_for(lm, 1))
    assert torch.equal(outputs(lm.model), before)
    assert outcome.nbytes == outcome.dense_nbytes
    assert lm.model.config.to_dict() == config


@pytest.mark.parametrize(("keep", "kept"), [(0.01, 1), (0.3, 1), (0.5, 2), (0.74, 3), (0.9, 4)])
def test_of_heads_the_nearest_number_stays(keep, kept):
    lm = BY_NAME["bert-base"].lm()
    Narrow(heads=keep, importance="magnitude", refit=False).apply(lm, None)
    assert head_count(lm) == [kept, kept]


@pytest.mark.parametrize(("keep", "multiple", "kept"), [(0.5, 8, 24), (0.4, 1, 19), (0.505, 8, 24), (0.835, 8, 40)])
def test_of_channels_the_next_lower_multiple_stays(keep, multiple, kept):
    lm = BY_NAME["gpt2"].lm()
    Narrow(channels=keep, multiple=multiple, importance="magnitude", refit=False).apply(lm, None)
    assert counts(lm, Group.FFN) == [kept, kept]


@pytest.mark.parametrize(("keep", "multiple", "kept"), [(0.4, 8, 19), (0.42, 8, 20), (0.76, 8, 36), (0.99, 8, 47),
                                                        (0.4, 32, 19), (0.01, 8, 1)])  # fmt: skip
def test_of_channels_a_part_of_a_multiple_goes_where_else_over_a_hundredth_less_would_stay(keep, multiple, kept):
    lm = BY_NAME["gpt2"].lm()
    Narrow(channels=keep, multiple=multiple, importance="magnitude", refit=False).apply(lm, None)
    assert counts(lm, Group.FFN) == [kept, kept]


@pytest.mark.parametrize("keep", [0.3, 0.45, 0.62, 0.8])
def test_bytes_of_both_together_are_near_what_is_asked_for(keep):
    lm = BY_NAME["gpt2"].lm()
    outcome = Narrow(keep=keep, importance="magnitude", refit=False).apply(lm, None)
    # A channel is 64 of 12288 numbers; a head, of which one more may have to go, is 1024.
    assert 0.99 * keep <= outcome.nbytes / outcome.dense_nbytes <= keep


@pytest.mark.parametrize("importance", IMPORTANCES)
@pytest.mark.parametrize("name", ["bert-classifier", "llama", "t5"])
def test_global_ranking_keeps_the_fraction_and_no_layer_loses_all(name, importance):
    lm = BY_NAME[name].lm()
    heads = sum(family[0].count for family in couple_groups(prunable_groups(lm, (Group.ATTENTION,))))
    channels = len(counts(lm, Group.FFN)) * INNER
    Narrow(heads=0.5, channels=0.25, importance=importance, ranking="global").apply(lm, data_for(lm))
    left = [family[0].count for family in couple_groups(prunable_groups(lm, (Group.ATTENTION,), split_keys=False))]
    assert sum(left) == heads // 2 and min(left) >= 1
    assert sum(counts(lm, Group.FFN)) == channels // 4 and min(counts(lm, Group.FFN)) >= 8


def test_one_head_stays_whatever_is_asked():
    """Four heads in two layers: an eighth of them is one, and both layers need one."""
    lm = BY_NAME["bert-base"].lm()
    Narrow(heads=0.1, channels=0.01, ranking="global", importance="magnitude", refit=False).apply(lm, None)
    assert head_count(lm) == [1, 1] and counts(lm, Group.FFN) == [8, 8]


def test_global_ranking_takes_from_the_layer_that_gives_least():
    lm = BY_NAME["bert-classifier"].lm()
    first, second = prunable_groups(lm, (Group.FFN,))
    with torch.no_grad():
        second.writer.module.get_parameter("weight").mul_(1e-3)
    Narrow(channels=0.5, importance="obs", ranking="global").apply(lm, data_for(lm))
    assert counts(lm, Group.FFN) == [INNER - 8, 8]
    assert first.count == INNER


@pytest.mark.parametrize("importance", ["obs", "taylor"])
@pytest.mark.parametrize("currency", ["bytes", "macs"])
@pytest.mark.parametrize("name", ["bert-classifier", "llama", "bart"])
def test_keep_weighs_heads_against_channels(name, importance, currency):
    lm = BY_NAME[name].lm()
    price = price_function(currency)
    families = couple_groups(prunable_groups(lm))
    dense = sum(price(family) * family[0].count for family in families)
    prices = {family[0].coupling: price(family) for family in families}
    outcome = Narrow(keep=0.6, currency=currency, importance=importance).apply(lm, data_for(lm))
    left = couple_groups(prunable_groups(lm, split_keys=False))
    spent = sum(prices[family[0].coupling] * family[0].count for family in left)
    # One more chunk of the dearest kind would be too much.
    assert 0.6 * dense - 8 * max(prices.values()) < spent <= 0.6 * dense
    if currency == "bytes":
        assert outcome.nbytes <= 0.6 * outcome.dense_nbytes


def test_fluctuations_compare_parts_by_their_standard_score():
    """FLAP's threshold: what a part saves decides how many go, and not which."""
    lm = BY_NAME["bert-classifier"].lm()
    families = couple_groups(prunable_groups(lm))
    data = data_for(lm)
    known = collect_stats(lm, data, {InputCovariance, Mean}, [inner.writer for (inner,) in families])
    scores = []
    for (inner,) in families:
        problem = Problem(weight=inner.writer.weight(), stats=known[inner.writer.name])
        each = fluctuations(problem, inner.count)
        standard = (each - each.mean()) / each.std(unbiased=False)
        scores += [(score, inner.name, inner.parameters) for score in standard.tolist()]
    excess = 0.3 * sum(price for _, _, price in scores)
    left = {inner.name: inner.count for (inner,) in families}
    for _, name, price in sorted(scores):
        if excess > 0 and left[name] > 1:
            left[name], excess = left[name] - 1, excess - price
    Narrow(keep=0.7, importance="variance", multiple=1).apply(lm, data)
    assert {inner.name: inner.count for inner in prunable_groups(lm)} == left
    assert min(left.values()) > 1


@pytest.mark.parametrize("refit", [True, False])
def test_the_output_projection_is_refitted_by_least_squares(refit):
    """Against lstsq on the rows themselves; without the refit the columns are those of the original."""
    lm = BY_NAME["bert-base"].lm()
    inner = prunable_groups(lm, (Group.FFN,))[0]
    W, b = inner.writer.weight().double(), inner.writer.bias().detach().double()
    data = data_for(lm, 30)
    rows = inputs_of(lm, inner.writer, data)
    known = collect_stats(lm, data, {InputCovariance, Mean}, [inner.writer])[inner.writer.name]
    torch.testing.assert_close(known[Mean].vector, rows.mean(0), rtol=1e-5, atol=1e-6)
    Narrow(channels=0.5, refit=refit, importance="obs").apply(lm, data)
    now = prunable_groups(lm, (Group.FFN,))[0].writer
    parts = kept_of(lm, inner)
    if not refit:
        assert torch.equal(now.weight().double(), W[:, parts]) and torch.equal(now.bias().double(), b)
        return
    centred = rows - rows.mean(0)
    # The damping as rows of their own, which draw towards the original.
    level = DAMPING * centred.square().sum(0).mean()
    design = torch.cat([centred, level.sqrt() * torch.eye(rows.shape[1], dtype=torch.float64)])
    best = torch.linalg.lstsq(design[:, parts], design @ W.T).solution.T
    torch.testing.assert_close(now.weight().double(), best, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(now.bias().double(), b + rows.mean(0) @ W.T - rows.mean(0)[parts] @ best.T,
                               rtol=1e-4, atol=1e-5)  # fmt: skip


def inputs_of(lm: LanguageModel, site: Site, data: Calibration) -> torch.Tensor:
    """Every row that `site` reads and that is no padding."""
    seen: list[torch.Tensor] = []
    handle = site.module.register_forward_hook(lambda _, args, output: seen.append(args[0].detach().double()))
    with torch.no_grad():
        for batch in data.batches:
            predict(lm, batch)
    handle.remove()
    masks = [batch["attention_mask"].bool() for batch in data.batches]
    return torch.cat([x[mask] for x, mask in zip(seen, masks, strict=True)])


def kept_of(lm: LanguageModel, before: PrunableGroup) -> torch.Tensor:
    """The channels that stayed: their rows of the reading projection are as they were."""
    (now,) = (inner for inner in prunable_groups(lm) if inner.name == before.name)
    rows, old = now.readers[0].site.weight(), before.readers[0].site.weight()
    return torch.tensor([(old == row).all(1).nonzero().item() for row in rows])


def test_fluctuations_by_hand():
    """FLAP: ‖W_:j‖² Var(x_j), the least go, and the bias makes up for their means; nothing else changes."""
    lm = BY_NAME["bert-base"].lm()
    inner = prunable_groups(lm, (Group.FFN,))[0]
    W, b = inner.writer.weight().double(), inner.writer.bias().detach().double()
    data = data_for(lm, 8)
    rows = inputs_of(lm, inner.writer, data)
    score = W.square().sum(0) * rows.var(0, unbiased=False)
    Narrow(channels=0.5, importance="variance", refit=False).apply(lm, data)
    kept = kept_of(lm, inner)
    assert set(kept.tolist()) == set(score.topk(24).indices.tolist())
    gone = [channel for channel in range(INNER) if channel not in kept]
    now = prunable_groups(lm, (Group.FFN,))[0].writer
    assert torch.equal(now.weight().double(), W[:, kept])
    torch.testing.assert_close(now.bias().double(), b + W[:, gone] @ rows.mean(0)[gone], rtol=1e-5, atol=1e-5)


def test_magnitude_by_hand():
    lm = BY_NAME["bert-base"].lm()
    inner = prunable_groups(lm, (Group.ATTENTION,))[0]
    norms = torch.zeros(HEADS)
    for reader in inner.readers:
        norms += reader.site.weight().square().reshape(HEADS, -1).sum(1)
    norms += inner.writer.weight().T.square().reshape(HEADS, -1).sum(1)
    rows = inner.readers[0].site.weight().reshape(HEADS, -1)
    Narrow(heads=0.25, importance="magnitude", refit=False).apply(lm, None)
    left = prunable_groups(lm, (Group.ATTENTION,))[0].readers[0].site.weight()
    assert torch.equal(left.flatten(), rows[norms.argmax()])


def test_where_the_class_has_no_bias_none_is_made_unless_asked_for():
    lm = BY_NAME["llama"].lm()
    Narrow(heads=0.5, channels=0.5).apply(lm, data_for(lm))
    assert all(site.bias() is None for site in lm.sites())
    lm = BY_NAME["llama"].lm()
    Narrow(channels=0.5, add_bias=True).apply(lm, data_for(lm))
    assert all((site.bias() is not None) == ("down_proj" in site.name) for site in lm.sites())
    Narrow(channels=0.5, add_bias=True).apply(lm, data_for(lm))
    assert counts(lm, Group.FFN) == [12, 12] and outputs(lm.model).isfinite().all()


@pytest.mark.parametrize("name", ["bert-classifier", "gpt2", "llama", "bart", "albert-groups"])
@pytest.mark.parametrize("anchored", [True, False])
def test_walks_take_out_as_many(name, anchored):
    lm = BY_NAME[name].lm()
    Narrow(heads=0.5, channels=0.5, sequential=not anchored, anchored=anchored).apply(lm, data_for(lm))
    assert set(counts(lm, Group.FFN)) == {INNER // 2} and set(head_count(lm)) <= {HEADS // 2, 1}
    lm = BY_NAME[name].lm()
    Narrow(keep=0.7, anchored=anchored, sequential=not anchored).apply(lm, data_for(lm))
    assert outputs(lm.model).isfinite().all()


def test_dead_channels_go_first_and_cost_nothing():
    lm = BY_NAME["opt"].lm()
    inners = prunable_groups(lm, (Group.FFN,))
    for inner in inners:
        bias = inner.readers[0].site.module.get_parameter("bias")
        with torch.no_grad():
            bias[::2], bias[1::2] = -100.0, 3.0
    before = outputs(lm.model)
    Narrow(channels=0.5, multiple=1).apply(lm, data_for(lm))
    assert all(set(kept_of(lm, inner).tolist()) == set(range(1, INNER, 2)) for inner in inners)
    torch.testing.assert_close(outputs(lm.model), before, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_real_model_keeps_its_predictions(shared_models, shared_data, monkeypatch):
    """Half of heads and channels: obs with its refit loses a fraction of what taylor and magnitude do without."""
    from laconic.calibrate.sources import read
    from laconic.progress import silent
    from laconic.recipe.sampling import Sampling

    monkeypatch.setenv("LACONIC_DATA", str(shared_data))
    source = str(shared_models / "minilm-sst2")
    dense = load(source)
    calibration = Sampling(samples=64).of(dense, read("glue/sst2", "train"), silent)
    judges = Sampling(samples=128, seed=1).of(dense, read("glue/sst2", "dev"), silent).batches
    with torch.no_grad():
        said = [predict(dense, batch)[0] for batch in judges]

    def kl(step: Narrow) -> float:
        lm = load(source)
        outcome = step.apply(lm, calibration)
        assert outcome.nbytes == outcome.dense_nbytes // 2
        with torch.no_grad():
            now = [predict(lm, batch)[0] for batch in judges]
        return torch.cat([divergence(a, b) for a, b in zip(said, now, strict=True)]).mean().item()

    ours = kl(Narrow(heads=0.5, channels=0.5))
    assert ours < 0.08
    for importance in ("taylor", "magnitude"):
        assert ours < 0.5 * kl(Narrow(heads=0.5, channels=0.5, importance=importance, refit=False))
