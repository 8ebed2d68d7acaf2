//! Files of a folder: its data, its splits, and files about the data.
//!
//! Data sets are published as folders with a card (`README.md`), a licence, and files or folders
//! named after splits. A card is not data, a validation split is held-out data, and a test split
//! is never trained on.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::files::{KNOWN, SourceFile, ending, io_error, unknown_extension};
use crate::{Error, Result};

/// Names shown of a group of files.
const SHOWN: usize = 8;

/// Part of a data set that is read. A single file is read whatever the part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Part {
    /// The training split, and files that belong to no split.
    #[default]
    Train,
    /// The validation split; without one, all data.
    Validation,
    /// The test split, else the validation split, else all data.
    Evaluation,
    /// All data.
    All,
}

/// Split that a file belongs to, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Split {
    Train,
    Validation,
    /// `eval`: a validation split if there is no other.
    Eval,
    Test,
}

const KEYWORDS: [(&str, Split); 10] = [
    ("train", Split::Train),
    ("training", Split::Train),
    ("validation", Split::Validation),
    ("valid", Split::Validation),
    ("val", Split::Validation),
    ("dev", Split::Validation),
    ("test", Split::Test),
    ("testing", Split::Test),
    ("eval", Split::Eval),
    ("evaluation", Split::Eval),
];

/// Parts of names that say nothing about a split: endings, and `of` in `00000-of-00001`.
const NEUTRAL: [&str; 16] = [
    "of", "txt", "md", "jsonl", "json", "ndjson", "csv", "tsv", "gz", "zst", "conll", "iob",
    "iob2", "bio", "bioes", "bmes",
];

/// Beginnings of the names of files about a data set, in lower case.
const ABOUT: [&str; 9] = [
    "readme",
    "license",
    "licence",
    "copying",
    "notice",
    "citation",
    "changelog",
    "contributing",
    "authors",
];
/// Files of the Hugging Face `datasets` library that describe the data beside them.
const DESCRIPTIONS: [&str; 5] = [
    "dataset_infos.json",
    "dataset_info.json",
    "dataset_dict.json",
    "state.json",
    "croissant.json",
];

/// The files of one part of a data set.
pub(crate) struct DataFiles {
    pub(crate) files: Vec<SourceFile>,
    /// The files that are read and those that are not; `None` for a single file.
    pub(crate) note: Option<String>,
}

/// The files of a folder, by use.
#[derive(Default)]
struct Listing {
    train: Vec<SourceFile>,
    validation: Vec<SourceFile>,
    test: Vec<SourceFile>,
    about: Vec<String>,
    /// Names of files with another ending.
    unknown: Vec<String>,
}

/// Returns the files of a part of the data set at `path`.
pub(crate) fn files_of(path: &Path, part: Part) -> Result<DataFiles> {
    let metadata = std::fs::metadata(path).map_err(|source| io_error(path, source))?;
    if !metadata.is_dir() {
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
        let file = match SourceFile::new(path, &name) {
            Some(file) => file,
            // The standard texts for perplexity end in .raw and .tokens.
            None if part == Part::Evaluation => SourceFile::text(path, &name),
            None => return Err(unknown_extension(path)),
        };
        return Ok(DataFiles { files: vec![file], note: None });
    }
    Listing::read(path)?.part(path, part)
}

/// Lists the files that a run reads from a file or folder, by name and path: training and
/// validation splits, or the test split if there are no others. The name is the path below the
/// folder.
///
/// # Errors
/// The path does not exist, or its ending is not known.
pub fn data_files(path: impl AsRef<Path>) -> Result<Vec<(String, PathBuf)>> {
    let path = path.as_ref();
    let files = match path.is_dir() {
        false => files_of(path, Part::Train)?.files,
        true => {
            let Listing { train, validation, test, .. } = Listing::read(path)?;
            let used = [train, validation].concat();
            if used.is_empty() { test } else { used }
        }
    };
    Ok(files.into_iter().map(|file| (file.name, file.path)).collect())
}

