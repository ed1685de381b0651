#!/bin/bash
# On a machine with a GPU and an environment (make env), or with what docs/gpu-check.md lists and .whl:
#     bash benchmarks/gpu_check/check.sh [--minutes M] [--parts NAME ..] [--serial]
# Writes summary.txt, results.json and logs.tar.gz to $OUT. PYTHON: the interpreter.
set -u
begin=$(date +%s)
cd "$(dirname "$0")/../.." || exit 1
temporary=${TMPDIR:-/tmp}
: "${OUT:=$temporary/gpu-check-out}" "${GPU_CHECK_WORK:=$temporary/gpu-check-work}"
export OUT GPU_CHECK_WORK PYTHONUNBUFFERED=1 GPU_CHECK_BEGIN="$begin"
mkdir -p "$OUT" "$GPU_CHECK_WORK"
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
if ls .whl/*.whl >/dev/null 2>&1 && [ -z "${GPU_CHECK_NO_INSTALL:-}" ]; then
    site=$GPU_CHECK_WORK/site
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade \
        --target "$site" .whl/*.whl >"$GPU_CHECK_WORK/install.log" 2>&1 ||
        { tail -n 5 "$GPU_CHECK_WORK/install.log" >&2; exit 2; }
    export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
"$python" -W ignore benchmarks/gpu_check/needs.py || exit 2
echo "ready after $(($(date +%s) - begin)) s"
exec "$python" -m benchmarks.gpu_check.check "$@"
