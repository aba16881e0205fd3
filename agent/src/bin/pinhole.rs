//! The `pinhole` command.

fn main() -> std::process::ExitCode {
    pinhole_agent::cli::main()
}
