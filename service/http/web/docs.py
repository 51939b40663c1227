"""The page /docs: the API described in HTML, made from openapi.json. It loads nothing, so it works offline."""

import html
import json
from collections.abc import Sequence
from typing import Any

_STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
h2{border-top:1px solid #ccc;padding-top:1rem}code,pre{background:#f4f4f4;border-radius:4px;padding:.1em .3em}
pre{padding:.7rem;overflow:auto}table{border-collapse:collapse}td,th{border:1px solid #ddd;padding:.3rem .6rem;
text-align:left;vertical-align:top}.method{color:#06c}@media(prefers-color-scheme:dark){body{background:#181818;
color:#ddd}code,pre{background:#282828}td,th{border-color:#444}.method{color:#6af}}"""


def docs_page(schema: dict[str, Any]) -> str:
    """The page for an OpenAPI document."""
    info = schema["info"]
    operations = [
        _operation(method, path, operation)
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
    ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{_text(info["title"])}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
        f"<h1>{_text(info['title'])} {_text(info['version'])}</h1>{_prose(info.get('description', ''))}"
        f'<p>For machines: <a href="openapi.json">openapi.json</a></p>{"".join(operations)}</body></html>'
    )


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    parts = [
        f'<h2><span class="method">{method.upper()}</span> <code>{_text(path)}</code></h2>',
        f"<p><strong>{_text(operation.get('summary', ''))}</strong></p>",
        _prose(operation.get("description", "")),
    ]
    parameters = [
        (f"<code>{_text(p['name'])}</code>", _type(p["schema"]), _text(p.get("description", "")))
        for p in operation.get("parameters", [])
    ]
    parts.append(_table(("option", "value", "meaning"), parameters))
    body = operation.get("requestBody", {}).get("content", {})
    if body:
        parts.append(f"<p>Body: {', '.join(f'<code>{_text(media)}</code>' for media in body)}</p>")
    parts += [_example(content) for content in body.values()]
    responses = operation["responses"]
    answers = [(_text(status), _text(response.get("description", ""))) for status, response in responses.items()]
    parts.append(_table(("status", "meaning"), answers))
    parts += [_example(content) for content in responses.get("200", {}).get("content", {}).values()]
    return "".join(parts)


def _type(schema: dict[str, Any]) -> str:
    """In a few words: the type or its values, and the default."""
    if schema.get("type") == "array":
        return f"{_type(schema['items'])}, or several"
    choices = [choice for choice in schema.get("anyOf", [schema]) if choice.get("type") != "null"]
    names = [", ".join(map(str, choice["enum"])) if "enum" in choice else choice.get("type", "") for choice in choices]
    default = schema.get("default")
    return _text(" or ".join(dict.fromkeys(names))) + (f" (<code>{_text(str(default))}</code>)" if default else "")


def _example(content: dict[str, Any]) -> str:
    return f"<pre>{_text(json.dumps(content['example'], indent=1))}</pre>" if "example" in content else ""


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
        pieces = _text(paragraph).split("`")
        spans = [f"<code>{piece}</code>" if place % 2 else piece for place, piece in enumerate(pieces)]
        paragraphs.append(f"<p>{''.join(spans).replace('* ', '<br>• ')}</p>")
    return "".join(paragraphs)


def _text(text: str) -> str:
    return html.escape(text)
