//! A client's machine with files of its own: /etc, /usr and /run, with Debian packages in them.

#[path = "../../../e2e/src/host/floors.rs"]
pub(crate) mod floors;

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use floors::{FLOORS, package};

use super::{Lab, Output, PINHOLE, Running};

/// It ends with the value: what runs in it, and its mounts.
pub(crate) struct House<'a> {
    lab: &'a Lab,
    inhabitant: Running,
    _directory: tempfile::TempDir,
}

/// The files of a package and of all that it needs and this machine has not. `Err` says why they cannot be had.
pub(crate) fn package_and_needs(name: &str) -> Result<Vec<PathBuf>, String> {
    let script = r#"
list() { apt-get -s install --no-install-recommends "$1"; }
list "$1" || { apt-get -q update && list "$1"; }
"#;
    let output = Command::new("sh").args(["-c", script, "sh", name]).output();
    let output = output.map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
    }
    let told = String::from_utf8_lossy(&output.stdout);
    let names = told.lines().filter_map(|line| line.strip_prefix("Inst ")?.split(' ').next());
    names.map(package).collect()
}

impl<'a> House<'a> {
    /// In the client's network namespace, with the files of a package, and what this script does then; what it leaves running
    /// ends with the house.
    pub(crate) fn new(lab: &'a Lab, package: Option<&Path>, script: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (upper, none) = (directory.path().join("upper"), directory.path().join("none"));
        for path in [upper.clone(), none.join("etc"), none.join("usr")] {
            std::fs::create_dir_all(path).unwrap();
        }
        let script = format!("{FLOORS}{script}\necho ready\nexec sleep infinity");
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &lab.client.0, "unshare", "--mount", "--pid", "--fork"]);
        command.args(["--kill-child", "--propagation", "private", "sh", "-c", &script, "sh"]);
        command.arg(upper).arg(package.unwrap_or(&none));
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let inhabitant = Running(child);
        let ready = lines.any(|line| line.is_ok_and(|line| line == "ready"));
        assert!(ready, "the house stands");
        House { lab, inhabitant, _directory: directory }
    }

    fn enter(&self) -> Command {
        let mut command = Command::new("nsenter");
        let target = self.inhabitant.0.id().to_string();
        command.args(["--target", &target, "--mount", "--net", "--wd=/", "--"]);
        command
    }

    /// Runs the command in it.
    pub(crate) fn client(&self, arguments: &[&str], input: &str) -> Output {
        let mut command = self.enter();
        command.arg(PINHOLE).args(arguments);
        self.lab.run(command, input)
    }

    /// Runs a line of the shell in it. What it prints.
    pub(crate) fn sh(&self, line: &str) -> String {
        let output = self.enter().args(["sh", "-c", line]).output().unwrap();
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Begins to run a line of the shell in it.
    pub(crate) fn runs(&self, line: &str) -> Running {
        Running(self.enter().args(["sh", "-c", line]).spawn().unwrap())
    }

    /// What programs there read of name servers.
    pub(crate) fn resolv_conf(&self) -> String {
        self.sh("cat /etc/resolv.conf")
    }
}
