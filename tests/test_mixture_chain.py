"""A mixture of experts in every place that tells of a compressed model, and its experts removed together with heads."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import laconic
from laconic.allocate import read_plan
from laconic.calibrate import Calibration
from laconic.compress import Compress, Narrow, ShrinkHeads, solver_cache
from laconic.errors import UserError
from laconic.formats import ExpertLayer, ExpertStack
from laconic.methods import KfacSvd
from laconic.model import LanguageModel
from laconic.model.active_parameters import count_active
from laconic.model.expert_removal import keep_experts
from laconic.model.mixture import find_mixtures
from laconic.report.evaluation import cost_tables
from tests.architectures import Architecture, alike, outputs
from tests.calibrate.test_collect_stats import labelled_batches
from tests.experts import EXPERTS, MIXTURES

pytestmark = pytest.mark.filterwarnings("ignore::laconic.errors.StructureNotice")

STACKS = [f"model.layers.{block}.mlp.experts.{name}" for block in range(2) for name in ("gate_up_proj", "down_proj")]
ATTENTION = [f"model.layers.{block}.self_attn.{name}_proj" for block in range(2) for name in "qkvo"]


def tiny(name: str = "mixtral") -> LanguageModel:
    return Architecture(name, MIXTURES[name][0]).lm()


def test_stacks_of_experts_are_in_every_result(tmp_path: Path) -> None:
    """Inspection, plan, compression, saved folder, model card and cost all name the stacks of a mixture."""
    whole, lm = tiny(), tiny()
    weights = sum(lm.model.get_parameter(stack).numel() for stack in STACKS)
    seen = laconic.inspect(lm.model).to_dict()
    parts = {part["name"]: part for part in seen["parts"]}
    assert parts["experts"]["parameters"] == weights
    assert {site["name"] for site in seen["sites"] if site["group"] == "experts"} == set(STACKS)

    result = laconic.compress(
        lm.model, "svd", keep={"attention": 0.5, "experts": 0.25}, targets=("attention", "experts")
    )
    assert set(result.sites) == {*STACKS, *ATTENTION}
    stored = {stack: lm.model.get_submodule(stack) for stack in STACKS}
    assert all(isinstance(stack, ExpertStack) for stack in stored.values())
    assert all(result.sites[name].bytes == stack.nbytes() for name, stack in stored.items())
    assert sum(result.sites[name].bytes for name in STACKS) <= 0.25 * 4 * weights
    assert result.bytes == sum(site.bytes for site in result.sites.values())

    folder = result.save(tmp_path / "small")
    plan = read_plan(folder / "plan.yaml")
    assert plan == {name: site.method for name, site in result.sites.items()}
    again = tiny()
    Compress(method=next(iter(plan.values())), plan=plan, targets=("attention", "experts")).apply(again, None)
    assert torch.equal(outputs(again.model), outputs(result.model))
    assert alike(outputs(laconic.load(folder).model), outputs(result.model))

    card = (folder / "README.md").read_text()
    active = count_active(result.model)
    assert active is not None and f"A mixture of experts: {active}." in card
    for name in STACKS:
        assert f"| `{name}` | low-rank-experts | {EXPERTS} × " in card

    measured = laconic.evaluate(folder, against=whole.model, batch=1, length=4).to_dict()
    assert measured["cost"]["active_parameters"] == active.active < seen["active_parameters"]
    table = cost_tables({"this model": measured["cost"], "original": measured["original"]["cost"]})["Size"]
    place = [column.heading for column in table.columns].index("active parameters")
    assert [row[place] for row in table.rows] == [active.active, seen["active_parameters"]]


def change_weight(lm: LanguageModel) -> None:
    lm.model.get_parameter(STACKS[-1]).data[EXPERTS - 1, 0, 0] += 1e-3


def swap(lm: LanguageModel) -> None:
    parameter = lm.model.get_parameter(STACKS[0])
    parameter.data = parameter.data.flip(0)


def remove(lm: LanguageModel) -> None:
    keep_experts(lm, {found.path: [0, 2, 3] for found in find_mixtures(lm.model)})


def replace(lm: LanguageModel) -> None:
    """Their matrices are modules then, as after another step."""
    for found in find_mixtures(lm.model):
        lm.model.set_submodule(found.path, ExpertLayer(found.experts))


@pytest.mark.filterwarnings("ignore:.*saw fewer tokens:laconic.errors.Notice")
@pytest.mark.parametrize("change", [change_weight, swap, remove, replace])
def test_another_model_of_experts_has_another_key(
    change: Callable[[LanguageModel], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LACONIC_CACHE", str(tmp_path))
    data = Calibration(labelled_batches(tiny()))
    one, other = tiny(), tiny()
    change(other)
    keys = [solver_cache.key_of(lm, data, []) for lm in (one, tiny(), other)]
    assert keys[0] == keys[1] != keys[2] and None not in keys
    for lm in (one, tiny(), other):
        Compress(method=KfacSvd(rank=4, multiple=1), targets=("experts",)).apply(lm, data)
    assert len(list((tmp_path / "solved").iterdir())) == 2


def cut_by_hand(lm: LanguageModel, experts: dict[str, list[int]], key_heads: list[int]) -> torch.nn.Module:
    """A stock model with 2 of 4 experts and 1 of 2 keys in each block, and with the two heads of that key."""
    config = copy.deepcopy(lm.model.config)
    size, shared = config.head_dim, config.num_attention_heads // config.num_key_value_heads
    count = "num_local_experts" if "num_local_experts" in vars(config) else "num_experts"
    setattr(config, count, 2)
    config.num_attention_heads, config.num_key_value_heads = shared, 1
    tensors: dict[str, Tensor] = dict(lm.model.state_dict())
    for block, key in enumerate(key_heads):
        attention, mixture = f"model.layers.{block}.self_attn", f"model.layers.{block}.mlp"
        queries = slice(key * shared * size, (key + 1) * shared * size)
        for name in "qkv":
            rows = queries if name == "q" else slice(key * size, (key + 1) * size)
            tensors[f"{attention}.{name}_proj.weight"] = tensors[f"{attention}.{name}_proj.weight"][rows]
        tensors[f"{attention}.o_proj.weight"] = tensors[f"{attention}.o_proj.weight"][:, queries]
        for name in ("experts.gate_up_proj", "experts.down_proj", "gate.weight"):
            tensors[f"{mixture}.{name}"] = tensors[f"{mixture}.{name}"][experts[f"{mixture}.experts"]]
    small = type(lm.model)(config).eval()
    small.load_state_dict(tensors)
    return small


@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe"])
def test_heads_and_experts_that_are_removed_together(name: str, tmp_path: Path) -> None:
    lm, whole = tiny(name), tiny(name)
    step = Narrow(heads=0.5, experts=0.5, expert_importance="random", importance="magnitude", refit=False)
    dry = tiny(name).to_meta()
    step.check_and_dry_run(dry)
    outcome = step.apply(lm, None)
    size = lm.model.config.head_dim
    chosen = []
    for block in range(2):
        path = f"model.layers.{block}.self_attn.k_proj.weight"
        keys, left = whole.model.state_dict()[path].split(size), lm.model.state_dict()[path]
        chosen.append([torch.equal(key, left) for key in keys].index(True))
    by_hand = cut_by_hand(whole, outcome.found["experts"]["kept"], chosen)
    assert torch.equal(outputs(lm.model), outputs(by_hand))
    assert lm.model.config.to_dict() == dry.model.config.to_dict() == by_hand.config.to_dict()
    laconic.store.save(lm, tmp_path / "small")
    assert alike(outputs(laconic.load(tmp_path / "small").model), outputs(by_hand))


@pytest.mark.parametrize(
    ("step", "sentence"),
    [
        (Narrow(heads=0.5, experts=0.5), r"cannot be removed one by one"),
        (Narrow(keep=0.5), r"cannot be removed one by one"),
        (ShrinkHeads(keep=0.5), r"cannot shrink"),
    ],
)
def test_heads_of_latent_attention_are_refused(step: Narrow | ShrinkHeads, sentence: str) -> None:
    """DeepSeek's heads share latent vectors, with norms of their own; the sentence says what else can be removed."""
    rest = r", as .+; narrow its channels, remove experts \(narrow:experts\), or compress its matrices\.$"
    lm = tiny("deepseek-v3")
    before = outputs(lm.model)
    with pytest.raises(UserError, match=f"^The heads of this 'deepseek_v3' {sentence}{rest}"):
        step.check(lm)
    assert torch.equal(outputs(lm.model), before)
