"""What a machine has: plain values. Sizes are in bytes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Unknown:
    """A part that could not be looked at, and why."""

    could_not_tell: str


Maybe: TypeAlias = T | Unknown


def looked(look: Callable[[], T]) -> Maybe[T]:
    """What `look` gives; Unknown if it raises anything: a broken machine breaks in any way."""
    try:
        return look()
    except Exception as error:
        return Unknown(because(error))


def because(error: BaseException) -> str:
    """An error in one line. Python's own are named, as `KeyError: 'a'`, where their message needs it."""
    said = " ".join(str(error).split())
    speaks = type(error).__module__ != "builtins" or isinstance(error, RuntimeError | OSError)
    return said if said and speaks else f"{type(error).__name__}: {said}"


@dataclass(frozen=True)
class Package:
    """A distribution that visiontower can use.

    version: None if it is not installed. needs: the versions that fit, as in `>=2.11`, or empty. extra: the extra it
    comes with; None if visiontower always needs it. copies: the versions and the folders, where there are several.
    """

    name: str
    version: str | None
    needs: str
    fits: bool
    extra: str | None = None
    copies: tuple[str, ...] = ()


@dataclass(frozen=True)
class Software:
    """What is installed. plugins: distributions of others that add encoders. installed_at, now: seconds since 1970."""

    visiontower: str
    python: str
    folder: str
    system: str
    packages: tuple[Package, ...]
    plugins: tuple[str, ...]
    installed_at: float
    now: float

    @property
    def extras(self) -> Mapping[str, bool]:
        """Every extra, and whether all its packages are installed."""
        names = dict.fromkeys(each.extra for each in self.packages if each.extra)
        return {name: all(each.version for each in self.packages if each.extra == name) for name in names if name}


@dataclass(frozen=True)
class Card:
    """A GPU as torch sees it. capability: the compute capability, (9, 0) of an H100."""

    name: str
    capability: tuple[int, int]
    total: int
    free: int


@dataclass(frozen=True)
class Torch:
    """What torch can compute on here.

    cuda: the CUDA it was built with; None of a CPU build. architectures: of its kernels, as in sm_90. why_no_card:
    what it says if CUDA cannot be started; None if it can. vectors: the widest instructions it uses on the CPU, as in
    AVX512; DEFAULT is none.
    """

    version: str
    cuda: str | None
    architectures: tuple[str, ...]
    cards: tuple[Card, ...]
    why_no_card: str | None
    processor: str
    machine: str
    vectors: str
    has_bfloat16: bool
    has_amx: bool
    threads: int


@dataclass(frozen=True)
class Nvidia:
    """Without torch. cards: NVIDIA's on the machine's bus. driver: its version. cuda: the newest CUDA it runs."""

    cards: int
    driver: str | None
    cuda: tuple[int, int] | None


@dataclass(frozen=True)
class Choice:
    """What `visiontower serve` would take here, by the settings and `auto`.

    budget: of the device, for weights and forwards. requests: of the host's memory, for requests.
    """

    device: str
    dtype: str
    runtime: str
    lanes: int
    budget: int
    requests: int
    decoding_threads: int


@dataclass(frozen=True)
class Machine:
    """Memory and cores. limit: the least of the control groups, None without one. quota: likewise, in cores.

    allowed: cores that the scheduler may put this process on.
    """

    memory: int
    limit: int | None
    free: int
    swap_used: int
    cores: int
    allowed: int
    quota: float | None

    @property
    def usable(self) -> int:
        """Memory that this process can have."""
        return self.memory if self.limit is None else min(self.memory, self.limit)


@dataclass(frozen=True)
class Files:
    """Open files: the limits of this process (None: no limit), and what a server needs."""

    soft: int | None
    hard: int | None
    needed: int


@dataclass(frozen=True)
class Folder:
    """A place for files. held: bytes in it now, None if that is not of interest. free: of its disk."""

    path: str
    exists: bool
    is_writable: bool
    free: int
    held: int | None = None


@dataclass(frozen=True)
class Port:
    """Where a server would listen.

    setting: the one that names it. problem: why it cannot; None if it can. is_taken: because somebody does.
    """

    setting: str
    host: str
    number: int
    problem: str | None
    is_taken: bool


TURBO = "libjpeg-turbo"
"""How the library of a Format begins where JPEGs are decoded fast."""


@dataclass(frozen=True)
class Format:
    """A kind of picture.

    library: what reads it, with its version; None if nothing does. extra: what would bring it. problem: why what was
    brought does not work.
    """

    name: str
    library: str | None
    extra: str | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Asked:
    """The settings that the machine has to match."""

    models: tuple[str, ...]
    device: str
    host: str
    port: int
    metrics_port: int | None
    processes: int
    connections: int


@dataclass(frozen=True)
class Check:
    """One part of the self-test. said: what it found; problem: what is wrong with it, None if it passed."""

    name: str
    said: str
    problem: str | None = None


@dataclass(frozen=True)
class Facts:
    """All of it.

    variables: those of the environment that matter here; secrets are not in it. checks: of the self-test, None if it
    was not run.
    """

    software: Maybe[Software]
    variables: Mapping[str, str]
    asked: Maybe[Asked]
    torch: Maybe[Torch]
    nvidia: Maybe[Nvidia]
    choice: Maybe[Choice]
    machine: Maybe[Machine]
    files: Maybe[Files]
    shared_memory: Maybe[Folder]
    temporary: Maybe[Folder]
    pictures: Maybe[tuple[Format, ...]]
    caches: Maybe[Mapping[str, Folder]]
    ports: Maybe[tuple[Port, ...]]
    checks: Maybe[tuple[Check, ...]] | None
