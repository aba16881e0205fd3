//! Programs written in Go, built from pinned modules into a cache outside of the tree.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    error::{Doing, Error, Result},
    process::Command,
    progress,
    setup::{Lock, cache_dir, crate_dir, sha256_hex},
};

/// A module below `e2e/tools`, and what is built from it.
struct Module {
    dir: &'static str,
    programs: &'static [(&'static str, &'static str)],
    /// Variables the linker stamps with the version of `version_of`.
    stamps: &'static [&'static str],
    version_of: &'static str,
}

const MODULES: &[Module] = &[
    Module {
        dir: "etcd",
        programs: &[("etcd", "go.etcd.io/etcd/server/v3")],
        stamps: &[],
        version_of: "go.etcd.io/etcd/server/v3",
    },
    Module {
        dir: "kubernetes",
        programs: &[
            ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
            ("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager"),
            ("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
            ("kubelet", "k8s.io/kubernetes/cmd/kubelet"),
            ("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy"),
            ("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
        ],
        // Without them every component believes it is v0.0.0.
        stamps: &["k8s.io/component-base/version.gitVersion", "k8s.io/client-go/pkg/version.gitVersion"],
        version_of: "k8s.io/kubernetes",
    },
    Module {
        dir: "coredns",
        // With few plugins, as the folder's own main has it.
        programs: &[("coredns", ".")],
        stamps: &[],
        version_of: "github.com/coredns/coredns",
    },
    Module {
        dir: "helm",
        programs: &[("helm", "helm.sh/helm/v4/cmd/helm")],
        stamps: &["helm.sh/helm/v4/internal/version.version"],
        version_of: "helm.sh/helm/v4",
    },
    Module {
        dir: "wireguard-go",
        programs: &[("wireguard-go", "golang.zx2c4.com/wireguard")],
        stamps: &[],
        version_of: "golang.zx2c4.com/wireguard",
    },
];

const FLAGS: &[&str] = &["-trimpath", "-buildvcs=false", "-mod=readonly"];

/// The built programs.
#[derive(Debug, Clone)]
pub struct Tools {
    programs: Vec<(&'static str, PathBuf)>,
}

impl Tools {
    /// Builds what the cache does not hold. The first time this takes about ten minutes on two cores.
    ///
    /// # Errors
    /// When Go is missing or a build fails.
    pub async fn build() -> Result<Self> {
        Self::build_of(|_| true).await
    }

    /// The same for the programs of one module, named by its directory.
    ///
    /// # Errors
    /// When Go is missing or a build fails.
    pub async fn build_module(directory: &str) -> Result<Self> {
        Self::build_of(|module| module.dir == directory).await
    }

    async fn build_of(is_wanted: impl Fn(&Module) -> bool) -> Result<Self> {
        let cache = cache_dir()?.join("tools");
        let mut tools = Self { programs: Vec::new() };
        let mut missing = Vec::new();
        for module in MODULES.iter().filter(|module| is_wanted(module)) {
            let plan = Arc::new(Plan::read(module)?);
            let bin = cache.join(format!("{}-{}", module.dir, plan.key)).join("bin");
            for (name, package) in module.programs {
                let program = bin.join(name);
                if !program.exists() {
                    missing.push((Arc::clone(&plan), *package, program.clone()));
                }
                tools.programs.push((name, program));
            }
        }
        if !missing.is_empty() {
            let _lock = Lock::take(&cache.join("lock"), "building Go programs").await?;
            build(missing).await?;
        }
        Ok(tools)
    }

    /// Path of a program, such as `kubectl`.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn path(&self, name: &str) -> Result<&Path> {
        let found = self.programs.iter().find(|(known, _)| *known == name);
        found
            .map(|(_, path)| path.as_path())
            .ok_or_else(|| Error::Invalid(format!("the lab builds no tool named {name}")))
    }

    /// A command that runs a program.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn command(&self, name: &str) -> Result<Command> {
        Ok(Command::new(self.path(name)?))
    }

    /// Names and paths of all of them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Path)> {
        self.programs.iter().map(|(name, path)| (*name, path.as_path()))
    }
}

/// Builds what nobody else has built meanwhile, and downloads what later ones need while the processor is busy with the first.
async fn build(mut missing: Vec<(Arc<Plan>, &str, PathBuf)>) -> Result<()> {
    missing.retain(|(_, _, program)| !program.exists());
    let mut folders: Vec<PathBuf> = missing.iter().map(|(plan, ..)| plan.dir.clone()).collect();
    folders.dedup();
    let downloads = tokio::spawn(async move {
        for folder in folders.into_iter().skip(1) {
            // What fails here is downloaded again, and told, by the build.
            let _ =
                Command::new("go").args(["mod", "download"]).env_remove("GOFLAGS").dir(&folder).run().await;
        }
    });
    let of = missing.len();
    for (n, (plan, package, program)) in missing.iter().enumerate() {
        plan.build(package, program, &format!("{} of {of}, kept for next time", n + 1)).await?;
    }
    downloads.abort();
    Ok(())
}

