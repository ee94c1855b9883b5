#!/bin/sh
# Makes .venvs/clients: stock clients in an environment of their own. They cannot share ours: each
# carries a second copy of the `inference` protobuf package, and their pins are not ours.
#
#   tests/clients/make_env.sh [PYTHON]
#
# Does nothing when the environment was made from these very files (a stamp keeps their hash).
# perf_analyzer is linked with libb64.so.0d, a Debian package: see apt.txt.
set -eu

python=${1:-python3}
here=$(cd "$(dirname "$0")" && pwd)
target=$(cd "$here/../.." && pwd)/.venvs/clients
stamp=$target/requirements.sha256
wanted=$(cat "$here/requirements.txt" "$here/perf-requirements.txt" "$here/make_env.sh" | sha256sum)

if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && [ -x "$target/bin/python" ]; then
    echo "clients: .venvs/clients is up to date"
    exit 0
fi

# Built in place, since a virtual environment cannot be moved; the stamp is written last, so that an
# interrupted run starts again.
echo "clients: making .venvs/clients"
rm -rf "$target"
"$python" -m venv "$target"
echo "clients: installing the clients (requirements.txt)"
"$target/bin/pip" install --quiet --disable-pip-version-check --no-deps --no-compile \
    -r "$here/requirements.txt"
echo "clients: installing perf_analyzer (perf-requirements.txt)"
"$target/bin/pip" install --quiet --disable-pip-version-check --no-deps --no-compile \
    --target "$target/perf" -r "$here/perf-requirements.txt"
chmod +x "$target/perf/bin/perf_analyzer"
echo "$wanted" >"$stamp"
echo "clients: done"
