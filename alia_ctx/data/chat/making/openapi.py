"""An OpenAPI document (versions 2 and 3) -> its operations as functions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from alia_ctx.data.chat.making.left_out import Reason
from alia_ctx.errors import DataError

_METHODS = ("get", "put", "post", "delete", "patch")
# What JSON schema knows; OpenAPI has more (example, xml, discriminator), for no model.
_SCHEMA_KEYS = (
    *("type", "format", "description", "enum", "default", "items", "properties"),
    *("required", "minimum", "maximum", "minLength", "maxLength", "minItems"),
    *("maxItems", "pattern", "multipleOf", "anyOf", "oneOf", "allOf", "const"),
    *("exclusiveMinimum", "exclusiveMaximum", "uniqueItems", "prefixItems"),
    *("additionalProperties", "propertyNames", "minProperties", "maxProperties"),
)
_DEPTH = 8
_JSON = re.compile(r"application/(?:[\w.+-]+\+)?json|\*/\*|application/\*")
_FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")
_SIMPLE = ("string", "integer", "number", "boolean")


class _UnusableError(Exception):
    """Why an operation cannot be called with named arguments: what `Reason` takes."""


def operations(
    document: dict[str, Any], file: str
) -> Iterator[tuple[str, str, dict[str, Any] | Reason]]:
    """(name, description, JSON schema of the parameters, or why there is none) of each
    operation: parameters of path, query and header, and the fields of a body that is a
    JSON object, or a form of simple ones.

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
                name = (
                    operation.get("operationId") or f"{method}_{str(path).strip('/')}"
                )
                told = operation.get("summary") or operation.get("description") or ""
                name = re.sub(r"\W+", "_", str(name)).strip("_")
                shared = item.get("parameters") or []
                schema: dict[str, Any] | Reason
                try:
                    schema = _Resolver(document, file).parameters(operation, shared)
                except _UnusableError as reason:
                    schema = Reason(*reason.args)
                except (TypeError, ValueError, AttributeError, LookupError) as error:
                    # Anything may stand anywhere in other people's documents.
                    schema = Reason("it is not as OpenAPI has it", str(error))
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
                properties |= _fields(schema, "its parameter `body`")
                required += schema.get("required", [])
                continue
            if told := parameter.get("description"):
                schema["description"] = told
            schema.pop("required", None)
            properties[name] = schema
            if parameter.get("required") is True:
                required.append(name)
        content = (
            self._resolved(operation.get("requestBody") or {}).get("content") or {}
        )
        if content:
            schema = self._body(content)
            properties |= schema["properties"]
            required += schema.get("required", [])
        required = [name for name in dict.fromkeys(required) if name in properties]
        return {"type": "object", "properties": properties, "required": required}

    def _body(self, content: dict[str, Any]) -> dict[str, Any]:
        """The schema of an object: of JSON, or of a form whose fields are simple values."""
        kinds = {str(name).partition(";")[0].strip().lower(): name for name in content}
        for kind, name in kinds.items():
            if _JSON.fullmatch(kind):
                schema = self._schema(content[name].get("schema") or {})
                return {**schema, "properties": _fields(schema, kind)}
        for kind in _FORMS:
            if kind in kinds:
                schema = self._schema(content[kinds[kind]].get("schema") or {})
                fields = _fields(schema, kind)
                for name, field in fields.items():
                    raw = field.get("format") in ("binary", "byte", "base64")
                    if _type(field) not in _SIMPLE or raw:
                        raise _UnusableError(
                            "a field of its form is no simple value", name
                        )
                return {**schema, "properties": fields}
        raise _UnusableError("its body is neither JSON nor a form", ", ".join(kinds))

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
        _of_version_3_0(schema, value.get("nullable"))
        for key in ("anyOf", "oneOf", "allOf"):
            if isinstance(schema.get(key), list):
                schema[key] = [self._schema(part, depth + 1) for part in schema[key]]
        for part in schema.pop("allOf", []):
            merged = {**schema.get("properties", {}), **part.get("properties", {})}
            needed = [*schema.get("required", []), *part.get("required", [])]
            schema = {**part, **schema}
            if merged:
                schema |= {"properties": merged, "required": needed, "type": "object"}
        for key in ("items", "additionalProperties", "propertyNames"):
            if key in schema and not isinstance(schema[key], bool):
                schema[key] = self._schema(schema[key], depth + 1)
        if isinstance(schema.get("prefixItems"), list):
            schema["prefixItems"] = [
                self._schema(part, depth + 1) for part in schema["prefixItems"]
            ]
        if isinstance(schema.get("properties"), dict):
            schema["properties"] = {
                name: self._schema(part, depth + 1)
                for name, part in schema["properties"].items()
            }
        return schema


def _of_version_3_0(schema: dict[str, Any], nullable: Any) -> None:
    """Limits that are truths beside `minimum`, and `nullable`, as JSON schema says them."""
    for limit, exclusive in (
        ("minimum", "exclusiveMinimum"),
        ("maximum", "exclusiveMaximum"),
    ):
        if not isinstance(schema.get(exclusive), bool):
            continue
        if schema.pop(exclusive) and limit in schema:
            schema[exclusive] = schema.pop(limit)
    if nullable is True and isinstance(schema.get("type"), str):
        schema["type"] = [schema["type"], "null"]
        if isinstance(schema.get("enum"), list) and None not in schema["enum"]:
            schema["enum"] = [*schema["enum"], None]


def _type(schema: dict[str, Any], usual: str | None = None) -> Any:
    """The one type beside `null`."""
    kind = schema.get("type", usual)
    if isinstance(kind, list):
        kind = [one for one in kind if one != "null"]
        return kind[0] if len(kind) == 1 else kind
    return kind


def _fields(schema: dict[str, Any], what: str) -> dict[str, Any]:
    """The properties of a body, of which `what` says which one it is: what is no object, or
    names none, has no arguments.
    """
    if _type(schema, "object") != "object" or not schema.get("properties"):
        raise _UnusableError("its body is no object with named fields", what)
    return dict(schema["properties"])
