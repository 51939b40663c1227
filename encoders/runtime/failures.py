"""Torch's errors in a forward, translated into the contract's. Knows torch's words; knows no encoder."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from encoders.contract.errors import EncoderFailed, OutOfMemory, VisiontowerError


@contextmanager
def running(encoder_id: str) -> Iterator[None]:
    """Around a forward: in inference mode, and what it raises translated into EncoderFailed or OutOfMemory."""
    try:
        with torch.inference_mode():
            yield
    except VisiontowerError:
        raise
    except Exception as error:  # every library raises its own
        if _is_out_of_memory(error):
            raise OutOfMemory(encoder=encoder_id) from error
        raise EncoderFailed(f"The forward of {encoder_id} failed.", model=encoder_id) from error


def _is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed: torch's own on the device or the host, or one within cuBLAS or cuDNN.

    cuDNN without room for the workspace of any of its convolutions says that it found none.
    """
    said = (
        "ALLOC_FAILED",
        "can't allocate memory",
        "Unable to find a valid cuDNN algorithm",
        "unable to find an engine",
    )
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in str(error) for word in said)
