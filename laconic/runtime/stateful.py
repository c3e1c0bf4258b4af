"""Make a graph with a cache an OpenVINO model that keeps the cache itself, as OpenVINO GenAI and optimum expect it.

Each pair of an input `past_key_values.N.key` and an output `present.N.key` becomes a state of the model. A state starts
with no tokens, and a request keeps it until it is reset. The input `beam_idx` says which row of the states each row of
the next call goes on with; beam search changes it. An output without such an input, as for keys of the tokens that an
encoder read, becomes a state that is computed in the first call only.
"""

from importlib import import_module
from typing import Any

import numpy as np

from laconic.runtime.cache_layout import PAST, PRESENT

BEAM = "beam_idx"
"""The input with the row of the states for each row of the batch, int32."""
KEEP_PRECISION = {"KV_CACHE_PRECISION": "f32"}
"""The OpenVINO setting against its default, which rounds the cache to 8 bits where attention is fused with it."""


def make_stateful(model: Any) -> None:
    """Turn inputs and outputs of a cache into states, in place.

    Args:
        model: an OpenVINO model that was read from a graph with a cache.
    """
    openvino: Any = import_module("openvino")
    opset: Any = import_module("openvino.opset13")
    passes: Any = import_module("openvino._offline_transformations")
    beams = opset.parameter(openvino.PartialShape([-1]), np.int32, name=BEAM)
    beams.output(0).set_names({BEAM})
    model.add_parameters([beams])
    past_names = [value.get_any_name() for value in model.inputs if value.get_any_name().startswith(PAST)]
    pairs = {name: name.replace(PAST, PRESENT, 1) for name in past_names}
    for name in pairs:
        past = model.input(name)
        readers = list(past.get_target_inputs())
        rows = opset.gather(past, beams, opset.constant(np.int64(0)))
        for reader in readers:
            reader.replace_source_output(rows.output(0))
    model.validate_nodes_and_infer_types()
    passes.apply_make_stateful_transformation(model, pairs)
    _start_empty(model, opset)
    _keep_first(model)
    for name, value in KEEP_PRECISION.items():
        model.set_rt_info(value, ["runtime_options", name])


def _start_empty(model: Any, opset: Any) -> None:
    """Let each state start with as many rows as the batch, and no tokens."""
    shape = opset.shape_of(model.input("input_ids"), "i64")
    batch = opset.gather(shape, opset.constant(np.array([0])), opset.constant(np.int64(0)))
    for node in model.get_ordered_ops():
        if node.get_type_name() == "ReadValue":
            _, heads, _, width = node.get_output_partial_shape(0)
            sizes = [batch, *(opset.constant(np.array([size])) for size in (heads.get_length(), 0, width.get_length()))]
            zero = opset.constant(np.float32(0))
            node.set_arguments([opset.broadcast(zero, opset.concat(sizes, 0))])
    model.validate_nodes_and_infer_types()


def _keep_first(model: Any) -> None:
    """Let each remaining output of a cache be a state that starts with its value, and is never written again."""
    openvino: Any = import_module("openvino")
    util: Any = import_module("openvino.op.util")
    for result in [each for each in model.get_results() if _name(each.input_value(0)).startswith(PRESENT)]:
        value = result.input_value(0)
        name = _name(value)
        readers = [reader for reader in value.get_target_inputs() if reader.get_node().get_type_name() != "Result"]
        model.remove_result(result)
        info = util.VariableInfo()
        info.data_shape, info.data_type = value.get_partial_shape(), value.get_element_type()
        info.variable_id = name
        # By the name alone, reading and assigning would be of two variables, and the model would declare neither.
        variable = util.Variable(info)
        state = openvino.op.read_value(value, variable)
        for reader in readers:
            reader.replace_source_output(state.output(0))
        model.add_variables([variable])
        model.add_sinks([openvino.op.assign(state, variable)])
    model.validate_nodes_and_infer_types()


def _name(value: Any) -> str:
    """The name of an output among several, which begins as those of a cache do; else any."""
    names = sorted(value.get_names())
    return next((name for name in names if name.startswith(PRESENT)), (*names, "")[0])
