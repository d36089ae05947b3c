#!/usr/bin/env bash
# An encrypted copy of a coordinator's or a hospital's folder, while it runs.
#
#     backup.sh HOME RECIPIENT.crt OUT.backup             encrypts for whoever has the key of RECIPIENT.crt
#     backup.sh --open OUT.backup RECIPIENT.key FOLDER    decrypts into a new folder
#
# The recipient's key is made once, on another machine, and stays there:
#
#     openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -days 3650 -subj /CN=backup -keyout backup.key -out backup.crt
#
# What is in it: keys, registry, ledger, approvals, runs. What is not: recordings, and features, which are computed again; and
# what a hospital trained of its own, which a patient's withdrawal must be able to remove.
# A ledger that was restored is not simply started: docs/runbook.md says what comes first.
set -euo pipefail
umask 077

fail() { echo "backup.sh: $*" >&2; exit 2; }

# What must be of one moment is copied first: the ledger's head before its lines, since a ledger that is shorter than its head
# is refused and a longer one is not; the registry by SQLite's own backup. Everything else goes as it lies: withdrawals after
# the ledger, which may count fewer than there are, and files that are replaced whole or grow.
copy_first() {
  local home=$1 to=$2 first
  for first in ledger/head ledger/ledger.jsonl; do
    if [ -f "$home/$first" ]; then
      mkdir -p "$to/$(dirname "$first")"
      cp -p "$home/$first" "$to/$first"
    fi
  done
  if [ -f "$home/registry.sqlite" ]; then
    "$PYTHON" -c 'import sqlite3, sys
source, copy = sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True), sqlite3.connect(sys.argv[2])
source.backup(copy)
copy.close()
source.close()' "$home/registry.sqlite" "$to/registry.sqlite"
  fi
}

# tar says 1 where a file grew while it was read: that is expected here.
pack() {
  tar --create --file=- --warning=no-file-changed --warning=no-file-removed \
    --directory="$2" . --directory="$1" \
    --exclude=./ledger/head --exclude=./ledger/ledger.jsonl --exclude='./registry.sqlite*' --exclude='./studies/*/features*' \
    --exclude='./state/*/seed*-fold*[0-9]' --exclude='./state/*/seed*-without-*' \
    --exclude='*.log' --exclude='*.log.1' --exclude='*.partial' --exclude=./run/front . || [ $? = 1 ]
}

PYTHON=${PYTHON:-/opt/sottovoce/bin/python}
[ -x "$PYTHON" ] || PYTHON=python3

if [ "${1:-}" = --open ]; then
  [ $# = 4 ] || fail "expected --open BACKUP KEY FOLDER"
  [ ! -e "$4" ] || fail "$4 is there already; nothing was touched"
  mkdir -m 700 "$4"
  openssl cms -decrypt -binary -inform DER -in "$2" -inkey "$3" | tar --extract --file=- --preserve-permissions --directory="$4"
  echo "$4 holds the folder. See docs/runbook.md before anything is started from it."
  exit 0
fi

[ $# = 3 ] || fail "expected HOME RECIPIENT.crt OUT.backup"
[ -f "$1/server.toml" ] || [ -f "$1/hospital.toml" ] || fail "$1: expected a coordinator's or a hospital's folder"
[ ! -e "$3" ] || fail "$3 is there already; nothing was touched"
place=$(mktemp -d "${TMPDIR:-/dev/shm}/sottovoce-backup.XXXXXX")  # in memory: it holds keys
trap 'rm -rf "$place"' EXIT
copy_first "$1" "$place"
pack "$(realpath "$1")" "$place" | openssl cms -encrypt -binary -stream -outform DER -aes-256-gcm -recip "$2" -out "$3.partial"
sync "$3.partial"
mv "$3.partial" "$3"
echo "$3: $(stat --format=%s "$3") bytes, for the key of $2 alone."
