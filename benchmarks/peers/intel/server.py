"""Intel's multimodal-embedding-serving as its container starts it, with OpenVINO. A local folder takes the model's name.

OpenVINO chooses the precision: bfloat16 where the hardware computes in it. `--dtype` is not read.
"""

import argparse
import os
import sys
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--model", required=True)
parser.add_argument("--port", required=True)
parser.add_argument("--dtype")
arguments = parser.parse_args()

_, _, folder = (Path(__file__).parent / "source").read_text().split()
environment = Path(sys.prefix)
os.chdir(environment / "source" / folder)
os.environ |= {
    "MODEL_NAME": arguments.model,
    "EMBEDDING_USE_OV": "true",
    "EMBEDDING_MODEL_PATH": str(environment / "ov-models"),
    "http_proxy": "",
    "https_proxy": "",
    "no_proxy_env": "",
}
worker = ["-b", f"127.0.0.1:{arguments.port}", "-k", "uvicorn.workers.UvicornWorker", "app:app", "--timeout", "300"]
gunicorn = Path(sys.executable).with_name("gunicorn")
os.execv(gunicorn, [str(gunicorn), *worker, "--log-level", "info", "--log-config", "logging.conf"])
