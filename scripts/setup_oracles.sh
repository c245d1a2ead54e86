#!/usr/bin/env bash
# Make .venv-oracles: the libraries that wrote the dictionaries which neuroexplain reads, apart from the tool's own
# environment. Only scripts/record_dictionary_oracles.py runs them; tests compare with what it recorded.
#   scripts/setup_oracles.sh [FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-.venv-oracles}
sae_lens=6.54.12
sparsify=1.3.3
dictionary_learning=0.1.0  # without what it requires: its training is not run
if [ -e "$folder/.installed-$sae_lens-$sparsify-$dictionary_learning" ]; then
  exit 0
fi
"${PYTHON:-python3}" -m venv "$folder"
pip="$folder/bin/python -m pip"
$pip install -q -c constraints.txt torch
$pip install -q -c constraints.txt "sae-lens==$sae_lens" "eai-sparsify==$sparsify"
$pip install -q --no-deps "dictionary-learning==$dictionary_learning"
touch "$folder/.installed-$sae_lens-$sparsify-$dictionary_learning"