struct Plan {
    dir: PathBuf,
    key: String,
    linker_flags: String,
}

impl Plan {
    fn read(module: &Module) -> Result<Self> {
        let dir = crate_dir().join("tools").join(module.dir);
        let read = |name: &str| {
            let path = dir.join(name);
            std::fs::read_to_string(&path).doing(|| format!("reading {}", path.display()))
        };
        let (requirements, sums) = (read("go.mod")?, read("go.sum")?);
        let has_main = module.programs.iter().any(|(_, package)| *package == ".");
        let main = if has_main { Some(read("main.go")?) } else { None };
        let version = required_version(&requirements, module.version_of).ok_or_else(|| {
            Error::Invalid(format!("{}/go.mod does not require {}", dir.display(), module.version_of))
        })?;
        let linker_flags = linker_flags(module, version);
        let flags = FLAGS.join(" ");
        let inputs = [&requirements, &sums, &linker_flags, &flags, std::env::consts::ARCH].into_iter();
        let inputs: Vec<&str> = inputs.chain(main.as_deref()).collect();
        let mut key = sha256_hex(inputs.join("\n").as_bytes());
        key.truncate(16);
        Ok(Self { dir, key, linker_flags })
    }

    async fn build(&self, package: &str, program: &Path, which: &str) -> Result<()> {
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        let part = program.with_extension("part");
        let build = Command::new("go")
            .args(["build", "-p", "2", "-ldflags", &self.linker_flags])
            .args(FLAGS)
            .arg("-o")
            .args([&part])
            .arg(package)
            .env("CGO_ENABLED", "0")
            .env_remove("GOFLAGS")
            .env_remove("GOOS")
            .env_remove("GOARCH")
            .dir(&self.dir);
        let outcome = progress::step(&format!("building {name} ({which})"), build.run()).await;
        match outcome {
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::Unsupported(
                    "there is no Go: install Go 1.26 or newer (https://go.dev/dl/) and put it into PATH"
                        .into(),
                ));
            }
            other => other?,
        };
        std::fs::rename(&part, program).doing(|| format!("keeping {}", program.display()))
    }
}

fn linker_flags(module: &Module, version: &str) -> String {
    let mut flags = String::from("-s -w");
    for stamp in module.stamps {
        let _ = write!(flags, " -X {stamp}={version}");
    }
    let numbers = version.trim_start_matches('v').split('.').collect::<Vec<_>>();
    if let (true, [major, minor, ..]) = (module.dir == "kubernetes", numbers.as_slice()) {
        let package = "k8s.io/component-base/version";
        let _ = write!(flags, " -X {package}.gitMajor={major} -X {package}.gitMinor={minor}");
    }
    flags
}

/// The version that a go.mod requires of a module.
fn required_version<'a>(go_mod: &'a str, module: &str) -> Option<&'a str> {
    go_mod.lines().find_map(|line| {
        let mut words = line.trim().trim_start_matches("require ").split_whitespace();
        (words.next() == Some(module)).then(|| words.next()).flatten().filter(|v| v.starts_with('v'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_from_both_forms_of_require() {
        let block = "tool k8s.io/kubernetes/cmd/kubelet\n\nrequire (\n\tk8s.io/kubernetes v1.36.3\n)\n";
        assert_eq!(required_version(block, "k8s.io/kubernetes"), Some("v1.36.3"));
        assert_eq!(required_version("require a.b/c v2.0.0\n", "a.b/c"), Some("v2.0.0"));
        assert_eq!(required_version(block, "k8s.io/kube"), None);
    }

    #[test]
    fn every_module_has_a_plan_and_stamps_its_version() {
        for module in MODULES {
            let plan = Plan::read(module).unwrap();
            assert_eq!(plan.key.len(), 16);
            for stamp in module.stamps {
                assert!(plan.linker_flags.contains(&format!("{stamp}=v")), "{}", plan.linker_flags);
            }
        }
    }

    #[test]
    fn kubernetes_components_know_their_version() {
        let kubernetes = MODULES.iter().find(|module| module.dir == "kubernetes").unwrap();
        let flags = linker_flags(kubernetes, "v1.36.3");
        assert!(flags.contains("gitMajor=1") && flags.contains("gitMinor=36"), "{flags}");
    }
}