/// Whether the data set at `path` is a folder with a validation split of its own.
///
/// # Errors
/// The folder cannot be read.
pub fn has_validation(path: impl AsRef<Path>) -> Result<bool> {
    let path = path.as_ref();
    Ok(path.is_dir() && !Listing::read(path)?.validation.is_empty())
}

impl Listing {
    fn read(folder: &Path) -> Result<Self> {
        let mut found = Vec::new();
        walk(folder, "", &mut found)?;
        found.sort_by(|a, b| a.1.cmp(&b.1));
        let mut listing = Self::default();
        let mut files = Vec::new();
        for (path, name) in found {
            match SourceFile::new(&path, &name) {
                Some(file) => files.push(file),
                None if is_about(&name) => listing.about.push(name),
                None => listing.unknown.push(name),
            }
        }
        // In a folder of .md files, README.md is a text like the others.
        let has_other = |file: &SourceFile| !is_about(&file.name) && !file.name.ends_with(".md");
        let n_texts = files.iter().filter(|file| !is_about(&file.name)).count();
        let readme_is_data =
            !files.iter().any(has_other) && (n_texts > 0 || listing.unknown.is_empty());
        let is_data = |file: &SourceFile| {
            !is_about(&file.name) || (readme_is_data && base(&file.name).starts_with("readme"))
        };
        let (data, about): (Vec<_>, Vec<_>) = files.into_iter().partition(is_data);
        listing.about.extend(about.into_iter().map(|file| file.name));
        let splits: Vec<_> = splits(&data);
        let has_validation = splits.contains(&Some(Split::Validation));
        for (file, split) in data.into_iter().zip(splits) {
            match split {
                None | Some(Split::Train) => listing.train.push(file),
                Some(Split::Validation) => listing.validation.push(file),
                Some(Split::Eval) if !has_validation => listing.validation.push(file),
                Some(Split::Eval | Split::Test) => listing.test.push(file),
            }
        }
        Ok(listing)
    }

    fn part(self, path: &Path, part: Part) -> Result<DataFiles> {
        let Self { train, validation, test, about, unknown } = self;
        let n_data = train.len() + validation.len() + test.len();
        if n_data == 0 && !unknown.is_empty() {
            let (path, found) = (path.to_owned(), unknown);
            return Err(Error::NothingReadable { path, found, expected: KNOWN });
        }
        let held_out = names(&[&validation[..], &test].concat());
        let mut left_out = vec![("about the data", about), ("unknown ending", unknown)];
        let mut leave_out = |why, files: Vec<SourceFile>| left_out.insert(0, (why, names(&files)));
        let files = match part {
            Part::All => [train, validation, test].concat(),
            Part::Evaluation if !test.is_empty() => {
                leave_out("validation split", validation);
                leave_out("training split", train);
                test
            }
            Part::Validation | Part::Evaluation if !validation.is_empty() => {
                leave_out("test split", test);
                leave_out("training split", train);
                validation
            }
            Part::Validation | Part::Evaluation => [train, test].concat(),
            Part::Train => {
                if train.is_empty() && !held_out.is_empty() {
                    return Err(Error::NoTraining { path: path.to_owned(), found: held_out });
                }
                leave_out("test split, never trained on", test);
                leave_out("validation split, held out", validation);
                train
            }
        };
        let note = note(path, &files, &left_out);
        Ok(DataFiles { files, note: Some(note) })
    }
}

fn note(path: &Path, files: &[SourceFile], left_out: &[(&str, Vec<String>)]) -> String {
    let mut note = format!("reading {}: {}", path.display(), shown(&names(files)));
    for (why, names) in left_out.iter().filter(|(_, names)| !names.is_empty()) {
        let _ = write!(note, "; not {} ({why})", shown(names));
    }
    note
}

fn names(files: &[SourceFile]) -> Vec<String> {
    files.iter().map(|file| file.name.clone()).collect()
}

fn shown(names: &[String]) -> String {
    match names.len() {
        0 => "no file".to_owned(),
        n if n <= SHOWN => names.join(", "),
        n => format!("{} and {} more files", names[..SHOWN].join(", "), n - SHOWN),
    }
}

