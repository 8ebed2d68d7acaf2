//! The recipes that come with the program.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use lehr_train::Recipe;

fn shipped() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs");
    let files = std::fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let is_toml = |path: &PathBuf| path.extension().is_some_and(|e| e == "toml");
    let mut files: Vec<_> = files.map(|e| e.unwrap().path()).filter(is_toml).collect();
    files.sort();
    files
}

#[test]
fn every_shipped_recipe_is_read_written_and_read_as_the_same() {
    let files = shipped();
    assert!(files.len() >= 3, "only {files:?}");
    for path in files {
        let recipe = Recipe::load(&path, &[]).unwrap_or_else(|e| panic!("{e}"));
        let again = Recipe::parse(&recipe.to_toml(), "written", &[]).unwrap();
        assert_eq!(again, recipe, "{}", path.display());
        let shorter = recipe.with_overrides(&["train.steps=100000".to_owned()]).unwrap();
        assert_eq!(shorter.train.steps, 100_000, "{}", path.display());
    }
}

#[test]
fn no_two_shipped_recipes_share_a_run_directory() {
    let dirs: Vec<_> = shipped().iter().map(|p| Recipe::load(p, &[]).unwrap().run.dir).collect();
    let mut unique = dirs.clone();
    unique.sort();
    unique.dedup();
    assert_eq!(unique.len(), dirs.len(), "{dirs:?}");
}
