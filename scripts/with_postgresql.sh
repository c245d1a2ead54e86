#!/usr/bin/env bash
# Run a command beside a PostgreSQL of its own, whose URL stands in NEUROEXPLAIN_TEST_POSTGRESQL:
#   scripts/with_postgresql.sh .venv/bin/python -m pytest tests/store
# Debian's package is installed where it is missing and that is allowed; without it the command runs all the same, and the
# tests that need PostgreSQL say that they were skipped. The cluster lives in a temporary folder and is gone afterwards.
set -u
find_bin() { ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -n 1; }
bin=$(find_bin)
if [ -z "$bin" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq postgresql >/dev/null
  bin=$(find_bin)
fi
if [ -z "$bin" ]; then
  echo "No PostgreSQL here: its tests will be skipped. Debian's: apt-get install postgresql"
  exec "$@"
fi
folder=$(mktemp -d)
as() { if [ "$(id -u)" = 0 ]; then su postgres -s /bin/sh -c "$1"; else sh -c "$1"; fi; }
[ "$(id -u)" = 0 ] && chown postgres "$folder"
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
as "$bin/initdb -D $folder/data -U tester --auth=trust -E UTF8 --locale=C.UTF-8" >/dev/null || exit 1
as "$bin/pg_ctl -D $folder/data -w -l $folder/log -o '-p $port -k $folder -c listen_addresses=127.0.0.1 -c fsync=off' start" >/dev/null ||
  { cat "$folder/log"; exit 1; }
trap 'as "$bin/pg_ctl -D $folder/data -m immediate stop" >/dev/null; rm -rf "$folder"' EXIT
export NEUROEXPLAIN_TEST_POSTGRESQL="postgresql+psycopg://tester@127.0.0.1:$port/postgres"
"$@"
