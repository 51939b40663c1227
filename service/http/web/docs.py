"""The page /docs: the API described in HTML, made from openapi.json. It loads nothing, so it works offline."""

import html
import json
import re
from collections.abc import Sequence
from typing import Any, TypeAlias

Operation: TypeAlias = tuple[str, str, dict[str, Any]]
"""Method, path, and what the document says of it."""
_UNTAGGED = ""
_FLAT = re.compile(r"[\[{]\n[^\[\]{}]*\n *[\]}]")
"""Of an example: a list or an object with no other in it."""

_STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
h2{border-top:3px solid #888;padding-top:1rem;margin-top:3rem}h3{border-top:1px solid #ccc;padding-top:1rem}
nav ul{columns:20rem 2;margin-top:0;list-style:none;padding-left:1rem}nav p{margin-bottom:0}a{color:inherit}
nav a{text-decoration:none}nav a:hover{text-decoration:underline}code{overflow-wrap:break-word}
code,pre{background:#f4f4f4;border-radius:4px;padding:.1em .3em}pre{padding:.7rem;overflow:auto}
table{border-collapse:collapse;margin:1rem 0;display:block;overflow-x:auto}td,th{border:1px solid #ddd;
padding:.3rem .6rem;text-align:left;vertical-align:top}.method{color:#06c}
@media(prefers-color-scheme:dark){body{background:#181818;
color:#ddd}code,pre{background:#282828}td,th{border-color:#444}.method{color:#6af}}"""


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
    contents = "".join(_contents(tag, operations) for tag, operations in groups.items())
    parts = [
        part
        for tag, operations in groups.items()
        for part in (f"<h2>{_title(tag)}</h2>", *(_operation(*operation) for operation in operations))
    ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{_text(info["title"])}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
        f"<h1>{_text(info['title'])} {_text(info['version'])}</h1>{_prose(info.get('description', ''))}"
        f'<p>For machines: <a href="openapi.json">openapi.json</a></p><nav>{contents}</nav>'
        f"{''.join(parts)}</body></html>"
    )


def _title(tag: str) -> str:
    return "The server" if tag == _UNTAGGED else f"Protocol <code>{_text(tag)}</code>"


def _contents(tag: str, operations: Sequence[Operation]) -> str:
    links = [
        f'<li><a href="#{_anchor(method, path)}">{_request(method, path)}</a></li>' for method, path, _ in operations
    ]
    return f"<p>{_title(tag)}</p><ul>{''.join(links)}</ul>"


def _request(method: str, path: str) -> str:
    return f'<span class="method">{method.upper()}</span> <code>{_text(path)}</code>'


def _anchor(method: str, path: str) -> str:
    return _text(f"{method}{path}")


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    parts = [
        f'<h3 id="{_anchor(method, path)}">{_request(method, path)}</h3>',
        f"<p><strong>{_inline(operation.get('summary', ''))}</strong></p>",
        _prose(operation.get("description", "")),
    ]
    parameters = {each["name"]: each for each in operation.get("parameters", [])}
    rows = [_row(name, _repeated(each["schema"]), each.get("description", "")) for name, each in parameters.items()]
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
    rows = [_row(name, _type(schema), schema.get("description", "")) for name, schema in fields.items()]
    parts.append(_table(("in the body", "value", "meaning"), rows))
    parts += [_example(content) for content in body.values()]
    responses = operation["responses"]
    answers = [(_text(status), _text(response.get("description", ""))) for status, response in responses.items()]
    parts.append(_table(("status", "meaning"), answers))
    parts += [_example(content) for content in responses.get("200", {}).get("content", {}).values()]
    return "".join(parts)


def _row(name: str, value: str, description: str) -> tuple[str, str, str]:
    return f"<code>{_text(name)}</code>", value, _inline(description)


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


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{lines}</table>"


def _prose(text: str) -> str:
    """Paragraphs and code, the little of Markdown that the descriptions use."""
    paragraphs = []
    for paragraph in text.split("\n\n"):
        lines = _inline(paragraph).replace("* ", "<br>• ").removeprefix("<br>")
        paragraphs.append(f"<p>{lines}</p>")
    return "".join(paragraphs)


def _inline(text: str) -> str:
    """A line with code in it."""
    pieces = _text(text).split("`")
    return "".join(f"<code>{piece}</code>" if place % 2 else piece for place, piece in enumerate(pieces))


def _text(text: str) -> str:
    return html.escape(text)
