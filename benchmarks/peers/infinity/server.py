"""`infinity_emb v2` with the torch engine, as in its documentation, in this process. On CPUs it has float32 only."""

import argparse
import os
import sys
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--model", required=True)
parser.add_argument("--port", required=True)
parser.add_argument("--dtype", choices=["float32"], default="float32")
arguments = parser.parse_args()

infinity = Path(sys.executable).with_name("infinity_emb")
model = ["--model-id", arguments.model, "--served-model-name", "bench", "--engine", "torch", "--device", "cpu"]
more = ["--log-level", "warning", "--dtype", "float32", "--batch-size", "16", "--no-bettertransformer"]
os.execv(infinity, [str(infinity), "v2", *model, *more, "--host", "127.0.0.1", "--port", arguments.port])
