//! Writes the custom resource definitions as YAML: `crdgen DIR` to write the files, `crdgen --check DIR` to fail
//! when they differ from the types.

use std::{env, fs, path::Path, process::ExitCode};

use anyhow::{Context as _, bail};

fn main() -> ExitCode {
    match run(&env::args().skip(1).collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("crdgen: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String]) -> anyhow::Result<()> {
    let (check, dir) = match args {
        [flag, dir] if flag == "--check" => (true, dir),
        [dir] => (false, dir),
        _ => bail!("usage: crdgen [--check] DIR"),
    };
    let mut stale = Vec::new();
    for value in pinhole_crds::definitions().context("serialising the definitions")? {
        let plural = value.pointer("/spec/names/plural").and_then(|plural| plural.as_str());
        let path = Path::new(dir).join(format!("{}.yaml", plural.context("a definition without a plural")?));
        let yaml =
            format!("# Made by crdgen from crds/src; do not edit.\n{}", serde_yaml::to_string(&value)?);
        if !check {
            fs::write(&path, yaml).with_context(|| format!("writing {}", path.display()))?;
        } else if fs::read_to_string(&path).ok().as_deref() != Some(&yaml) {
            stale.push(path.display().to_string());
        }
    }
    if stale.is_empty() {
        Ok(())
    } else {
        bail!("{} differ from the types: run `make crds`", stale.join(", "))
    }
}
