"""POST /similarity: images against texts."""

from typing import Any

import numpy as np

from encoders.contract.errors import VisiontowerError
from service.engine.values import Scores, SimilarityRequest, SimilarityResult
from service.http.json import to_json
from service.http.problems import problem
from service.http.protocol import Answer, Asked, Incoming
from service.http.protocols.native.body import parse
from service.http.protocols.native.formats import server_timing, timing_ms
from service.http.protocols.native.negotiation import choose
from service.http.protocols.native.options import SimilarityOptions, read


def read_similarity(incoming: Incoming) -> Asked:
    """Raises UnsupportedMediaType, InvalidBody, InvalidOption, TooManyImages or NotAcceptable."""
    body = parse(incoming.body, content_type=incoming.content_type, max_images=incoming.settings.max_images)
    options = read(SimilarityOptions, query=incoming.query, body=body.fields)
    choose(incoming.accept, asked=options.format, offered=("json",))
    return Asked(
        SimilarityRequest(
            body.images,
            options.texts,
            templates=options.templates,
            heatmap=options.heatmap,
            model=options.model,
            resolution=options.resolution,
        )
    )


def write_similarity(result: SimilarityResult, reply: None) -> Answer:
    """Status 200, or 207 if some images failed: those are null in every list, and named in `errors`.

    The error of a request's only image is raised: it is the answer.
    """
    only = result.items[0]
    if len(result.items) == 1 and isinstance(only, VisiontowerError):
        raise only
    done = [item if isinstance(item, Scores) else None for item in result.items]
    milliseconds = timing_ms(result.timing)
    answer: dict[str, Any] = {
        "object": "similarity",
        "model": result.model,
        "cosine": [item and item.cosine for item in done],
        "logits": [item and item.logits for item in done],
        "probabilities": [item and item.probabilities for item in done],
        "logit_scale": result.scoring.logit_scale,
        "logit_bias": result.scoring.logit_bias,
        "activation": result.scoring.activation,
    }
    if result.has_heatmaps:
        answer["grid"] = next((list(item.grid) for item in done if item), None)
        answer["heatmap"] = [item and np.ascontiguousarray(item.heatmap) for item in done]
    errors = [
        {"index": index, "error": problem(item)}
        for index, item in enumerate(result.items)
        if isinstance(item, VisiontowerError)
    ]
    if errors:
        answer["errors"] = errors
    answer["usage"] = {"images": sum(item is not None for item in done)}
    answer["timing_ms"] = milliseconds
    return Answer(to_json(answer), "application/json", 207 if errors else 200, server_timing(milliseconds))
