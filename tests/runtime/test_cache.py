"""Exported models with a cache: prompts and single tokens give what torch gives, with padding on the left, and text."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

from laconic.errors import UserError
from laconic.model import Group, LanguageModel, ModelTask
from laconic.model.prunable_group import prunable_groups
from laconic.model.width import keep_parts
from laconic.runtime import ONNX, OPENVINO, LoadedExport, serve
from laconic.runtime.cache_layout import LayerShape, cache_layouts, check_cache
from laconic.runtime.generator import Generator
from laconic.runtime.graph import build_graph, write_model
from laconic.runtime.written import WrittenModel, write_graphs
from tests.architectures import BY_NAME
from tests.runtime.mixed import EXACT, mixed

for name in ("onnx", "onnxscript", "onnxruntime", "openvino"):
    pytest.importorskip(name)

CLOSE = 2e-5
NEW = 6
RUNTIMES = (ONNX, OPENVINO)
PROMPTS = torch.tensor([[7, 11, 5, 23, 9], [1, 1, 8, 4, 30], [1, 12, 6, 17, 3]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [0, 1, 1, 1, 1]])


def written(lm: LanguageModel, folder: Path) -> dict[str, WrittenModel]:
    """The model in a folder for each runtime. A graph without codes is the same for both, and traced once."""
    folders = {runtime: folder / runtime for runtime in RUNTIMES}
    for each in folders.values():
        each.mkdir()
        lm.model.config.save_pretrained(each)
    if lm.task is ModelTask.SEQ2SEQ:
        return {runtime: write_graphs(lm, runtime, each, cached=True) for runtime, each in folders.items()}
    graph = build_graph(lm, ONNX, cached=True)
    for runtime, each in folders.items():
        write_model(lm, graph, runtime, each)
    return {
        runtime: WrittenModel(runtime, each, graph.signature, graph.layers, cached=True, parts=False)
        for runtime, each in folders.items()
    }


@torch.no_grad()
def expected(lm: LanguageModel, prompts: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens that torch writes, and the logits of each of them: (rows, tokens, vocabulary)."""
    generate: Any = lm.model.generate
    found = generate(
        input_ids=prompts,
        attention_mask=mask,
        max_new_tokens=NEW,
        min_new_tokens=NEW,
        do_sample=False,
        num_beams=1,
        eos_token_id=None,
        forced_bos_token_id=None,
        forced_eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return found.sequences[:, -NEW:], torch.stack(found.logits, dim=1)


def check_steps(lm: LanguageModel, generator: Generator) -> None:
    """Logits of every step, and tokens, are those of torch. Steps follow torch's tokens, so that each is compared."""
    tokens, logits = expected(lm, PROMPTS, MASK)
    steps = [generator.prefill(PROMPTS, MASK)]
    steps += [generator.step(tokens[:, number]) for number in range(NEW - 1)]
    error = (torch.stack(steps, dim=1) - logits).abs().max() / logits.abs().max()
    assert error < CLOSE
    assert torch.equal(generator.write(PROMPTS, MASK, new=NEW), tokens)


def check_served(lm: LanguageModel, model: WrittenModel) -> None:
    """`generate` writes what it does in torch, with several beams too, which change places in the cache."""
    served = serve(lm, model.runtime, LoadedExport(model.load(), model.signature, 0, {}, cached=True)).lm
    writers: list[Any] = [served.model.generate, lm.model.generate]
    for beams in (1, 3):
        options = {"attention_mask": MASK, "max_new_tokens": NEW, "num_beams": beams, "do_sample": False}
        found, theirs = (write(PROMPTS, **options) for write in writers)
        assert torch.equal(found, theirs)


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gemma", "gpt2", "t5", "bart"])
@pytest.mark.slow
def test_logits_and_text_are_those_of_torch(tmp_path: Path, name: str) -> None:
    lm = BY_NAME[name].lm()
    for model in written(lm, tmp_path).values():
        check_steps(lm, Generator.open(model.folder))
        check_served(lm, model)


@pytest.mark.slow
def test_windows_are_in_the_mask(tmp_path: Path) -> None:
    """The cache keeps all tokens; every other block of Gemma 2 sees only the last four."""
    lm = BY_NAME["gemma2"].lm()
    assert lm.model.config.sliding_window < PROMPTS.shape[1]
    for model in written(lm, tmp_path).values():
        check_steps(lm, Generator.open(model.folder))


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", ["llama", "t5"])
@pytest.mark.slow
def test_every_format_has_a_cache(tmp_path: Path, name: str, runtime: str) -> None:
    lm = mixed(BY_NAME[name].lm(), EXACT)
    write_graphs(lm, runtime, tmp_path, cached=True)
    lm.model.config.save_pretrained(tmp_path)
    check_steps(lm, Generator.open(tmp_path))


@pytest.mark.slow
def test_blocks_may_have_other_numbers_of_heads(tmp_path: Path) -> None:
    lm = BY_NAME["llama"].lm()
    first, _ = prunable_groups(lm, (Group.ATTENTION,))
    keep_parts(lm, first, [1])
    (layout,) = cache_layouts(lm)
    assert layout.layers == (LayerShape(1, 8, 8), LayerShape(2, 8, 8))
    for model in written(lm, tmp_path).values():
        check_steps(lm, Generator.open(model.folder))


@pytest.mark.slow
def test_what_can_be_traced_without_a_cache_only_says_so(tmp_path: Path) -> None:
    """The positions of MPT depend on lengths in a way that torch does not follow."""
    with pytest.raises(UserError, match=r"'mpt' cannot be exported with a cache: .*, with --no-cache"):
        write_graphs(BY_NAME["mpt"].lm(), ONNX, tmp_path, cached=True)


@pytest.mark.filterwarnings("ignore::laconic.errors.StructureNotice")
def test_what_keeps_no_keys_is_refused_by_its_name() -> None:
    lm = LanguageModel.of(hf.MambaForCausalLM(hf.MambaConfig(vocab_size=50, hidden_size=8, num_hidden_layers=1)))
    with pytest.raises(UserError, match=r"'mamba' does not keep keys and values of every .*--no-cache"):
        check_cache(lm)


def test_a_folder_without_a_cache_is_no_generator(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no model of ONNX Runtime or OpenVINO"):
        Generator.open(tmp_path)
    write_graphs(BY_NAME["gpt2"].lm(), ONNX, tmp_path)
    with pytest.raises(UserError, match=r"has no cache, .* without --no-cache"):
        Generator.open(tmp_path)
