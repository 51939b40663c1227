"""`bentoml serve` of service.py, in this process."""

import argparse
import os
import sys
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--model", required=True)
parser.add_argument("--port", required=True)
parser.add_argument("--dtype", default="float32")
arguments = parser.parse_args()
os.environ |= {"BENCH_MODEL": arguments.model, "BENCH_DTYPE": arguments.dtype}
bentoml = Path(sys.executable).with_name("bentoml")
service = ["service:Embed", "--working-dir", str(Path(__file__).parent)]
os.execv(bentoml, [str(bentoml), "serve", *service, "--host", "127.0.0.1", "--port", arguments.port])
