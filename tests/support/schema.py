"""Just enough of JSON Schema to hold our documents against our own schemas."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

_TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}
_KNOWN = {
    "$schema", "title", "description", "type", "properties", "required", "additionalProperties", "enum",
    "items", "anyOf", "pattern", "minimum", "maximum",
}  # fmt: skip


def load(name: str) -> Any:
    return json.loads((Path(__file__).resolve().parents[2] / "docs" / f"{name}.schema.json").read_text())


def check(value: Any, schema: dict[str, Any], where: str = "$") -> None:
    """Fail with the place where a value does not fit."""
    assert set(schema) <= _KNOWN, f"{where}: this checker does not know {set(schema) - _KNOWN}"
    if "anyOf" in schema:
        failures = []
        for choice in schema["anyOf"]:
            try:
                check(value, choice, where)
                break
            except AssertionError as error:
                failures.append(str(error))
        else:
            raise AssertionError(" / ".join(failures))
    if "type" in schema:
        names = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        fits = any(isinstance(value, _TYPES[name]) and not (isinstance(value, bool) and name != "boolean")
                   for name in names)  # fmt: skip
        assert fits, f"{where}: {value!r} is no {' or '.join(names)}"
    assert "enum" not in schema or value in schema["enum"], f"{where}: {value!r}"
    assert "pattern" not in schema or re.search(schema["pattern"], value), f"{where}: {value!r}"
    if isinstance(value, int | float) and not isinstance(value, bool):
        assert value >= schema.get("minimum", value), where
        assert value <= schema.get("maximum", value), where
    if isinstance(value, dict):
        _check_object(value, schema, where)
    if isinstance(value, list):
        for number, item in enumerate(value):
            check(item, schema.get("items", {}), f"{where}[{number}]")


def _check_object(value: dict[str, Any], schema: dict[str, Any], where: str) -> None:
    missing = set(schema.get("required", ())) - set(value)
    assert not missing, f"{where}: {missing} missing"
    more = schema.get("additionalProperties", True)
    for key, item in value.items():
        if key in schema.get("properties", {}):
            check(item, schema["properties"][key], f"{where}.{key}")
        elif isinstance(more, dict):
            check(item, more, f"{where}.{key}")
        else:
            assert more, f"{where}: {key} is unknown"
