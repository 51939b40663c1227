"""This project's own protocol: /embed, /similarity, /classify and /vram, with problems as errors (RFC 9457)."""

from service.http.problems import write_problem
from service.http.protocol import Protocol, Route
from service.http.protocols.native import documentation
from service.http.protocols.native.answers import write_classify, write_embed, write_similarity, write_vram
from service.http.protocols.native.requests import read_classify, read_embed, read_similarity, read_vram

PROTOCOL = Protocol(
    "native",
    (
        Route("/embed", read_embed, write_embed, documentation=documentation.EMBED),
        Route("/similarity", read_similarity, write_similarity, documentation=documentation.SIMILARITY),
        Route("/classify", read_classify, write_classify, documentation=documentation.CLASSIFY),
        Route("/vram", read_vram, write_vram, method="GET", has_images=False, documentation=documentation.VRAM),
    ),
    write_problem,
)
