"""`infinity_emb v2` with the torch engine, as in its documentation, in this process. On CPUs it has float32 only."""

import argparse
import os
import sys
from pathlib import Path

from checkpoint import convert

parser = argparse.ArgumentParser()
parser.add_argument("--model", type=Path, required=True)
parser.add_argument("--port", required=True)
parser.add_argument("--dtype", choices=["float32"], default="float32")
arguments = parser.parse_args()

folder = arguments.model.with_name(f"{arguments.model.name}-hf")
if not (folder / "preprocessor_config.json").is_file():  # the file that is written last
    convert(arguments.model, folder)
infinity = Path(sys.executable).with_name("infinity_emb")
model = ["--model-id", str(folder), "--served-model-name", "bench", "--engine", "torch", "--device", "cpu"]
more = ["--log-level", "warning", "--dtype", "float32", "--batch-size", "16", "--no-bettertransformer"]
os.execv(infinity, [str(infinity), "v2", *model, *more, "--host", "127.0.0.1", "--port", arguments.port])
