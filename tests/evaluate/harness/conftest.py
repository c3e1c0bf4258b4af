"""A few rows of each task in the layout of its authors, and the same as the hub has them."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

PASSAGES = (
    ("tale", "it was the best of times, it was the worst of times", "was it the best of times", True),
    ("cities", "there were two cities", "were there three cities", False),
    ("age", "it was the age of wisdom", "was it an age of wisdom", True),
    ("light", "it was the season of light", "was it dark", False),
    ("hope", "it was the spring of hope", "was there hope", True),
)
GOALS = (
    ("boil an egg", "put it in hot water", "put it in a drawer", 0),
    ("open a door", "look at it for a while", "turn the handle", 1),
    ("dry a shirt", "hang it in the sun", "put it in water", 0),
    ("read a tale", "close the book", "open the book", 1),
)
GAPS = (
    ("the cat did not fit in the box as _ was too large", "the cat", "the box", "1"),
    ("ann gave the book to eve since _ had read it", "ann", "eve", "1"),
    ("the cup fell on the floor and _ broke", "the floor", "the cup", "2"),
)


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that `LACONIC_DATA` names."""
    folder = tmp_path / "data"
    for task in ("boolq", "piqa", "winogrande"):
        (folder / task).mkdir(parents=True)
    titled = [
        {"question": question, "title": title, "answer": answer, "passage": passage}
        for title, passage, question, answer in PASSAGES
    ]
    (folder / "boolq" / "dev.jsonl").write_text(lines(titled))
    goals = [{"id": str(at), "goal": row[0], "sol1": row[1], "sol2": row[2]} for at, row in enumerate(GOALS)]
    (folder / "piqa" / "dev.jsonl").write_text(lines(goals))
    (folder / "piqa" / "dev-labels.lst").write_text("".join(f"{row[3]}\n" for row in GOALS))
    gaps = [dict(zip(("sentence", "option1", "option2", "answer"), row, strict=True)) for row in GAPS]
    (folder / "winogrande" / "dev.jsonl").write_text(lines(gaps))
    monkeypatch.setenv("LACONIC_DATA", str(folder))
    return folder


def hub(dataset: str) -> DatasetDict:
    """A stand-in for the hub's data set of this name, with a training split."""
    rows = {
        "aps/super_glue": [
            {"question": question, "passage": f"{title} -- {passage}", "idx": at, "label": int(answer)}
            for at, (title, passage, question, answer) in enumerate(PASSAGES)
        ],
        "baber/piqa": [dict(zip(("goal", "sol1", "sol2", "label"), row, strict=True)) for row in GOALS],
        "allenai/winogrande": [
            dict(zip(("sentence", "option1", "option2", "answer"), row, strict=True)) for row in GAPS
        ],
    }[dataset]
    return DatasetDict({"train": Dataset.from_list(rows[::-1]), "validation": Dataset.from_list(rows)})
