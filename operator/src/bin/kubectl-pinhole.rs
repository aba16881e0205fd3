//! The kubectl plugin: `kubectl pinhole`.

use std::process::ExitCode;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        eprintln!("kubectl pinhole: the TLS provider was set already");
        return ExitCode::FAILURE;
    }
    ExitCode::from(pinhole_operator::kubectl::run().await)
}
