"""Every setting: a flag and a VISIONTOWER_* variable, with its unit in its name, or in its value, as 1GiB.

Built once, by the entry point. Nothing else reads the environment. A misspelt variable is an error: pydantic-settings
only notices misspelt names in `.env` files, so `_Environment` compares ours with the fields.
"""

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from encoders.images.decode import MAX_PIXELS
from service.access.key_ring import KeyRing
from service.errors import did_you_mean
from service.hosts import HostRule
from service.labels import LabelSet
from service.origins import web_origin
from service.sizes import parse_bytes

PREFIX = "VISIONTOWER_"
_MIB = 1024 * 1024
ProtocolName: TypeAlias = Literal["native", "openai", "open-inference", "cohere", "immich"]
KeylessName: TypeAlias = Literal["openai", "open-inference", "cohere", "immich"]
"""Not native, below which the server's own routes are."""


def _bytes(value: object) -> object:
    return parse_bytes(value) if isinstance(value, str) else value


def _bytes_or_auto(value: object) -> object:
    return value if value == "auto" else _bytes(value)


class Settings(BaseSettings):
    """How the service runs. `auto` stays `auto` here; it is resolved where the encoders are loaded."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", validate_default=True)

    model: Annotated[tuple[str, ...], NoDecode] = Field(
        default=("demo:vit", "demo:resnet", "demo:convnext"),
        min_length=1,
        description="Encoder ids to serve; the first is the default of requests.",
    )
    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    metrics_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="Port for /metrics and /health alone, which then are nowhere else; 0 takes a free one. No access "
        "key is asked for there.",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Pages elsewhere that may use the service from a browser, by their origins, such as "
        "https://app.example.org; * for all.",
    )
    processes: int = Field(
        default=1,
        ge=1,
        description="Server processes behind the port, each with its own queue and copy of the encoders, and its "
        "part of vram_budget and the cores. More than one pays on CPUs.",
    )
    device: str = Field(default="auto", description="auto (CUDA where there is one), cpu, cuda or cuda:N.")
    dtype: Literal["auto", "float32", "float16", "bfloat16", "int8"] = Field(
        default="auto",
        description="What the encoders compute in; auto takes what the device computes natively. int8 is for CPUs with "
        "VNNI or AMX and for transformers: linear products of the vision half in 8 bits. An encoder whose vectors are "
        "then below cosine 0.99 to float32 is refused.",
    )
    calibration: Path | None = Field(
        default=None,
        description="For int8: a folder of pictures like those to come, from which ranges are taken at start. Without "
        "one it draws some.",
    )
    runtime: Literal["torch", "openvino"] = Field(
        default="torch",
        description="The library that runs forwards. openvino is for CPUs. It is faster for final tokens and pooled "
        "vectors at native size; PyTorch runs everything else. It needs the extra of that name, and some seconds for "
        "each encoder at start.",
    )
    vram_budget: Annotated[int | Literal["auto"], BeforeValidator(_bytes_or_auto)] = Field(
        default="auto",
        description="Device memory for everything, such as 6GiB; forwards are planned to stay within it. "
        "auto takes vram_share of what is free at start.",
    )
    vram_share: float = Field(
        default=0.8, gt=0, le=1, description="Share of the memory free at start, for vram_budget auto."
    )
    cuda_graph_bytes: Annotated[int, BeforeValidator(_bytes)] = Field(
        default=0,
        ge=0,
        description="Device memory for CUDA graphs, such as 512MiB, a part of vram_budget: forwards of up to 8 images "
        "that come often are recorded and replayed, so that a card does not wait for Python. 0 makes none. It has not "
        "been measured on a card (docs/memory.md).",
    )
    memory_budget: Annotated[int | Literal["auto"], BeforeValidator(_bytes_or_auto)] = Field(
        default="auto",
        description="Host memory that requests may hold together, such as 2GiB: bodies, pictures being decoded, texts, "
        "answers. Encoders and forwards are not in it. auto takes an eighth of what is free at start, from 256 MiB to "
        "4 GiB.",
    )
    when_full: Literal["refuse", "evict"] = Field(
        default="refuse",
        description="If encoders do not fit the budget together: refuse to start, or load them when they are asked for "
        "and evict the one idle for longest.",
    )
    evict_idle_s: float = Field(
        default=60.0, ge=0, description="Seconds an encoder must have been idle before another may take its place."
    )
    max_batch: int | Literal["auto"] = Field(
        default="auto",
        description="Images or texts in one forward, at most; auto: what vram_budget and max_forward_s allow.",
    )
    max_forward_s: float = Field(
        default=2.0,
        gt=0,
        description="Seconds one forward should last at most, by the pace of those before it; 0.2 at most while images "
        "of several sizes, or texts, are served in turn.",
    )
    lanes: int | Literal["auto"] = Field(
        default="auto",
        description="Forwards that run side by side on a CPU, each on its part of the cores and of vram_budget; auto: "
        "two where there are two cores. A GPU runs one at a time.",
    )
    on_hang: Literal["exit", "stay"] = Field(
        default="exit",
        description="If a forward takes over 5 s and over ten times its usual time: end with status 4, for a "
        "supervisor to start the process anew, or wait for the forward and serve meanwhile what can be served. With "
        "exit the process also ends, with status 1, if its event loop stands still for 30 s.",
    )
    queue_images: int = Field(
        default=256, ge=1, description="Images admitted and not yet answered, at most; over it requests get 503."
    )
    queue_texts: int = Field(
        default=8192, ge=1, description="Prompts admitted and not yet answered, at most; over it requests get 503."
    )
    queue_plans: int = Field(
        default=64,
        ge=2,
        description="Resolutions that nobody has asked for before and that are being planned, at most; over it "
        "requests get 503. One caller (a key, without keys an address) gets at most half of what others leave.",
    )
    max_images: int = Field(default=64, ge=1, description="Images in one request.")
    max_texts: int = Field(default=1024, ge=1, description="Prompts (texts x templates) in one request.")
    max_text_chars: int = Field(
        default=4096, ge=1, description="Characters in one text, one template, or one text put into a template."
    )
    max_prompt_chars: int = Field(
        default=512 * 1024, ge=1, description="Characters in all prompts (texts x templates) of one request."
    )
    max_body_bytes: int = Field(default=64 * _MIB, ge=1, description="Bytes in one request body.")
    max_json_bytes: int = Field(
        default=16 * _MIB,
        ge=1,
        description="Bytes in one JSON body: while it is parsed nothing else runs, so it may have fewer than a form.",
    )
    max_json_values: int = Field(
        default=4 * _MIB,
        ge=1,
        description="Numbers in one JSON answer of vectors; binary formats and base64 may have more.",
    )
    max_image_pixels: int = Field(
        default=MAX_PIXELS,
        ge=1,
        le=178_956_970,  # Pillow warns from half of its own bomb limit on: stay where it is silent
        description="Pixels in one image, read from its header before it is decoded.",
    )
    exact_pixels: bool = Field(
        default=False,
        description="Decode and resize to the pixel as the model's own transforms do; else several times faster, and "
        "values may be off by a few of 255.",
    )
    labels: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Sets of labels for /classify, each NAME=FILE with a label a line, such as animals=animals.txt.",
    )
    text_cache_bytes: Annotated[int, BeforeValidator(_bytes)] = Field(
        default=64 * _MIB,
        ge=0,
        description="Host memory for the vectors of texts, which are not computed again while they are kept, such as "
        "64MiB; 0 keeps none.",
    )
    cache: Annotated[int, BeforeValidator(_bytes)] = Field(
        default=0,
        ge=0,
        description="Host memory for the rows of images, such as 1GiB: the same bytes, asked the same of the same "
        "encoder, are then not computed again (docs/cache.md). 0 keeps none.",
    )
    cache_dir: str | None = Field(
        default=None,
        min_length=1,
        description="A folder for rows that outlive the process, beside those in memory; none keeps none on disk.",
    )
    cache_disk: Annotated[int, BeforeValidator(_bytes)] = Field(
        default=10 * 1024 * _MIB, ge=1024 * 1024, description="Bytes of the rows in cache_dir, such as 10GiB."
    )
    max_heatmap_values: int = Field(
        default=4 * _MIB, ge=1, description="Values (images x texts x patches) in the heat maps of one request."
    )
    preprocess_threads: int | Literal["auto"] = Field(
        default="auto",
        description="Threads that decode and preprocess; auto leaves one core to the rest. As many processes beside "
        "them, at least two, decode what takes long or is rare (docs/images.md).",
    )
    request_timeout_s: float = Field(default=60.0, gt=0, description="Seconds until a request is answered with 504.")
    protocols: Annotated[tuple[ProtocolName, ...], NoDecode] = Field(
        default=get_args(ProtocolName),
        min_length=1,
        description="Protocols that are served, such as native,openai (docs/protocols.md); models, metrics, health and "
        "the pages always are.",
    )
    keys: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Access keys, each NAME=sha256:DIGEST as `visiontower keys create NAME` prints it. With keys, "
        "every request needs one, but for health and the pages (docs/access.md).",
    )
    keys_file: Path | None = Field(
        default=None,
        description="TOML file of access keys and their limits, read again when it changes (`visiontower keys create "
        "NAME --file FILE`).",
    )
    keys_usage: Path | None = Field(
        default=None,
        description="File that keeps what keys have used, so that a restart does not begin the day's images anew. It "
        "is made if it is not there, on a local disk.",
    )
    keyless_protocols: Annotated[tuple[KeylessName, ...], NoDecode] = Field(
        default=(),
        description="Protocols that need no access key, such as immich, whose client sends none.",
    )
    max_connections: int = Field(
        default=1024,
        ge=1,
        description="Connections that are open, at most; over it requests get 503. A few more are let in for /health "
        "and /metrics.",
    )
    header_timeout_s: float = Field(
        default=10.0, gt=0, description="Seconds in which the head of a request must have come."
    )
    stall_timeout_s: float = Field(
        default=30.0,
        gt=0,
        description="Seconds in which the next 256 KiB of a body must have come, or of an answer been read; else the "
        "connection is closed.",
    )
    idle_timeout_s: float = Field(
        default=75.0, gt=0, description="Seconds that a connection stays open after an answer without a next request."
    )
    drain_timeout_s: float = Field(
        default=30.0,
        ge=0,
        allow_inf_nan=False,
        description="Seconds that admitted requests get to finish at shutdown.",
    )
    offline: bool = Field(
        default=False,
        description="Download no weights: what is not on this machine ends the start, which says what is missing.",
    )
    image_url_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Hosts images may be fetched from, exact or *.suffix, with a port if it is another than 443 of "
        "https and 80 of http: example.org, *.example.org, example.org:8443. None: image URLs are refused.",
    )
    max_url_image_bytes: int = Field(default=32 * _MIB, ge=1, description="Bytes of one fetched image.")
    url_timeout_s: float = Field(default=10.0, gt=0, description="Seconds to fetch one image.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="Least severe log.")
    log_format: Literal["auto", "text", "json"] = Field(
        default="auto",
        description="Logs as text for people, or as json for machines; auto: text on a terminal.",
    )

    traces_endpoint: str = Field(
        default="",
        description="Where traces are sent, by OTLP over HTTP, such as http://collector:4318/v1/traces; empty: "
        "nowhere. It needs the extra otel (docs/traces.md).",
    )
    traces_share: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Share of the requests that are traced, of those whose caller has not decided it (traceparent).",
    )

    @field_validator("traces_endpoint")
    @classmethod
    def _is_collector(cls, value: str) -> str:
        """The path that OTLP has by default is added to a URL that has none."""
        if not value:
            return value
        try:
            parts = urlsplit(value)
            is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            is_url = False
        if not is_url:
            raise ValueError("it is no URL of a collector: use http://HOST:4318/v1/traces")
        if "@" in parts.netloc or parts.query:  # the log names the URL
            raise ValueError("a secret has no place in it: OTEL_EXPORTER_OTLP_HEADERS takes authorization=...")
        try:
            import opentelemetry.exporter.otlp.proto.http
            import opentelemetry.sdk.trace  # noqa: F401  # the first does not import it
        except ImportError as error:
            raise ValueError("it takes libraries that are not here: pip install 'visiontower[otel]'") from error
        return value if parts.path.strip("/") else parts._replace(path="/v1/traces").geturl()

    @field_validator("protocols", mode="before")
    @classmethod
    def _are_protocols(cls, value: object) -> object:
        """Each once. A flag may hold several: a protocol's name has no comma."""
        if not isinstance(value, list | tuple):
            return value
        known = get_args(ProtocolName)
        names = dict.fromkeys(name.strip() for each in value for name in str(each).split(","))
        for name in names:
            if name not in known:
                raise ValueError(f"'{name}' is no protocol.{did_you_mean(name, known)} Known: {', '.join(known)}")
        return tuple(names)

    @field_validator(
        "model", "image_url_hosts", "labels", "protocols", "keys", "keyless_protocols", "cors_origins", mode="before"
    )
    @classmethod
    def _listed(cls, value: object) -> object:
        """A variable holds a JSON list or comma-separated names."""
        if not isinstance(value, str):
            return value
        if value.lstrip().startswith("["):
            try:
                return json.loads(value)
            except (ValueError, RecursionError) as error:
                raise ValueError('it is no list in JSON, as ["a", "b"] is: write a,b') from error
        return tuple(part.strip() for part in value.split(",") if part.strip())

    @field_validator("host", "calibration", "keys", "keys_file", "keys_usage", mode="before")
    @classmethod
    def _not_empty(cls, value: object) -> object:
        """A variable is empty where a script or a secret has no value. That must not open the server.

        An empty host is every address, an empty path the current folder, and without keys nobody needs one.
        """
        if isinstance(value, str) and not value.strip(" ,"):
            raise ValueError("it is empty: give it a value, or leave it out")
        return value

    @field_validator("image_url_hosts")
    @classmethod
    def _are_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            HostRule.parse(entry)
        return value

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(web_origin, value))

    @field_validator("labels")
    @classmethod
    def _are_sets(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        names = [LabelSet.read(entry).name for entry in value]
        if len(set(names)) != len(names):
            raise ValueError(f"a set of labels is named twice in {', '.join(names)}")
        return value

    @field_validator("preprocess_threads", "max_batch", "vram_budget", "memory_budget", "lanes")
    @classmethod
    def _at_least_one(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("at least 1 is needed, or auto")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "Settings":
        if len(set(self.model)) != len(self.model):
            raise ValueError(f"an encoder id is given twice in {', '.join(self.model)}")
        if self.metrics_port and self.metrics_port == self.port:
            raise ValueError(f"metrics_port and port are both {self.port}: leave metrics_port out, or take another")
        if self.vram_budget != "auto" and self.cuda_graph_bytes >= self.vram_budget:
            raise ValueError(
                f"cuda_graph_bytes ({self.cuda_graph_bytes}) must be less than vram_budget ({self.vram_budget})"
            )
        if self.queue_images < self.max_images:
            raise ValueError(f"queue_images ({self.queue_images}) must be at least max_images ({self.max_images})")
        if self.queue_texts < self.max_texts:
            raise ValueError(f"queue_texts ({self.queue_texts}) must be at least max_texts ({self.max_texts})")
        if self.cache_dir is not None and not self.cache:
            raise ValueError("cache_dir is there beside a cache in memory: set cache too, for example to 256MiB")
        if self.cache_dir is None and "cache_disk" in self.model_fields_set:
            raise ValueError("cache_disk keeps nothing without a folder: set cache_dir too")
        if self.keys_usage is not None and not self.has_keys:
            raise ValueError("keys_usage is there and no access key is: set keys_file or keys too")
        _ = self.label_sets  # read now
        if self.has_keys:
            KeyRing(self.keys, self.keys_file)  # reads them
        return self

    @property
    def has_keys(self) -> bool:
        """Whether requests need an access key."""
        return bool(self.keys) or self.keys_file is not None

    @cached_property
    def label_sets(self) -> Mapping[str, tuple[str, ...]]:
        """The labels by the set's name, as the files had them at start: the same in all processes, whenever started."""
        return dict(map(LabelSet.read, self.labels))

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments (flags) first, then the environment; no files."""
        return init_settings, _Environment(settings_cls)


class _Environment(EnvSettingsSource):
    def __call__(self) -> dict[str, Any]:
        known = {f"{PREFIX}{name}".upper() for name in self.settings_cls.model_fields}
        for name in self.env_vars:
            if name.upper().startswith(PREFIX) and name.upper() not in known:
                hint = did_you_mean(name.upper(), known)
                raise SettingsError(f"unknown variable {name.upper()}.{hint} Known: {', '.join(sorted(known))}.")
        return super().__call__()


def settings_table() -> str:
    """The settings as a Markdown table, for docs/settings.md."""
    lines = ["| variable | flag | default | meaning |", "|---|---|---|---|"]
    for name, field in Settings.model_fields.items():
        flag = f"--{name.replace('_', '-')}"
        lines.append(f"| `{PREFIX}{name.upper()}` | `{flag}` | {_shown(field.default)} | {field.description} |")
    return "\n".join(lines) + "\n"


def _shown(default: object) -> str:
    if isinstance(default, tuple):
        return ", ".join(f"`{item}`" for item in default) or "none"
    return "none" if default is None else f"`{default}`"
