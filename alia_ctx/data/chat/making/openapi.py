"""An OpenAPI document (versions 2 and 3) -> its operations as functions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from alia_ctx.errors import DataError

_METHODS = ("get", "put", "post", "delete", "patch")
# What JSON schema knows; OpenAPI has more (example, xml, discriminator), for no model.
_SCHEMA_KEYS = (
    *("type", "format", "description", "enum", "default", "items", "properties"),
    *("required", "minimum", "maximum", "minLength", "maxLength", "minItems"),
    *("maxItems", "pattern", "multipleOf", "anyOf", "oneOf", "allOf"),
)
_DEPTH = 8


def operations(
    document: dict[str, Any], file: str
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(name, description, JSON schema of the parameters) of each operation: parameters of
    path, query and header, and the fields of a JSON body.

    DataError where a reference leads nowhere or the document has no paths.
    """
    paths = document.get("paths")
    if not isinstance(paths, dict):
        raise DataError(f"{file}: has no `paths`; give an OpenAPI document")
    for path, item in paths.items():
        if not isinstance(item, dict):
            continue
        for method in _METHODS:
            operation = item.get(method)
            if isinstance(operation, dict):
                name = operation.get("operationId") or f"{method}_{path.strip('/')}"
                told = operation.get("summary") or operation.get("description") or ""
                shared = item.get("parameters") or []
                schema = _Resolver(document, file).parameters(operation, shared)
                name = re.sub(r"\W+", "_", str(name)).strip("_")
                yield name, " ".join(str(told).split()), schema


class _Resolver:
    """Follows references inside one document."""

    def __init__(self, document: dict[str, Any], file: str) -> None:
        self._document, self._file = document, file

    def parameters(
        self, operation: dict[str, Any], shared: list[Any]
    ) -> dict[str, Any]:
        properties: dict[str, Any] = {}
        required = []
        for raw in [*shared, *(operation.get("parameters") or [])]:
            parameter = self._resolved(raw)
            name = parameter.get("name")
            if not isinstance(name, str):
                continue
            # Version 2 has the schema in the parameter itself; its body is one of them.
            schema = self._schema(parameter.get("schema") or parameter)
            if parameter.get("in") == "body":
                properties |= schema.get("properties", {})
                required += schema.get("required", [])
                continue
            if told := parameter.get("description"):
                schema["description"] = told
            schema.pop("required", None)
            properties[name] = schema
            if parameter.get("required") is True:
                required.append(name)
        body = self._resolved(operation.get("requestBody") or {}).get("content") or {}
        if media := body.get("application/json"):
            schema = self._schema(media.get("schema") or {})
            properties |= schema.get("properties", {})
            required += schema.get("required", [])
        required = [name for name in dict.fromkeys(required) if name in properties]
        return {"type": "object", "properties": properties, "required": required}

    def _resolved(self, value: Any) -> dict[str, Any]:
        for _ in range(_DEPTH):
            if not isinstance(value, dict) or "$ref" not in value:
                return value if isinstance(value, dict) else {}
            reference = str(value["$ref"])
            value = self._document
            for part in reference.removeprefix("#/").split("/"):
                part = part.replace("~1", "/").replace("~0", "~")
                if not isinstance(value, dict) or part not in value:
                    raise DataError(
                        f"{self._file}: the reference {reference} leads nowhere; "
                        "bundle the document into one file"
                    )
                value = value[part]
        return {}

    def _schema(self, value: Any, depth: int = 0) -> dict[str, Any]:
        value = self._resolved(value)
        if depth > _DEPTH:  # a schema that holds itself
            return {}
        schema = {key: value[key] for key in _SCHEMA_KEYS if key in value}
        if isinstance(schema.get("required"), bool):
            del schema["required"]
        for key in ("anyOf", "oneOf", "allOf"):
            if isinstance(schema.get(key), list):
                schema[key] = [self._schema(part, depth + 1) for part in schema[key]]
        for part in schema.pop("allOf", []):
            merged = {**schema.get("properties", {}), **part.get("properties", {})}
            needed = [*schema.get("required", []), *part.get("required", [])]
            schema = {**part, **schema}
            if merged:
                schema |= {"properties": merged, "required": needed, "type": "object"}
        if "items" in schema:
            schema["items"] = self._schema(schema["items"], depth + 1)
        if isinstance(schema.get("properties"), dict):
            schema["properties"] = {
                name: self._schema(part, depth + 1)
                for name, part in schema["properties"].items()
            }
        return schema
