//! The checks hold in this repository.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use xtask::{arrows, ci, links, readme, root, tidy};

fn expect_none(problems: &[String]) {
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

#[test]
fn sources_are_formatted_and_within_their_limits() {
    expect_none(&tidy::problems(root()).unwrap());
}

#[test]
fn crates_depend_on_one_another_only_in_the_allowed_direction() {
    expect_none(&arrows::problems(root()).unwrap());
}

#[test]
fn every_path_in_markdown_exists() {
    expect_none(&links::problems(root()).unwrap());
}

#[test]
fn lehr_accepts_every_command_in_the_readmes_and_guides() {
    let program = ci::build_lehr(root(), !cfg!(debug_assertions)).unwrap();
    expect_none(&readme::problems(root(), &program).unwrap());
}
