#!/bin/sh
set -e
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
fi
# Keys are kept until they are purged by name.
if [ "$1" = purge ]; then
    rm -rf /var/lib/pinhole
fi
