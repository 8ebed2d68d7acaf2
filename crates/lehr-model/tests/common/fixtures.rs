//! Large files that tests compare with and the repository does not hold.

use std::ffi::OsString;
use std::path::PathBuf;

/// Path of the folder that the environment variable `variable` names.
///
/// Without the variable the result is `None`, the test says that it is skipped, and returns.
///
/// # Panics
/// If the variable is not set and `LEHR_REQUIRE_FIXTURES` is `1`.
pub(crate) fn path(variable: &str) -> Option<PathBuf> {
    let required = std::env::var_os("LEHR_REQUIRE_FIXTURES").is_some_and(|value| value == "1");
    checked(variable, std::env::var_os(variable), required)
}

#[allow(clippy::print_stdout, reason = "a skipped test says so")]
fn checked(variable: &str, folder: Option<OsString>, required: bool) -> Option<PathBuf> {
    if let Some(folder) = folder {
        return Some(PathBuf::from(folder));
    }
    assert!(
        !required,
        "LEHR_REQUIRE_FIXTURES=1 requires {variable}: CONTRIBUTING.md names the script that \
         fetches its files"
    );
    println!("SKIPPED: {variable} is not set");
    None
}

#[test]
fn a_missing_folder_fails_only_where_it_is_required() {
    assert_eq!(checked("LEHR_X", Some("there".into()), true), Some("there".into()));
    assert_eq!(checked("LEHR_X", None, false), None);
    let failed = std::panic::catch_unwind(|| checked("LEHR_X", None, true));
    let said = failed.unwrap_err().downcast_ref::<String>().cloned().unwrap_or_default();
    assert!(said.contains("LEHR_X"), "{said}");
}
