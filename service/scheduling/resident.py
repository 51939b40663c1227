"""An encoder on the device, and whether its forwards work."""

import logging

import numpy as np

from encoders.contract.encoder import Encoder
from encoders.contract.errors import EncoderFailed, NonFiniteOutput, VisiontowerError
from encoders.contract.values import Outputs

_log = logging.getLogger(__name__)


class Resident:
    """Made when the encoder is on the device. The device threads keep its health, and anybody may read it."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.spec = encoder.spec
        self.is_healthy = True
        """Whether the last batch gave a row; if it gave none, whether a grey image then worked."""
        self.hang: VisiontowerError | None = None
        """While a forward of it hangs: what is said to whoever asks for it. Of the event loop."""

    def probe(self) -> bool:
        """Try the grey image; gives and keeps the health. A failure is logged. On a device thread."""
        try:
            self.try_out()
        except Exception:
            _log.exception("%s fails on a plain grey image", self.spec.id)
            self.is_healthy = False
        else:
            self.is_healthy = True
        return self.is_healthy

    def try_out(self) -> None:
        """One real forward of each half. Raises EncoderFailed, or what the encoder raises. On a device thread."""
        grey = np.full((1, *self.spec.image_size, 3), 128, dtype=np.uint8)
        results = [self.encoder.encode(grey, Outputs(pooled=True)).pooled]
        if self.spec.has_text:
            results.append(self.encoder.encode_text(self.encoder.tokenize(["a warm-up"]).ids))
        for result in results:
            if result is None or len(result) != 1:
                raise EncoderFailed(
                    f"{self.spec.id} did not answer a plain grey image with one row.", model=self.spec.id
                )
            if not np.isfinite(result).all():
                raise NonFiniteOutput(encoder=self.spec.id)
