//! A second VPN on the client's machine, whose other end is beside the gateway.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use pinhole_agent::tunnel::PrivateKey;

use super::{Lab, Namespace, PINHOLE, Running, eventually, ip};

/// Another tunnel than Pinhole's. It ends with the value.
pub(crate) struct SecondVpn {
    name: String,
    _ends: [Running; 2],
}

const MARK: &str = "51820";
const PORT: &str = "51999";

impl SecondVpn {
    /// With a device of this name on the client's machine, and the mark of its own packets, but nothing that leads into it yet.
    pub(crate) fn new(lab: &Lab, name: &str) -> Self {
        let there = format!("{name}-far");
        let [near_key, far_key] = [(); 2].map(|()| PrivateKey::generate().unwrap());
        let ends = [(&lab.client, name), (&lab.gateway, there.as_str())].map(|(namespace, name)| {
            let mut wg = Command::new("ip");
            wg.args(["netns", "exec", &namespace.0, PINHOLE, "wg", "-f", name]).stdin(Stdio::null());
            Running(wg.spawn().expect("`pinhole wg` runs"))
        });
        let endpoint = format!("192.0.2.1:{PORT}");
        let far = far_key.public().to_string();
        lab.set(
            name,
            &near_key,
            &["fwmark", MARK, "peer", &far, "endpoint", &endpoint, "allowed-ips", "0.0.0.0/0"],
        );
        let near = near_key.public().to_string();
        lab.set(&there, &far_key, &["listen-port", PORT, "peer", &near, "allowed-ips", "10.8.0.2/32"]);
        dress(&lab.client, name, "10.8.0.2/32");
        dress(&lab.gateway, &there, "10.8.0.1/24");
        Self { name: name.to_owned(), _ends: ends }
    }

    /// Has it take everything, as `wg-quick up` does.
    pub(crate) fn cover(&self, lab: &Lab) {
        self.lines("add").iter().for_each(|line| ip(&format!("-n {} {line}", lab.client)));
    }

    /// The same of `wg-quick down`.
    pub(crate) fn uncover(&self, lab: &Lab) {
        self.lines("delete").iter().for_each(|line| ip(&format!("-n {} {line}", lab.client)));
    }

    fn lines(&self, verb: &str) -> [String; 3] {
        [
            format!("route {verb} 0.0.0.0/0 dev {} table {MARK}", self.name),
            format!("rule {verb} not fwmark {MARK} table {MARK}"),
            format!("rule {verb} table main suppress_prefixlength 0"),
        ]
    }

    pub(crate) fn device(&self) -> &str {
        &self.name
    }
}

fn dress(namespace: &Namespace, device: &str, address: &str) {
    ip(&format!("-n {namespace} address add {address} dev {device}"));
    ip(&format!("-n {namespace} link set {device} up mtu 1420"));
}

impl Lab {
    fn set(&self, device: &str, key: &PrivateKey, words: &[&str]) {
        let file = self.path(device);
        std::fs::write(&file, key.to_base64().as_bytes()).unwrap();
        eventually(Duration::from_secs(10), "`wg` sets it up", || {
            let set = Command::new("wg").args(["set", device, "private-key"]).arg(&file).args(words).output();
            set.expect("`wg` runs").status.success()
        });
    }
}
