//! Tells the person in front of the terminal what takes time.

use std::{
    future::Future,
    io::{IsTerminal, Write},
    time::{Duration, Instant},
};

use crate::error::Result;

/// Steps shorter than this are not worth a line.
const QUIET: Duration = Duration::from_secs(2);
/// A running step is mentioned again this often.
const REPEAT: Duration = Duration::from_secs(20);

/// Runs one step and shows it on standard error once it takes longer than two seconds.
pub async fn step<T>(name: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    let begun = Instant::now();
    let mut work = std::pin::pin!(work);
    let mut next = QUIET;
    loop {
        tokio::select! {
            outcome = &mut work => {
                if begun.elapsed() >= QUIET {
                    let mark = if outcome.is_ok() { Mark::Done } else { Mark::Failed };
                    line(mark, name, begun.elapsed());
                }
                return outcome;
            }
            () = tokio::time::sleep_until((begun + next).into()) => {
                line(Mark::Running, name, begun.elapsed());
                next += REPEAT;
            }
        }
    }
}

/// Shows one line of news on standard error.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

#[derive(Clone, Copy)]
enum Mark {
    Running,
    Done,
    Failed,
}

fn line(mark: Mark, name: &str, elapsed: Duration) {
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    say(&render(mark, name, elapsed, colour));
}

fn render(mark: Mark, name: &str, elapsed: Duration, colour: bool) -> String {
    let (sign, code) = match mark {
        Mark::Running => ("..", "2"),
        Mark::Done => ("ok", "32"),
        Mark::Failed => ("!!", "31"),
    };
    let seconds = elapsed.as_secs_f32();
    if colour {
        format!("\x1b[{code}m{sign}\x1b[0m {seconds:6.1} s  {name}")
    } else {
        format!("{sign} {seconds:6.1} s  {name}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_no_escape_codes_off_a_terminal() {
        assert_eq!(
            render(Mark::Done, "the API server is ready", Duration::from_millis(7300), false),
            "ok    7.3 s  the API server is ready"
        );
        assert!(render(Mark::Failed, "x", Duration::ZERO, true).contains("\x1b[31m"));
    }
}
