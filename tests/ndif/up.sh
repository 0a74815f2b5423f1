#!/usr/bin/env bash
# A real NDIF 0.1.2 server on this machine's CPU:   up.sh trusted|sandbox
# NDIF_VENV: the server's virtual environment; NDIF_RUN: folder of its logs.
# Everything listens on 127.0.0.1 but ray, which takes every address it finds: run it in alone.sh.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
run=${NDIF_RUN:?}; mkdir -p "$run"; export PATH=${NDIF_VENV:?}/bin:$PATH
case ${1:-trusted} in
    trusted) actor=TrustedActor ;; sandbox) actor=SandboxActor ;;
    *) echo "up.sh trusted|sandbox" >&2; exit 2 ;;
esac
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1} PYTHONPATH=$here NDIF_HOME=$run/home OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export NDIF_REDIS_URL=redis://127.0.0.1:6379 NDIF_OBJECT_STORE_URL=http://127.0.0.1:9000
export NDIF_RAY_ADDRESS=ray://127.0.0.1:10001 NDIF_RAY_HEAD_PORT=6385
export NDIF_DEFAULT_MODEL_ACTOR_CLASS=server.$actor NDIF_CONTROLLER_IMPORT_PATH=server.ControllerActor
export NDIF_DEFAULT_DTYPE=float32 NDIF_MODEL_CACHE_PERCENTAGE=0.5
export GRPC_ENABLE_FORK_SUPPORT=0 RAY_USAGE_STATS_ENABLED=0 RAY_DISABLE_IMPORT_WARNING=1
# Workers would be 15 nicer than the server they are: beside any other job they starve, and answers come too late.
export RAY_worker_niceness=0
# The server's own defaults; the store is this machine's memory.
export AWS_ACCESS_KEY_ID=rustfsadmin AWS_SECRET_ACCESS_KEY=rustfsadmin

redis-server --bind 127.0.0.1 --port 6379 --save "" --appendonly no --dir "$run" >"$run/redis.log" 2>&1 &
moto_server -H 127.0.0.1 -p 9000 >"$run/store.log" 2>&1 &
# A GPU that is not there: nodes without one are passed over.
NDIF_SERVICE=ray ray start --head --node-ip-address=127.0.0.1 --port=6385 --num-cpus=4 --num-gpus=1 \
    --resources='{"head":10,"cuda_memory_bytes":8000000000,"cpu_memory_bytes":8000000000}' --object-store-memory=300000000 \
    --ray-client-server-port=10001 --include-dashboard=true --dashboard-host=127.0.0.1 --dashboard-port=8265 \
    --disable-usage-stats --temp-dir="${NDIF_RAY_TMP:-/tmp/ray_ndif}" >"$run/ray.log" 2>&1
RAY_ADDRESS=127.0.0.1:6385 NDIF_SERVICE=ray python -m ndif.services.ray.deployments.controller.controller >"$run/controller.log" 2>&1
NDIF_SERVICE=api NDIF_API_PORT=8001 gunicorn --config python:ndif.services.api.gunicorn_conf --bind 127.0.0.1:8001 \
    ndif.services.api.app:app >"$run/api.log" 2>&1 &
for _ in $(seq 180); do
    curl -sf http://127.0.0.1:8001/connected >/dev/null && curl -sf -m 60 http://127.0.0.1:8001/status >/dev/null && { echo "NDIF is up: export NDIF_HOST=http://127.0.0.1:8001"; exit 0; }
    sleep 1
done
echo "NDIF did not come up; see $run/*.log" >&2; exit 1
