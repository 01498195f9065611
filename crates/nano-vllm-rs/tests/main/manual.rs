//! `nv --version`, `nv completions` and `nv man`.

use std::io::{self, Write};
use std::process::{Command, Stdio};

use nano_vllm_rs::kernels::{Isa, Kernels};

use crate::nv::{command, nv, stderr, stdout};

/// All commands that the help lists.
fn commands() -> Vec<String> {
    let help = stdout(&["--help"]);
    let (_, rest) = help.split_once("Commands:\n").unwrap();
    let names = rest.lines().take_while(|line| !line.is_empty());
    let names = names.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    names.map(|line| line.split_whitespace().next().unwrap().to_owned()).collect()
}

#[test]
fn the_version_names_the_kernels() {
    let version = stdout(&["--version"]);
    assert!(version.starts_with(concat!("nv ", env!("CARGO_PKG_VERSION"), " (")), "{version}");
    let isa = Isa::detect();
    assert!(version.ends_with(&format!("kernels {isa})\n")), "{version}");
    assert!(Kernels::for_isa(isa).is_some());

    let lowered = command(&["--version"]).env("NV_ISA", "scalar").output().unwrap();
    assert!(String::from_utf8(lowered.stdout).unwrap().ends_with("kernels scalar)\n"));
    // What a wrong setting is, the commands say that compute something.
    let wrong = command(&["--version"]).env("NV_ISA", "mmx").output().unwrap();
    assert!(wrong.status.success(), "{}", stderr(&wrong));
}

#[test]
fn shells_complete_every_command() {
    let commands = commands();
    assert!(commands.len() > 5, "{commands:?}");
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = stdout(&["completions", shell]);
        for command in &commands {
            assert!(script.contains(command), "{shell}: {command}");
        }
        assert!(script.contains("max-tokens"), "{shell}");
    }
    assert!(!nv(&["completions", "sh"]).status.success());
}

#[cfg(unix)]
#[test]
fn bash_can_read_its_script() {
    let script = stdout(&["completions", "bash"]);
    let mut bash = Command::new("bash").arg("-n").stdin(Stdio::piped()).spawn().unwrap();
    bash.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(bash.wait().unwrap().success());
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    for args in [&["completions", "bash"][..], &["man"]] {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let output = command(args).stdout(writer).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
        assert_eq!(stderr(&output), "", "{args:?}");
    }
}

#[test]
fn there_is_a_manual_page_for_every_command() {
    let page = stdout(&["man"]);
    assert!(page.contains(".SH NAME\nnv \\- Qwen3 on the command line"), "{page}");

    let dir = tempfile::tempdir().unwrap();
    stdout(&["man", "--dir", dir.path().to_str().unwrap()]);
    for command in commands().iter().filter(|command| *command != "help") {
        let page = std::fs::read_to_string(dir.path().join(format!("nv-{command}.1"))).unwrap();
        assert!(page.contains(".SH SYNOPSIS"), "{command}");
    }
    let missing = nv(&["man", "--dir", dir.path().join("none").to_str().unwrap()]);
    assert!(stderr(&missing).contains("cannot write manual pages to"), "{}", stderr(&missing));
}
