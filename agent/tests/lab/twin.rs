//! A second machine with the client's key, in a network of its own.

use std::process::Command;

use pinhole_agent::tunnel::PrivateKey;

use super::{Lab, Namespace, Output, PINHOLE, Pings, Running, Stock, ip};

const STATE: &str = "twin";

/// It goes before the lab.
pub(crate) struct Twin<'a> {
    lab: &'a Lab,
    namespace: Namespace,
}

impl<'a> Twin<'a> {
    /// At 192.0.3.2, with a copy of all that the client keeps, as an image of its disk has it.
    pub(crate) fn of(lab: &'a Lab) -> Self {
        let namespace = Namespace::new(format!("{}t", lab.client));
        ip(&format!("-n {} link add twin type veth peer name wan netns {namespace}", lab.gateway));
        ip(&format!("-n {} address add 192.0.3.1/24 dev twin", lab.gateway));
        ip(&format!("-n {} link set twin up", lab.gateway));
        ip(&format!("-n {namespace} address add 192.0.3.2/24 dev wan"));
        ip(&format!("-n {namespace} link set wan up"));
        ip(&format!("-n {namespace} route add default via 192.0.3.1"));
        let (from, to) = (lab.path("client/pinhole0"), lab.path(STATE).join("pinhole0"));
        std::fs::create_dir_all(&to).unwrap();
        for file in std::fs::read_dir(from).into_iter().flatten().map(Result::unwrap) {
            if file.file_type().unwrap().is_file() {
                std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
            }
        }
        Twin { lab, namespace }
    }

    /// Runs the command there.
    pub(crate) fn client(&self, arguments: &[&str], input: &str) -> Output {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace.0, PINHOLE]).args(arguments);
        self.lab.run_on(STATE, command, input)
    }

    /// Begins to ping from there, every 20 ms.
    pub(crate) fn steady_pings(&self, address: &str, count: u32) -> Pings {
        Pings::begin(&self.namespace, address, count)
    }

    /// One stock configuration on both machines, the client's and this one.
    pub(crate) fn stock_on_both(&self, names: [&str; 2], stock: &Stock<'_>) -> [Running; 2] {
        let key = PrivateKey::generate().unwrap();
        let [first, second] = names;
        self.lab.operator.add_stock("laptop", key.public().as_bytes(), stock.addresses);
        let one = self.lab.stock_of(&key, &self.lab.client, first, stock);
        [one, self.lab.stock_of(&key, &self.namespace, second, stock)]
    }
}

impl Drop for Twin<'_> {
    fn drop(&mut self) {
        let _ = self.client(&["down"], "");
    }
}
