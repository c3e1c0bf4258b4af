"""Writes one of each thing that laconic stores into the folder of this version; what is there already stays.

`python -m tests.old.make` from the root of the repository, once for each version that is released, and again for what a
new format or step adds before it is.
"""

import contextlib
import io
import json
import os
import platform
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["LACONIC_CACHE"] = tempfile.mkdtemp(prefix="laconic-old-")

import torch
import transformers
import yaml
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from laconic.allocate import plan_text, plan_to_config
from laconic.cli.main import status
from laconic.compress import Compress
from laconic.methods import Svd
from laconic.model import load as load_lm
from laconic.recipe import Recipe, recipe_from, write_recipe
from laconic.recipe.flow import apply_steps
from laconic.recipe.schema import spell_recipe
from laconic.store import ExtraFiles, save
from tests.old.models import CASES, WIDTH, Case, batch_for, bert, bert_base, data_for
from tests.old.reading import HERE, LOGITS, load, logits, vectors
from tests.old.spelled import BY_HAND, PLAN, RECIPES, STUDY
from tests.sentences import NORMALIZE, Part, dense, sentence_folder

WORDS = ("[PAD]", "[UNK]", "the", "cat", "dog", "house", "is", "was", "good", "bad", "old")
SENTENCES = [f"the {noun} {verb} {what}" for noun in WORDS[3:6] for verb in WORDS[6:8] for what in WORDS[8:]]
SOME = {"processor": "a processor", "instructions": "AVX2"}
"""In place of the machine that records were made on."""


def main() -> None:
    """Write what the folder of this version lacks."""
    project = tomllib.loads((HERE.parents[1] / "pyproject.toml").read_text())["project"]
    folder = HERE / project["version"]
    (folder / "models").mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for case in CASES:
        anew(folder / "models" / case.name, lambda path, case=case: write_model(case, path))
    anew(folder / "recipes", write_recipes)
    anew(folder / "plan.yaml", lambda path: path.write_text(plan_text(PLAN)))
    anew(folder / "plan.json", lambda path: write_json(path, plan_to_config(PLAN)))
    anew(folder / "original", write_original)
    anew(folder / "embedder", write_embedder)
    anew(folder / "study", lambda path: write_study(path, folder / "original"))
    anew(folder / "printed", lambda path: write_printed(path, folder / "original"))
    anew(folder / "made.json", lambda path: write_json(path, made_by(project["version"])))


def anew(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` make `path` where there is none."""
    if not path.exists():
        sys.stderr.write(f"{path.relative_to(HERE)}\n")
        write(path)


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")


def made_by(version: str) -> dict[str, str]:
    """The versions that made this."""
    beside = {"torch": torch.__version__, "transformers": transformers.__version__}
    return {"laconic": version, **beside, "python": platform.python_version()}


def write_model(case: Case, folder: Path) -> None:
    """The folder of a case, and beside it what its model gives for a batch."""
    lm = case.lm()
    lm, changes = apply_steps(lm, case.steps, data_for(lm))
    recipe = write_recipe(Recipe(model="original", data="builtin:pydoc", steps=tuple(case.steps)))
    save(lm, folder, ExtraFiles(recipe=recipe, plan=tuple(plan_text(plan) for plan in changes.plans if plan)))
    # Nothing reads the card.
    (folder / "README.md").unlink()
    batch = batch_for(lm.model)
    save_file({**batch, LOGITS: logits(load(folder), batch)}, folder.with_suffix(".safetensors"))


def write_recipes(folder: Path) -> None:
    """Recipes as they lie beside models, one as people write it, and what each says in full."""
    folder.mkdir()
    for name, recipe in RECIPES.items():
        (folder / f"{name}.yaml").write_text(write_recipe(recipe))
        write_json(folder / f"{name}.json", spell_recipe(recipe))
    (folder / "by-hand.yaml").write_text(BY_HAND)
    write_json(folder / "by-hand.json", spell_recipe(recipe_from(yaml.safe_load(BY_HAND))))


def write_original(folder: Path) -> None:
    """A classifier with a tokenizer, of which the study and what is printed are made."""
    Case("original", bert, ()).lm().model.save_pretrained(folder)
    write_tokenizer(folder)


def write_tokenizer(folder: Path) -> None:
    """A tokenizer of a few whole words."""
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(folder)


def write_embedder(folder: Path) -> None:
    """A compressed model with modules of sentence-transformers behind it, and beside it the vectors that it gives."""
    with tempfile.TemporaryDirectory() as place:
        parts = [Part("Pooling", {"embedding_dimension": WIDTH, "pooling_mode": "mean"}), dense(WIDTH, 8), NORMALIZE]
        whole = sentence_folder(Path(place) / "whole", parts, model=Case("whole", bert_base, ()).lm().model)
        write_tokenizer(whole)
        lm = load_lm(str(whole))
        steps = (Compress(method=Svd(rank=4)),)
        lm, changes = apply_steps(lm, steps, None)
        save(
            lm,
            folder,
            ExtraFiles(recipe=write_recipe(Recipe(model="whole", steps=steps)), plan=plan_text(changes.plan)),
        )
    (folder / "README.md").unlink()
    batch = batch_for(lm.model)
    save_file({**batch, LOGITS: vectors(load_lm(str(folder)), batch)}, folder.with_suffix(".safetensors"))


@contextlib.contextmanager
def within(original: Path) -> Iterator[Path]:
    """A working folder with the model and some data, so that what is stored names no path."""
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        shutil.copytree(original, "original")
        data = Path("data/glue/SST-2")
        data.mkdir(parents=True)
        for split, shift in (("train", 0), ("dev", 1)):
            lines = [f"{'the ' * shift}{sentence}\t{at % 2}" for at, sentence in enumerate(SENTENCES)]
            (data / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
        os.environ["LACONIC_DATA"] = "data"
        yield Path(place)


def write_study(folder: Path, original: Path) -> None:
    """The folder of a study, without its pictures and its page, and the records as its ledger reads them."""
    with within(original):
        Path("study.yaml").write_text(STUDY)
        for _ in range(2):
            if status(["study", "study.yaml", "-o", "study"]):
                raise SystemExit("the study failed")
            for file in Path("study/cells").glob("*.json"):
                file.write_text(json.dumps(anywhere(json.loads(file.read_text())), indent=1))
        folder.mkdir()
        for name in ("study.yaml", "about.json", "results.csv", "results.md", "results.parquet"):
            shutil.copy(f"study/{name}", folder)
        shutil.copytree("study/cells", folder / "cells", ignore=shutil.ignore_patterns(".*"))


def write_printed(folder: Path, original: Path) -> None:
    """Write the JSON that the verbs print, and the files of `inspect`."""
    folder.mkdir()
    commands = {
        "compress": ["compress", "original", "--method", "rtn:bits=4,group_size=8", "-o", "small"],
        "evaluate": ["evaluate", "small", "--tasks", "glue/sst2", "--against", "original"],
        "inspect": ["inspect", "original"],
    }
    with within(original):
        for name, command in commands.items():
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                if status([*command, "--json"]):
                    raise SystemExit(f"{name} failed")
            write_json(folder / f"{name}.json", anywhere(json.loads(printed.getvalue())))


def anywhere(value: Any) -> Any:
    """The same, as if it was made on some machine."""
    if isinstance(value, dict):
        return {key: SOME.get(key, anywhere(part)) for key, part in value.items()}
    return [anywhere(part) for part in value] if isinstance(value, list) else value


if __name__ == "__main__":
    main()
