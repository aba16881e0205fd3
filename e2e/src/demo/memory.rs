//! How much memory the processes of our pods take, from this machine's `/proc`.

use std::path::Path;

/// Resident memory in bytes of a pod's process, by the name of its program and the pod's name in its
/// environment. None when the pod runs on another machine.
pub(crate) fn of_pod(program: &str, namespace: &str, pod: &str) -> Option<u64> {
    let entries = std::fs::read_dir("/proc").ok()?;
    let found = entries.flatten().map(|entry| entry.path()).find(|process| {
        let read = |file: &str| std::fs::read(process.join(file)).unwrap_or_default();
        runs(&read("cmdline"), program)
            && has(&read("environ"), "POD_NAME", pod)
            && has(&read("environ"), "POD_NAMESPACE", namespace)
    })?;
    resident(&std::fs::read_to_string(found.join("status")).ok()?)
}

fn runs(command_line: &[u8], program: &str) -> bool {
    let first = command_line.split(|byte| *byte == 0).next().unwrap_or_default();
    let first = String::from_utf8_lossy(first);
    Path::new(first.as_ref()).file_name().is_some_and(|name| name == program)
}

fn has(environment: &[u8], name: &str, value: &str) -> bool {
    let wanted = format!("{name}={value}");
    environment.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes())
}

/// `VmRSS` of a process's status (proc_pid_status(5): in units of 1024 bytes).
fn resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let number: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    number.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_program_and_its_pod() {
        assert!(runs(b"/pinhole\0gateway\0", "pinhole"));
        assert!(!runs(b"/pinhole-operator\0", "pinhole"));
        assert!(!runs(b"", "pinhole"));
        assert!(has(b"A=b\0POD_NAME=edge-0\0", "POD_NAME", "edge-0"));
        assert!(!has(b"A=b\0POD_NAME=edge-01\0", "POD_NAME", "edge-0"));
    }

    #[test]
    fn resident_memory_is_read_in_bytes() {
        assert_eq!(resident("Name:\tx\nVmHWM:\t 9 kB\nVmRSS:\t   18240 kB\n"), Some(18_677_760));
        assert_eq!(resident("Name:\tx\n"), None);
    }

    #[test]
    fn the_memory_of_this_very_process_can_be_read() {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        assert!(resident(&status).unwrap() > 100_000);
    }
}
