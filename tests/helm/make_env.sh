#!/bin/sh
# Makes .venvs/image: the libraries of the image's base variant, by the same step that helm/Dockerfile
# runs, in a folder of its own. The tests add the project itself, as the Dockerfile does.
#
#   tests/helm/make_env.sh [PYTHON]
#
# Does nothing when the environment was made from these very files (a stamp keeps their hash).
set -eu

python=${1:-python3}
root=$(cd "$(dirname "$0")/../.." && pwd)
target=$root/.venvs/image
stamp=$target/requirements.sha256
wanted=$(cd "$root" && cat helm/image/build.py pyproject.toml constraints.txt tests/helm/make_env.sh | sha256sum)

if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && [ -x "$target/bin/python" ]; then
    echo "image: .venvs/image is up to date"
    exit 0
fi
"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || {
    echo "image: the image has Python 3.11, this is another: its tests are skipped"
    exit 0
}

echo "image: making .venvs/image"
mkdir -p "$root/.venvs"
# The interpreter itself, not a shim that finds it by the folder one is in.
"$("$python" -c 'import sys; print(sys.executable)')" "$root/helm/image/build.py" libraries --to "$target"
echo "$wanted" >"$stamp"
echo "image: done"
