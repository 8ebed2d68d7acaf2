//! The bundled files are those of `data/`, and unpacking is safe to repeat.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data")
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder that exists") {
        let path = entry.expect("a readable folder").path();
        if path.is_dir() { files.extend(files_below(&path)) } else { files.push(path) }
    }
    files
}

#[test]
fn every_file_of_the_data_folder_is_bundled_unchanged() {
    let bundled = lehr_demo::files();
    assert_eq!(bundled.len(), files_below(&data()).len());
    for file in bundled {
        let text = lehr_demo::read(file.path).unwrap();
        assert_eq!(text.len(), file.bytes);
        assert!(text == fs::read_to_string(data().join(file.path)).unwrap(), "{}", file.path);
    }
}

#[test]
fn files_are_listed_in_the_order_of_their_paths() {
    let paths: Vec<_> = lehr_demo::files().iter().map(|f| f.path).collect();
    assert!(paths.is_sorted());
    for part in ["code/", "dialog/", "pretrain/en_", "pretrain/zh_", "sentiment/", "topic/"] {
        assert!(paths.iter().any(|p| p.starts_with(part)), "nothing of {part}");
    }
}

#[test]
fn the_data_readme_names_every_file_with_its_size_or_number_of_records() {
    let readme = lehr_demo::read("README.md").unwrap();
    for file in lehr_demo::files().iter().filter(|f| f.path != "README.md") {
        let name = file.path.rsplit('/').next().unwrap();
        // `x.train.jsonl` is in the row of `x.{train,dev,test}.jsonl`.
        let part = name.split('.').nth(1).filter(|p| ["train", "dev", "test"].contains(p));
        let name = part.map_or(name.to_owned(), |p| name.replace(p, "{train,dev,test}"));
        let row = readme.lines().find(|line| line.contains(&format!("| `{name}`")));
        let row = row.unwrap_or_else(|| panic!("{} has no row", file.path));
        let n = if part.is_some() {
            lehr_demo::read(file.path).unwrap().lines().count()
        } else {
            file.bytes
        };
        let written = with_commas(n);
        assert!(row.contains(&written), "{}: {written} is not in {row}", file.path);
    }
}

fn with_commas(n: usize) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

#[test]
fn unpacking_twice_writes_every_file_once() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("new/folder");
    lehr_demo::unpack(&dir).unwrap();
    let times = |dir: &Path| -> Vec<_> {
        let mut files = files_below(dir);
        files.sort();
        files.iter().map(|f| fs::metadata(f).unwrap().modified().unwrap()).collect()
    };
    assert_eq!(files_below(&dir).len(), lehr_demo::files().len());
    for file in lehr_demo::files() {
        let path = dir.join(file.path);
        assert!(fs::read(&path).unwrap() == fs::read(data().join(file.path)).unwrap());
    }
    let before = times(&dir);
    lehr_demo::unpack(&dir).unwrap();
    assert_eq!(times(&dir), before);
}

#[test]
fn unpacking_replaces_a_changed_file_and_leaves_others_alone() {
    let folder = tempfile::tempdir().unwrap();
    lehr_demo::unpack(folder.path()).unwrap();
    let path = folder.path().join("code/HumanEval.jsonl");
    let good = fs::read(&path).unwrap();
    let mut changed = good.clone();
    changed[0] ^= 1;
    fs::write(&path, changed).unwrap();
    let mine = folder.path().join("code/mine.txt");
    fs::write(&mine, "mine").unwrap();
    lehr_demo::unpack(folder.path()).unwrap();
    assert!(fs::read(&path).unwrap() == good);
    assert_eq!(fs::read_to_string(mine).unwrap(), "mine");
    assert_eq!(files_below(folder.path()).len(), lehr_demo::files().len() + 1);
}

#[test]
fn unpacking_where_a_file_stands_in_the_way_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let blocked = folder.path().join("code");
    fs::write(&blocked, "a file").unwrap();
    let error = lehr_demo::unpack(folder.path()).unwrap_err();
    assert!(error.to_string().contains(blocked.to_str().unwrap()), "{error}");
    assert!(error.hint().is_some());
}

#[test]
fn a_wrong_path_is_an_error_with_a_suggestion() {
    let error = lehr_demo::read("en_austen").unwrap_err();
    assert!(error.to_string().contains("`en_austen`"));
    assert_eq!(error.hint().unwrap(), "did you mean `pretrain/en_austen.txt`?");
    let hint = lehr_demo::read("nothing/like/this").unwrap_err().hint().unwrap();
    assert!(hint.contains("code/HumanEval.jsonl"));
}
