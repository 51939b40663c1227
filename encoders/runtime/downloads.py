"""Downloads by the libraries behind the adapters: whether they may, and why one failed. Knows no scheme.

They download from the Hugging Face hub, by huggingface_hub, and a few weights from a plain URL, by urllib.
"""

import errno
import hashlib
import logging
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError

from huggingface_hub import constants, get_session
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from encoders.contract.errors import in_brief, without_users

# It warns of each of its five tries a file, which the error at their end says once.
logging.getLogger("huggingface_hub.utils._http").setLevel(logging.ERROR)

_TIMEOUT_S = 5.0


def go_offline() -> None:
    """From now on nothing in this process is downloaded. What is not on this machine is an error at once."""
    leave_hub()
    urllib.request.install_opener(urllib.request.build_opener(_Refusing))


def leave_hub() -> None:
    """From now on the Hugging Face hub is not asked: its cache has all that there is. HF_HUB_OFFLINE does the same."""
    constants.HF_HUB_OFFLINE = True


def hub_fault() -> str | None:
    """Why the Hugging Face hub cannot be asked; None if it answers. Asks once, where the hub's library asks six times.

    None too where HF_HUB_OFFLINE forbids to ask.
    """
    if constants.is_offline_mode():
        return None
    try:
        get_session().head(constants.ENDPOINT, timeout=_TIMEOUT_S)
    except Exception as error:  # the HTTP client's own classes differ between versions of huggingface_hub
        return in_brief(error)
    return None


def is_damaged(file: Path) -> bool:
    """Whether a file of the hub's cache is another than the hub's. The cache keeps a large file by its SHA-256."""
    kept = file.resolve()
    if kept.parent.name != "blobs" or not re.fullmatch("[0-9a-f]{64}", kept.name):
        return False
    with kept.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest() != kept.name


def why_not_downloaded(error: BaseException, encoder_id: str) -> str | None:
    """What kept a library from a file of the encoder, and what to do; None if the error is of another kind."""
    chain = list(_chain(error))
    url = next((found[0] for each in chain if (found := re.search(r"https?://[^\s'\"<>]+", str(each)))), None)
    what = without_users(url.rstrip(".,:;")) if url else "a file"
    elsewhere = f"`visiontower pull {encoder_id}` fetches it where there is a network. HF_HOME can be copied."
    for each in chain:
        match each:
            case GatedRepoError():
                return f"{what} is gated. Accept the terms on the repository's page, and set HF_TOKEN."
            case RevisionNotFoundError():
                return f"the hub has no {what}: the repository has no such revision."
            case RepositoryNotFoundError():
                return f"the hub has no {what}: there is no such repository, or it is private and needs HF_TOKEN."
            case OfflineModeIsEnabled() | _Forbidden():
                return f"{what} is missing, and is not downloaded. {elsewhere}"
            case OSError(errno=errno.ENOSPC | errno.EDQUOT):
                return f"the disk is full. Make room, or set HF_HOME to another folder than {constants.HF_HOME}."
            case OSError(errno=errno.EROFS | errno.EACCES):
                return f"{each.filename} cannot be written ({each.strerror}). Set HF_HOME to a folder that can."
    if any(isinstance(each, LocalEntryNotFoundError | URLError) or _is_of_the_server(each) for each in chain):
        return f"{what} is missing, and cannot be downloaded ({in_brief(chain[-1])}). {elsewhere}"
    return None


class _Forbidden(URLError):
    """A URL that was not opened."""


class _Refusing(urllib.request.BaseHandler):
    """Opens no URL."""

    handler_order = 0  # before those that connect

    def http_open(self, request: urllib.request.Request) -> None:
        raise _Forbidden(f"{request.full_url} was not opened")

    https_open = http_open


def _is_of_the_server(error: BaseException) -> bool:
    """Whether the hub could not answer, or not so many requests."""
    return isinstance(error, HfHubHTTPError) and (
        error.response.status_code >= 500 or error.response.status_code == 429
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and those that it was raised from or behind."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
