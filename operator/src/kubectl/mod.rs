//! `kubectl pinhole`: what a person asks of a cluster with Pinhole. The binary `kubectl-pinhole` on the PATH makes
//! it a kubectl command.

mod args;
mod client_row;
mod cluster;
mod commands;
mod error;
mod nat_row;
mod qr;
mod table;

use clap::Parser as _;

use pinhole_proto::printable;

pub use args::Args;
pub use error::PluginError;

/// Longest error that is printed, characters.
const ERROR: usize = 4096;

/// Runs the command that the process was given, writes its output, and returns the exit code: 0 done, 1 the
/// cluster refused or cannot be reached, 2 the command line is wrong, 3 no such object, 4 not there yet.
pub async fn run() -> u8 {
    let args = Args::parse();
    match commands::run(args).await {
        Ok(output) => {
            print_out(&output);
            0
        }
        Err(error) => {
            eprintln!("kubectl pinhole: {}", printable(&error.to_string(), ERROR));
            error.exit_code()
        }
    }
}

fn print_out(output: &str) {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    // Whoever reads may have seen enough, as `head` does.
    let _ = out.write_all(output.as_bytes()).and_then(|()| out.flush());
}
