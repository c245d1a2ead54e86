#!/bin/bash
# neuroexplain launch slurm -- collect ...
set -euo pipefail
cd '/shared/my runs/x.db.collect-1'
tokenize=$(sbatch --parsable --job-name=neuroexplain-tokenize --output=%x-%j.txt --partition=gpu '--comment=two words' tokenize.sh)
echo "tokenize: job $tokenize"
collect=$(sbatch --parsable --job-name=neuroexplain-collect --array=1-16 --requeue --output=%x-%A-%a.txt --gres=gpu:1 --dependency="afterok:$tokenize" --kill-on-invalid-dep=yes --partition=gpu '--comment=two words' collect.sh)
echo "collect: job $collect"
merge=$(sbatch --parsable --job-name=neuroexplain-merge --output=%x-%j.txt --dependency="afterok:$collect" --kill-on-invalid-dep=yes --partition=gpu '--comment=two words' merge.sh)
echo "merge: job $merge"
