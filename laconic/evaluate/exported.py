"""Evaluate encoder-decoders that were exported to ONNX Runtime or OpenVINO, in their runtime.

Tasks run on the exported graphs: `seq2seq:` reads targets with teacher forcing, and writes texts with the cache. The
cost is that of one row: a source is read, and tokens are written.
"""

from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import replace

from laconic.evaluate.engine_cost import EngineCost, measure_engine, written_tokens
from laconic.evaluate.in_engine import EngineModel, EngineSettings
from laconic.evaluate.run import Evaluation, evaluate
from laconic.model import LanguageModel
from laconic.model.loading import load_outline
from laconic.runtime.engine import Engine
from laconic.runtime.engine.graphs import GraphEngine
from laconic.runtime.exported import exported_model
from laconic.runtime.written import Seq2SeqProgram


def evaluate_exported(models: Sequence[EngineModel], tasks: Sequence[str], settings: EngineSettings) -> Evaluation:
    """Measure the quality and the cost of an encoder-decoder, and its distance from the original.

    Args:
        models: the model, and the original if there is one, both exported for the same runtime.
        tasks: names of tasks for encoder-decoders.
        settings: how to measure.

    Raises:
        UserError: a runtime cannot read a model, or a model cannot be measured on a task.
    """
    longest = min((each.longest for each in models if each.longest is not None), default=None)
    # Source and target have positions of their own.
    lengths = tuple(dict.fromkeys(length if longest is None else min(length, longest) for length in settings.lengths))
    costs: list[EngineCost] = []
    loaded: list[LanguageModel] = []
    with ExitStack() as stack:
        # The original first: its time and memory are then measured while nothing else is loaded.
        for each in reversed(models):
            engine = stack.enter_context(closing(each.engine(each.path, 0)))
            new = written_tokens(longest)
            costs.append(measure_engine(engine, each.engine.size(each.path), lengths, new, settings.track))
            if tasks:
                loaded.append(_language_model(each, engine))
        cost, original_cost = costs[-1], costs[0] if len(models) > 1 else None
        if not tasks:
            original = None if original_cost is None else {}
            return Evaluation(results={}, settings={}, cost=cost, original=original, original_cost=original_cost)
        against = loaded[0] if len(models) > 1 else None
        found = evaluate(loaded[-1], tasks, limit=settings.limit, against=against, cost=False, track=settings.track)
    used = {"runtime": cost.runtime["name"], "library": cost.runtime["library"]}
    recorded = {name: {**values, **used} for name, values in found.settings.items()}
    return replace(found, settings=recorded, cost=cost, original_cost=original_cost)


def _language_model(model: EngineModel, engine: Engine) -> LanguageModel:
    """The model of a folder, run by the graphs that an engine has loaded."""
    assert isinstance(engine, GraphEngine) and isinstance(engine.generator.program, Seq2SeqProgram)
    folder = model.path.parent
    structure = load_outline(folder, model.source, model.tokenizer)
    return exported_model(structure, folder, engine.name, engine.generator.program)
