//! Stacks, summed up by where their time is spent.

use std::collections::BTreeMap;

use serde::Serialize;

/// Where time is spent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Place {
    Sendmsg,
    Recvmmsg,
    Read,
    Write,
    Epoll,
    Kernel,
    Seal,
    Open,
    Boringtun,
    Segments,
    Tunnel,
    Rest,
}

impl Place {
    pub(super) const ALL: [Self; 12] = [
        Self::Sendmsg,
        Self::Recvmmsg,
        Self::Read,
        Self::Write,
        Self::Epoll,
        Self::Kernel,
        Self::Seal,
        Self::Open,
        Self::Boringtun,
        Self::Segments,
        Self::Tunnel,
        Self::Rest,
    ];

    pub(super) const fn title(self) -> &'static str {
        match self {
            Self::Sendmsg => "kernel: sendmsg (UDP out)",
            Self::Recvmmsg => "kernel: recvmmsg (UDP in)",
            Self::Read => "kernel: read (TUN in)",
            Self::Write => "kernel: write (TUN out)",
            Self::Epoll => "kernel: epoll_wait",
            Self::Kernel => "kernel: other calls",
            Self::Seal => "ring: seal",
            Self::Open => "ring: open",
            Self::Boringtun => "boringtun, without ring",
            Self::Segments => "splitting, merging, checksums",
            Self::Tunnel => "rest of the tunnel",
            Self::Rest => "rest",
        }
    }

    /// Of a stack, innermost first: what the first known name says.
    fn of<'a>(mut frames: impl Iterator<Item = &'a str>) -> Self {
        frames.find_map(|name| Self::of_call(name).or_else(|| Self::of_function(name))).unwrap_or(Self::Rest)
    }

    /// The C library's wrapper of a system call, such as `__GI___libc_read`: its own instructions are but a few.
    fn of_call(name: &str) -> Option<Self> {
        let name = name.trim_start_matches('_').trim_start_matches("GI_");
        let name = name.trim_start_matches('_').trim_start_matches("libc_");
        match name.trim_start_matches('_').trim_end_matches("_syscall") {
            "sendmsg" | "sendto" => Some(Self::Sendmsg),
            "recvmmsg" => Some(Self::Recvmmsg),
            "read" => Some(Self::Read),
            "write" => Some(Self::Write),
            "epoll_wait" | "epoll_pwait" => Some(Self::Epoll),
            "syscall" | "ioctl" | "recvmsg" | "poll" | "futex" => Some(Self::Kernel),
            _ => None,
        }
    }

    fn of_function(name: &str) -> Option<Self> {
        const OURS: &str = "pinhole_agent::tunnel::";
        if name.contains("chacha20_poly1305_seal") || name.contains("LessSafeKey::seal") {
            Some(Self::Seal)
        } else if name.contains("chacha20_poly1305_open") || name.contains("LessSafeKey::open") {
            Some(Self::Open)
        } else if name.contains("boringtun::") {
            Some(Self::Boringtun)
        } else if ["segments", "coalesce", "checksum", "virtio"]
            .iter()
            .any(|room| name.contains(&format!("{OURS}{room}::")))
        {
            Some(Self::Segments)
        } else {
            name.contains(OURS).then_some(Self::Tunnel)
        }
    }
}

/// Samples at each place.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub(super) struct Shares(BTreeMap<Place, u64>);

impl Shares {
    /// Of lines `thread;outermost;…;innermost count`; what is no such line counts nothing.
    pub(super) fn of(stacks: &str) -> Self {
        let mut shares = Self::default();
        for (stack, count) in stacks.lines().filter_map(|line| line.rsplit_once(' ')) {
            let Ok(count) = count.parse::<u64>() else { continue };
            // The thread's name comes first.
            let place = Place::of(stack.split(';').skip(1).collect::<Vec<_>>().into_iter().rev());
            *shares.0.entry(place).or_default() += count;
        }
        shares
    }

    pub(super) fn samples(&self) -> u64 {
        self.0.values().sum()
    }

    #[expect(clippy::cast_precision_loss, reason = "some thousand samples")]
    pub(super) fn percent(&self, place: Place) -> f64 {
        let samples = self.0.get(&place).copied().unwrap_or_default();
        100.0 * samples as f64 / self.samples().max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_where_the_innermost_known_name_is() {
        let tunnel = "pinhole_agent::tunnel::driver::Driver::run";
        let boringtun = "boringtun::noise::session::Session::format_packet_data";
        let ours = "<pinhole_agent::tunnel::segments::Segments>::next";
        for (stack, place) in [
            (vec![tunnel, "__libc_sendmsg"], Place::Sendmsg),
            (vec![tunnel, "std::fs::read", "__GI___libc_read", "__GI___libc_read"], Place::Read),
            (vec![tunnel, "recvmmsg", "recvmmsg_syscall"], Place::Recvmmsg),
            (vec![tunnel, boringtun, "ring_core_0_17_14__chacha20_poly1305_seal_avx2"], Place::Seal),
            (vec![tunnel, boringtun, "ring_core_0_17_14__chacha20_poly1305_open_avx2"], Place::Open),
            (vec![tunnel, boringtun, "__memcpy_avx512_unaligned_erms"], Place::Boringtun),
            (vec![tunnel, ours, "core::iter::fold"], Place::Segments),
            (vec![tunnel, "std::time::Instant::now", "clock_gettime"], Place::Tunnel),
            (vec!["tokio::runtime::park", "epoll_wait"], Place::Epoll),
            (vec!["tokio::runtime::park"], Place::Rest),
        ] {
            let line = format!("thread;{} 3\n", stack.join(";"));
            assert_eq!(Shares::of(&line), Shares([(place, 3)].into()), "{stack:?}");
        }
    }

    #[test]
    fn shares_are_of_all_samples() {
        let shares = Shares::of("t;a;__read 30\nt;a;b 10\nt;c;__GI___write 0\nno stack\n");
        assert_eq!(shares.samples(), 40);
        let percents =
            [Place::Read, Place::Rest, Place::Write, Place::Seal].map(|place| shares.percent(place));
        assert!(percents.iter().zip([75.0, 25.0, 0.0, 0.0]).all(|(is, want)| (is - want).abs() < 1e-9));
        assert!(Shares::of("").percent(Place::Rest).abs() < 1e-9);
    }
}
