#!/bin/bash
# neuroexplain launch slurm -- explain ...
set -euo pipefail
cd '/shared/my runs/x.db.explain-1'
explain=$(sbatch --parsable --job-name=neuroexplain-explain --array=1-4 --requeue --output=%x-%A-%a.txt --partition=gpu '--comment=two words' explain.sh)
echo "explain: job $explain"
merge=$(sbatch --parsable --job-name=neuroexplain-merge --output=%x-%j.txt --dependency="afterok:$explain" --kill-on-invalid-dep=yes --partition=gpu '--comment=two words' merge.sh)
echo "merge: job $merge"
controls=$(sbatch --parsable --job-name=neuroexplain-controls --array=1-4 --requeue --output=%x-%A-%a.txt --dependency="afterok:$merge" --kill-on-invalid-dep=yes --partition=gpu '--comment=two words' controls.sh)
echo "controls: job $controls"
merge_controls=$(sbatch --parsable --job-name=neuroexplain-merge-controls --output=%x-%j.txt --dependency="afterok:$controls" --kill-on-invalid-dep=yes --partition=gpu '--comment=two words' merge-controls.sh)
echo "merge-controls: job $merge_controls"
