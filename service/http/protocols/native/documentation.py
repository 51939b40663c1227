"""The native routes in the API's own pages: their bodies and options are parsed by hand. Knows OpenAPI."""

from typing import Any, get_args

from service.engine.values import VectorDtype
from service.http.openapi import EXAMPLE_PICTURE, PROBLEM, object_schema, option_schemas, problem_responses
from service.http.protocols.native.negotiation import MEDIA_TYPES
from service.http.protocols.native.requests import (
    ClassifyOptions,
    EmbedOptions,
    Options,
    SimilarityOptions,
    VramOptions,
)

_EMBED_TEXT = """Images as parts named `image` of a form, as one raw body, or base64 (data: URIs, or URLs where the
server allows them) in JSON. Texts, alone or beside images, as fields or query parameters named `text`, or `texts` in
JSON: each has a `pooled` vector in the joint image-text space. Options may stand in the query, the form or the JSON
body. A body may be compressed with gzip or deflate.

The answer's format follows `Accept`, or `format`. JSON has an entry an image, then an entry a text. The binary
formats hold the images that could be answered, stacked, so every tensor is `[images, ...]`:

* `application/vnd.safetensors`: tensors `tokens`, `pooled` and `texts`; metadata `model`, `index` (which images the
  rows are), `grid`, `prefix_tokens`, `truncated`, `usage` and `errors`.
* `application/x-npy` and `application/octet-stream`: one array, so not `output=both`, and texts alone; its facts are
  in the headers `x-tensor-name`, `x-tensor-shape`, `x-tensor-dtype`, `x-model`, `x-index`, `x-grid`,
  `x-prefix-tokens`, and `x-errors` with the index and type of each failed image. Characters outside ASCII are
  percent-encoded there.

`format=vllm` gives the tokens that a language model reads of each image as `part`: a content part of a chat with a vLLM
server. `tokens` then has no `data`. `format=vllm-npy` has npy in place of torch.save's format.

If no image of several could be answered, the answer is JSON in any case. `timing_ms` is of the slowest image, stage by
stage, and also in the `Server-Timing` header."""

_SIMILARITY_TEXT = """Images as in /embed; texts as fields or query parameters named `text`, or `texts` in JSON. Answers
`cosine`, `logits` and `probabilities`, each `[images][texts]`. A text's vector is the normalised mean over its
`templates`. A text that is longer than the model's `context_length` (see /models) is cut: `truncated` has the indices
of the texts that were cut in any of their templates; with `truncate=false` they are refused instead. `heatmap` adds
`heatmap`, `[images][texts][rows][cols]`, and its `grid`. An image that failed is null in every list, and named in
`errors`."""

_CLASSIFY_TEXT = """Images against labels, the likeliest `top_k` of each. Images as in /embed. Labels are fields or
query parameters named `label`, or the list `labels` in JSON; or `labels` is the name of a set that the server was
started with (`--labels NAME=FILE`). A label's vector is the normalised mean over its `templates`. `probability` is the
softmax over all labels, or the sigmoid of each label, as the model's `activation` says; `index` is the label's place in
the list. `labels` of the answer is their number; `truncated` has the indices of labels that were cut. An image that
failed has an `error` at its place.

A set of labels with templates that have a name is embedded once, by the first request for it, however many prompts
that takes. A request that comes before that has ended waits, and is answered with 503 and `Retry-After` if its time is
up before."""

_VRAM_TEXT = """Bytes of a forward before anything runs, worked out from the model's own code: weights, inputs and
outputs (`io_bytes`), activations at the highest point, and the overhead of context, workspaces and allocator.
`max_batch` and `max_resolution` are the largest, of this resolution and of this batch, that fit the server's budget
beside what else is loaded; 0 and null where nothing fits. `resolution`, `batch` and `dtype` may each be a list with
commas: then `data` has a row for each combination. Each resolution takes some tenths of a second."""

_IMAGE = {"type": "string", "format": "binary"}


