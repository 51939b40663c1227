"""An encoder's spec and its plan as JSON has them: the same over HTTP and on the command line."""

from dataclasses import asdict

from encoders.contract.spec import EncoderSpec
from encoders.contract.values import ImageSize
from encoders.memory.plan import Row


def plan_json(row: Row, spec: EncoderSpec, *, max_resolution: ImageSize | None) -> dict[str, object]:
    """One line of a plan, in the names of the contract; with the largest resolution for its batch, if any fits."""
    predicted = row.prediction
    return {
        "resolution": list(row.size),
        "grid": list(spec.grid(row.size)),
        "batch": predicted.batch,
        "dtype": row.dtype,
        "weights_bytes": predicted.weights_bytes,
        "io_bytes": predicted.io_bytes,
        "activation_bytes": predicted.activation_bytes,
        "overhead_bytes": predicted.overhead_bytes,
        "total_bytes": predicted.total_bytes,
        "tokens": predicted.tokens,
        "flops": predicted.flops,
        "max_batch": row.max_batch,
        "max_resolution": None if max_resolution is None else list(max_resolution),
    }


def spec_json(spec: EncoderSpec) -> dict[str, object]:
    """The public part of a spec. Sizes are [height, width]; `tokens`: patch tokens at the native size."""
    grid, sizes, preprocessing = spec.grid(), asdict(spec.resolutions), asdict(spec.preprocessing)
    return {
        "id": spec.id,
        "family": spec.family,
        "trained_on": spec.trained_on,
        "image_size": list(spec.image_size),
        "patch_size": list(spec.patch_size),
        "preprocessing": {
            name: list(value) if isinstance(value, tuple) else value for name, value in preprocessing.items()
        },
        "grid": list(grid),
        "prefix_tokens": spec.prefix_tokens,
        "hidden_size": spec.hidden_size,
        "embed_dim": spec.embed_dim,
        "pooled_size": spec.pooled_size,
        "pooling": spec.pooling,
        "layers": spec.layers,
        "tokens": grid.rows * grid.cols,
        "has_text": spec.has_text,
        "context_length": spec.context_length,
        "projects": spec.projects,
        "projected_size": spec.projected_size,
        "projected_grid": list(spec.projected_grid(grid)) if spec.projects else None,
        "most_views": spec.most_views,
        "most_joined": spec.most_joined,
        "language_model": spec.language_model,
        "dense": spec.dense,
        "resolutions": {name: None if size is None else list(size) for name, size in sizes.items()},
        "dtype": spec.dtype,
        "int8_cosine": spec.int8_cosine,
        "runtime": spec.runtime,
        "device": spec.device,
        "parameters": spec.parameters,
        "weights_bytes": spec.weights_bytes,
        "revision": spec.revision,
    }
