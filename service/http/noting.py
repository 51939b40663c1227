"""What is noted of a request in its record, on its way through an exchange."""

from encoders.contract.errors import VisiontowerError
from service.access.errors import KeyLimitReached, ModelNotAllowed, TooManyImagesForKey
from service.engine.models import Models
from service.engine.values import EmbedRequest, EmbedResult, Request, Result, SimilarityRequest, SimilarityResult
from service.http.problems import problem_type, refusal
from service.telemetry.metrics import Metrics
from service.telemetry.request_record import RequestRecord


def note_request(record: RequestRecord, request: Request, models: Models) -> None:
    """What it asks for, once it has been read. A model that is not served is not noted: it is a caller's word."""
    if isinstance(request, EmbedRequest | SimilarityRequest):
        record.images, record.texts = len(request.sources), len(request.texts)
        spec = models.specs.get(models.ids[0] if request.model is None else request.model)
        if spec is not None:
            record.model = spec.id
            if request.sources:
                height, width = request.resolution or spec.image_size
                record.resolution = f"{height}x{width}"


def note_result(record: RequestRecord, result: Result) -> None:
    """What the engine gave."""
    if isinstance(result, EmbedResult | SimilarityResult):
        record.failed = sum(isinstance(item, VisiontowerError) for item in result.items)
        record.cached = 0 if result.cached is None else result.cached.hits
        timing = result.timing
        record.stages = {
            "fetch": timing.fetch,
            "decode": timing.decode,
            "preprocess": timing.preprocess,
            "queue": timing.queue,
            "forward": timing.forward,
        }


def note_refusal(record: RequestRecord, error: VisiontowerError, metrics: Metrics) -> None:
    """Why it was not answered, counted if it is a limit's or a key's refusal."""
    record.outcome = problem_type(error).slug
    if (reason := refusal(error)) is not None:
        metrics.rejected(reason)
    if isinstance(error, ModelNotAllowed | TooManyImagesForKey | KeyLimitReached):
        record.key = error.key
        metrics.key_refused(error.key, error.limit)
