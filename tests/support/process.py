"""Our commands as processes of their own; `visiontower serve` on a port that the system picks."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from service.settings import PREFIX


@contextmanager
def served(*flags: str) -> Iterator[str]:
    """Its address, such as http://127.0.0.1:41001, from when it is ready. Fails with its log if it ends before."""
    line = [sys.executable, "-m", "service.cli", "serve", "--port", "0", *flags]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    log: list[str] = []
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True, env=environment) as process:
        rest = threading.Thread(target=log.extend, args=(process.stderr,))  # a full pipe would stop the server
        try:
            address = _address(process, log)
            rest.start()
            yield address
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
            if rest.ident is not None:
                rest.join()


def _address(process: subprocess.Popen[str], log: list[str]) -> str:
    assert process.stderr is not None
    for said in process.stderr:
        log.append(said)
        if found := re.search(r"running on (http://127\.0\.0\.1:\d+)", said):
            return found[1]
    raise AssertionError("".join(log))
