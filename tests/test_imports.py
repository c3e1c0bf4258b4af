"""Whenever transformers imports its tables of quantizers, before or after laconic, laconic is in them."""

import sys
from collections.abc import Iterator
from importlib import import_module, invalidate_caches
from inspect import getsource
from pathlib import Path

import pytest

from laconic.imports import TABLES, when_imported
from tests.fresh_python import run_fresh

KNOWN = f"from {TABLES} import AUTO_QUANTIZATION_CONFIG_MAPPING as a, AUTO_QUANTIZER_MAPPING as b"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module that was not imported yet."""
    name = f"imported_late_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text("VALUE = 3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    invalidate_caches()
    yield name
    sys.modules.pop(name, None)


def test_it_is_called_once_the_module_has_all_its_names(module: str) -> None:
    seen: list[int] = []
    when_imported(module, lambda: seen.append(sys.modules[module].VALUE))
    assert seen == []
    loaded = import_module(module)
    import_module(module)
    assert seen == [3]
    # Nothing of the detour is left on the module.
    assert type(loaded.__spec__.loader).__module__ != "laconic.imports" and loaded.__loader__ is loaded.__spec__.loader
    assert getsource(loaded) == "VALUE = 3\n"


def test_it_is_called_at_once_where_the_module_is_there(module: str) -> None:
    import_module(module)
    seen: list[str] = []
    when_imported(module, lambda: seen.append(module))
    assert seen == [module]


def test_a_module_that_is_not_there_is_missed_as_ever(module: str) -> None:
    when_imported(f"{module}_not", lambda: pytest.fail("there is nothing to follow"))
    with pytest.raises(ModuleNotFoundError, match=f"No module named '{module}_not'"):
        import_module(f"{module}_not")


@pytest.mark.parametrize(
    "order",
    [
        "import laconic, transformers",
        "import transformers, laconic",
        f"import {TABLES}, laconic",
        "from transformers import AutoModel; import laconic",
        "import laconic.store.quantizer",
        "from laconic.store import LaconicConfig",
        "import laconic.methods",
    ],
)
def test_the_order_of_imports_does_not_matter(order: str) -> None:
    code = f"{order}\n{KNOWN}\nprint(a['laconic'].__name__, b['laconic'].__name__)"
    assert run_fresh(code) == "LaconicConfig LaconicQuantizer"
