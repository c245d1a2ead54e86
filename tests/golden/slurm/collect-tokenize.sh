#!/bin/bash
# By hand:  bash this file
set -euo pipefail
cd '/shared/my runs'
exec /opt/neuroexplain/bin/neuroexplain collect --model ./llama --dataset 'it'"'"'s *.jsonl' --text-column 'two
lines' --batch-size 64 --only-tokenize --db '/shared/my runs/x.db.collect-1/parts-16/tokens.db'
