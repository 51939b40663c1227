"""`visiontower pull`: the weights of encoders, fetched ahead and checked."""

import argparse
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.cli.arguments import add_command
from service.cli.output import say, show, show_json
from service.settings import Settings
from service.sizes import show_bytes

if TYPE_CHECKING:
    from rich.table import Table

    from encoders import EncoderId

_HELP = """\
Fetch the weights of encoders ahead of a start, and check them. Each encoder is
loaded once on the CPU, alone: every tensor must fit, and a forward of each half
must give finite numbers. A file of the hub must have the hub's SHA-256; one
that has not is fetched again.

  visiontower pull openclip:ViT-L-14-336@openai
  visiontower pull hf:facebook/dinov2-base timm:resnet50.a1_in1k --json
  visiontower pull --check openclip:ViT-L-14-336@openai    # downloads nothing
  visiontower pull                          # what VISIONTOWER_MODEL names

The files go where the libraries look for them: below HF_HOME, TORCH_HOME and
~/.cache/clip. What is whole there is not fetched again. A file of the hub whose
connection breaks goes on where it stopped; after a kill it begins anew.
HF_TOKEN opens gated repositories.

Exit status: 0 all are whole, 1 some are not, 2 not done and why."""


@dataclass(frozen=True)
class Pulled:
    """What came of one id.

    bytes: of the files of weights, None for one that is made here (random). revision: the fingerprint of the weights,
    which `/models` shows too. where: the file, or the folder of several. error: why it is not whole.
    """

    id: str
    bytes: int | None = None
    revision: str | None = None
    where: str | None = None
    error: str | None = None

    @property
    def ok(self) -> bool:
        """Whether it can be served."""
        return self.error is None


def add(commands: Any) -> None:
    """The command and its flags."""
    pull = add_command(commands, "pull", "fetch and check the weights of encoders", _HELP, run=run)
    pull.set_defaults(gathers=("ids", str))
    pull.add_argument(
        "ids", metavar="ID", nargs="*", help="encoder ids, for example openclip:RN50@openai [those that serve serves]"
    )
    pull.add_argument("--check", action="store_true", help="download nothing; say whether all is on this machine")
    pull.add_argument("--json", action="store_true", help="for machines")


def run(arguments: argparse.Namespace) -> int:
    """Print what came of each id. 1 if one is not whole."""
    from encoders import EncoderId

    ids = [EncoderId.parse(each) for each in dict.fromkeys(arguments.ids or Settings().model)]
    _choose_network(ids, check=arguments.check)
    found = []
    for encoder_id in ids:
        say(f"{encoder_id}: checking" if arguments.check else f"{encoder_id}: fetching what is missing, then checking")
        pulled = _pulled(str(encoder_id), mends=not arguments.check)
        found.append(pulled)
        if pulled.error:
            say(pulled.error)
    if arguments.json:
        show_json([{**vars(each), "ok": each.ok} for each in found])
    else:
        show(_table(found))
        print("\n".join(f"{each.id}  {each.where}" for each in found if each.where))  # a path stays on its line
    return 0 if all(each.ok for each in found) else 1


def _choose_network(ids: Sequence["EncoderId"], *, check: bool) -> None:
    """Without a network the cache may still have everything, and the hub's library would ask it for minutes."""
    from encoders.runtime.downloads import go_offline, hub_fault, leave_hub

    if check:
        go_offline()
    elif any(map(_may_be_remote, ids)) and (fault := hub_fault()):
        say(f"The Hugging Face hub cannot be reached ({fault}): what is on this machine is checked.")
        leave_hub()


def _may_be_remote(encoder_id: "EncoderId") -> bool:
    local = encoder_id.scheme in ("demo", "fake") or encoder_id.is_random
    return not (local or Path(encoder_id.name).exists() or Path(encoder_id.weights or "").is_file())


def _pulled(encoder_id: str, *, mends: bool) -> Pulled:
    """Loads it, which fetches what is missing: each library fetches as it loads. It is let go of at the end.

    mends: whether a damaged file is fetched again.
    """
    import encoders
    from encoders.adapters.registry import weights_files
    from encoders.contract.errors import VisiontowerError, WeightsNotHere
    from encoders.runtime.downloads import is_damaged
    from service.scheduling.resident import Resident

    error = None
    files: Sequence[Path] = ()
    try:
        encoder = encoders.load(encoder_id)
        Resident(encoder).try_out()
    except WeightsNotHere as missing:
        return Pulled(encoder_id, error=str(missing))
    except VisiontowerError as failed:
        error = str(failed)
    with suppress(VisiontowerError):
        files = weights_files(encoder_id)
    if damaged := [file.resolve() for file in files if is_damaged(file)]:
        error = f"{', '.join(map(str, damaged))} is damaged: its SHA-256 is another than the hub's."
        if mends:
            say(f"{error} It is fetched again.")
            with suppress(OSError):
                for file in damaged:
                    file.unlink()
            return _pulled(encoder_id, mends=False)
        error += f" `visiontower pull {encoder_id}` fetches it again."
    if error:
        return Pulled(encoder_id, error=error)
    return Pulled(
        encoder_id,
        bytes=sum(file.stat().st_size for file in files) if files else None,
        revision=encoder.spec.revision,
        where=_place(files),
    )


def _table(found: Sequence[Pulled]) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("id", overflow="fold")
    table.add_column("bytes", justify="right", no_wrap=True)
    table.add_column("revision", no_wrap=True)
    table.add_column("ok", no_wrap=True)
    for each in found:
        size = "" if each.bytes is None else show_bytes(each.bytes)
        table.add_row(each.id, size, each.revision, "yes" if each.ok else "no")
    return table


def _place(files: Sequence[Path]) -> str | None:
    match files:
        case []:
            return None
        case [file]:
            return str(file.absolute())
    return str(files[0].parent.absolute())
