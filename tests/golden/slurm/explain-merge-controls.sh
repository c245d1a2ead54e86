#!/bin/bash
# By hand:  bash this file
set -euo pipefail
cd '/shared/my runs'
/opt/neuroexplain/bin/neuroexplain merge '/shared/my runs/x.db.explain-1/parts-4/controls-1.db' '/shared/my runs/x.db.explain-1/parts-4/controls-2.db' '/shared/my runs/x.db.explain-1/parts-4/controls-3.db' '/shared/my runs/x.db.explain-1/parts-4/controls-4.db' --into '/shared/my runs/x.db'
# What the parts held is in the database now.
rm -r -- '/shared/my runs/x.db.explain-1/parts-4'
