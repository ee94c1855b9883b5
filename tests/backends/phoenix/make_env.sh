#!/bin/sh
# Makes .venvs/phoenix: a real Arize Phoenix in an environment of its own, since its pins are not
# ours (it has an SDK of OpenTelemetry, a FastAPI and a pandas of its own choice).
#
#   tests/backends/phoenix/make_env.sh [PYTHON]
#
# Does nothing when the environment was made from these very files (a stamp keeps their hash).
set -eu

python=${1:-python3}
here=$(cd "$(dirname "$0")" && pwd)
target=$(cd "$here/../../.." && pwd)/.venvs/phoenix
stamp=$target/requirements.sha256
wanted=$(cat "$here/phoenix.txt" "$here/make_env.sh" | sha256sum)

if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && [ -x "$target/bin/python" ]; then
    echo "backends: .venvs/phoenix is up to date"
    exit 0
fi
"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' || {
    echo "backends: Phoenix runs on Python 3.11 to 3.14; make backends PYTHON=/path/to/python3.11"
    exit 1
}

# Built in place, since a virtual environment cannot be moved; the stamp is written last, so that an
# interrupted run starts again.
echo "backends: making .venvs/phoenix"
rm -rf "$target"
"$python" -m venv "$target"
echo "backends: installing Phoenix (phoenix.txt)"
"$target/bin/pip" install --quiet --disable-pip-version-check --no-deps --no-compile \
    -r "$here/phoenix.txt"
"$target/bin/pip" check --disable-pip-version-check
echo "$wanted" >"$stamp"
echo "backends: done"
