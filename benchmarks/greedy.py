"""Greedy text of an engine beside torch's with the same numbers: equal tokens, or the gap at the first that differs.

The engine writes after the first tokens of some texts. Torch then reads prompt and text at once in float32, which gives
its own choice at each place as long as both have read the same tokens. At the first place where they differ, the gap is
torch's largest logit minus torch's logit of the engine's token.

    python -m benchmarks greedy --engine vllm --folder FOLDER --name "0.5b, W8A8"
    python -m benchmarks greedy --engine openvino --folder EXPORTED --reference COMPRESSED --name "tiny, 4 bits"

The engine `transformers` is eager torch in the dtype of the files: it shows what this dtype alone changes. `--dtype`
lets vLLM compute in another dtype than that of the files. A finished measurement is a line of
benchmarks/results/greedy.jsonl.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import torch
from transformers import AutoTokenizer

from benchmarks.common import Cells
from benchmarks.large_models_files import write_texts
from benchmarks.vllm_quality import rounding_inputs
from benchmarks.vllm_speed import EagerModel, Writer
from laconic.cli.terminal import silence_libraries
from laconic.model import load
from laconic.runtime.engine import ENGINES
from laconic.system import processor

CELLS = Cells("greedy", ("engine", "model"))
PROMPTS, PROMPT, WRITTEN = 20, 16, 64
"""Prompts, the tokens of each, and the tokens that are written after it."""
GAP = 1e-2
"""The largest gap between two logits whose order may be a matter of rounding."""
TRANSFORMERS = "transformers"


def main(argv: Sequence[str]) -> None:
    """Measure one folder in one engine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=[*ENGINES, TRANSFORMERS], required=True)
    parser.add_argument("--folder", type=Path, required=True, help="what the engine loads")
    parser.add_argument("--reference", type=Path, help="the same model for torch, if it cannot read the engine's files")
    parser.add_argument("--name", required=True, help="the model in the table")
    parser.add_argument("--dtype", help="the dtype in which vLLM computes, in place of that of the files")
    options = parser.parse_args(argv)
    silence_libraries()
    torch.set_num_threads(1)
    reference = options.reference or options.folder
    prompts = prompts_for(reference)
    with in_dtype(options.folder, options.dtype) as folder:
        texts, version = write_all(options.engine, folder, prompts)
    gaps = first_gaps(reference, prompts, texts)
    different = [gap for gap in gaps if gap is not None]
    cell = {
        "prompts": len(prompts),
        "tokens": WRITTEN,
        "equal": gaps.count(None),
        "gaps": different,
        "within": sum(gap < GAP for gap in different),
        "dtype": options.dtype,
        "library": version,
        "processor": processor(),
    }
    key = (options.engine, options.name)
    CELLS.remove([key] if CELLS.path.exists() else [])
    CELLS.add(key, cell)
    print(json.dumps(cell))


def prompts_for(model: Path) -> list[list[int]]:
    """The first tokens of the last texts that ship with Python, in the tokenizer of a model."""
    tokenizer = AutoTokenizer.from_pretrained(model if model.is_dir() else model.parent)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "texts.txt"
        write_texts(file)
        lines = file.read_text().splitlines()[-PROMPTS:]
    return [tokenizer(line)["input_ids"][:PROMPT] for line in lines]


@contextmanager
def in_dtype(folder: Path, dtype: str | None) -> Iterator[Path]:
    """A folder whose configuration names another dtype, with links to the files of `folder`; or `folder` itself."""
    if dtype is None:
        yield folder
        return
    with tempfile.TemporaryDirectory() as name:
        copied = Path(name)
        for file in folder.iterdir():
            (copied / file.name).symlink_to(file.resolve())
        config = json.loads((folder / "config.json").read_text())
        (copied / "config.json").unlink()
        (copied / "config.json").write_text(json.dumps(config | {"dtype": dtype}))
        yield copied


def write_all(engine: str, folder: Path, prompts: Sequence[Sequence[int]]) -> tuple[list[list[int]], str]:
    """The tokens that an engine writes after each prompt, and its name and version."""
    if engine == TRANSFORMERS:
        model = EagerModel(folder)
        return _write(model, prompts), model.version
    kind = ENGINES[engine]
    path = kind.find(folder)
    assert path is not None, f"{engine} reads {kind.files}"
    with closing(kind(path, PROMPT + WRITTEN)) as loaded:
        return _write(loaded, prompts), loaded.version


def _write(model: Writer, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    return [list(model.write(prompt, WRITTEN).tokens) for prompt in prompts]


@torch.inference_mode()
def first_gaps(model: Path, prompts: Sequence[Sequence[int]], texts: Sequence[Sequence[int]]) -> list[float | None]:
    """The gap of torch's logits at the first token of each text that torch would not write; None if there is none."""
    lm = load(str(model))
    assert lm.model.dtype == torch.float32
    gaps: list[float | None] = []
    with rounding_inputs(lm.model, model if model.is_dir() else model.parent):
        for prompt, text in zip(prompts, texts, strict=True):
            read = torch.tensor([[*prompt, *text[:-1]]])
            logits = lm.model(read, use_cache=False).logits[0, len(prompt) - 1 :]
            written = torch.tensor(text)
            behind = logits.amax(-1) - logits.gather(-1, written[:, None])[:, 0]
            places = behind.nonzero()[:, 0]
            gaps.append(behind[places[0]].item() if len(places) else None)
    return gaps
