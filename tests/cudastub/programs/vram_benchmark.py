"""A quick run of benchmarks.vram into the file named; prints what it printed."""

import io
import json
import sys
from contextlib import redirect_stdout

from benchmarks import vram

if __name__ == "__main__":
    printed = io.StringIO()
    with redirect_stdout(printed):
        assert vram.main(["--quick", "-o", sys.argv[1]]) == 0
    print(json.dumps(printed.getvalue()))
