//! What makes a tunnel a service: a systemd unit for any of them, and an OpenRC script for one. Pure.

use std::path::Path;

/// The unit of every tunnel: `pinhole@NAME.service`.
pub(super) const UNIT: &str = "pinhole@.service";

/// The unit. It is started before there is a network and waits for one for ever, as readiness is that it runs; how the tunnel is
/// stands in its status. What a process that was killed leaves behind is taken back before the next one starts.
pub(super) fn unit(program: &Path) -> String {
    let program = program.display();
    format!(
        "[Unit]
Description=Pinhole VPN tunnel %i
Documentation=https://github.com/pinhole-vpn/pinhole
After=network.target systemd-resolved.service
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
# More options of `pinhole up`, as PINHOLE_OPTIONS.
EnvironmentFile=-/etc/pinhole/%i.env
ExecStart={program} up --name %i --timeout 0 --state-dir /var/lib/pinhole $PINHOLE_OPTIONS
ExecStopPost={program} down --leftovers --name %i --state-dir /var/lib/pinhole
Restart=always
RestartSec=3
# What only a person at this machine can change: no token that is good, or a client that was deleted.
RestartPreventExitStatus=10 11 12 13 20 22
TimeoutStopSec=10
Environment=PINHOLE_LOG=info

StateDirectory=pinhole
StateDirectoryMode=0700
UMask=0077
NoNewPrivileges=yes
CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_BIND_SERVICE
DevicePolicy=closed
DeviceAllow=/dev/net/tun rw
ProtectSystem=strict
# Name servers: resolv.conf, and what resolvconf keeps. And where `wg` looks for a socket.
ReadWritePaths=/etc /run
ProtectHome=yes
PrivateTmp=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectProc=invisible
LockPersonality=yes
MemoryDenyWriteExecute=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_NETLINK AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service

[Install]
WantedBy=multi-user.target
"
    )
}

/// The OpenRC script of one tunnel.
pub(super) fn openrc(program: &Path, name: &str) -> String {
    let program = program.display();
    format!(
        "#!/sbin/openrc-run
# A Pinhole VPN tunnel. It is started before there is a network, and waits for one for ever.

name=\"Pinhole VPN tunnel {name}\"
supervisor=supervise-daemon
command=\"{program}\"
# More options of `pinhole up` stand in /etc/conf.d/pinhole.{name}, as PINHOLE_OPTIONS.
command_args=\"up --name {name} --timeout 0 ${{PINHOLE_OPTIONS}}\"
respawn_delay=2
respawn_max=0
output_logger=\"logger -t pinhole-{name}\"
error_logger=\"logger -t pinhole-{name}\"

depend() {{
	use dns logger
	after net
}}

start_pre() {{
	checkpath --directory --mode 0700 --owner root:root /var/lib/pinhole
}}

# What a process that was killed leaves behind is taken back.
stop_post() {{
	{program} down --leftovers --name {name}
}}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_waits_for_ever_comes_back_and_holds_what_it_needs_alone() {
        let unit = unit(Path::new("/usr/bin/pinhole"));
        for line in [
            "Type=notify",
            "After=network.target systemd-resolved.service",
            "Restart=always",
            "StartLimitIntervalSec=0",
            "NoNewPrivileges=yes",
            "CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_BIND_SERVICE",
            "StateDirectory=pinhole",
            "StateDirectoryMode=0700",
            "ProtectSystem=strict",
            "ExecStart=/usr/bin/pinhole up --name %i --timeout 0 --state-dir /var/lib/pinhole $PINHOLE_OPTIONS",
            "ExecStopPost=/usr/bin/pinhole down --leftovers --name %i --state-dir /var/lib/pinhole",
        ] {
            assert!(unit.lines().any(|it| it == line), "{line}");
        }
        assert!(!unit.contains("network-online"), "it does not wait for a network to be started");
    }

    #[test]
    fn the_openrc_script_is_one_that_a_shell_can_read() {
        let script = openrc(Path::new("/usr/bin/pinhole"), "pinhole0");
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("script");
        std::fs::write(&file, &script).unwrap();
        let read = std::process::Command::new("sh").arg("-n").arg(&file).status().unwrap();
        assert!(read.success(), "{script}");
        assert!(script.contains("respawn_max=0") && script.contains("--name pinhole0 --timeout 0"));
    }
}
