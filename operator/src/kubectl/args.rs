//! The command line of `kubectl pinhole`.

use std::{net::IpAddr, path::PathBuf};

use clap::{Parser, Subcommand, ValueEnum};

/// Clients, join tokens and configurations of Pinhole VPN gateways.
#[derive(Debug, Parser)]
#[command(name = "kubectl pinhole", bin_name = "kubectl pinhole", version, disable_help_subcommand = true)]
pub struct Args {
    /// Kubeconfig file, in place of $KUBECONFIG and ~/.kube/config.
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig, in place of the current one.
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
    /// Namespace, in place of the context's.
    #[arg(long, short, global = true, value_name = "NAME")]
    pub namespace: Option<String>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print the wg-quick configuration of a stock WireGuard client. It holds the client's private key.
    Config {
        /// Name of the VPNClient.
        name: String,
        /// As a QR code in the terminal, for the WireGuard app of a phone.
        #[arg(long)]
        qr: bool,
    },
    /// Who is up, from where, on which keepalive, and how often its mapping moved.
    #[command(visible_alias = "status")]
    Clients {
        /// Clients of all namespaces.
        #[arg(long, short = 'A', conflicts_with = "namespace")]
        all_namespaces: bool,
        /// Clients of this pool only.
        #[arg(long, value_name = "NAME")]
        pool: Option<String>,
        /// How to print.
        #[arg(long, short, default_value = "table")]
        output: Output,
    },
    /// What NATs clients are behind, how long those keep mappings, on which keepalive, and what moved last and why.
    Nat {
        /// Clients of all namespaces.
        #[arg(long, short = 'A', conflicts_with = "namespace")]
        all_namespaces: bool,
        /// Clients of this pool only.
        #[arg(long, value_name = "NAME")]
        pool: Option<String>,
        /// Group by public address: every client behind it, with its port.
        #[arg(long)]
        by_address: bool,
        /// How to print.
        #[arg(long, short, default_value = "table")]
        output: Output,
    },
    /// List the clients that come from one public address.
    Peers {
        /// The public address, as gateways see it.
        #[arg(long, value_name = "IP")]
        behind: IpAddr,
        /// Clients of all namespaces.
        #[arg(long, short = 'A', conflicts_with = "namespace")]
        all_namespaces: bool,
        /// How to print.
        #[arg(long, short, default_value = "table")]
        output: Output,
    },
    /// Print the join string of a pool's token, for `pinhole up`. Whoever has it can join.
    Token {
        /// Name of the VPNClientPool.
        pool: String,
        /// Name of the token in the pool.
        name: String,
    },
    /// Cut a client off; it keeps its address and keys.
    Suspend {
        /// Name of the VPNClient.
        name: String,
    },
    /// Let a suspended client connect again.
    Resume {
        /// Name of the VPNClient.
        name: String,
    },
}

/// How lists are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// The same, for programs.
    Json,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn flags_are_taken_after_the_command_as_kubectl_users_write_them() {
        let args = Args::try_parse_from(["kubectl-pinhole", "config", "phone", "-n", "vpn", "--qr"]).unwrap();
        assert_eq!(args.namespace.as_deref(), Some("vpn"));
        assert!(matches!(args.command, Command::Config { name, qr: true } if name == "phone"));
        let args = Args::try_parse_from(["kubectl-pinhole", "status", "-A", "-o", "json"]).unwrap();
        assert!(matches!(args.command, Command::Clients { all_namespaces: true, output: Output::Json, .. }));
    }

    #[test]
    fn nats_are_listed_by_client_or_by_address() {
        let args = ["kubectl-pinhole", "nat", "--pool", "staff", "--by-address", "-o", "json"];
        let args = Args::try_parse_from(args).unwrap();
        let Command::Nat { pool, by_address: true, output: Output::Json, .. } = args.command else {
            panic!("{args:?}")
        };
        assert_eq!(pool.as_deref(), Some("staff"));
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for line in [
            vec!["kubectl-pinhole"],
            vec!["kubectl-pinhole", "peers"],
            vec!["kubectl-pinhole", "peers", "--behind", "example.com"],
            vec!["kubectl-pinhole", "clients", "-A", "-n", "vpn"],
        ] {
            assert!(Args::try_parse_from(&line).is_err(), "{line:?}");
        }
    }
}
