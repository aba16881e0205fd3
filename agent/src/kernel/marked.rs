//! Has the answers to the tunnel's own packets bear the tunnel's mark, by an nftables table of our own.

use super::{
    KernelError,
    nftables::{self, Chain, Hook, Is, Written},
};

/// `NF_INET_PRE_ROUTING` and `NF_INET_LOCAL_OUT` at `NF_IP_PRI_MANGLE`: after connections are known, before a way is chosen.
const IN: Hook = Hook { number: 0, priority: -150, kind: "filter" };
const OUT: Hook = Hook { number: 3, priority: -150, kind: "filter" };
const VALID_MARK: &str = "/proc/sys/net/ipv4/conf/all/src_valid_mark";

/// A host that is strict about the way back (`rp_filter=1`, RFC 3704) drops what comes in by another device than an answer would
/// leave by. With a full tunnel that is every packet of the gateway's, unless it is looked up with the mark that the
/// tunnel's own packets have. The connection remembers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MarkedAnswers {
    /// Name of the nftables table, of family `inet`.
    pub table: String,
    /// The mark.
    pub fwmark: u32,
    /// The tunnel's device, whose packets are never the tunnel's own.
    pub tunnel_device: String,
}

/// Has marks count for the way back (`src_valid_mark`), as [`MarkedAnswers`] needs it. It stays so.
pub fn let_marks_count() -> Result<(), KernelError> {
    let what = "have marks count for the way back (set the sysctl net.ipv4.conf.all.src_valid_mark=1)";
    if std::fs::read_to_string(VALID_MARK).is_ok_and(|value| value.trim() != "1") {
        std::fs::write(VALID_MARK, "1")
            .map_err(|source| KernelError::Refused { what: what.to_owned(), source })?;
    }
    Ok(())
}

impl MarkedAnswers {
    /// Makes the table exactly this, in one step.
    pub fn install(&self) -> Result<Written, KernelError> {
        let out = [&Vec::from(nftables::mark_is(self.fwmark))[..], &nftables::remember_mark()].concat();
        let mut back = Vec::from(nftables::input_device(Is::Not, &self.tunnel_device));
        back.extend(nftables::remembered_mark_is(self.fwmark));
        back.push(nftables::mark_as_compared());
        let chains = [
            Chain { name: "output", hook: OUT, rules: vec![out] },
            Chain { name: "prerouting", hook: IN, rules: vec![back] },
        ];
        nftables::write("mark the answers to the tunnel's packets (nftables)", &self.table, &chains)
    }

    /// Removes the table. One that is gone already is no error.
    pub fn remove(&self) -> Result<(), KernelError> {
        nftables::remove("remove what marks answers (nftables)", &self.table)
    }
}
