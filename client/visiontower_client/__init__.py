"""The client of visiontower: images and texts in, NumPy arrays out.

from pathlib import Path
from visiontower_client import Client

with Client("http://127.0.0.1:8000") as client:
vectors = client.embed(Path("photos").glob("*.jpg"))    # float32 [n, width]
"""

from visiontower_client.client import AsyncClient
from visiontower_client.errors import (
    BadImage,
    InvalidRequest,
    LimitExceeded,
    NotAllowed,
    Overloaded,
    ServerFailed,
    TimedOut,
    UnknownModel,
    Unreachable,
    VisiontowerError,
)
from visiontower_client.sync import Client
from visiontower_client.values import Both, Embedding, Label, Ready, Similarity, Text

__all__ = [
    "AsyncClient",
    "BadImage",
    "Both",
    "Client",
    "Embedding",
    "InvalidRequest",
    "Label",
    "LimitExceeded",
    "NotAllowed",
    "Overloaded",
    "Ready",
    "ServerFailed",
    "Similarity",
    "Text",
    "TimedOut",
    "UnknownModel",
    "Unreachable",
    "VisiontowerError",
]
