#!/usr/bin/env bash
# Serve SmolLM2 with a real vLLM on a machine without a GPU:  scripts/serve_vllm.sh [PORT]   (Ctrl-C stops it)
# For the tests of --server and for trying it; a real explainer needs a capable model and a GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
port=${1:-8000}
scripts/setup_vllm.sh
folder=${NEUROEXPLAIN_SERVED:-.venv-vllm/smollm2}
if [ ! -e "$folder/config.json" ]; then
  .venv/bin/python scripts/save_smollm2.py "$folder"
fi
export VLLM_CPU_KVCACHE_SPACE=${VLLM_CPU_KVCACHE_SPACE:-2} HF_HUB_OFFLINE=1
dtype=float32
# Eager mode starts sooner; blocks of 32 tokens, the least on a CPU, make the prefix cache of use (128 unless told).
if grep -q avx512_bf16 /proc/cpuinfo; then
  dtype=bfloat16
fi
exec .venv-vllm/bin/python -m vllm.entrypoints.openai.api_server --model "$folder" --served-model-name smollm2 \
  --dtype "$dtype" --max-model-len 4096 --enforce-eager --block-size 32 --enable-scale-out --enable-prompt-tokens-details --host 127.0.0.1 --port "$port"
