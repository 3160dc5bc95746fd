#!/bin/sh
# Run a script every night, unattended: it asks nothing, and does not start while the previous run is still going.
#
#   cp tests/recipes/unattended.sh . && chmod 700 unattended.sh    in the folder of your script and of its .venv
#   touch endobest.env && chmod 600 endobest.env                   then write these lines into it:
#
#     export EB_IAM_URL=https://... EB_RC_URL=https://... EB_GDD_URL=https://...
#     export EB_USER_NAME='...' EB_PASSWORD='...' EB_THREADS=20
#
#   ./unattended.sh my_script.py                                   tries it
#   crontab -e                                                     then write this line into it:
#
#     0 3 * * *  /srv/endobest/unattended.sh my_script.py
#
# Cron mails what the script prints, including its closing line. The exit code is that of the script.
set -eu
cd "$(dirname "$0")"
umask 077 # only you can read what the script writes
. ./endobest.env
exec 9>"$1.lock" # the system removes the lock, however the script ends
flock -n 9 || { echo "$1: another run is still going" >&2; exit 1; }
exec .venv/bin/python "$@" </dev/null # nobody can be asked: a missing setting is an error, or has a default
