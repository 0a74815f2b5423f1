#!/usr/bin/env bash
# serve.sh up trusted|sandbox, serve.sh run COMMAND..., serve.sh down: the test server in a namespace that has only
# loopback, and commands beside it. Its end ends every process in it.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
run=${NDIF_RUN:?}; mkdir -p "$run"; holder=$run/holder.pid
alive() { [ -f "$holder" ] && kill -0 "$(cat "$holder")" 2>/dev/null; }
case ${1:-} in
    up)
        alive && { echo "a server is up already; make ndif-down" >&2; exit 8; }
        rm -f "$run/up.log"
        setsid "$here/alone.sh" bash -c "'$here/up.sh' '${2:-trusted}' && sleep infinity" >"$run/up.log" 2>&1 </dev/null &
        echo $! >"$holder"
        until grep -q "NDIF is up" "$run/up.log" 2>/dev/null; do
            alive || { cat "$run/up.log" >&2; exit 5; }
            sleep 1
        done
        echo "NDIF is up (${2:-trusted}), for commands that are run as: make ndif-run COMMAND='make validate BACKEND=ndif'" ;;
    run)
        shift
        alive || { echo "no server is up; make ndif-up" >&2; exit 5; }
        inside=$(pgrep -P "$(cat "$holder")" | head -1)
        user=(); [ "$(id -u)" = 0 ] || user=(--user --preserve-credentials)
        NDIF_HOST=http://127.0.0.1:8001 HF_HUB_OFFLINE=1 exec nsenter --target "$inside" "${user[@]}" --net -- "$@" ;;
    down)
        # The first process of a namespace minds no other signal, and takes all others with it.
        if alive; then kill -KILL "$(pgrep -P "$(cat "$holder")" | head -1)" 2>/dev/null || true; fi
        rm -f "$holder" ;;
    *) echo "serve.sh up trusted|sandbox, run COMMAND..., down" >&2; exit 2 ;;
esac
