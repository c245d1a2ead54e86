"""The command `vllm` while the pages are tested:  vllm serve MODEL [OPTIONS]

It refuses an option that vLLM 0.32 does not have. With --port it passes requests on to the answering server
(ANSWERING_SERVER); without one it checks that this one answers, and ends.
"""

from __future__ import annotations

import argparse
import os

import httpx

from tests.proxy import Proxy

parser = argparse.ArgumentParser(prog="vllm", allow_abbrev=False)
parser.add_argument("command", choices=["serve"])
parser.add_argument("model")
parser.add_argument("--host")
parser.add_argument("--port", type=int)
parser.add_argument("--api-key")
parser.add_argument("--gpu-memory-utilization", type=float)
for option in ("tensor-parallel-size", "data-parallel-size", "max-model-len", "max-num-seqs", "max-logprobs"):
    parser.add_argument(f"--{option}", type=int)
for option in ("enable-scale-out", "enable-prompt-tokens-details"):
    parser.add_argument(f"--{option}", action="store_true")
options = parser.parse_args()
upstream = os.environ["ANSWERING_SERVER"].removesuffix("/v1")
if options.port is None:
    httpx.get(f"{upstream}/v1/models").raise_for_status()
else:
    Proxy(upstream, options.port).serve_forever()
