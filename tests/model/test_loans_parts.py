"""A part that was changed is written to a file, from which this process and another one read it."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from laconic.calibrate import LayerStats
from laconic.errors import UserError
from laconic.formats import Quantized
from laconic.formats.expert_stacks import stack_formats
from laconic.methods import Magnitude, Method, Rtn, Svd
from laconic.model import LanguageModel
from laconic.model.loading import load, load_streamed
from laconic.model.loans_parts import part_file, stored_state
from laconic.model.site import has_module
from laconic.store import save
from laconic.store.part_structures import PartStructures
from tests.architectures import outputs
from tests.fresh_python import run_fresh
from tests.loaned import MODELS, assert_equal, nbytes

BLOCK = "model.layers.1"
WEIGHT = "model.layers.1.mlp.down_proj.weight"
METHODS: dict[str, tuple[Method, ...]] = {
    "sparse": (Magnitude(sparsity=0.5),),
    "codes": (Rtn(bits=4, group_size=16),),
    "codes of factors": (Svd(rank=4), Rtn(bits=4, group_size=4)),
}
CASES = [("llama-tied", "sparse"), ("bert-masked", "codes"), ("t5", "codes of factors"), ("gpt2", "sparse")]
CASES += [("mixtral", name) for name in METHODS]


def compress(lm: LanguageModel, block: str, methods: tuple[Method, ...]) -> None:
    """Compress all matrices of a block, by one method after another."""
    for method in methods:
        stacks: dict[str, list[torch.Tensor]] = {}
        for site in (site for site in lm.sites(("blocks",)) if site.block == block):
            weight = site.weight().to(lm.dtype)
            if site.stack is None:
                lm.replace(site, method.compress(weight, LayerStats()))
            else:
                stacks.setdefault(site.unit, []).append(weight)
        for unit, weights in stacks.items():
            formats = (method.compress(weight, LayerStats()) for weight in weights)
            lm.replace_stack(unit, stack_formats(formats, len(weights)))


def blocks_of(lm: LanguageModel) -> list[str]:
    return [path for _, blocks in lm.stacks() for path, _ in blocks]


def streamed(folder: Path) -> LanguageModel:
    return load_streamed(str(folder / "model"), folder / "scratch", structures=PartStructures())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    MODELS["llama"]().bfloat16().save_pretrained(tmp_path / "model")
    return tmp_path


@pytest.mark.parametrize(("name", "methods"), CASES)
def test_changed_blocks_are_read_from_their_files(tmp_path: Path, name: str, methods: str) -> None:
    MODELS[name]().bfloat16().save_pretrained(tmp_path / "model")
    whole, lm = load(str(tmp_path / "model")), streamed(tmp_path)
    before = nbytes(lm.model)
    for block in blocks_of(lm):
        compress(whole, block, METHODS[methods])
        with lm.on_loan(block):
            compress(lm, block, METHODS[methods])
            lm.write_back(block)
        assert nbytes(lm.model) == before
    with lm.on_loan(""):
        assert_equal(lm.model, whole.model)
    other = streamed(tmp_path)
    assert all(map(other.restore, blocks_of(other)))
    assert nbytes(other.model) == before
    with other.on_loan(""):
        assert_equal(other.model, whole.model)
        assert torch.equal(outputs(other.model), outputs(whole.model))
    save(whole, tmp_path / "compressed")
    compressed = load_streamed(str(tmp_path / "compressed"))
    assert nbytes(compressed.model) == before
    with compressed.on_loan(""):
        assert_equal(compressed.model, load(str(tmp_path / "compressed")).model)


def write_sparse(folder: str) -> None:
    """Compress and write one block; another process calls it."""
    lm = streamed(Path(folder))
    with lm.on_loan(BLOCK):
        compress(lm, BLOCK, METHODS["sparse"])
        lm.write_back(BLOCK)


@pytest.mark.slow
def test_another_process_goes_on_with_what_was_written(folder: Path) -> None:
    run_fresh(f"from tests.model.test_loans_parts import write_sparse; write_sparse({str(folder)!r})")
    whole, lm = load(str(folder / "model")), streamed(folder)
    compress(whole, BLOCK, METHODS["sparse"])
    assert (lm.restore(BLOCK), lm.restore("model.layers.0")) == (True, False)
    with lm.on_loan(""):
        assert_equal(lm.model, whole.model)


def test_a_file_has_the_tensors_that_saving_writes_in_the_stored_dtype(folder: Path) -> None:
    lm = streamed(folder)
    with lm.on_loan(BLOCK), torch.no_grad():
        compress(lm, BLOCK, METHODS["codes"])
        lm.model.get_parameter(f"{BLOCK}.input_layernorm.weight").fill_(1 / 3)
        expected = {name: tensor.clone() for name, tensor in stored_state(lm.model, BLOCK).items()}
        lm.write_back(BLOCK)
    stored = load_file(folder / "scratch" / "parts" / f"{BLOCK}.safetensors")
    assert stored.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(stored[name].to(tensor.dtype), tensor)
        # A number that bfloat16 would round is stored in float32.
        plain = torch.float32 if name.endswith("input_layernorm.weight") else torch.bfloat16
        assert stored[name].dtype == (plain if tensor.is_floating_point() else torch.uint8), name
    assert isinstance(lm.model.get_submodule(f"{BLOCK}.mlp.down_proj"), Quantized)


def test_a_tied_embedding_and_a_norm_are_written_and_stay_what_they_are(tmp_path: Path) -> None:
    MODELS["llama-tied"]().save_pretrained(tmp_path / "model")
    lm = streamed(tmp_path)
    for path in ("model.embed_tokens", "model.norm"):
        with lm.on_loan(path), torch.no_grad():
            lm.model.get_parameter(f"{path}.weight").mul_(2)
            lm.write_back(path)
    other = streamed(tmp_path)
    assert other.restore("model.embed_tokens")
    assert other.restore("model.norm")
    whole = load(str(tmp_path / "model"))
    for model in (lm, other):
        assert not model.model.get_parameter("model.norm.weight").is_meta
        assert model.model.get_parameter("model.embed_tokens.weight").is_meta
        with model.on_loan("lm_head"):
            for name in ("lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"):
                assert torch.equal(model.model.get_parameter(name), 2 * whole.model.get_parameter(name))


@pytest.mark.parametrize("method", [Magnitude(sparsity=0.5), Rtn(bits=4, group_size=16)])
def test_a_tied_embedding_becomes_one_format(tmp_path: Path, method: Method) -> None:
    MODELS["bert-masked"]().bfloat16().save_pretrained(tmp_path / "model")
    whole, lm = load(str(tmp_path / "model")), streamed(tmp_path)
    before = nbytes(lm.model)
    for model in (whole, lm):
        [site] = model.sites(("embedding",))
        [head] = model.sites(("head",))[-1:]
        assert head.name == "cls.predictions.decoder"
        with model.on_loan(site.name):
            format = method.compress(site.weight().to(lm.dtype), LayerStats())
            model.replace(site, format)
            model.write_back(site.name)
    assert nbytes(lm.model) == before
    other = streamed(tmp_path)
    other.restore(site.name)
    for model in (lm, other):
        assert nbytes(model.model) == before
        with model.on_loan(""):
            assert_equal(model.model, whole.model)
            assert torch.equal(outputs(model.model), outputs(whole.model))


@pytest.mark.parametrize("name", ["mapped", "coded-embedding", "resized"])
def test_parts_of_a_compressed_model_are_written_and_restored(tmp_path: Path, name: str) -> None:
    folder = Path(__file__).parents[1] / "old" / "0.1.0" / "models" / name
    whole, scratch = load(str(folder)), tmp_path / "scratch"
    lm, other = (load_streamed(str(folder), scratch, structures=PartStructures()) for _ in range(2))
    assert lm.loans is not None
    parts = [path for path in lm.loans.paths if has_module(lm.model, path)]
    for path in parts:
        with lm.on_loan(path):
            lm.write_back(path)
    assert all(map(other.restore, parts))
    for model in (lm, other):
        with model.on_loan(""):
            assert_equal(model.model, whole.model)


def test_a_copy_that_was_made_before_keeps_the_old_weights(folder: Path) -> None:
    lm, whole = streamed(folder), load(str(folder / "model"))
    original = lm.shallow_copy()
    with lm.on_loan(BLOCK), original.on_loan(BLOCK):
        compress(lm, BLOCK, METHODS["codes"])
        lm.write_back(BLOCK)
        assert torch.equal(original.model.get_parameter(WEIGHT), whole.model.get_parameter(WEIGHT))
    with original.on_loan(""):
        assert_equal(original.model, whole.model)


@pytest.mark.parametrize("name", ["llama", "mixtral"])
@pytest.mark.parametrize("methods", METHODS)
def test_sites_that_were_replaced_keep_no_weights_in_memory(tmp_path: Path, name: str, methods: str) -> None:
    MODELS[name]().save_pretrained(tmp_path / "model")
    lm = streamed(tmp_path)
    sites = lm.sites(("blocks",))
    for block in blocks_of(lm):
        with lm.on_loan(block):
            compress(lm, block, METHODS[methods])
            lm.write_back(block)
        assert all(nbytes(place.module) == 0 for site in sites for place in site.places), block


def test_sites_of_experts_that_were_found_before_the_loan_read_what_is_on_loan(tmp_path: Path) -> None:
    MODELS["mixtral"]().save_pretrained(tmp_path / "model")
    lm, whole = streamed(tmp_path), load(str(tmp_path / "model"))
    for site, expected in zip(lm.sites(("experts",)), whole.sites(("experts",)), strict=True):
        assert site.block is not None
        with lm.on_loan(site.block):
            assert torch.equal(site.weight(), expected.weight())
        assert site.weight().is_meta


def test_what_a_killed_process_left_is_no_part(folder: Path) -> None:
    lm = streamed(folder)
    file = part_file(folder / "scratch", BLOCK)
    file.parent.mkdir(parents=True)
    (file.parent / f".{file.name}.0123abcd").write_bytes(b"half")
    assert not lm.restore(BLOCK)


@pytest.fixture
def written(folder: Path) -> Path:
    write_sparse(str(folder))
    return part_file(folder / "scratch", BLOCK)


def test_a_damaged_file_is_reported(folder: Path, written: Path) -> None:
    written.write_bytes(written.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"^The file '.*' of the scratch folder cannot be read: .*; remove it.$"):
        streamed(folder).restore(BLOCK)


def test_a_file_of_another_model_is_reported(folder: Path, written: Path) -> None:
    with safe_open(written, framework="pt") as tensors:
        metadata = tensors.metadata()
    stored = load_file(written)
    del stored[f"{BLOCK}.mlp.down_proj.values"]
    save_file(stored, written, metadata)
    with pytest.raises(UserError, match=r"^The file '.*' of the scratch folder does not fit the model: "):
        streamed(folder).restore(BLOCK)


def test_a_file_without_a_structure_is_reported(folder: Path) -> None:
    lm = load_streamed(str(folder / "model"), folder / "scratch")
    with lm.on_loan(BLOCK):
        lm.write_back(BLOCK)
    with pytest.raises(UserError, match=r"does not say which formats it has"):
        streamed(folder).restore(BLOCK)


def test_a_file_that_another_run_replaces_is_not_read(folder: Path, written: Path) -> None:
    lm = streamed(folder)
    lm.restore(BLOCK)
    other = streamed(folder)
    with other.on_loan(BLOCK):
        other.write_back(BLOCK)
    with pytest.raises(UserError, match="was replaced while it was in use"), lm.on_loan(BLOCK):
        pass


def test_a_folder_that_cannot_be_written_is_reported(folder: Path) -> None:
    (folder / "scratch").write_text("no folder")
    lm = streamed(folder)
    with pytest.raises(UserError, match=r"^'.*' cannot be written: .*; make its folder writable"), lm.on_loan(BLOCK):
        lm.write_back(BLOCK)
    with lm.on_loan(""):
        assert_equal(lm.model, load(str(folder / "model")).model)
