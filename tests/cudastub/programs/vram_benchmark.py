"""A quick run of benchmarks.vram over the models named, into the file named first; prints what it printed."""

import io
import json
import sys
from contextlib import redirect_stdout
from dataclasses import replace

from benchmarks import vram

if __name__ == "__main__":
    out, *models = sys.argv[1:]
    vram.QUICK = replace(vram.QUICK, models=models)
    printed = io.StringIO()
    with redirect_stdout(printed):
        assert vram.main(["--quick", "-o", out]) == 0
    print(json.dumps(printed.getvalue()))
