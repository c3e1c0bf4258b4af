"""Speed of writing, energy, and bytes by part."""

import sys
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MambaConfig, MambaForCausalLM

from laconic.calibrate.passes import random_batch
from laconic.evaluate import evaluate, measure_cost
from laconic.evaluate.footprint import bytes_by_part, find_meter, measure_joules
from laconic.evaluate.timing import _token_seconds, measure_generation
from laconic.model import LanguageModel
from laconic.report.evaluation import evaluation_remarks, evaluation_tables
from laconic.report.inspection.parts import measure_parts
from tests.architectures import ARCHITECTURES, BY_NAME, DECODER, SMALL, VOCABULARY, WIDTH
from tests.tokens import letters

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "opt", "t5", "bart", "marian", "led"])
def test_prompts_and_new_tokens_are_timed_apart(name: str) -> None:
    lm = BY_NAME[name].lm()
    found = measure_generation(lm, 2, 12, new=4)
    assert found is not None and (found.batch, found.prompt, found.new) == (2, 12, 4)
    told = found.to_json()
    assert told["prefill_tokens_per_second"] == pytest.approx(24 / found.prefill.median)
    assert told["decode_tokens_per_second"] == pytest.approx(2 / found.step.median)


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_what_is_written_is_what_generate_writes(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    lm = BY_NAME[name].lm()
    inputs = random_batch(lm, 2, 7)
    written: list[torch.Tensor] = []
    forward = lm.model.forward

    def spying(*args: object, **given: object) -> object:
        output = forward(*args, **given)
        written.append(output["logits"][:, -1].argmax(-1))
        return output

    monkeypatch.setattr(lm.model, "forward", spying)
    with torch.inference_mode():
        assert len(list(_token_seconds(lm, dict(inputs), 5))) == 5
    found = torch.stack(written, dim=1)
    monkeypatch.setattr(lm.model, "forward", forward)
    inputs.pop("decoder_input_ids", None)
    own = lm.model.generate(**inputs, min_new_tokens=5, max_new_tokens=5, do_sample=False)[:, -5:]
    ends = (own == lm.model.config.eos_token_id) | (found == lm.model.config.eos_token_id)
    # `generate` is kept from ending; up to there both write the same.
    assert bool((found == own)[~ends.cumsum(1).bool()].all()) and (~ends).any()


def test_a_prompt_leaves_room_for_what_is_written() -> None:
    found = measure_generation(BY_NAME["gpt2"].lm(), 1, 500)
    assert found is not None and found.prompt + found.new <= 40


def test_an_encoder_writes_nothing() -> None:
    assert measure_generation(BY_NAME["bert-masked"].lm(), 1, 8) is None
    cost = measure_cost(BY_NAME["bert-masked"].lm(), None, (1,), (4,))
    assert cost.generations == () and "generation" not in cost.to_json()


def test_a_writer_has_a_table_of_its_own() -> None:
    cost = measure_cost(BY_NAME["llama"].lm(), None, (1, 2), (4,)).to_json()
    tables = evaluation_tables({"results": {}, "cost": cost})
    assert [row[1] for row in tables["Speed of generation"].rows] == ["1 × 4 + 20", "2 × 4 + 20"]
    assert len(tables["Megabytes by part"].rows[0]) == 6


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda one: one.name)
def test_bytes_by_part_are_all_bytes(architecture) -> None:
    lm = architecture.lm()
    parts = bytes_by_part(lm)
    assert sum(parts.values()) == lm.size()[1] and min(parts.values()) >= 0
    assert parts == {part.name: part.nbytes for part in measure_parts(lm).parts}


def test_a_tied_head_is_part_of_the_embedding() -> None:
    tied, apart = (bytes_by_part(BY_NAME[name].lm()) for name in ("llama-tied", "llama"))
    assert tied["head"] == 0 and apart["head"] == tied["embedding"] == 4 * VOCABULARY * WIDTH


def fake_package(folder: Path, number: int, microjoules: int) -> Path:
    package = folder / f"intel-rapl:{number}"
    package.mkdir()
    (package / "energy_uj").write_text(f"{microjoules}\n")
    (package / "max_energy_range_uj").write_text("1000000\n")
    return package / "energy_uj"


def test_energy_is_the_sum_of_the_packages_and_counters_begin_anew(tmp_path: Path) -> None:
    first, second = fake_package(tmp_path, 0, 900_000), fake_package(tmp_path, 1, 5)
    (tmp_path / "intel-rapl:0:0").mkdir()
    meter = find_meter(CPU, tmp_path)
    assert meter is not None
    second.write_text("300005")
    first.write_text("100000")
    assert meter.joules() == pytest.approx(0.2 + 0.3)
    assert measure_joules(lambda: first.write_text("400000"), CPU, meter) > 0


def test_without_a_counter_there_is_no_figure(tmp_path: Path) -> None:
    assert find_meter(CPU, tmp_path) is None
    unreadable = fake_package(tmp_path, 0, 1)
    unreadable.unlink()
    assert find_meter(CPU, tmp_path) is None


class FakeNvml(ModuleType):
    """NVIDIA's library over one GPU, which may count nothing."""

    class NVMLError(Exception):
        pass

    def __init__(self, millijoules: int | None) -> None:
        super().__init__("pynvml")
        self.__spec__ = ModuleSpec("pynvml", None)
        self.millijoules = millijoules

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        if self.millijoules is None or handle != "GPU-1a":
            raise self.NVMLError
        return self.millijoules


@pytest.mark.parametrize(("millijoules", "joules"), [(2500, 2.5), (None, None)])
def test_a_gpu_that_counts_nothing_gives_no_figure(
    monkeypatch: pytest.MonkeyPatch, millijoules: int | None, joules: float | None
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(millijoules))
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: SimpleNamespace(uuid="1a"))
    meter = find_meter(torch.device("cuda"))
    assert (meter and meter.joules()) == joules


def recurrent() -> LanguageModel:
    """A Mamba, which keeps a state and no keys and values."""
    config = MambaConfig(vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=2, state_size=4)
    return LanguageModel.of(MambaForCausalLM(config).eval())


@pytest.mark.filterwarnings("ignore::laconic.errors.StructureNotice")
def test_a_model_without_a_key_value_cache_is_not_timed_writing(tmp_path: Path) -> None:
    lm = replace(recurrent(), tokenizer=letters("start"))
    assert measure_generation(lm, 2, 8) is None
    texts = tmp_path / "texts.txt"
    texts.write_text("the cat is good\na dog\n")
    found = evaluate(lm, [f"perplexity:{texts}"]).to_json()
    assert found["results"] and "generation" not in found["cost"]
    assert found["cost"]["missing"] == ["The speed of generation was not measured: the model has no key-value cache."]
    assert found["cost"]["missing"][0] in evaluation_remarks(found) and "Speed of generation" not in evaluation_tables(
        found
    )


@pytest.mark.parametrize("positions", [1, 2, 3])
def test_a_model_of_next_to_no_positions_is_timed_on_what_it_has(positions: int) -> None:
    config = LlamaConfig(**{**DECODER, **SMALL, "max_position_embeddings": positions})
    found = measure_generation(LanguageModel.of(LlamaForCausalLM(config).eval()), 2, 8)
    assert (found is None) is (positions == 1)
    assert found is None or (found.prompt, found.new) == (1, 2)
