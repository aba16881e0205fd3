//! A NAT between client and gateway, made of the kernel's own connection tracking with short timeouts.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use super::{Namespace, ip};

/// Translates the client's 10.0.0.2 to 192.0.2.2, and keeps its port where it can.
pub(crate) struct Nat(Namespace);

const RULES: &str = "table ip nat {
    chain out { type nat hook postrouting priority srcnat; oifname wan masquerade; }
}
table ip fault {
    chain forward { type filter hook forward priority 0; }
    chain input { type filter hook input priority 0; iifname wan drop; }
}
";

impl Nat {
    /// Joins the two by it: `out` at the gateway, `wan` at the client.
    pub(super) fn between(gateway: &Namespace, client: &Namespace, (new, used): (u32, u32)) -> Self {
        let nat = Namespace::new(format!("{}n", client.0));
        ip(&format!("-n {gateway} link add out type veth peer name wan netns {nat}"));
        ip(&format!("-n {nat} link add lan type veth peer name wan netns {client}"));
        ip(&format!("-n {nat} address add 192.0.2.2/24 dev wan"));
        ip(&format!("-n {nat} address add 10.0.0.1/24 dev lan"));
        ip(&format!("-n {client} address add 10.0.0.2/24 dev wan"));
        for device in ["wan", "lan"] {
            ip(&format!("-n {nat} link set {device} up"));
        }
        let nat = Nat(nat);
        nat.nft(RULES);
        nat.sysctl("net.ipv4.ip_forward", 1);
        nat.forget_after(new, used);
        nat
    }

    /// Other timeouts, in seconds, for mappings from their next packet on.
    pub(crate) fn forget_after(&self, new: u32, used: u32) {
        self.sysctl("net.netfilter.nf_conntrack_udp_timeout", new);
        self.sysctl("net.netfilter.nf_conntrack_udp_timeout_stream", used);
    }

    /// Forgets all mappings of UDP.
    pub(crate) fn flush(&self) {
        // It fails where there is none.
        let _ = self.command("conntrack").args(["-D", "-p", "udp"]).output();
    }

    /// Forgets a connection of TCP after so many seconds of silence, and drops in silence what belongs to none that it
    /// knows.
    pub(crate) fn keep_sessions_for(&self, seconds: u32) {
        self.sysctl("net.netfilter.nf_conntrack_tcp_timeout_established", seconds);
        self.drop_strays();
    }

    /// Forgets all connections of TCP, and from now on drops in silence what belongs to none it has seen begin.
    pub(crate) fn forget_sessions(&self) {
        self.drop_strays();
        let forgotten =
            self.command("conntrack").args(["-D", "-p", "tcp"]).output().expect("`conntrack` runs");
        assert!(forgotten.status.success(), "there was none: {forgotten:?}");
    }

    fn drop_strays(&self) {
        self.sysctl("net.netfilter.nf_conntrack_tcp_loose", 0);
        self.nft("add rule ip fault forward ct state invalid drop");
    }

    /// Gives mappings other public ports from now on than the client's own.
    pub(crate) fn shift_ports(&self) {
        self.nft(
            "table ip nat { chain shifted { type nat hook postrouting priority srcnat - 1; \
                  oifname wan ip protocol udp masquerade to :20000-30000 random; }; }",
        );
    }

    /// Drops UDP from the gateway to the client.
    pub(crate) fn block_inbound(&self) {
        self.nft("add rule ip fault forward iifname wan ip protocol udp drop");
    }

    /// Drops UDP both ways.
    pub(crate) fn block(&self) {
        self.nft("add rule ip fault forward ip protocol udp drop");
    }

    /// Drops what the gateway says of beats, and nothing of the tunnel's own.
    pub(crate) fn block_answers(&self) {
        self.nft("add rule ip fault forward iifname wan ip protocol udp @th,64,8 >= 0x80 drop");
    }

    /// Drops nothing any more.
    pub(crate) fn unblock(&self) {
        self.nft("flush chain ip fault forward");
    }

    fn sysctl(&self, name: &str, value: u32) {
        let status = self.command("sysctl").args(["-q", "-w", &format!("{name}={value}")]).status();
        assert!(status.expect("`sysctl` runs").success(), "{name}");
    }

    fn nft(&self, rules: &str) {
        let mut nft =
            self.command("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().expect("`nft` runs");
        nft.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
        assert!(nft.wait().unwrap().success(), "{rules}");
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.0.0, program]);
        command
    }
}
