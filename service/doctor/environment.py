"""The settings and variables that the service would meet. Secrets stay where they are."""

import os
import re
from collections.abc import Mapping

from pydantic import ValidationError
from pydantic_settings import SettingsError

from service.doctor.facts import Asked
from service.settings import PREFIX, Settings

_OTHERS = (
    "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF",
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LD_PRELOAD", "PYTHONPATH",
    "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_TOKEN", "TORCH_HOME", "XDG_CACHE_HOME", "TMPDIR",
    "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR",
)  # fmt: skip
"""Variables of others that change what the service does; proxies in small letters too."""
_SECRET = re.compile("KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
_USER = re.compile(r"//\S*@")
_QUERY = re.compile(r"(://[^\s?]*)\?\S*")
_PROXY_USER = re.compile(r"^(\w+://)?\S*@")  # its scheme may be left out
HIDDEN = "(set)"


def variables(environment: Mapping[str, str] = os.environ) -> Mapping[str, str]:
    """Those that matter, by name. Of what may be a secret only that it is set; of an address no user and no query."""
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    return {
        name: _shown(name, value, is_known=name.upper() in known or name.upper() in _OTHERS)
        for name, value in sorted(environment.items())
        if name.upper() in _OTHERS or name.upper().startswith(PREFIX)
    }


def _shown(name: str, value: str, *, is_known: bool) -> str:
    if not is_known or _SECRET.search(name):  # a misspelt name may hold anything
        return HIDDEN
    shown = _PROXY_USER.sub(r"\1", value) if name.upper().endswith("_PROXY") else _USER.sub("//", value)
    return _QUERY.sub(r"\1", shown)


class Refused(RuntimeError):
    """Settings with which `visiontower serve` would not start."""


def asked() -> Asked:
    """By the variables alone, as no flags are given here. Raises Refused."""
    try:
        settings = Settings()
    except SettingsError as error:
        raise Refused(str(error).partition(" Known: ")[0]) from error
    except ValidationError as error:
        raise Refused(
            "; ".join(f"{_variable(each['loc'])}{each['msg'].removeprefix('Value error, ')}" for each in error.errors())
        ) from error
    return Asked(
        models=settings.model,
        device=settings.device,
        host=settings.host,
        port=settings.port,
        metrics_port=settings.metrics_port,
        processes=settings.processes,
        connections=settings.max_connections,
    )


def _variable(loc: tuple[int | str, ...]) -> str:
    return f"{PREFIX}{str(loc[0]).upper()}: " if loc else ""
