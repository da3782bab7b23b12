"""What a function is to a model: a name, a description, and a JSON schema of parameters."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from alia_ctx.data.chat.conversation import RowError, function_of
from alia_ctx.data.chat.json_text import write
from alia_ctx.data.chat.making.invented import simple_functions
from alia_ctx.data.chat.making.left_out import Reason, counted
from alia_ctx.data.chat.making.openapi import operations
from alia_ctx.data.chat.making.parts import Talk
from alia_ctx.data.chat.making.python_source import functions_of_source
from alia_ctx.data.chat.making.schemas import Invented, functions_like_real_ones
from alia_ctx.data.chat.making.values import NoValueError, inlined
from alia_ctx.data.chat.reading_back import tag_in
from alia_ctx.errors import DataError
from alia_ctx.files import parse_json
from alia_ctx.optional_packages import guard, reason

_SUFFIXES = (".json", ".yaml", ".yml")
_SOURCES = (
    f"give a package's name, a folder, or a path ending in .py, {', '.join(_SUFFIXES)}"
)
INVENTED = "invented"
_MOST_INVENTED = 1_000_000


@dataclass(frozen=True)
class Function:
    """`parameters` is a JSON schema of an object; `origin` the file that it stands in;
    `invented` what is known of one that was invented.
    """

    name: str
    description: str
    parameters: dict[str, Any]
    origin: str
    invented: Invented | None = field(default=None, compare=False, repr=False)

    @property
    def talk(self) -> Talk | None:
        """How it can be spoken of, where that is known."""
        return None if self.invented is None else self.invented.talk

    @cached_property
    def subject(self) -> str | None:
        """What it does something with, where that is known: others of it may do the same."""
        return (
            None if self.talk is None or self.talk.noun is None else self.talk.noun.key
        )

    @property
    def properties(self) -> dict[str, Any]:
        return dict(self.parameters.get("properties") or {})

    @property
    def required(self) -> list[str]:
        return list(self.parameters.get("required") or [])

    def tool(self) -> dict[str, Any]:
        """In OpenAI's nested form."""
        function = {
            "name": self.name,
            "description": self.description,
            "parameters": self.parameters,
        }
        return {"type": "function", "function": function}

    def described_in(self, language: str) -> Function:
        """With the descriptions of a language, if it was invented; else as it is."""
        if self.invented is None:
            return self
        described = self.invented.parameters(language)
        told = self.invented.description(language)
        return replace(self, description=told, parameters=described)

    def fault_of_value(self, name: str, value: Any) -> str | None:
        """Why a value cannot be given for a parameter; None where it can be."""
        if tag := tag_in({name: value}):
            return f"{name} has {tag} in it, a tag of calls"
        try:
            for error in self._checker.iter_errors({name: value}):
                if [*error.absolute_path][:1] == [name]:
                    return f"{name}: {error.message}"
        except Exception as broken:  # a pattern that is none, a reference to elsewhere
            return f"its schema cannot be applied ({broken})"
        return None

    @cached_property
    def _checker(self) -> Any:
        import jsonschema

        draft = jsonschema.Draft202012Validator
        return draft(self.parameters, format_checker=draft.FORMAT_CHECKER)

    def in_share(self, share: float) -> bool:
        """Whether a function belongs to this share of all, whatever others there are."""
        number = int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:8], "big")
        return number < share * 2**64


@dataclass
class FoundFunctions:
    """Functions by name, in the order of their sources; and what is none, with reasons."""

    functions: dict[str, Function] = field(default_factory=dict)
    left_out: dict[str, Reason] = field(default_factory=dict)

    def leave_out(self, where: str, reason: Reason) -> None:
        """`where` is a file, or one and a name; a name that is there again is told again."""
        again, key = 1, where
        while key in self.left_out:
            again += 1
            key = f"{where} ({again})"
        self.left_out[key] = reason


def require_jsonschema() -> None:
    """DataError where the package is not there, or does not import."""
    guard()
    try:
        import jsonschema  # noqa: F401
    except ImportError as error:
        raise DataError(
            "made calls are validated with the package jsonschema, which is not "
            f"installed or does not import ({reason(error)}); `pip install jsonschema`"
        ) from error


def find_functions(sources: Sequence[str], *, simple: bool = False) -> FoundFunctions:
    """The functions of packages, Python files and folders (read, never imported), OpenAPI
    files, JSON files of tools, and `invented:N`: like real ones, or, if `simple`, of bare
    types.

    A package is found as Python finds it, by the name of its top level. DataError where
    a source is none of these or holds no function that can be called.
    """
    require_jsonschema()
    found = FoundFunctions()
    for source in sources:
        if not source.strip():
            raise DataError(f"a source is empty; {_SOURCES}")
        before, left_before = len(found.functions), len(found.left_out)
        for function in _functions(source, found, simple):
            where = f"{function.origin}: {function.name}"
            if function.name in found.functions:
                found.leave_out(where, Reason("another function has this name"))
            elif reason := None if function.invented else _unusable(function):
                found.leave_out(where, reason)
            else:
                found.functions[function.name] = function
        if len(found.functions) == before:
            mine = dict([*found.left_out.items()][left_before:])
            told = "".join(f"\n  {line}" for line in counted(mine))
            raise DataError(
                f"{source}: no function with a description and parameters of JSON's types; "
                f"give another source{told}"
            )
    return found


