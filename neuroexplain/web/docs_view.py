"""The API's description as /docs shows it, from FastAPI's OpenAPI schema (pure); `docs.html` draws it.

OpenAPI is a large language. This reads what FastAPI and pydantic write for our routes: references, unions,
arrays, tuples, enumerations, objects and bounds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

Schema = Mapping[str, Any]

# Bounds of a schema, as words after its type.
BOUNDS = {
    "minimum": "at least {}",
    "maximum": "at most {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "pattern": "like {}",
}


@dataclass(frozen=True, slots=True)
class FieldView:
    """A parameter of a route, or a field of an object."""

    name: str
    type: Markup
    is_required: bool
    description: Markup
    default: str  # as JSON; empty without one
    place: str = ""  # of a parameter: path or query


@dataclass(frozen=True, slots=True)
class AnswerView:
    """A type that a route answers with, and its statuses."""

    statuses: tuple[str, ...]
    type: Markup


@dataclass(frozen=True, slots=True)
class RouteView:
    """A method of an address."""

    id: str
    method: str
    path: str
    description: Markup
    parameters: tuple[FieldView, ...]
    body: Markup | None  # the type of the request's JSON; None: the request has none
    example: str  # of the body
    answers: tuple[AnswerView, ...]


@dataclass(frozen=True, slots=True)
class TypeView:
    """A named type: an object with fields, or a list of values."""

    name: str
    description: Markup
    fields: tuple[FieldView, ...]
    values: str  # of an enumeration
    is_open: bool  # whether objects may have further fields


def route_views(schema: Schema) -> tuple[RouteView, ...]:
    """Every route of the schema, in its order."""
    return tuple(
        _route_view(schema, method, path, operation)
        for path, operations in schema["paths"].items()
        for method, operation in operations.items()
    )


def type_views(schema: Schema) -> tuple[TypeView, ...]:
    """Every named type, in alphabetical order."""
    types = schema["components"]["schemas"]
    return tuple(_type_view(name, types[name]) for name in sorted(types))


def type_text(schema: Schema) -> Markup:
    """A type in words; named types are links to their description on the page.

    >>> type_text({"type": "array", "items": {"anyOf": [{"type": "number"}, {"type": "null"}]}})
    Markup('list of (number or null)')
    """
    if "$ref" in schema:
        return Markup('<a href="#{0}">{0}</a>').format(schema["$ref"].rsplit("/", 1)[-1])
    if "anyOf" in schema:
        options = [type_text(option) for option in schema["anyOf"]]
        has_bounds = any("," in option for option in options)
        return Markup(", or " if has_bounds else " or ").join(options)
    if "enum" in schema:
        return Markup(" or ").join(json.dumps(value) for value in schema["enum"])
    if "prefixItems" in schema:
        return Markup("[{}]").format(Markup(", ").join(map(type_text, schema["prefixItems"])))
    if schema.get("type") == "array":
        item = type_text(schema["items"])
        return Markup("list of ({})" if "anyOf" in schema["items"] else "list of {}").format(item)
    if isinstance(schema.get("additionalProperties"), Mapping):
        return Markup("object of {}").format(type_text(schema["additionalProperties"]))
    bounds = [words.format(schema[key]) for key, words in BOUNDS.items() if key in schema]
    return Markup(", ").join([schema.get("type", "anything"), *bounds])


def prose(description: str) -> Markup:
    """A description with `code` as code."""
    parts = description.split("`")
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if i % 2 else part for i, part in enumerate(parts)
    )


def _route_view(schema: Schema, method: str, path: str, operation: Schema) -> RouteView:
    body = _json_schema(operation.get("requestBody"))
    example = ""
    if body is not None:
        examples = schema["components"]["schemas"][body["$ref"].rsplit("/", 1)[-1]].get("examples")
        example = json.dumps(examples[0]) if examples else "{}"
    return RouteView(
        id=operation["operationId"],
        method=method.upper(),
        path=path,
        description=prose(operation.get("description", "")),
        parameters=tuple(_parameter_view(parameter) for parameter in operation.get("parameters", ())),
        body=None if body is None else type_text(body),
        example=example,
        answers=_answer_views(operation["responses"]),
    )


def _answer_views(responses: Schema) -> tuple[AnswerView, ...]:
    """The types of a route's answers in the order of their first status."""
    statuses: dict[Markup, list[str]] = {}
    for status, answer in sorted(responses.items()):
        statuses.setdefault(type_text(_json_schema(answer) or {}), []).append(status)
    return tuple(AnswerView(tuple(own), kind) for kind, own in statuses.items())


def _json_schema(message: Schema | None) -> Schema | None:
    """The schema of a request's or an answer's JSON."""
    if message is None or "content" not in message:
        return None
    schema: Schema = message["content"]["application/json"]["schema"]
    return schema


def _parameter_view(parameter: Schema) -> FieldView:
    return _field_view(
        parameter["name"], parameter["schema"], is_required=parameter["required"], place=parameter["in"]
    )


def _type_view(name: str, schema: Schema) -> TypeView:
    required = schema.get("required", ())
    return TypeView(
        name=name,
        description=prose(schema.get("description", "")),
        fields=tuple(
            _field_view(field, own, is_required=field in required)
            for field, own in schema.get("properties", {}).items()
        ),
        values=", ".join(json.dumps(value) for value in schema.get("enum", ())),
        is_open=schema.get("additionalProperties") is True,
    )


def _field_view(name: str, schema: Schema, *, is_required: bool, place: str = "") -> FieldView:
    return FieldView(
        name=name,
        type=type_text(schema),
        is_required=is_required,
        description=prose(schema.get("description", "")),
        default=json.dumps(schema["default"]) if schema.get("default") is not None else "",
        place=place,
    )
