"""An OpenAPI document read as a promise: values that its schemas allow, and what breaks them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

Schema = Mapping[str, Any]

SAID = {"title", "description", "default", "example", "format"}
"""Keywords that forbid no value."""
HELD = {
    *("type", "enum", "anyOf", "minimum", "maximum", "items", "minItems", "maxItems"),
    *("properties", "required", "additionalProperties"),
}
"""Keywords that `breaches` knows."""

_TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


@dataclass(frozen=True)
class Operation:
    method: str
    path: str
    description: Mapping[str, Any]

    @property
    def parameters(self) -> list[dict[str, Any]]:
        return list(self.description.get("parameters", []))

    @property
    def bodies(self) -> Mapping[str, Any]:
        """Schemas by media type."""
        content = self.description.get("requestBody", {}).get("content", {})
        return {media_type: about["schema"] for media_type, about in content.items()}

    @property
    def error_form(self) -> tuple[str, Schema]:
        """Media type and schema of the errors of its protocol; problems where the document does not say."""
        responses = self.description["responses"]
        content = responses.get("default", {}).get("content", {"application/problem+json": {"schema": {}}})
        ((media_type, about),) = content.items()
        return media_type, about["schema"]

    def answers(self, status: int) -> Mapping[str, Any]:
        """Media types of this status, and what is said of them."""
        responses = self.description["responses"]
        about = responses.get(str(status), responses.get("default", {}))
        return dict(about.get("content", {}))


def operations(document: Mapping[str, Any]) -> list[Operation]:
    return [
        Operation(method.upper(), path, description)
        for path, methods in document["paths"].items()
        for method, description in methods.items()
    ]


def schemas(document: object) -> Iterator[dict[str, Any]]:
    """Every schema of a document, whatever it is in; also those inside others."""
    if isinstance(document, list):
        for each in document:
            yield from schemas(each)
    elif isinstance(document, dict):
        for name, each in document.items():
            if name == "schema":
                yield from _inside(each)
            elif name != "example":
                yield from schemas(each)


def _inside(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield schema
    more = [*schema.get("anyOf", []), *schema.get("properties", {}).values()]
    more += [schema[name] for name in ("items", "additionalProperties") if isinstance(schema.get(name), dict)]
    for each in more:
        yield from _inside(each)


def breaches(value: Any, schema: Schema, where: str = "answer") -> list[str]:
    """How the value is not what the schema says; empty if it is."""
    if "anyOf" in schema:
        each = [breaches(value, choice, where) for choice in schema["anyOf"]]
        return [] if not all(each) else min(each, key=len)
    kind = schema.get("type")
    if kind and (not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "boolean")):
        return [f"{where} is {value!r:.80}, no {kind}"]
    found = []
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{where} is {value!r:.80}, none of {schema['enum']}")
    if isinstance(value, int | float) and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        found.append(f"{where} is {value}, out of range")
    if isinstance(value, list):
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            found.append(f"{where} has {len(value)} items")
        if schema.get("items"):
            found += [each for item in value for each in breaches(item, schema["items"], f"{where}[]")]
    if isinstance(value, dict):
        properties, rest = schema.get("properties", {}), schema.get("additionalProperties", {})
        found += [f"{where} has no {name}" for name in schema.get("required", []) if name not in value]
        for name, each in value.items():
            about = properties.get(name, rest)
            found += breaches(each, about, f"{where}.{name}") if about else []
    return found


def allowed(schema: Schema, *, strings: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Values that the schema allows. strings: where it allows any."""
    if "anyOf" in schema:
        return st.one_of(*(allowed(choice, strings=strings) for choice in schema["anyOf"]))
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    kind = schema.get("type")
    if kind == "object":
        required = {name: allowed(each, strings=strings) for name, each in schema.get("properties", {}).items()}
        optional = {name: required.pop(name) for name in list(required) if name not in schema.get("required", [])}
        return st.fixed_dictionaries(required, optional=optional)
    if kind == "array":
        least = schema.get("minItems", 0)
        most = min(schema.get("maxItems", least + 3), least + 3)
        return st.lists(allowed(schema["items"], strings=strings), min_size=least, max_size=most)
    if kind == "integer":
        return st.integers(schema.get("minimum", -40), schema.get("maximum", 600))
    return {"boolean": st.booleans(), "null": st.none(), "string": strings}[kind or "string"]
