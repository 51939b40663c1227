"""The page /docs: the API described in HTML, made from openapi.json.

It can be read without JavaScript. static/docs.js adds forms that run, and static/docs.css the looks.
"""

import html
import json
import re
from collections.abc import Sequence
from importlib.resources import files
from string import Template
from typing import Any, TypeAlias

Operation: TypeAlias = tuple[str, str, dict[str, Any]]
"""Method, path, and what the document says of it."""
_UNTAGGED = ""
_ITEM = re.compile(r"^\* ", re.MULTILINE)
_FLAT = re.compile(r"[\[{]\n[^\[\]{}]*\n *[\]}]")
"""Of an example: a list or an object with no other in it."""

_PAGE = Template(files(__package__).joinpath("docs.html").read_text(encoding="utf-8"))


def docs_page(schema: dict[str, Any]) -> str:
    """The page for an OpenAPI document."""
    info = schema["info"]
    groups: dict[str, list[Operation]] = {}
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            tag = operation.get("tags", [_UNTAGGED])[0]
            groups.setdefault(tag, []).append((method, path, operation))
    others = groups.pop(_UNTAGGED, [])
    if others:
        groups[_UNTAGGED] = others  # the protocols come first
    return _PAGE.substitute(
        title=_text(info["title"]),
        version=_text(info["version"]),
        description=_prose(info.get("description", "")),
        contents="".join(_contents(tag, operations) for tag, operations in groups.items()),
        groups="".join(_group(tag, operations) for tag, operations in groups.items()),
    )


def _group(tag: str, operations: Sequence[Operation]) -> str:
    sections = "".join(_operation(*operation) for operation in operations)
    return f'<section class="group"><h2>{_title(tag)}</h2>{sections}</section>'


def _title(tag: str) -> str:
    return "The server" if tag == _UNTAGGED else f"Protocol <code>{_text(tag)}</code>"


def _contents(tag: str, operations: Sequence[Operation]) -> str:
    links = [
        f'<li><a href="#{_anchor(method, path)}">{_request(method, path)}</a></li>' for method, path, _ in operations
    ]
    return f'<div class="group"><p>{_title(tag)}</p><ul>{"".join(links)}</ul></div>'


def _request(method: str, path: str) -> str:
    return f'<span class="method">{method.upper()}</span> <code>{_text(path)}</code>'


def _anchor(method: str, path: str) -> str:
    return _text(f"{method}{path}")


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    anchor = _anchor(method, path)
    names = f'data-method="{_text(method)}" data-path="{_text(path)}" aria-labelledby="{anchor}"'
    parts = [
        f'<section class="operation panel" {names}>'
        f'<h3 id="{anchor}">{_request(method, path)}</h3>'
        f'<div class="about"><p><strong>{_inline(operation.get("summary", ""))}</strong></p>'
        f"{_prose(operation.get('description', ''))}</div>"
    ]
    parameters = {each["name"]: each for each in operation.get("parameters", [])}
    rows = [
        _row(anchor, name, _repeated(each["schema"]), each.get("description", "")) for name, each in parameters.items()
    ]
    parts.append(_table(("option", "value", "meaning"), rows))
    body = operation.get("requestBody", {}).get("content", {})
    if body:
        parts.append(f"<p>Body: {', '.join(f'<code>{_text(media)}</code>' for media in body)}</p>")
    fields = {
        name: schema
        for content in body.values()
        for name, schema in content.get("schema", {}).get("properties", {}).items()
        if name not in parameters
    }
    rows = [_row(anchor, name, _type(schema), schema.get("description", "")) for name, schema in fields.items()]
    parts.append(_table(("in the body", "value", "meaning"), rows))
    parts += [_example(content) for content in body.values()]
    responses = operation["responses"]
    answers = [
        f"<td>{_text(status)}</td><td>{_text(each.get('description', ''))}</td>" for status, each in responses.items()
    ]
    parts.append(_table(("status", "meaning"), answers))
    parts += [_example(content) for content in responses.get("200", {}).get("content", {}).values()]
    return f"{''.join(parts)}</section>"


def _row(anchor: str, name: str, value: str, description: str) -> str:
    """The meaning has an id: a form's field is described by it."""
    meaning = f'<td id="{anchor}:{_text(name)}">{_inline(description)}</td>'
    return f"<td><code>{_text(name)}</code></td><td>{value}</td>{meaning}"


def _repeated(schema: dict[str, Any]) -> str:
    """The type of a parameter: a list is the parameter more than once."""
    return f"{_type(schema['items'])}, or several" if schema.get("type") == "array" else _type(schema)


def _type(schema: dict[str, Any]) -> str:
    """In a few words: the type or its values, and the default."""
    default = schema.get("default")
    shown = default if isinstance(default, str) else json.dumps(default)
    return _text(" or ".join(_types(schema))) + (f" (<code>{_text(shown)}</code>)" if default else "")


def _types(schema: dict[str, Any]) -> list[str]:
    """Each once. Of an object its fields, of a list what is in it."""
    if "anyOf" in schema:
        return list(dict.fromkeys(name for choice in schema["anyOf"] for name in _types(choice)))
    if "enum" in schema:
        return [", ".join(map(str, schema["enum"]))]
    kind = schema.get("type", "anything")
    if kind == "null":
        return []
    if kind == "array":
        return [f"list of {' or '.join(_types(schema.get('items', {})))}"]
    if kind == "object" and "properties" in schema:
        return [f"object: {', '.join(schema['properties'])}"]
    return ["bytes" if schema.get("format") == "binary" else kind]


def _example(content: dict[str, Any]) -> str:
    if "example" not in content:
        return ""
    written = json.dumps(content["example"], indent=1)
    return f"<pre>{_text(_FLAT.sub(_on_one_line, written))}</pre>"


def _on_one_line(found: re.Match[str]) -> str:
    first, *lines, last = (line.strip() for line in found[0].splitlines())
    return f"{first}{' '.join(lines)}{last}"


def _table(head: Sequence[str], rows: Sequence[str]) -> str:
    """Rows are cells written out."""
    if not rows:
        return ""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    lines = "".join(f"<tr>{row}</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table>"


def _prose(text: str) -> str:
    """Paragraphs, lists and code: the little of Markdown that the descriptions use."""
    return "".join(
        f"<ul>{''.join(f'<li>{_inline(item)}</li>' for item in _ITEM.split(block)[1:])}</ul>"
        if _ITEM.match(block)
        else f"<p>{_inline(block)}</p>"
        for block in text.split("\n\n")
        if block
    )


def _inline(text: str) -> str:
    """A line with code in it."""
    pieces = _text(text).split("`")
    return "".join(f"<code>{piece}</code>" if place % 2 else piece for place, piece in enumerate(pieces))


def _text(text: str) -> str:
    return html.escape(text)
