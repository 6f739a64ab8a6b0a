"""What a model must be so that RecoE2E and our plugins can run it in every CMSSW release."""

from pathlib import Path

import onnx

from e2e_utils.errors import InputError

INPUT, OUTPUT = ("modelInput", (1, 32, 32)), ("modelOutput", (1,))
OPSET, IR_VERSION = 10, 5  # what ONNX Runtime 1.0.0 of CMSSW_11_0_1 reads


def signature(value: onnx.ValueInfoProto) -> tuple[str, list[int | str], str]:
    """Name, dimensions (text where free) and element type of an input or output."""
    tensor = value.type.tensor_type
    shape = [d.dim_param or d.dim_value or "?" for d in tensor.shape.dim]
    return value.name, shape, onnx.TensorProto.DataType.Name(tensor.elem_type)


def check_model(path: str | Path) -> onnx.ModelProto:
    """The model of a file that RecoE2E and our plugin can run in every release with ONNX Runtime.

    Raises InputError for a file that is no model, for other names, shapes or types, and for an
    opset or IR version that the oldest engine does not read.
    """
    advice = "export it again with this notebook"
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except Exception as error:  # onnx raises its own, protobuf's and plain errors
        found = " ".join(str(error).split())[:120]
        raise InputError(f"{path}: expected an ONNX model, found {found}; {advice}") from error
    for kind, values, (name, rest) in (
        ("input", model.graph.input, INPUT),
        ("output", model.graph.output, OUTPUT),
    ):
        found = [signature(value) for value in values]
        good = [(n, s[1:], t) for n, s, t in found] == [(name, list(rest), "FLOAT")]
        if not good or not isinstance(found[0][1][0], str):
            wanted = f"one {kind} {name} [batch, {', '.join(map(str, rest))}] FLOAT"
            seen = "; ".join(f"{n} {shape} {dtype}" for n, shape, dtype in found)
            raise InputError(f"{path}: expected {wanted}, found {seen}; {advice}")
    opsets = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    if opsets != {"ai.onnx": OPSET} or model.ir_version != IR_VERSION:
        raise InputError(
            f"{path}: expected opset {OPSET} and IR {IR_VERSION}, which ONNX Runtime 1.0.0 of "
            f"CMSSW_11_0_1 reads, found {opsets} and IR {model.ir_version}; {advice}"
        )
    return model
