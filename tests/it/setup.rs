//! `scripts/setup` and `scripts/lint` where things are missing.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output};

/// A folder of programs that is the whole PATH: scripts by name, and what the shell scripts themselves need.
fn programs(scripts: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["sh", "ls", "grep", "sed", "tr", "sort", "printf"] {
        let place = ["/bin", "/usr/bin"].map(|bin| Path::new(bin).join(name)).into_iter().find(|path| path.exists());
        symlink(place.unwrap(), folder.path().join(name)).unwrap();
    }
    for (name, text) in scripts {
        let path = folder.path().join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    folder
}

fn script(name: &str, arguments: &[&str], path: &Path) -> (Output, String) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new(root.join("scripts").join(name));
    let output = command.args(arguments).current_dir(root).env("PATH", path).env_remove("CARGO").output().unwrap();
    let said = [&output.stdout[..], &output.stderr].concat();
    (output, String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn what_is_missing_is_named_by_its_packages() {
    let bare = programs(&[("cargo", "exit 0"), ("initdb", ""), ("id", "echo 1000")]);
    let (output, said) = script("setup", &[], bare.path());
    assert!(!output.status.success());
    assert!(said.contains("package manager: g++ make\n") || said.contains("package manager: g++ make "), "{said}");
    let debian = programs(&[("cargo", "exit 0"), ("initdb", ""), ("id", "echo 1000"), ("apt-get", "exit 1")]);
    let (output, said) = script("setup", &[], debian.path());
    assert!(!output.status.success());
    assert!(said.contains("as root run: apt-get install g++ make"), "{said}");
}

#[test]
fn only_tests_need_clippy_and_rustfmt() {
    let cargo = "case \"$1\" in clippy|fmt) exit 1;; esac";
    let tools = [("cargo", cargo), ("initdb", ""), ("c++", ""), ("make", "")];
    let folder = programs(&tools);
    let (_, said) = script("setup", &["build"], folder.path());
    assert!(!said.contains("clippy"), "{said}");
    let (output, said) = script("setup", &["test"], folder.path());
    assert!(!output.status.success() && said.contains("cargo clippy is missing"), "{said}");
}

#[test]
fn only_the_known_clippy_denies_warnings() {
    for (version, denied) in [("clippy 0.1.95 (abc 2026-01-01)", true), ("clippy 0.1.99 (abc 2027-01-01)", false)] {
        let cargo = format!("if [ \"$2\" = --version ]; then echo '{version}'; else echo \"$@\"; fi");
        let folder = programs(&[("cargo", &cargo)]);
        let (output, said) = script("lint", &[], folder.path());
        assert!(output.status.success(), "{said}");
        assert_eq!(said.contains("-D warnings"), denied, "{said}");
        assert!(said.contains("clippy --locked --all-targets"), "{said}");
    }
}
