//! What a process has used.

use std::time::Duration;

use crate::error::{Doing, Error, Result};

/// What a process has used since it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Usage {
    /// User and system time of all its threads.
    pub(crate) cpu: Duration,
    /// Memory in use now, in bytes.
    pub(crate) resident: u64,
}

/// Of one process, its threads and those that ended.
pub(crate) fn of(pid: i32) -> Result<Usage> {
    let read = |name: &str| {
        let path = format!("/proc/{pid}/{name}");
        std::fs::read_to_string(&path).doing(|| format!("reading {path}"))
    };
    let odd = || Error::Invalid(format!("/proc/{pid} is not as expected"));
    let cpu = cpu(&read("stat")?).ok_or_else(odd)?;
    let resident = resident(&read("status")?).ok_or_else(odd)?;
    Ok(Usage { cpu, resident })
}

/// Fields 14 and 15 of proc_pid_stat(5), in ticks of USER_HZ, which is 100 wherever Linux runs.
fn cpu(stat: &str) -> Option<Duration> {
    // The name of the program may hold anything, but ends with the last parenthesis.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let ticks: u64 = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    Some(Duration::from_millis(ticks * 10))
}

fn resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_behind_any_name() {
        let stat = "12 (a ) b) S 1 2 3 4 5 6 7 8 9 10 150 25 0 0 20 0 1";
        assert_eq!(cpu(stat), Some(Duration::from_millis(1750)));
        assert_eq!(cpu("12 (short) S 1"), None);
    }

    #[test]
    fn this_process_uses_memory() {
        let usage = of(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(usage.resident > 1 << 20);
    }
}
