#!/bin/bash
# By hand, the first of 16:  SLURM_ARRAY_TASK_ID=1 bash this file
set -euo pipefail
cd '/shared/my runs'
exec /opt/neuroexplain/bin/neuroexplain collect --model ./llama --dataset 'it'"'"'s *.jsonl' --text-column 'two
lines' --batch-size 64 --keep-tokens --shard "$SLURM_ARRAY_TASK_ID"/16 --db '/shared/my runs/x.db.collect-1/parts-16/collected-'"$SLURM_ARRAY_TASK_ID".db
