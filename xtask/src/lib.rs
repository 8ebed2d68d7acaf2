//! Checks of the repository, as functions that return what is wrong.
//!
//! [`ci`] runs all of them, together with the compiler's own; the others are one module each. They
//! also run as tests (`xtask/tests`), so `cargo test` finds what continuous integration would find.

pub mod arrows;
pub mod ci;
pub mod folders;
pub mod links;
pub mod markdown;
pub mod readme;
pub mod tidy;

use std::path::Path;
use std::process::Command;

/// Failures of the checks themselves: a file that cannot be read, a program that does not start.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Arguments of the cargo command that runs all tests.
const TEST: &[&str] = &["test", "--release", "--workspace"];

/// The command that runs all tests, as the READMEs give it.
#[must_use]
pub fn test_command() -> String {
    format!("cargo {}", TEST.join(" "))
}

/// Whether missing files are failures: `LEHR_REQUIRE_FIXTURES=1`, which continuous integration
/// sets.
#[must_use]
pub fn requires_fixtures() -> bool {
    std::env::var_os("LEHR_REQUIRE_FIXTURES").is_some_and(|value| value == "1")
}

/// The root of the repository.
///
/// # Panics
/// Never: the folder of this crate has a parent.
#[must_use]
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the folder of xtask is in the repository")
}

/// The cargo that runs this program, in the folder `root`.
fn cargo(root: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(root);
    // Variables that cargo set for this program do not apply to the packages it builds next.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            command.env_remove(name);
        }
    }
    command
}
