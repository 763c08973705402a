# For other scripts to source: makes .venv if it is missing, installs the requirement files that are new or have changed,
# and puts the environment first in PATH. Arguments: requirement files.
python=${PYTHON:-python3}
"$python" - <<'CHECK' || exit 2
import importlib.util, sys
if sys.version_info < (3, 10):
    sys.exit(f"error: Python 3.10 or newer is needed, found {sys.version.split()[0]}; choose another one: PYTHON=python3.12 bash ...")
if importlib.util.find_spec("ensurepip") is None:
    sys.exit("error: this Python has no venv module; install it (Debian, Ubuntu: the package python3-venv)")
CHECK
venv=$PWD/.venv
for file in "$@"; do
    stamp=$venv/installed-$(cksum < "$file" | tr ' ' -)
    [ -e "$stamp" ] && continue
    echo "installing $file into $venv"
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$file"
    touch "$stamp"
done
PATH=$venv/bin:$PATH
