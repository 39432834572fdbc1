# Shared by the benchmark scripts: peers by environment variable, timing, tables. Sourced, never run.

SHARDWRIGHT=${SHARDWRIGHT:-target/release/shardwright}
THREADS=${THREADS:-2}
# A scratch directory of ours goes when the script does; one that was given stays.
if [ -z "${SCRATCH:-}" ]; then
  SCRATCH=$(mktemp -d)
  trap 'rm -rf "$SCRATCH"' EXIT
fi
mkdir -p "$SCRATCH"

die() { echo "$(basename "$0"): $*" >&2; exit 2; }

# need VAR WHAT: VAR must name an executable, by path or on PATH.
need() { command -v "${!1:-}" >/dev/null || die "set $1 to $2 (now: '${!1:-}')"; }

# need_file VAR WHAT: VAR must name something that exists.
need_file() { [ -e "${!1:-}" ] || die "set $1 to $2 (now: '${!1:-}')"; }

# measure COMMAND...: sets wall, cpu (seconds) and rss (MiB, peak of the process). Its output goes to $SCRATCH/log.
measure() {
  local fields="$SCRATCH/time"
  /usr/bin/time -o "$fields" -f '%e %U %S %M' "$@" >"$SCRATCH/log" 2>&1 ||
    { tail -5 "$SCRATCH/log" >&2; die "failed: $*"; }
  read -r wall cpu rss < <(awk '{ printf "%s %.1f %d\n", $1, $2 + $3, $4 / 1024 }' "$fields")
}

# row CELL...: one line of a Markdown table.
row() { printf '| %s ' "$@"; echo '|'; }

# header CELL...: the first two lines of a Markdown table.
header() { row "$@"; printf '|---%.0s' "$@"; echo '|'; }

# field FILE KEY...: the first of the dotted KEYs that the JSON of FILE holds.
field() {
  python3 - "$@" <<'PY'
import json, sys
from functools import reduce
value = json.load(open(sys.argv[1]))
for key in sys.argv[2:]:
    try:
        print(reduce(lambda node, name: node[name], key.split("."), value))
        break
    except (KeyError, TypeError):
        continue
else:
    sys.exit(f"{sys.argv[1]}: none of {sys.argv[2:]}")
PY
}

# cold: empties the page cache before a cold measurement.
cold() { sync; echo 3 >/proc/sys/vm/drop_caches 2>/dev/null || die "cold runs need root (drop_caches)"; }

# drop PATH: remove a measured output, which may be as large as the disk has room for.
drop() { rm -rf "${1:?}"; }
