"""What is known of one request once it has been answered: its counts, its log line and its trace are made of it."""

from collections.abc import Iterator
from dataclasses import dataclass, field

CLIENT_GONE = 499
"""The status of a request whose client left before its answer began."""


@dataclass
class RequestRecord:
    """Filled in on the request's way. Empty where the request did not come so far.

    route: its template; protocol: whose form the answer has. outcome: `ok`, or the name of the problem. seconds: from
    the request's head to the end of its answer. key: the name of the caller's access key. model: that was asked, and
    resolution: at which it sees the images. failed: images that stand as errors in the answer; cached: images whose
    result was in the cache. stages: seconds by stage, of several images those of the slowest. request_bytes,
    answer_bytes: of the bodies. trace_id: of its trace, if it has one.
    """

    request_id: str
    method: str
    route: str = "other"
    protocol: str = "native"
    status: int = CLIENT_GONE
    outcome: str = "ok"
    seconds: float = 0.0
    key: str | None = None
    model: str | None = None
    resolution: str | None = None
    images: int = 0
    failed: int = 0
    cached: int = 0
    texts: int = 0
    request_bytes: int = 0
    answer_bytes: int = 0
    trace_id: str | None = None
    stages: dict[str, float] = field(default_factory=dict)

    def facts(self) -> Iterator[tuple[str, object]]:
        """Name and value of all that is not empty, for a log line. Seconds to the microsecond."""
        for name, value in vars(self).items():
            if name == "stages":
                value = {stage: round(seconds, 6) for stage, seconds in self.stages.items() if seconds}
            elif name == "seconds":
                value = round(self.seconds, 6)
            if value or name in ("status", "seconds"):
                yield name, value
