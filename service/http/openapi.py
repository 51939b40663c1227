"""The texts of the API's own pages: on the whole, and on the routes that are no protocol's. Knows OpenAPI."""

from typing import Any

from service.http.problems import MEDIA_TYPE

DESCRIPTION = """A multimodal vision-encoder inference server: images in, patch tokens, embeddings and image-text scores
out.

Errors are `application/problem+json` (RFC 9457); each `type` is a page: `/problems/{slug}`, listed at `/problems`.
A request with several images of which some are bad answers 207: each bad one is an `error` at its `index`, the others
are answered. A request with one image answers its problem with the problem's own status."""


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """These statuses, each answered with a problem."""
    about = {
        400: "The body is broken.",
        404: "No such model.",
        406: "No such format.",
        413: "Over a limit; refused whole.",
        415: "Not an image, or a Content-Type that is not read.",
        422: "An image or an option that cannot be used.",
        500: "The encoder failed, or gave NaN.",
        507: "The device ran out of memory, or the model is over its budget.",
        503: "Overloaded, draining or not ready; see Retry-After.",
        504: "Not answered in time.",
    }
    schema = {
        "type": "object",
        "properties": {
            "type": {"type": "string", "example": "/problems/undecodable-image"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
        },
    }
    return {code: {"description": about[code], "content": {MEDIA_TYPE: {"schema": schema}}} for code in statuses}


MODELS: dict[str, Any] = {"description": "Each served encoder: what it is, what it can be asked, and its state."}
MODEL: dict[str, Any] = {
    "description": "One served encoder. The id stands in the path as it is, slashes and all.",
    "responses": problem_responses(404),
}
READY: dict[str, Any] = {
    "description": "200 if requests can be answered: a real forward of at least one model has worked, the device "
    "threads live and none hangs, and the server is not draining. With `model`, 200 if requests for that model can be "
    "answered. The state of each model stands beside.",
    "responses": {503: {"description": "Not ready, and why."}},
}
