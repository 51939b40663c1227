"""Whether what a text half needs of the Hugging Face hub can be had. It asks once.

huggingface_hub asks five more times for each file that is not in its cache: 23 s where there is no network.
"""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, OfflineModeIsEnabled

from encoders.contract.errors import WeightsError

_TIMEOUT_S = 5.0


def require_one_of(files: Sequence[str], *, of: str, part: str, encoder_id: str) -> None:
    """Raises WeightsError unless the repository or folder `of` has one of the files. part: what needs it."""
    missing: str | None
    if Path(of).is_dir():
        missing = None if any(Path(of, file).is_file() for file in files) else "the folder has none"
    elif any(isinstance(try_to_load_from_cache(of, file), str) for file in files):
        missing = None
    else:
        missing = _missing_on_hub(files, of)
    if missing is not None:
        names = files[0] if len(files) == 1 else f"{', '.join(files[:-1])} or {files[-1]}"
        raise WeightsError(
            f"The {part} of {encoder_id} needs {names} of {of}: {missing}. Where the Hugging Face hub can be "
            f"reached, `hf download {of} {files[0]}` puts it into the cache (HF_HOME), which can be copied.",
            model=encoder_id,
            repository=of,
            files=list(files),
        )


def _missing_on_hub(files: Sequence[str], repository: str) -> str | None:
    """Why none of the files can be had, or None if one can."""
    try:
        for file in files:
            try:
                get_hf_file_metadata(hf_hub_url(repository, file), timeout=_TIMEOUT_S)
            except EntryNotFoundError:
                continue
            return None
    except OfflineModeIsEnabled:
        return "not in the cache, and HF_HUB_OFFLINE forbids to ask the Hugging Face hub"
    except Exception as error:  # the HTTP client's own classes differ between versions of huggingface_hub
        return f"not in the cache, and the Hugging Face hub cannot be asked ({type(error).__name__}: {error})"
    return "the Hugging Face hub has no such file there"
