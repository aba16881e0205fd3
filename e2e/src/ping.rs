//! What `ping` prints.

use std::time::Duration;

/// The milliseconds in a line that tells of an answer. `None`: it is another line.
pub fn milliseconds(line: &str) -> Option<f64> {
    let (_, rest) = line.contains("bytes from").then(|| line.split_once("time="))??;
    let (number, unit) = rest.split_once(' ')?;
    if unit.trim() == "ms" { number.parse().ok() } else { None }
}

/// The round trip of the first answer.
pub fn round_trip(said: &str) -> Option<Duration> {
    said.lines().find_map(answered)
}

/// The round trip of the answer to the ping of this number.
pub fn round_trip_of(said: &str, seq: u32) -> Option<Duration> {
    let seq = format!("icmp_seq={seq} ");
    said.lines().filter(|line| line.contains(&seq)).find_map(answered)
}

fn answered(line: &str) -> Option<Duration> {
    Duration::try_from_secs_f64(milliseconds(line)? / 1000.0).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_round_trip_is_read_from_an_answer_and_nothing_else() {
        let said = "PING 10.0.0.1 (10.0.0.1) 56(84) bytes of data.\n64 bytes from 10.0.0.1: icmp_seq=1 ttl=63 time=0.842 ms\n";
        assert_eq!(round_trip(said), Some(Duration::from_micros(842)));
        let lost =
            "PING 10.0.0.1 (10.0.0.1) 56(84) bytes of data.\n\n1 packets transmitted, 0 received, time 0ms\n";
        assert_eq!(round_trip(lost), None);
        assert_eq!(round_trip("64 bytes from 10.0.0.1: icmp_seq=1 ttl=63 time=-1 ms"), None);
    }

    #[test]
    fn times_of_pings_are_read() {
        assert_eq!(milliseconds("64 bytes from 10.9.0.2: icmp_seq=1 ttl=64 time=0.123 ms"), Some(0.123));
        assert_eq!(milliseconds("--- 10.9.0.2 ping statistics ---"), None);
    }

    #[test]
    fn the_first_ping_is_told_from_the_second() {
        let said = "64 bytes from 10.1.0.2: icmp_seq=1 ttl=64 time=22.5 ms\n64 bytes from 10.1.0.2: icmp_seq=2 ttl=64 time=10 ms\n";
        assert_eq!(round_trip_of(said, 1), Some(Duration::from_micros(22_500)));
        assert_eq!(round_trip_of(said, 2), Some(Duration::from_millis(10)));
        assert_eq!(round_trip_of("2 packets transmitted, 0 received", 1), None);
    }
}