fn walk(folder: &Path, prefix: &str, files: &mut Vec<(PathBuf, String)>) -> Result<()> {
    for entry in std::fs::read_dir(folder).map_err(|source| io_error(folder, source))? {
        let entry = entry.map_err(|source| io_error(folder, source))?;
        let file_name = entry.file_name().to_string_lossy().into_owned();
        if file_name.starts_with('.') {
            continue;
        }
        let path = entry.path();
        let name = format!("{prefix}{file_name}");
        // Links to folders are not followed, because a circle of links would never end.
        let kind = entry.file_type().map_err(|source| io_error(&path, source))?;
        if kind.is_dir() {
            walk(&path, &format!("{name}/"), files)?;
        } else if path.is_file() {
            files.push((path, name));
        }
    }
    Ok(())
}

/// The last part of a name, in lower case.
fn base(name: &str) -> String {
    name.rsplit('/').next().unwrap_or(name).to_lowercase()
}

fn is_about(name: &str) -> bool {
    let base = base(name);
    let text = ending(Path::new(&base)).is_none_or(|ending| [".md", ".txt"].contains(&&*ending));
    // README_zh.md, but no license_plates.txt.
    let begins = |about: &&'static str| {
        base.strip_prefix(*about).is_some_and(|rest| {
            rest.is_empty()
                || rest.starts_with(['.', '-'])
                || (*about == "readme" && rest.starts_with('_'))
        })
    };
    (text && ABOUT.iter().any(begins)) || DESCRIPTIONS.contains(&&*base)
}

/// Returns the split of each file.
fn splits(files: &[SourceFile]) -> Vec<Option<Split>> {
    let found: Vec<_> = files.iter().map(|file| Named::new(&file.name)).collect();
    let is_train = |named: &&Named| named.split == Some(Split::Train);
    let trains: Vec<&Named> = found.iter().filter(is_train).collect();
    let of_records = |(named, file): &(&Named, &SourceFile)| {
        named.split == Some(Split::Train) && !file.is_prose()
    };
    let records_have_train = found.iter().zip(files).any(|pair| of_records(&pair));
    let split = |(named, file): (&Named, &SourceFile)| {
        let is_certain = match file.is_prose() {
            // "test" may be a word of a book's title.
            true => trains.iter().any(|train| train.rest == named.rest),
            false => records_have_train,
        };
        named.split.filter(|_| named.is_whole || is_certain)
    };
    found.iter().zip(files).map(split).collect()
}

/// A file's name as far as it concerns splits.
struct Named {
    split: Option<Split>,
    /// Whether the name, or that of a folder, says nothing else.
    is_whole: bool,
    /// The other words of the name.
    rest: Vec<String>,
}

impl Named {
    fn new(name: &str) -> Self {
        let mut parts: Vec<&str> = name.split('/').collect();
        let file = parts.pop().unwrap_or(name).to_lowercase();
        let (split, rest) = words(&file);
        let is_whole = split.is_some() && rest.is_empty();
        let folder = parts.iter().map(|part| words(&part.to_lowercase()));
        let folder = folder.filter(|(_, rest)| rest.is_empty()).find_map(|(split, _)| split);
        match folder {
            Some(split) if !is_whole => Self { split: Some(split), is_whole: true, rest },
            _ => Self { split, is_whole, rest },
        }
    }
}

/// The split that a name mentions first, and its other words.
fn words(name: &str) -> (Option<Split>, Vec<String>) {
    let (mut split, mut rest) = (None, Vec::new());
    for word in name.split(['.', '-', '_', ' ']) {
        let found = KEYWORDS.iter().find(|(keyword, _)| *keyword == word);
        match found {
            Some((_, found)) if split.is_none() => split = Some(*found),
            _ if word.bytes().all(|byte| byte.is_ascii_digit()) || NEUTRAL.contains(&word) => {}
            _ => rest.push(word.to_owned()),
        }
    }
    (split, rest)
}
