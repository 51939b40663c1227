"""What is wrong with a machine, and what to do about it: facts in, findings out. Looks at nothing itself."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from service.doctor.facts import TURBO, Card, Facts, Package, Torch, Unknown
from service.sizes import show_bytes

GIB = 2**30
_LEAST_MEMORY = 1 * GIB
"""A server with the demo encoders has 0.86 GiB resident on a CPU once it is ready."""
_LEAST_CARD = 2 * GIB
"""A ViT-L/14 at 336 pixels in bfloat16 takes 1.9 GiB for a batch of 32 (docs/memory.md)."""
_LEAST_DISK = 5 * GIB
"""The largest of the encoders that `visiontower models` recommends is a download of 3.5 GB."""
_MUCH_SWAP = 1 * GIB
_RAY_STORE = 2 * GIB
"""Ray keeps its objects in files instead if shared memory is smaller than its store, which it makes this large."""
_LOCAL = ("demo", "fake")
"""Schemes that fetch no weights."""


class Severity(StrEnum):
    """wrong: something does not work, or will not. worth knowing: it works, but not as well as it could."""

    WRONG = "wrong"
    NOTE = "worth knowing"


@dataclass(frozen=True)
class Finding:
    """what: the trouble, in a sentence. advice: what to do."""

    severity: Severity
    what: str
    advice: str


Findings = Iterator[Finding]


def findings(facts: Facts) -> list[Finding]:
    """All that is to be said, what is wrong first."""
    has_no_files = isinstance(facts.temporary, Unknown)
    rules = [rule for rule in _RULES if not (has_no_files and rule in _NEED_FILES)]
    found = [finding for rule in rules for finding in rule(facts)]
    return sorted(found, key=lambda each: each.severity is not Severity.WRONG)


def _wrong(what: str, advice: str) -> Finding:
    return Finding(Severity.WRONG, what, advice)


def _note(what: str, advice: str) -> Finding:
    return Finding(Severity.NOTE, what, advice)


def _packages(facts: Facts) -> Findings:
    if isinstance(facts.software, Unknown):
        return
    for each in facts.software.packages:
        if each.version is None and each.extra is None:
            yield _wrong(f"{each.name} is not installed.", "pip install visiontower")
        elif each.version is not None and not each.fits:
            yield _wrong(f"{each.name} is {each.version}, and {each.name}{each.needs} is needed.", _install(each))
        if each.copies:
            yield _note(
                f"{each.name} is installed more than once: {', '.join(each.copies)}. Python takes the first.",
                "Keep one: pip uninstall removes the first, and a folder of PYTHONPATH is yours.",
            )


def _install(package: Package) -> str:
    return f"pip install '{package.name}{package.needs}'"


def _clock(facts: Facts) -> Findings:
    software = facts.software
    if not isinstance(software, Unknown) and software.now < software.installed_at:
        now, then = (datetime.fromtimestamp(each, UTC) for each in (software.now, software.installed_at))
        yield _wrong(
            f"The clock says {now:%Y-%m-%d}, which is before visiontower was installed ({then:%Y-%m-%d}).",
            "Set the clock: with a wrong one no certificate is valid, and no weights can be fetched.",
        )


def _temporary(facts: Facts) -> Findings:
    if isinstance(facts.temporary, Unknown):
        yield _wrong(
            f"There is no folder for temporary files ({facts.temporary.could_not_tell}): no encoder loads.",
            "Mount one: docker run --tmpfs /tmp, or an emptyDir.",
        )


def _settings(facts: Facts) -> Findings:
    if isinstance(facts.asked, Unknown):
        yield _wrong(
            f"visiontower serve would refuse its variables: {facts.asked.could_not_tell}",
            "Correct or unset the variable: docs/settings.md has all.",
        )


def _choice(facts: Facts) -> Findings:
    is_why = isinstance(facts.asked, Unknown) or isinstance(facts.torch, Unknown)
    if isinstance(facts.choice, Unknown) and not is_why:
        yield _wrong(
            f"visiontower serve would not start: {facts.choice.could_not_tell}",
            "Correct the VISIONTOWER_* variable that asks for it, or mend what it names: docs/settings.md has all.",
        )


def _torch(facts: Facts) -> Findings:
    torch = facts.torch
    if isinstance(torch, Unknown):
        is_short = "SIGKILL" in torch.could_not_tell
        yield _wrong(
            f"torch does not start: {torch.could_not_tell.rstrip('.')}.",
            "Raise the container's memory limit."
            if is_short
            else "Install it again: pip install --force-reinstall torch",
        )
        return
    if torch.machine in ("x86_64", "AMD64") and torch.vectors in ("DEFAULT", "NO AVX"):
        yield _note(
            "torch uses no AVX2 on this processor: forwards take several times longer.",
            "Use a machine with AVX2; of a virtual machine, pass the host's processor through.",
        )


def _cards(facts: Facts) -> Findings:
    """A card that is there and not used. Only who asked for CUDA has it wrong: a container sees the host's cards."""
    torch, nvidia = facts.torch, facts.nvidia
    if isinstance(torch, Unknown) or isinstance(nvidia, Unknown):
        return
    if torch.cards:
        for index, card in enumerate(torch.cards):
            yield from _card(f"cuda:{index} ({card.name})", card, torch)
        return
    is_asked_for = not isinstance(facts.asked, Unknown) and facts.asked.device.startswith("cuda")
    if not nvidia.cards and nvidia.driver is None:
        return  # that it is not there is said where the device is chosen
    tell = _wrong if is_asked_for else _note
    there = "This machine has an NVIDIA card, and torch cannot use it"
    if torch.cuda is None:
        yield tell(
            f"{there}: this torch {torch.version} was built without CUDA.",
            "Install torch with CUDA (pytorch.org/get-started), or the image of deploy/compose.gpu.yml.",
        )
    elif nvidia.driver is None and nvidia.cuda is None:
        yield tell(
            f"{there}: there is no driver.",
            "Install NVIDIA's driver; for a container its toolkit too, and start it with --gpus all.",
        )
    elif nvidia.cuda is not None and nvidia.cuda[0] < int(torch.cuda.partition(".")[0]):
        yield tell(
            f"{there}: the driver {nvidia.driver or ''} runs CUDA {_dotted(nvidia.cuda)}, and torch was built with "
            f"{torch.cuda}.",
            f"Update the driver, or install a torch for CUDA {nvidia.cuda[0]}.x (pytorch.org/get-started).",
        )
    elif facts.variables.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        yield tell(f"{there}: CUDA_VISIBLE_DEVICES hides it.", "Unset CUDA_VISIBLE_DEVICES.")
    else:
        yield tell(f"{there}: {torch.why_no_card or 'it sees none'}.", "Look at nvidia-smi and at the kernel's log.")


