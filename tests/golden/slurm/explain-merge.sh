#!/bin/bash
# By hand:  bash this file
set -euo pipefail
cd '/shared/my runs'
exec /opt/neuroexplain/bin/neuroexplain merge '/shared/my runs/x.db.explain-1/parts-4/explained-1.db' '/shared/my runs/x.db.explain-1/parts-4/explained-2.db' '/shared/my runs/x.db.explain-1/parts-4/explained-3.db' '/shared/my runs/x.db.explain-1/parts-4/explained-4.db' --into '/shared/my runs/x.db'
