#!/usr/bin/env bash
# Stop what up.sh started.
set -u
run=${NDIF_RUN:?}; export PATH=${NDIF_VENV:?}/bin:$PATH
for service in api store redis; do
    [ -f "$run/$service.pid" ] && kill "$(cat "$run/$service.pid")" 2>/dev/null
    rm -f "$run/$service.pid"
done
ray stop >/dev/null 2>&1
true
