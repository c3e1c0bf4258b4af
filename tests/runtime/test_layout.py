"""Matrices of exported OpenVINO models lie as its own conversion from torch has them: (out, in), read transposed."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import pytest
import torch

from laconic.model import LanguageModel
from laconic.runtime import OPENVINO
from laconic.runtime import graph as written_files
from laconic.runtime.engines import load_program
from laconic.runtime.graph import Graph, build_graph, exported_bytes, write_model
from tests.architectures import BY_NAME
from tests.runtime.mixed import EXACT, ROUNDING, mixed, plain
from tests.runtime.test_graph import batch_of

pytest.importorskip("openvino")
pytest.importorskip("onnxscript")


class Product(NamedTuple):
    """A product with a constant matrix, in the file: its name, whether it is read transposed, and from what."""

    name: str
    transposed: bool
    source: str


def products(folder: Path) -> list[Product]:
    """Those of the model in `folder`, read off its XML."""
    root = ElementTree.parse(folder / "openvino_model.xml").getroot()
    layers = {layer.attrib["id"]: layer for layer in root.iterfind("layers/layer")}
    into = {(edge.attrib["to-layer"], int(edge.attrib["to-port"])): edge.attrib["from-layer"]
            for edge in root.iterfind("edges/edge")}  # fmt: skip

    def is_constant(one: str) -> bool:
        sources = [source for (target, _), source in into.items() if target == one]
        return layers[one].attrib["type"] == "Const" or (bool(sources) and all(map(is_constant, sources)))

    return [
        Product(layer.attrib["name"], data.attrib["transpose_b"] == "true", layers[into[one, 1]].attrib["type"])
        for one, layer in layers.items()
        if layer.attrib["type"] == "MatMul" and is_constant(into[one, 1]) and (data := layer.find("data")) is not None
    ]


def check(lm: LanguageModel, graph: Graph, folder: Path, count: int) -> None:
    write_model(lm, graph, OPENVINO, folder)
    found = products(folder)
    assert len(found) >= count
    assert not [product for product in found if not product.transposed or product.source == "Transpose"]


@pytest.mark.parametrize("makers", [EXACT, ROUNDING], ids=["exact", "rounding"])
@pytest.mark.slow
def test_every_format(makers: dict[str, Callable], tmp_path: Path) -> None:
    """All in one model: a layer that lies otherwise is one of the products that the file names."""
    lm = mixed(BY_NAME["bert-classifier"].lm(), makers)
    check(lm, build_graph(lm, OPENVINO), tmp_path, len(lm.sites(("blocks",))))


@pytest.mark.parametrize("name", ["bert-masked", "gpt2", "llama-tied", "bart", "t5", "albert-masked"])
@pytest.mark.slow
def test_every_kind_of_model(name: str, tmp_path: Path) -> None:
    lm, graph = plain(name)
    check(lm, graph, tmp_path, len(lm.sites(("blocks",))))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.slow
def test_weights_of_16_bits(dtype: torch.dtype, tmp_path: Path) -> None:
    lm = BY_NAME["gpt2"].lm()
    torch.nn.Module.to(lm.model, dtype).float()
    graph = build_graph(lm.with_dtype(dtype), OPENVINO)
    check(lm, graph, tmp_path, 8)
    batch = batch_of(lm, 3, 7)
    ran = load_program(OPENVINO, tmp_path / "openvino_model.xml", exact=True)
    [found] = ran(graph.signature.feeds(lm, batch)).values()
    with torch.no_grad():
        expected = lm.model(**batch).logits
    counted = batch["attention_mask"].bool()
    torch.testing.assert_close(found[counted], expected[counted], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_nothing_is_written_twice_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The blocks of ALBERT share their matrices, and the head of a tied model has those of its embedding.
    for name in ("albert-masked", "llama-tied"):
        lm, graph = plain(name)
        sizes = []
        for turn in (written_files.transpose_weights, lambda model: None):
            folder = tmp_path / f"{name}-{len(sizes)}"
            folder.mkdir()
            monkeypatch.setattr(written_files, "transpose_weights", turn)
            write_model(lm, graph, OPENVINO, folder)
            sizes.append(exported_bytes(folder))
            monkeypatch.undo()
        assert sizes[0] <= sizes[1]
