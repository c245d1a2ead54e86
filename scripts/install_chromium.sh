#!/usr/bin/env bash
# Debian's Chromium for the tests that drive a real browser; nothing where there is one, or where it cannot be installed.
set -u
command -v chromium >/dev/null && exit 0
if ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ]; then
  echo "No chromium here, and no root to install it: the browser's tests will be skipped. Debian's: apt-get install chromium"
  exit 0
fi
apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium fonts-dejavu-core >/dev/null
