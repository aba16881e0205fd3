//! Where the table is shown: in place on a terminal, line by line anywhere else.

use std::{
    io::{IsTerminal, Write},
    time::Duration,
};

use super::{
    table::{Changes, Style, frame, redraw},
    view::Client,
};

/// The audience's side.
pub(crate) struct Screen {
    out: Box<dyn Write + Send>,
    style: Style,
    /// How many lines the picture has, where there is one.
    live: Option<usize>,
    changes: Changes,
}

impl Screen {
    /// Standard output, or standard error when the output is for a machine.
    pub(crate) fn open(to_stderr: bool) -> Self {
        let (out, terminal): (Box<dyn Write + Send>, bool) = if to_stderr {
            (Box::new(std::io::stderr()), std::io::stderr().is_terminal())
        } else {
            (Box::new(std::io::stdout()), std::io::stdout().is_terminal())
        };
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let terminal = terminal && !dumb;
        Self {
            out,
            style: Style { colour: terminal && !plain },
            live: terminal.then_some(0),
            changes: Changes::default(),
        }
    }

    /// How to paint.
    pub(crate) fn style(&self) -> Style {
        self.style
    }

    /// Shows where everything stands.
    pub(crate) fn show(&mut self, title: &str, clients: &[Client], now: Duration) {
        if let Some(height) = self.live {
            let lines = frame(title, clients, now, self.style);
            self.live = Some(lines.len());
            self.put(&redraw(height, &lines));
            return;
        }
        let lines = self.changes.since_last(title, clients, now);
        if !lines.is_empty() {
            self.say(&lines);
        }
    }

    /// Shows lines that stay.
    pub(crate) fn say(&mut self, lines: &[String]) {
        self.put(&(lines.join("\n") + "\n"));
    }

    fn put(&mut self, text: &str) {
        // An audience that went away is no reason to leave the stage in a mess.
        let _ = self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush());
    }
}