def _functions(source: str, found: FoundFunctions, simple: bool) -> Iterable[Function]:
    word, colon, count = source.partition(":")
    if word == INVENTED and colon:
        return _invented(source, count, simple)
    path = Path(source).expanduser()
    if path.suffix.lower() in _SUFFIXES:
        return _of_file(path, found)
    if path.is_dir() or path.suffix == ".py":
        return _of_python(path, found)
    try:
        spec = importlib.util.find_spec(source) if source.isidentifier() else None
    except (ImportError, ValueError):
        spec = None
    origin = spec.origin if spec is not None else None
    if origin is None or not origin.endswith(".py"):
        raise DataError(
            f"{source}: is no file, folder or installed package of Python's; {_SOURCES}"
        )
    file = Path(origin)
    return _of_python(file.parent if file.name == "__init__.py" else file, found)


def _invented(source: str, count: str, simple: bool) -> Iterable[Function]:
    if not count.isdecimal() or not 1 <= int(count) <= _MOST_INVENTED:
        raise DataError(
            f"{source}: {count!r} is no number of functions to invent; give one of "
            f"1 to {_MOST_INVENTED:,}, as {INVENTED}:2000"
        )
    if simple:
        for name, description, parameters in simple_functions(int(count)):
            yield Function(name, description, parameters, source)
        return
    for made in functions_like_real_ones(int(count)):
        description, parameters = made.description("en"), made.parameters("en")
        yield Function(made.name, description, parameters, source, made)


def _of_python(path: Path, found: FoundFunctions) -> Iterable[Function]:
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
            signatures = [*functions_of_source(text)]
        except (OSError, UnicodeDecodeError, SyntaxError, ValueError) as error:
            if not path.is_dir():
                raise DataError(f"{file}: cannot be read ({error}); mend it") from error
            why = Reason("a file cannot be read", type(error).__name__)
            found.leave_out(str(file), why)
            continue
        for name, description, parameters in signatures:
            if isinstance(parameters, Reason):
                found.leave_out(f"{file}: {name}", parameters)
            else:
                yield Function(name, description, parameters, str(file))


class _Loader(yaml.SafeLoader):
    """YAML of JSON's types, as OpenAPI asks for: dates are text."""


_Loader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0] != "tag:yaml.org,2002:timestamp"]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _of_file(path: Path, found: FoundFunctions) -> Iterable[Function]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        is_json = path.suffix.lower() == ".json"
        document = parse_json(text) if is_json else yaml.load(text, _Loader)
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        first = str(error).split("\n")[0]
        raise DataError(f"{path}: cannot be read ({first}); mend it") from error
    if isinstance(document, dict) and ("openapi" in document or "swagger" in document):
        for name, description, parameters in operations(document, str(path)):
            if isinstance(parameters, Reason):
                found.leave_out(f"{path}: {name}", parameters)
            else:
                yield Function(name, description, parameters, str(path))
        return
    for tool in document if isinstance(document, list) else [document]:
        try:
            function = function_of(tool)
        except RowError as error:
            raise DataError(
                f"{path}: {error.detail}; give an OpenAPI file, or tools as OpenAI has them"
            ) from error
        parameters = function.get("parameters") or {"type": "object", "properties": {}}
        told = function.get("description")
        told = told if isinstance(told, str) else ""
        yield Function(function["name"], told, parameters, str(path))


def _unusable(function: Function) -> Reason | None:
    """Why no call of it could be made and checked."""
    import jsonschema

    if not function.description.strip():
        return Reason("it has no description")
    if tag := tag_in(function.name):
        return Reason("its name has a tag of calls in it", tag)
    schema = function.parameters
    try:
        write(function.tool())
    except ValueError as error:
        return Reason("its parameters are no JSON", str(error))
    if not isinstance(schema, dict) or schema.get("type", "object") != "object":
        return Reason("its parameters are no schema of an object")
    if not isinstance(schema.get("properties", {}), dict):
        return Reason("its properties are no object")
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        return Reason("its parameters are no JSON schema", error.message)
    except RecursionError:
        return Reason("its parameters are nested too deeply")
    try:
        inlined(schema, schema)
    except NoValueError as error:
        return Reason("its parameters refer to nothing, or to themselves", str(error))
    lacking = [name for name in function.required if name not in function.properties]
    return (
        Reason("it requires what it does not describe", lacking[0]) if lacking else None
    )
