"""The example of docs/open-inference.md, run with tritonclient where that is installed."""

import re
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

import pytest

from service.engine.backend import real_backend
from service.run.server import make_server
from service.settings import Settings
from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "open-inference.md").read_text()


@pytest.mark.skipif(find_spec("tritonclient") is None, reason="tritonclient[http] is not installed")
def test_the_example_prints_what_the_page_says(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    (printed,) = re.findall(r"^prints `(.*)`\.$", PAGE, flags=re.MULTILINE)
    settings = Settings(model=("demo:vit",), port=0)
    server = make_server(settings, backend=real_backend(settings))
    running = threading.Thread(target=server.run)
    running.start()
    while not server.started:
        running.join(0.01)
        assert running.is_alive()
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        done = subprocess.run(
            [sys.executable, "-c", example.replace("127.0.0.1:8000", f"127.0.0.1:{port}")],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
    finally:
        server.should_exit = True
        running.join()
    assert done.stdout.strip() == printed, done.stderr
