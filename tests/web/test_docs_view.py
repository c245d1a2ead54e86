"""The page /docs describes the whole OpenAPI schema."""

import pytest

from neuroexplain.store.engine import open_store
from neuroexplain.web.app import make_app
from neuroexplain.web.docs_view import prose, route_views, type_text, type_views


@pytest.fixture(scope="module")
def schema(hostile):
    with open_store(str(hostile / "x.db"), read_only=True) as store:
        return make_app(store).openapi()


def test_every_route_parameter_and_answer_is_there(schema):
    routes = {(route.path, route.method.lower()): route for route in route_views(schema)}
    assert set(routes) == {(path, method) for path, methods in schema["paths"].items() for method in methods}
    assert len(routes) == 5
    for (path, method), route in routes.items():
        operation = schema["paths"][path][method]
        names = {parameter["name"] for parameter in operation.get("parameters", ())}
        assert {parameter.name for parameter in route.parameters} == names
        assert {status for answer in route.answers for status in answer.statuses} == set(
            operation["responses"]
        )
        assert (route.body is not None) == ("requestBody" in operation)


def test_every_type_and_field_is_there(schema):
    fields = {view.name: {field.name for field in view.fields} for view in type_views(schema)}
    types = schema["components"]["schemas"]
    assert fields == {name: set(types[name].get("properties", ())) for name in types}
    assert not any("anything" in field.type for view in type_views(schema) for field in view.fields)


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "integer", "minimum": 0, "maximum": 9}, "integer, at least 0, at most 9"),
        (
            {"anyOf": [{"type": "string", "maxLength": 5}, {"type": "null"}]},
            "string, at most 5 characters, or null",
        ),
        ({"type": "array", "items": {"type": "number"}}, "list of number"),
        (
            {"type": "array", "items": {"anyOf": [{"type": "number"}, {"type": "null"}]}},
            "list of (number or null)",
        ),
        ({"type": "array", "prefixItems": [{"type": "string"}, {"type": "number"}]}, "[string, number]"),
        ({"type": "string", "enum": ["top", "<b>"]}, "&#34;top&#34; or &#34;&lt;b&gt;&#34;"),
        ({"$ref": "#/components/schemas/Run"}, '<a href="#Run">Run</a>'),
        ({"type": "object", "additionalProperties": {"type": "string"}}, "object of string"),
        ({"type": "object", "additionalProperties": True}, "object"),
        ({"type": "string", "pattern": "^<"}, "string, like ^&lt;"),
        ({}, "anything"),
    ],
)
def test_a_type_is_in_words_and_escaped(schema, text):
    assert str(type_text(schema)) == text


def test_code_in_a_description_is_code_and_escaped():
    assert str(prose("as `show <b>` prints <i>")) == "as <code>show &lt;b&gt;</code> prints &lt;i&gt;"
