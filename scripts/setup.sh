# Sourced by the scripts beside it: makes .venv where there is none, installs the named requirement files when they or
# Python have changed since the last time, and puts the environment first in PATH. Arguments: requirement files.
python=${PYTHON:-python3}
"$python" - <<'CHECK' || exit 2
import importlib.util, sys
if sys.version_info < (3, 10):
    sys.exit(f"error: Python 3.10 or newer is needed, found {sys.version.split()[0]}; name another one: PYTHON=python3.12 bash ...")
if importlib.util.find_spec("ensurepip") is None:
    sys.exit("error: this Python has no venv module; install it (Debian, Ubuntu: the package python3-venv)")
CHECK
venv=$PWD/.venv
wanted=$(for file in "$@"; do echo "$file"; cat "$file"; done | cksum | tr ' ' -)
stamp=$venv/installed-$wanted
if [ ! -e "$stamp" ]; then
    echo "setting up $venv from $*"
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check $(printf -- '-r %s ' "$@")
    touch "$stamp"
fi
PATH=$venv/bin:$PATH