def _fields(model: type[Options]) -> dict[str, dict[str, Any]]:
    """The same in a query and a form, where the items of some lists are repeated, each under the list's singular."""
    singular = {plural: name for name, plural in model.repeated.items()}
    fields: dict[str, dict[str, Any]] = {}
    for name, schema in option_schemas(model).items():
        if name not in singular:
            fields[name] = schema
            continue
        about = {word: value for word, value in schema.items() if word in ("description", "default")}
        for choice in schema.get("anyOf", [schema]):
            if choice["type"] == "array":
                fields[singular[name]] = about | choice
            else:  # a name in place of a list
                fields[name] = choice | {"description": about["description"]}
    return fields


def _query(model: type[Options]) -> list[dict[str, Any]]:
    """A list that a form repeats is repeated in a query too; other lists hold commas."""
    return [
        {
            "name": name,
            "in": "query",
            "required": False,
            "description": schema.get("description", ""),
            "schema": {k: v for k, v in schema.items() if k != "description"},
            **({"style": "form", "explode": name in model.repeated} if schema.get("type") == "array" else {}),
        }
        for name, schema in _fields(model).items()
    ]


def _body(model: type[Options], example: dict[str, Any], *, needs_images: bool = True) -> dict[str, Any]:
    images = {"type": "array", "items": {"type": "string"}, "description": "Base64, data: URIs, or http(s) URLs."}
    return {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image"] if needs_images else [],
                    "properties": {"image": {"type": "array", "items": _IMAGE}, **_fields(model)},
                }
            },
            "image/*": {"schema": _IMAGE},
            "application/octet-stream": {"schema": _IMAGE},
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["images"] if needs_images else [],
                    "properties": {"images": images, **option_schemas(model)},
                },
                "example": {"images": [EXAMPLE_PICTURE], **example},
            },
        },
    }


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


