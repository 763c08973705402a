# For other scripts to source: makes the environment if it is missing, installs the requirement files that are new or
# have changed, and puts the environment first in PATH. Arguments: requirement files. VENV: the environment's folder,
# .venv if it is not set.
python=${PYTHON:-python3}
"$python" - <<'CHECK' || exit 2
import importlib.util, sys
if sys.version_info < (3, 10):
    sys.exit(f"error: Python 3.10 or newer is needed, found {sys.version.split()[0]}; choose another one: PYTHON=python3.12 bash ...")
if importlib.util.find_spec("ensurepip") is None:
    sys.exit("error: this Python has no venv module; install it (Debian, Ubuntu: the package python3-venv)")
CHECK
venv=$PWD/${VENV:-.venv}
for file in "$@"; do
    stamp=$venv/installed-$(basename "$file") # holds the checksum of what was installed last
    checksum=$(cksum < "$file")
    [ -e "$stamp" ] && [ "$(cat "$stamp")" = "$checksum" ] && continue
    echo "installing $file into $venv"
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$file"
    echo "$checksum" > "$stamp"
done
PATH=$venv/bin:$PATH
