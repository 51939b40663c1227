"""What `visiontower doctor` prints: one page for people, or JSON. Knows values; looks at nothing."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from service.cli.output import printable
from service.doctor.facts import (
    Check,
    Choice,
    Facts,
    Files,
    Folder,
    Format,
    Machine,
    Maybe,
    Nvidia,
    Port,
    Software,
    Torch,
    Unknown,
)
from service.doctor.findings import Finding, Severity
from service.sizes import show_bytes

T = TypeVar("T")
Row = tuple[str, str]

_TOLD = ("torchvision", "open_clip_torch", "timm", "transformers", "numpy", "pillow", "fastapi", "uvicorn")
"""Of the packages: those whose version explains most. --json has all."""
_COLOURS = {Severity.WRONG: "bold red", Severity.NOTE: "yellow"}


def page(facts: Facts, findings: Sequence[Finding], *, seconds: float) -> Iterator[RenderableType]:
    """Facts by group, the self-test, and last, where the eye is, what is wrong."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, min_width=14)
    table.add_column(overflow="fold")
    for name, rows in _groups(facts):
        table.add_row(Text(name, style="bold"))
        for label, value in rows:
            table.add_row(f"  {label}", "\n".join(map(printable, value.splitlines())))
    yield table
    for finding in findings:
        yield Text.assemble("\n", (f"{finding.severity}: ", _COLOURS[finding.severity]), printable(finding.what))
        yield Padding(printable(finding.advice), (0, 0, 0, 2))
    yield f"\n{_verdict(findings)} It took {seconds:.0f} s."


def _verdict(findings: Sequence[Finding]) -> str:
    wrong = sum(each.severity is Severity.WRONG for each in findings)
    notes = len(findings) - wrong
    said = "Nothing is wrong" if not wrong else "1 thing is wrong" if wrong == 1 else f"{wrong} things are wrong"
    return f"{said}; {notes} worth knowing." if notes else f"{said}."


def _groups(facts: Facts) -> Iterator[tuple[str, Iterable[Row]]]:
    yield "software", [*_rows("versions", facts.software, _software), *_rows("torch", facts.torch, _torch)]
    yield (
        "compute",
        [
            *_rows("cpu", facts.torch, _processor),
            *_rows("cores", facts.machine, _cores),
            *_rows("gpu", facts.torch, _cards),
            *_rows("nvidia driver", facts.nvidia, _nvidia),
            *_rows("serve takes", facts.choice, _choice),
        ],
    )
    yield (
        "limits",
        [
            *_rows("memory", facts.machine, _memory),
            *_rows("open files", facts.files, _files),
            *_rows("shared memory", facts.shared_memory, _one("shared memory")),
            *_rows("temporary", facts.temporary, _one("temporary")),
            *_rows("port", facts.ports, _ports),
        ],
    )
    yield "pictures", _rows("formats", facts.pictures, _pictures)
    yield "extras", _rows("extras", facts.software, _extras)
    yield "weights", _rows("caches", facts.caches, _caches)
    yield "variables", _variables(facts.variables)
    if facts.checks is not None:
        yield "self-test", _rows("encoders", facts.checks, _checks)


def _rows(label: str, part: Maybe[T], rows: Callable[[T], Iterable[Row]]) -> Iterable[Row]:
    return [(label, f"could not tell: {part.could_not_tell}")] if isinstance(part, Unknown) else rows(part)


def _software(software: Software) -> Iterator[Row]:
    yield "visiontower", f"{software.visiontower} in {software.folder}"
    yield "Python", f"{software.python}, {software.system}"
    versions = {each.name: each.version for each in software.packages}
    yield "libraries", ", ".join(f"{name} {versions.get(name) or '-'}" for name in _TOLD)
    if software.plugins:
        yield "plug-ins", ", ".join(software.plugins)


def _torch(torch: Torch) -> Iterator[Row]:
    yield "torch", f"{torch.version}, {f'CUDA {torch.cuda}' if torch.cuda else 'without CUDA'}"


def _processor(torch: Torch) -> Iterator[Row]:
    natively = [name for name, has in (("bfloat16", torch.has_bfloat16), ("AMX", torch.has_amx)) if has]
    yield "cpu", ", ".join([torch.processor, torch.machine, torch.vectors, *natively])


