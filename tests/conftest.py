import signal
from typing import Any

import hypothesis
import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts jobs in the background so. The commands that tests start would inherit it, and hear no Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)

hypothesis.settings.register_profile("visiontower", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("visiontower")


@pytest.fixture
def anyio_backend() -> str:
    """Async tests (`pytest.mark.anyio`) run on asyncio, which the service is written for."""
    return "asyncio"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """How often tests/service/bulk/test_kills.py has killed a run."""
    reports = [report for of_kind in terminalreporter.stats.values() for report in of_kind]
    ends = [report for report in reports if getattr(report, "when", None) == "teardown"]
    kills = [value for report in ends for name, value in report.user_properties if name == "kills"]
    if kills:
        terminalreporter.write_line(f"Bulk runs were killed {sum(kills)} times, in {len(kills)} tests.")