_TEXT, _NUMBER, _COUNT = {"type": "string"}, {"type": "number"}, {"type": "integer", "minimum": 0}
_SIDES = {
    "type": "array",
    "items": _COUNT,
    "minItems": 2,
    "maxItems": 2,
    "description": "Rows (height), columns (width).",
}
_ARRAY = object_schema(
    {
        "shape": _list(_COUNT),
        "dtype": {"type": "string", "enum": list(get_args(VectorDtype))},
        "data": {
            "anyOf": [{"type": "array", "items": {}}, _TEXT],
            "description": "Nested lists of numbers, or base64.",
        },
    },
    optional=("data",),
)
_PART = object_schema(
    {
        "type": {"type": "string", "enum": ["image_embeds"]},
        "image_embeds": {
            "anyOf": [_TEXT, object_schema({"image_embeds": _TEXT, "image_grid_thw": _TEXT})],
            "description": "Files in base64, of torch.save or npy.",
        },
    }
)
_ERRORS = _list(object_schema({"index": _COUNT, "error": PROBLEM}))
_TIMING = {"type": "object", "additionalProperties": {"type": "number", "minimum": 0}}
_TRUNCATED = {**_list(_COUNT), "description": "Indices of the texts that were cut."}
_EMBED_ANSWER = object_schema(
    {
        "object": {"type": "string", "enum": ["list"]},
        "model": _TEXT,
        "data": _list(
            object_schema(
                {
                    "index": _COUNT,
                    "grid": _SIDES,
                    "prefix_tokens": _COUNT,
                    "tokens": _ARRAY,
                    "part": _PART,
                    "pooled": _ARRAY,
                    "error": PROBLEM,
                },
                optional=("grid", "prefix_tokens", "tokens", "part", "pooled", "error"),
            )
        ),
        "truncated": _TRUNCATED,
        "usage": object_schema(
            {"images": _COUNT, "tokens": _COUNT, "texts": _COUNT, "text_tokens": _COUNT},
            optional=("texts", "text_tokens"),
        ),
        "timing_ms": _TIMING,
    },
    optional=("truncated",),
)
_SCORES = {**_list(_or_null(_list(_NUMBER))), "description": "[images][texts]; null for an image that failed."}
_SIMILARITY_ANSWER = object_schema(
    {
        "object": {"type": "string", "enum": ["similarity"]},
        "model": _TEXT,
        "cosine": _SCORES,
        "logits": _SCORES,
        "probabilities": _SCORES,
        "logit_scale": _NUMBER,
        "logit_bias": _NUMBER,
        "activation": {"type": "string", "enum": ["softmax", "sigmoid"]},
        "truncated": _TRUNCATED,
        "grid": _or_null(_SIDES),
        "heatmap": {**_list(_or_null(_list(_list(_list(_NUMBER))))), "description": "[images][texts][rows][columns]."},
        "errors": _ERRORS,
        "usage": object_schema({"images": _COUNT}),
        "timing_ms": _TIMING,
    },
    optional=("grid", "heatmap", "errors"),
)
_CLASSIFY_ANSWER = object_schema(
    {
        "object": {"type": "string", "enum": ["classification"]},
        "model": _TEXT,
        "activation": {"type": "string", "enum": ["softmax", "sigmoid"]},
        "logit_scale": _NUMBER,
        "logit_bias": _NUMBER,
        "data": _list(
            object_schema(
                {
                    "index": _COUNT,
                    "labels": {
                        **_list(
                            object_schema(
                                {
                                    "label": _TEXT,
                                    "index": _COUNT,
                                    "probability": {"type": "number", "minimum": 0, "maximum": 1},
                                    "cosine": _NUMBER,
                                }
                            )
                        ),
                        "description": "The likeliest first.",
                    },
                    "error": PROBLEM,
                },
                optional=("labels", "error"),
            )
        ),
        "labels": {**_COUNT, "description": "How many labels the images were compared with."},
        "truncated": {**_TRUNCATED, "description": "Indices of the labels that were cut."},
        "usage": object_schema({"images": _COUNT}),
        "timing_ms": _TIMING,
    }
)
_PLANNED = {
    "resolution": _SIDES,
    "grid": _SIDES,
    "batch": {"type": "integer", "minimum": 1},
    "dtype": _TEXT,
    **{name: _COUNT for name in ("weights_bytes", "io_bytes", "activation_bytes", "overhead_bytes", "total_bytes")},
    "tokens": _COUNT,
    "flops": _COUNT,
    "max_batch": _COUNT,
    "max_resolution": _or_null(_SIDES),
}
_DEVICE = {"model": _TEXT, "device": _TEXT, "budget_bytes": _COUNT}
_VRAM_ANSWER = {
    "anyOf": [
        object_schema({**_DEVICE, **_PLANNED}),
        object_schema(
            {"object": {"type": "string", "enum": ["list"]}, **_DEVICE, "data": _list(object_schema(_PLANNED))}
        ),
    ]
}


def _answer(
    schema: dict[str, Any], example: dict[str, Any], *, has_entries: bool, is_binary: bool = False
) -> dict[int | str, dict[str, Any]]:
    """has_entries: an image has an entry in `data`, and may have an error there. is_binary: in other formats too."""
    others = {media_type: {"schema": _IMAGE} for name, media_type in MEDIA_TYPES.items() if name != "json"}
    error = {
        "type": "/problems/empty-image",
        "title": "Empty image",
        "status": 422,
        "detail": "The image has no bytes.",
    }
    whole: dict[str, Any] = {"application/json": {"schema": schema, "example": example}}
    some: dict[str, Any] = {"application/json": {"schema": schema}}
    if has_entries:
        data = [{"index": 0, "error": error}, {**example["data"][0], "index": 1}]
        some["application/json"]["example"] = {**example, "data": data}
    return {
        200: {"description": "All images were answered.", "content": whole | (others if is_binary else {})},
        207: {
            "description": "Some images failed; the others were answered.",
            "content": some | (others if is_binary else {}),
        },
        **problem_responses(400, 404, 406, 413, 415, 422, 500, 503, 504, 507),
    }


