"""What an access key may ask for, of what a request asks for."""

from dataclasses import replace

from service.access.keys import Key
from service.engine.models import Models
from service.engine.values import ModelsRequest, ReadyRequest, Request


def allowed(request: Request, key: Key, models: Models) -> Request:
    """The request; of a list of all models those that the key may use. Raises ModelNotAllowed.

    A model that is not served is refused in the same way: whoever may use some models is told of these alone.
    """
    if request.model is None and isinstance(request, ModelsRequest):
        return replace(request, among=key.models)
    if request.model is not None or not isinstance(request, ReadyRequest):
        key.require_model(request.model or models.ids[0])
    return request