def _cores(machine: Machine) -> Iterator[Row]:
    parts = [f"{machine.cores} in the machine", f"{machine.allowed} for this process"]
    yield "cores", ", ".join(parts if machine.quota is None else [*parts, f"a quota of {machine.quota:g}"])


def _cards(torch: Torch) -> Iterator[Row]:
    for index, card in enumerate(torch.cards):
        dtype = "bfloat16" if card.capability >= (8, 0) else "float16"
        yield (
            f"cuda:{index}",
            f"{card.name}, {show_bytes(card.free)} of {show_bytes(card.total)} free, compute capability "
            f"{'.'.join(map(str, card.capability))}, {dtype}",
        )
    if not torch.cards:
        yield "gpu", f"none that torch can use: {torch.why_no_card or 'it sees none'}"


def _nvidia(nvidia: Nvidia) -> Iterator[Row]:
    if nvidia.driver or nvidia.cuda or nvidia.cards:
        cuda = f"runs CUDA {'.'.join(map(str, nvidia.cuda))}" if nvidia.cuda else "runs no CUDA"
        yield "driver", f"{nvidia.driver or 'version unknown'}, {cuda}; {nvidia.cards} NVIDIA cards on the bus"


def _choice(choice: Choice) -> Iterator[Row]:
    lanes = f", {choice.lanes} lanes" if choice.lanes > 1 else ""
    yield "serve takes", f"{choice.device}, {choice.dtype}, {choice.runtime}{lanes}"
    threads = "1 thread decodes" if choice.decoding_threads == 1 else f"{choice.decoding_threads} threads decode"
    yield "", f"{show_bytes(choice.budget)} for encoders, {show_bytes(choice.requests)} for requests; {threads}"


def _memory(machine: Machine) -> Iterator[Row]:
    group = "no limit" if machine.limit is None else f"limit {show_bytes(machine.limit)}"
    swap = f"{show_bytes(machine.swap_used)} swapped out" if machine.swap_used else "nothing swapped out"
    yield "memory", f"{show_bytes(machine.memory)}, {show_bytes(machine.free)} free; control group: {group}; {swap}"


def _files(files: Files) -> Iterator[Row]:
    hard = "unlimited" if files.hard is None else f"{files.hard:,}"
    yield "open files", f"{hard}; a server needs up to {files.needed:,}"


def _one(label: str) -> Callable[[Folder], Iterator[Row]]:
    def rows(folder: Folder) -> Iterator[Row]:
        yield label, _folder(folder)

    return rows


def _folder(folder: Folder) -> str:
    held = "" if folder.held is None else f"{show_bytes(folder.held)} in it, "
    trouble = "" if folder.is_writable else ", not writable"
    return f"{folder.path}: {held if folder.exists else 'not there yet, '}{show_bytes(folder.free)} free{trouble}"


def _ports(ports: Sequence[Port]) -> Iterator[Row]:
    for port in ports:
        told = f"{port.host}:{port.number} {'is free' if port.problem is None else port.problem}"
        yield port.setting.replace("_", " "), told


def _pictures(formats: Sequence[Format]) -> Iterator[Row]:
    yield (
        "read",
        ", ".join(
            each.name if each.library in (None, "Pillow") else f"{each.name} ({each.library})"
            for each in formats
            if each.library
        ),
    )
    for each in formats:
        if each.library is None:
            advice = each.problem or (_install(each.extra) if each.extra else None)
            yield "not read", f"{each.name}: {advice}" if advice else each.name


def _extras(software: Software) -> Iterator[Row]:
    extras = software.extras
    yield "installed", ", ".join(name for name, is_there in extras.items() if is_there) or "none"
    missing = [name for name, is_there in extras.items() if not is_there]
    if missing:
        yield "not installed", f"{', '.join(missing)}: {_install(','.join(missing))}"


def _install(extras: str) -> str:
    return f"pip install 'visiontower[{extras}]'"


def _caches(caches: Mapping[str, Folder]) -> Iterator[Row]:
    for name, folder in caches.items():
        yield name, _folder(folder)


def _variables(variables: Mapping[str, str]) -> Iterator[Row]:
    """In the wide column, for their names are long."""
    told = [printable(f"{name}={value}") for name, value in variables.items()]
    yield "set", "\n".join(told) or "none"


def _checks(checks: Sequence[Check]) -> Iterator[Row]:
    for check in checks:
        yield check.name, f"ok: {check.said}" if check.problem is None else f"failed: {check.problem}"
