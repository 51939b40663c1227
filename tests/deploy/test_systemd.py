"""The unit is one that systemd takes, and agrees with the service's exit statuses and times."""

import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

from service.run import exits
from service.settings import Settings
from tests.support.paths import ROOT

UNIT = ROOT / "deploy" / "systemd" / "visiontower.service"


def service() -> dict[str, str]:
    """The unit's section of that name; of settings that come twice the last."""
    unit = ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(UNIT)
    return dict(unit["Service"])


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    """With a program that is there: verify looks for it."""
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace(service()["ExecStart"].split()[0], sys.executable))
    verified = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert (verified.returncode, verified.stderr) == (0, "")


def test_what_a_restart_can_mend_is_restarted() -> None:
    assert service()["Restart"] == "on-failure"
    kept_down = {int(status) for status in service()["RestartPreventExitStatus"].split()}
    assert not kept_down & {exits.CANNOT_LISTEN, exits.FAILED, exits.HUNG, exits.GAVE_UP}
    assert kept_down == {2, *(128 + number for number in exits.SIGNALS)}


def test_a_stop_waits_for_the_drain() -> None:
    assert float(service()["TimeoutStopSec"]) >= Settings.model_fields["drain_timeout_s"].default + 15