_EMBED_EXAMPLE = {
    "object": "list",
    "model": "demo:vit",
    "data": [
        {
            "index": 0,
            "grid": [6, 6],
            "prefix_tokens": 0,
            "tokens": {"shape": [36, 128], "dtype": "float32", "data": [[0.53, -0.25]]},
        }
    ],
    "usage": {"images": 1, "tokens": 36},
    "timing_ms": {"decode": 1.9, "preprocess": 0.7, "queue": 0.2, "forward": 6.1, "total": 9.4},
}
_SIMILARITY_EXAMPLE = {
    "object": "similarity",
    "model": "demo:vit",
    "cosine": [[0.55, 0.09]],
    "logits": [[29.3, 4.7]],
    "probabilities": [[1.0, 0.0]],
    "logit_scale": 53.44,
    "logit_bias": 0.0,
    "activation": "softmax",
    "truncated": [],
    "usage": {"images": 1},
    "timing_ms": {"decode": 1.9, "preprocess": 0.7, "queue": 0.2, "forward": 6.1, "total": 9.4},
}
_CLASSIFY_EXAMPLE = {
    "object": "classification",
    "model": "demo:vit",
    "activation": "softmax",
    "logit_scale": 53.44,
    "logit_bias": 0.0,
    "data": [
        {
            "index": 0,
            "labels": [
                {"label": "red circle", "index": 0, "probability": 0.98, "cosine": 0.55},
                {"label": "red star", "index": 2, "probability": 0.02, "cosine": 0.48},
            ],
        }
    ],
    "labels": 3,
    "truncated": [],
    "usage": {"images": 1},
    "timing_ms": {"decode": 1.9, "preprocess": 0.7, "queue": 0.2, "forward": 6.1, "total": 9.4},
}

_VRAM_EXAMPLE = {
    "model": "demo:vit",
    "device": "cuda",
    "budget_bytes": 6_442_450_944,
    "resolution": [96, 96],
    "grid": [6, 6],
    "batch": 8,
    "dtype": "bfloat16",
    "weights_bytes": 3_434_498,
    "io_bytes": 518_144,
    "activation_bytes": 1_030_144,
    "overhead_bytes": 573_770_410,
    "total_bytes": 578_753_196,
    "tokens": 288,
    "flops": 666_619_904,
    "max_batch": 30_062,
    "max_resolution": [1024, 1024],
}

EMBED: dict[str, Any] = {
    "summary": "Images to tokens and pooled vectors, texts to vectors",
    "description": _EMBED_TEXT,
    "openapi_extra": {
        "parameters": _query(EmbedOptions),
        "requestBody": _body(EmbedOptions, {"output": "pooled", "normalize": True}, needs_images=False),
    },
    "responses": _answer(_EMBED_ANSWER, _EMBED_EXAMPLE, has_entries=True, is_binary=True),
}
SIMILARITY: dict[str, Any] = {
    "summary": "Images against texts",
    "description": _SIMILARITY_TEXT,
    "openapi_extra": {
        "parameters": _query(SimilarityOptions),
        "requestBody": _body(
            SimilarityOptions, {"texts": ["a red circle", "a dog"], "templates": ["a photo of {}"], "heatmap": False}
        ),
    },
    "responses": _answer(_SIMILARITY_ANSWER, _SIMILARITY_EXAMPLE, has_entries=False),
}
CLASSIFY: dict[str, Any] = {
    "summary": "Images against labels, the likeliest of each",
    "description": _CLASSIFY_TEXT,
    "openapi_extra": {
        "parameters": _query(ClassifyOptions),
        "requestBody": _body(ClassifyOptions, {"labels": ["red circle", "blue square", "red star"], "top_k": 2}),
    },
    "responses": _answer(_CLASSIFY_ANSWER, _CLASSIFY_EXAMPLE, has_entries=True),
}
VRAM: dict[str, Any] = {
    "summary": "What a forward would take, before it runs",
    "description": _VRAM_TEXT,
    "openapi_extra": {"parameters": _query(VramOptions)},
    "responses": {
        200: {
            "description": "The plan.",
            "content": {"application/json": {"schema": _VRAM_ANSWER, "example": _VRAM_EXAMPLE}},
        }
    }
    | problem_responses(404, 422, 500, 503, 504),
}
