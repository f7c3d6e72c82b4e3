#!/bin/sh
# The last step of an image: scripts/finish_image.sh GROUP... The user gets the numbers USER_UID and
# USER_GID, the project itself is installed, and Make is told which groups there are.
set -eu
umask 002
if [ "$USER_UID" -eq 0 ]; then
    echo "error: the user of an image is never root. Build it for another: USER_UID=1000" >&2
    exit 1
fi
groupmod --non-unique --gid "$USER_GID" cookbook
usermod --non-unique --uid "$USER_UID" cookbook
chown --recursive cookbook:cookbook /home/cookbook /workspace
python3 scripts/poetry.py install --only-root
for group in "$@"; do
    touch "$COOKBOOK_INSTALL/.venv/.installed-$group"
done
