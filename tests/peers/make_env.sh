#!/bin/sh
# Makes .venvs/mlserver: a real MLServer in an environment of its own. It cannot share ours: it
# carries a second copy of the `inference` protobuf package, and its pins are not ours.
#
#   tests/peers/make_env.sh [PYTHON]
#
# Does nothing when the environment was made from these very files (a stamp keeps their hash).
set -eu

python=${1:-python3}
here=$(cd "$(dirname "$0")" && pwd)
target=$(cd "$here/../.." && pwd)/.venvs/mlserver
stamp=$target/requirements.sha256
wanted=$(cat "$here/mlserver.txt" "$here/make_env.sh" | sha256sum)

if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && [ -x "$target/bin/python" ]; then
    echo "peers: .venvs/mlserver is up to date"
    exit 0
fi
"$python" -c 'import sys; sys.exit(not (3, 9) <= sys.version_info < (3, 13))' || {
    echo "peers: MLServer runs on Python 3.9 to 3.12; make peers PYTHON=/path/to/python3.11"
    exit 1
}

# Built in place, since a virtual environment cannot be moved; the stamp is written last, so that an
# interrupted run starts again.
echo "peers: making .venvs/mlserver"
rm -rf "$target"
"$python" -m venv "$target"
echo "peers: installing MLServer (mlserver.txt)"
"$target/bin/pip" install --quiet --disable-pip-version-check --no-deps --no-compile \
    -r "$here/mlserver.txt"
"$target/bin/pip" check --disable-pip-version-check
echo "$wanted" >"$stamp"
echo "peers: done"
