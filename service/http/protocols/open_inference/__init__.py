"""The Open Inference Protocol v2 over HTTP, as Triton's and KServe's clients speak it, with the binary extension.

https://github.com/kserve/open-inference-protocol
"""

from typing import Any

from service.http.protocol import Protocol, Read, Route, Write
from service.http.protocols.open_inference import answers, documentation, requests, tensors

_MODEL = "/v2/models/{model:path}"
_HIDDEN = {"include_in_schema": False}


def _get(path: str, read: Read, write: Write, documented: dict[str, Any], *, is_open: bool = False) -> Route:
    return Route(path, read, write, method="GET", has_images=False, is_open=is_open, documentation=documented)


def _of_model(end: str, read: Read, write: Write, documented: dict[str, Any]) -> tuple[Route, Route]:
    """Also with the only version there is. Of any other the model's name is longer, and unknown."""
    versioned = f"{_MODEL}/versions/{answers.VERSION}{end}"
    return _get(versioned, read, write, _HIDDEN), _get(f"{_MODEL}{end}", read, write, documented)


def _infer(version: str, documented: dict[str, Any]) -> Route:
    return Route(
        f"{_MODEL}{version}/infer",
        requests.read_infer,
        answers.write_infer,
        json_bytes=tensors.json_bytes,
        documentation=documented,
    )


PROTOCOL = Protocol(
    "open-inference",
    (
        _get("/v2", requests.read_server, answers.write_server, documentation.SERVER),
        _get("/v2/health/live", requests.read_server, answers.write_live, documentation.LIVE, is_open=True),
        _get("/v2/health/ready", requests.read_server_ready, answers.write_ready, documentation.READY, is_open=True),
        *_of_model("/ready", requests.read_model_ready, answers.write_ready, documentation.MODEL_READY),
        *_of_model("/config", requests.read_model, answers.write_config, documentation.CONFIG),
        *_of_model("", requests.read_model, answers.write_model, documentation.MODEL),
        _infer(f"/versions/{answers.VERSION}", _HIDDEN),
        _infer("", documentation.INFER),
        Route(
            "/v2/repository/index",
            requests.read_index,
            answers.write_index,
            has_images=False,
            json_bytes=tensors.json_bytes,
            documentation=documentation.INDEX,
        ),
    ),
    answers.write_error,
    under=("/v2",),
)
