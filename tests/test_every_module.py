"""Every module has a test: one that imports it or one of its names, one of its own name, or the one listed here."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TESTS = ROOT / "tests"

TESTED_BY = {
    "laconic.api.estimated": "recipe/test_estimate.py",
    "laconic.cli.advise": "api/test_advise.py",
    "laconic.api.export": "api/test_results.py",
    "laconic.api.load": "api/test_results.py",
    "laconic.api.study": "api/test_results.py",
    "laconic.calibrate.block_pass": "calibrate/test_blockwise.py",
    "laconic.calibrate.checkpointed": "calibrate/test_blockwise.py",
    "laconic.calibrate.end_gradients": "calibrate/test_blockwise.py",
    "laconic.calibrate.measured_once": "compress/test_solved_once.py",
    "laconic.calibrate.choice_rows": "calibrate/test_multiple_choice.py",
    "laconic.calibrate.class_numbers": "calibrate/test_labels.py",
    "laconic.calibrate.expert_statistics": "calibrate/test_experts.py",
    "laconic.calibrate.sources.choice_records": "calibrate/test_multiple_choice.py",
    "laconic.calibrate.sources.files": "calibrate/test_corpus.py",
    "laconic.cli.export": "export/test_export.py",
    "laconic.cli.study": "study/test_program.py",
    "laconic.compress.allocators.smallest_sizes": "compress/test_smallest_sizes.py",
    "laconic.compress.checks": "recipe/test_order.py",
    "laconic.compress.depth.fitting": "compress/test_depth_replacement.py",
    "laconic.compress.depth.folding": "compress/test_depth_replacement.py",
    "laconic.compress.plan_file": "recipe/test_resume_spectrum.py",
    "laconic.compress.progress_log": "recipe/test_resume.py",
    "laconic.evaluate.in_turn": "evaluate/test_perplexity.py",
    "laconic.evaluate.labelled_task": "evaluate/test_multi_label.py",
    "laconic.export.coded_checkpoint": "export/test_gptq.py",
    "laconic.export.coded_linear": "export/test_gptq.py",
    "laconic.export.compressed_tensors.experts": "export/test_coded_experts.py",
    "laconic.export.compressed_tensors.schemes": "export/test_compressed_tensors.py",
    "laconic.export.gguf.target": "export/gguf/test_export.py",
    "laconic.export.gguf.tensors": "export/gguf/test_export.py",
    "laconic.export.gguf.verify": "export/gguf/test_export.py",
    "laconic.model.anatomy.hybrids": "model/test_hybrids.py",
    "laconic.model.anatomy.text_stack": "model/test_vision_language.py",
    "laconic.model.dense_parameters": "compress/test_dense.py",
    "laconic.model.depth_rules": "store/test_drawn.py",
    "laconic.methods.prediction": "test_every_method.py",
    "laconic.numerics.ggml_bytes": "numerics/test_ggml_blocks.py",
    "laconic.model.anatomy.encoder_decoders": "model/test_anatomy.py",
    "laconic.model.anatomy.encoders": "model/test_anatomy.py",
    "laconic.model.anatomy.mixtures": "model/test_mixtures.py",
    "laconic.model.anatomy.parts": "model/test_anatomy.py",
    "laconic.model.checkpoints.gguf_blocks": "model/checkpoints/test_read_back.py",
    "laconic.model.checkpoints.quantized.bits_and_bytes": "model/checkpoints/test_read_back.py",
    "laconic.model.checkpoints.quantized.coded_matrix": "model/checkpoints/test_read_back.py",
    "laconic.model.checkpoints.quantized.integers": "model/checkpoints/test_quantized.py",
    "laconic.model.checkpoints.quantized.keeping": "model/checkpoints/test_read_back.py",
    "laconic.model.checkpoints.quantized.torchao": "model/checkpoints/test_quantized_by_library.py",
    "laconic.model.checkpoints.sentence_modules": "model/embedding/test_refused.py",
    "laconic.model.checkpoints.sentences": "model/embedding/test_refused.py",
    "laconic.model.checkpoints.weights": "model/checkpoints/test_fit.py",
    "laconic.model.file_sizes": "model/checkpoints/test_read_back.py",
    "laconic.model.enumeration": "model/test_sites.py",
    "laconic.model.prunable_parts": "model/test_width.py",
    "laconic.model.targets": "model/test_sites.py",
    "laconic.field_readers": "test_typed.py",
    "laconic.recipe.building": "recipe/test_parse.py",
    "laconic.recipe.estimate.units": "recipe/test_estimate.py",
    "laconic.recover.student_init": "recover/test_student.py",
    "laconic.runtime.openvino_layout": "runtime/test_layout.py",
    "laconic.runtime.portable_layers": "runtime/test_graph.py",
    "laconic.runtime.stateful": "runtime/test_cache.py",
    "laconic.model.forward": "model/test_loans_on_call.py",
    "laconic.model.loans_stored": "model/test_loans_parts.py",
    "laconic.report.exports": "api/test_results.py",
    "laconic.runtime.exported": "evaluate/test_exported.py",
    "laconic.runtime.engine.workers.vllm_worker": "engines/test_evaluate_vllm.py",
    "laconic.store.verify_streamed": "store/test_streamed.py",
    "laconic.study.axes": "study/test_grid.py",
}
"""Modules that their callers are tested through, and the test that does it."""


@cache
def modules() -> dict[str, Path]:
    """Every module with a function or a class of its own, by dotted name."""
    found = {}
    for file in sorted((ROOT / "laconic").rglob("*.py")):
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if definitions(file):
            found[name] = file
    return found


def definitions(file: Path) -> set[str]:
    """Names of the functions and classes of a module."""
    body = ast.parse(file.read_text(encoding="utf-8")).body
    return {node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)}


@cache
def imports() -> frozenset[tuple[str, str]]:
    """Module and name of everything that tests import from laconic; of `import laconic.x` the name is empty."""
    found = set()
    for file in TESTS.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("laconic"):
                found |= {(node.module or "", alias.name) for alias in node.names}
            elif isinstance(node, ast.Import):
                found |= {(alias.name, "") for alias in node.names if alias.name.startswith("laconic")}
    return frozenset(found)


def is_imported(name: str, file: Path) -> bool:
    """True if a test imports the module, or one of its names from it or from a package around it."""
    own = definitions(file)
    return any(
        name in (module, f"{module}.{imported}") or (imported in own and name.startswith(f"{module}."))
        for module, imported in imports()
    )


def has_mirror(name: str) -> bool:
    """True if there is a test file of the module's name in the folder of its package."""
    *packages, last = name.split(".")[1:]
    return TESTS.joinpath(*packages, f"test_{last}.py").exists()


@pytest.mark.parametrize("name", modules())
def test_a_module_has_a_test(name: str) -> None:
    if name in TESTED_BY:
        assert (TESTS / TESTED_BY[name]).exists()
    else:
        assert is_imported(name, modules()[name]) or has_mirror(name), f"no test is of {name}; add one, or list it here"


def test_only_modules_that_no_test_names_are_listed() -> None:
    assert set(TESTED_BY) <= set(modules())
    named = [name for name in TESTED_BY if is_imported(name, modules()[name]) or has_mirror(name)]
    assert named == []
