"""An encoder's spec as JSON has it, the same from /models and on the command line. Knows the contract's names."""

from dataclasses import asdict

from encoders.types import EncoderSpec


def card(spec: EncoderSpec) -> dict[str, object]:
    """The public part of a spec. Sizes are [height, width]; `tokens`: patch tokens at the native size."""
    grid, sizes = spec.grid(), asdict(spec.resolutions)
    return {
        "id": spec.id,
        "family": spec.family,
        "image_size": list(spec.image_size),
        "patch_size": list(spec.patch_size),
        "grid": list(grid),
        "prefix_tokens": spec.prefix_tokens,
        "hidden_size": spec.hidden_size,
        "embed_dim": spec.embed_dim,
        "pooled_size": spec.pooled_size,
        "pooling": spec.pooling,
        "layers": spec.layers,
        "tokens": grid.rows * grid.cols,
        "has_text": spec.has_text,
        "projects": spec.projects,
        "dense": spec.dense,
        "resolutions": {name: None if size is None else list(size) for name, size in sizes.items()},
        "dtype": spec.dtype,
        "device": spec.device,
        "parameters": spec.parameters,
        "weights_bytes": spec.weights_bytes,
        "revision": spec.revision,
    }
