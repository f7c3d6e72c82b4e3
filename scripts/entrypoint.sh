#!/bin/sh
# What a container starts with: look at what is mounted, then become the command.
set -eu

# A folder that the user of the container cannot write loses a notebook at the moment of saving it.
for folder in /workspace "$HOME/.cache/huggingface"; do
    if [ -d "$folder" ] && [ ! -w "$folder" ]; then
        echo "error: $folder is not writable for the user of the container, $(id -u):$(id -g); it" \
            "belongs to $(stat -c %u:%g "$folder"). Build the image for its owner: make docker-build" \
            "USER_UID=$(stat -c %u "$folder") USER_GID=$(stat -c %g "$folder"); or, where that is" \
            "root, make the folder yours. A volume of an image for another user: docker volume rm" >&2
        exit 1
    fi
done
exec "$@"
