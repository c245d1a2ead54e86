#!/bin/bash
# By hand:  bash this file
set -euo pipefail
cd '/shared/my runs'
/opt/neuroexplain/bin/neuroexplain merge '/shared/my runs/x.db.collect-1/parts-16/collected-1.db' '/shared/my runs/x.db.collect-1/parts-16/collected-2.db' '/shared/my runs/x.db.collect-1/parts-16/collected-3.db' '/shared/my runs/x.db.collect-1/parts-16/collected-4.db' '/shared/my runs/x.db.collect-1/parts-16/collected-5.db' '/shared/my runs/x.db.collect-1/parts-16/collected-6.db' '/shared/my runs/x.db.collect-1/parts-16/collected-7.db' '/shared/my runs/x.db.collect-1/parts-16/collected-8.db' '/shared/my runs/x.db.collect-1/parts-16/collected-9.db' '/shared/my runs/x.db.collect-1/parts-16/collected-10.db' '/shared/my runs/x.db.collect-1/parts-16/collected-11.db' '/shared/my runs/x.db.collect-1/parts-16/collected-12.db' '/shared/my runs/x.db.collect-1/parts-16/collected-13.db' '/shared/my runs/x.db.collect-1/parts-16/collected-14.db' '/shared/my runs/x.db.collect-1/parts-16/collected-15.db' '/shared/my runs/x.db.collect-1/parts-16/collected-16.db' --into '/shared/my runs/x.db'
# What the parts held is in the database now.
rm -r -- '/shared/my runs/x.db.collect-1/parts-16'
