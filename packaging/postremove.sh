#!/bin/sh
set -e
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
fi
# Keys, and which tunnels are services, are kept until they are purged by name.
if [ "$1" = purge ]; then
    rm -rf /var/lib/pinhole
    rm -f /etc/systemd/system/multi-user.target.wants/pinhole@*.service
fi
