"""What an access key may ask for, of what a request asks for; and what of its answer is not its caller's doing."""

from dataclasses import replace

from encoders.contract.errors import ImageError, VisiontowerError
from service.access.keys import Key
from service.engine.models import Models
from service.engine.values import EmbedResult, ModelsRequest, ReadyRequest, Request, Result, SimilarityResult
from service.errors import UnknownModel


def allowed(request: Request, key: Key, models: Models) -> Request:
    """The request; of a list of all models those that the key may use. Raises as `require_model`.

    A model that is not served is refused in the same way: whoever may use some models is told of these alone.
    """
    if request.model is None and isinstance(request, ModelsRequest):
        return replace(request, among=key.models)
    if request.model is not None or not isinstance(request, ReadyRequest):
        require_model(models.ids[0] if request.model is None else request.model, key, models)
    return request


def require_model(model: str, key: Key, models: Models) -> None:
    """Raises ModelNotAllowed, or UnknownModel for one that is not served."""
    key.require_model(model)
    if model not in models.ids:
        raise UnknownModel(model, served=key.usable(models.ids))


def failures(result: Result) -> tuple[int, int]:
    """Images that the server has failed, and those that cannot be used, which are their sender's."""
    items = result.items if isinstance(result, EmbedResult | SimilarityResult) else ()
    bad = sum(isinstance(item, ImageError) for item in items)
    return sum(isinstance(item, VisiontowerError) for item in items) - bad, bad
