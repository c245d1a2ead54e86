#!/bin/bash
# By hand, the first of 4:  SLURM_ARRAY_TASK_ID=1 bash this file
set -euo pipefail
cd '/shared/my runs'
exec /opt/neuroexplain/bin/neuroexplain explain --layer 15 --server http://gpu:8000/v1 --control --db '/shared/my runs/x.db' --allow-failed --shard "$SLURM_ARRAY_TASK_ID"/4 --part '/shared/my runs/x.db.explain-1/parts-4/explained-'"$SLURM_ARRAY_TASK_ID".db