def _card(name: str, card: Card, torch: Torch) -> Findings:
    if torch.architectures and not any(_runs_on(each, card.capability) for each in torch.architectures):
        yield _wrong(
            f"torch {torch.version} has no kernels for {name}, of compute capability {_dotted(card.capability)}: "
            f"it has {', '.join(torch.architectures)}.",
            "Install a torch that has (pytorch.org/get-started).",
        )
    if card.total < _LEAST_CARD:
        yield _note(
            f"{name} has {show_bytes(card.total)}: only small encoders fit.",
            "visiontower vram ID --gpu SIZE says what fits.",
        )
    elif card.free < card.total // 2:
        yield _note(
            f"{name} has {show_bytes(card.free)} of {show_bytes(card.total)} free: others use the rest.",
            "nvidia-smi lists them. Give each its part with --vram-budget.",
        )


def _runs_on(architecture: str, capability: tuple[int, int]) -> bool:
    """Machine code (sm_86) runs on later cards of its generation, intermediate code (compute_86) on all later ones."""
    kind, _, number = architecture.partition("_")
    digits = number.rstrip("abcdef")
    if not digits.isdecimal():
        return False
    built = int(digits[:-1]), int(digits[-1])
    if number != digits:  # sm_90a: for that card alone
        return built == capability
    return built <= capability and (kind == "compute" or built[0] == capability[0])


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def _allocator(facts: Facts) -> Findings:
    if isinstance(facts.torch, Unknown) or not facts.torch.cards:
        return
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        if "expandable_segments:True" not in facts.variables.get(name, "expandable_segments:True"):
            yield _note(
                f"{name} is set without expandable_segments:True, which the memory plan counts on.",
                f"Unset {name}: the server chooses the allocator by itself.",
            )


def _memory(facts: Facts) -> Findings:
    machine = facts.machine
    if isinstance(machine, Unknown):
        return
    if machine.free < _LEAST_MEMORY:
        yield _wrong(
            f"Only {show_bytes(machine.free)} of memory is free: a server with the demo encoders takes about "
            f"{show_bytes(_LEAST_MEMORY)}.",
            "End other programs, or raise the container's limit.",
        )
    if machine.limit is not None and machine.limit < machine.memory // 2:
        yield _note(
            f"The control group allows {show_bytes(machine.limit)} of the machine's {show_bytes(machine.memory)}. "
            "The kernel kills a server that takes more.",
            "Raise the container's limit if larger encoders are to be served: docker run --memory, or limits.memory.",
        )
    if machine.swap_used > _MUCH_SWAP:
        yield _note(
            f"{show_bytes(machine.swap_used)} is swapped out: a forward that meets them waits for the disk.",
            "End other programs, or turn swap off.",
        )


