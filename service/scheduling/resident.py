"""An encoder on the device, and whether its forwards work."""

import logging

import numpy as np

from encoders.contract.encoder import Encoder
from encoders.contract.errors import EncoderFailed, NonFiniteOutput, VisiontowerError
from encoders.contract.values import Floats, Outputs

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
        spec, outputs = self.spec, Outputs(pooled=True)
        grey = np.full((1, *spec.image_size, 3), 128, dtype=np.uint8)
        encoded = self.encoder.encode(grey, outputs)
        self._require_announced(spec.mismatch(encoded, images=1, size=spec.image_size, outputs=outputs))
        self._require_finite(encoded.pooled)
        if spec.has_text:
            vectors = self.encoder.encode_text(self.encoder.tokenize(["a warm-up"]).ids)
            self._require_announced(spec.mismatch_of_texts(vectors, texts=1))
            self._require_finite(vectors)

    def _require_announced(self, wrong: str | None) -> None:
        if wrong is not None:
            model = self.spec.id
            raise EncoderFailed(f"{model} gave rows that its spec does not announce: {wrong}.", model=model)

    def _require_finite(self, vectors: Floats | None) -> None:
        if vectors is not None and not np.isfinite(vectors).all():
            raise NonFiniteOutput(encoder=self.spec.id)
