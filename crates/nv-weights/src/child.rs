//! Tests in processes of their own, for what would end the others or must hold for them alone.

use std::env;
use std::path::Path;
use std::process::{Command, Output};

/// Set for a child: the folder that its parent gives it.
const DIR: &str = "NV_WEIGHTS_TEST_CHILD";

/// The folder that the parent gave this process, if it is a child.
pub(crate) fn dir() -> Option<String> {
    env::var(DIR).ok()
}

/// Runs the test `name`, a path of modules, in a child that gets `dir`, after the commands `limits` of a shell.
pub(crate) fn run(name: &str, limits: &str, dir: &Path) -> Output {
    let script = format!("{limits}\nexec \"$0\" --exact \"$1\" --nocapture");
    let exe = env::current_exe().unwrap();
    Command::new("sh").arg("-c").arg(script).arg(exe).arg(name).env(DIR, dir).output().unwrap()
}

/// As [`run`]; the child's test has to pass.
#[track_caller]
pub(crate) fn passes(name: &str, limits: &str, dir: &Path) {
    let Output { status, stdout, stderr } = run(name, limits, dir);
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success() && stdout.contains("1 passed"), "{status}\n{stdout}\n{stderr}");
}