def _cores(facts: Facts) -> Findings:
    machine = facts.machine
    if isinstance(machine, Unknown):
        return
    if machine.quota is not None and machine.quota < 1:
        yield _note(
            f"The control group allows {machine.quota:g} of a core: the server stands still for a part of every tenth "
            "of a second.",
            "Give it a core and more: docker run --cpus, or limits.cpu.",
        )
    usable = min(machine.allowed, math.ceil(machine.quota or machine.allowed))
    several = not isinstance(facts.asked, Unknown) and facts.asked.processes > 1
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        value = facts.variables.get(name, "").strip()
        if value.isdecimal() and not several and int(value) < usable and (int(value) == 1 or 2 * int(value) < usable):
            yield _note(
                f"{name}={value}: forwards on the CPU run on {value} of {usable} cores.",
                f"Unset {name}: the server divides the cores by itself.",
            )


def _files(facts: Facts) -> Findings:
    files = facts.files
    if not isinstance(files, Unknown) and files.hard is not None and files.hard < files.needed:
        yield _wrong(
            f"This process may open {files.hard:,} files, and a server needs up to {files.needed:,}: connections "
            "will be refused under load.",
            "Raise the hard limit (ulimit -Hn, LimitNOFILE=, --ulimit nofile=), or lower --max-connections.",
        )


def _folders(facts: Facts) -> Findings:
    has_ray = not isinstance(facts.software, Unknown) and facts.software.extras.get("ray", False)
    shared = facts.shared_memory
    if has_ray and not isinstance(shared, Unknown) and shared.exists and shared.free < _RAY_STORE:
        yield _note(
            f"{shared.path} has {show_bytes(shared.free)} free: Ray keeps its objects on the disk instead.",
            "docker run --shm-size 4g, or an emptyDir of medium Memory. Without --ray it does not matter.",
        )
    if isinstance(facts.caches, Unknown):
        return
    fetches = not isinstance(facts.asked, Unknown) and any(
        model.partition(":")[0] not in _LOCAL for model in facts.asked.models
    )
    for name, folder in facts.caches.items():
        if not folder.is_writable:
            yield (_wrong if fetches and not folder.held else _note)(
                f"{folder.path}, the cache of {name}, is not writable: no weights can be fetched into it.",
                "Mount a volume there, or name another folder. With all weights in it nothing has to be done.",
            )
    for path, free in {each.path: each.free for each in facts.caches.values() if each.free < _LEAST_DISK}.items():
        yield _note(
            f"Only {show_bytes(free)} is free for weights in {path}.", "Make room, or name a folder on another disk."
        )
        break  # they are usually on one disk


def _pictures(facts: Facts) -> Findings:
    if isinstance(facts.pictures, Unknown):
        return
    for each in facts.pictures:
        if each.problem is not None:
            yield _wrong(f"{each.name} is not read: {each.problem}.", "Install that package again, or take it out.")
        elif each.library is None and each.extra is None:
            yield (_wrong if each.name in ("JPEG", "PNG") else _note)(
                f"This Pillow reads no {each.name}.",
                "Install Pillow's own wheel: pip install --force-reinstall --only-binary :all: pillow",
            )
        elif each.name == "JPEG" and each.library is not None and not each.library.startswith(TURBO):
            yield _note(
                "This Pillow was built without libjpeg-turbo: photographs take several times longer to decode.",
                "Install Pillow's own wheel: pip install --force-reinstall --only-binary :all: pillow",
            )


def _ports(facts: Facts) -> Findings:
    for port in () if isinstance(facts.ports, Unknown) else facts.ports:
        flag = f"--{port.setting.replace('_', '-')}"
        if port.is_taken:
            yield _note(
                f"Port {port.number} of {port.host} is taken: another program listens, a visiontower perhaps.",
                f"visiontower serve {flag} N takes another.",
            )
        elif port.problem is not None:
            yield _wrong(
                f"visiontower serve could not listen on {port.host}:{port.number}: {port.problem}.",
                f"Choose another --host or {flag}.",
            )


def _self_test(facts: Facts) -> Findings:
    checks, advice = (
        facts.checks,
        "Report it with the output of visiontower doctor --json, if nothing else explains it.",
    )
    if isinstance(checks, Unknown):
        if not isinstance(facts.choice, Unknown):  # else that is why
            yield _wrong(f"The self-test did not end: {checks.could_not_tell}.", advice)
        return
    failed = [f"{check.name}: {check.problem}" for check in checks or () if check.problem is not None]
    if failed:
        yield _wrong(f"The self-test failed: {'; '.join(failed)}.", advice)


_RULES: tuple[Callable[[Facts], Findings], ...] = (
    _temporary,
    _settings,
    _choice,
    _torch,
    _self_test,
    _cards,
    _packages,
    _memory,
    _files,
    _folders,
    _ports,
    _pictures,
    _clock,
    _cores,
    _allocator,
)
_NEED_FILES = (_choice, _torch, _self_test)
"""Without temporary files torch is not imported, and these would only tell that."""
