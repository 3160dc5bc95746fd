#!/bin/sh
# Start a script every night, with nobody there: it asks nothing, and does not start while it is still at work.
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
# Cron mails what the script prints, its closing line too. The exit code is the script's.
set -eu
cd "$(dirname "$0")"
umask 077 # only you can read what the script writes
. ./endobest.env
exec 9>"$1.lock" # the system lets go of it, however the script ends
flock -n 9 || { echo "$1: another run is still at work" >&2; exit 1; }
exec .venv/bin/python "$@" </dev/null # with nobody to ask, what is not set is an error or a default
