//! Finding the inputs of a run that continues, perhaps in another folder.

use std::path::{Path, PathBuf};

use lehr_model::io::{ManifestFile, hash_file};

use super::{InputChange, Inputs, Source, current_dir};
use crate::prepare::CACHED_TOKENIZER;
use crate::recipe::TokenizerConfig;
use crate::{Error, Recipe, Result, RunDir, checkpoint};

/// A run whose inputs were found and compared with those of its newest checkpoint.
pub struct Located {
    /// The recipe, with the paths at which the inputs are. Only [`crate::prepare`] needs it.
    pub recipe: Recipe,
    /// The run directory, which knows the inputs now.
    pub dir: RunDir,
    /// Notes for the user.
    pub notes: Vec<String>,
}

/// Finds the inputs of the run in `dir`, hashes them, and compares them with those of its newest
/// checkpoint, before any time is spent on preparing the run.
///
/// A relative path is looked for in the current folder, then in the folder in which the run was
/// started. A file with the recorded hash is preferred.
///
/// # Errors
/// If an input is missing or cannot be read, or one has changed and `dir` does not accept it.
pub fn locate(recipe: &Recipe, dir: RunDir) -> Result<Located> {
    let saved = Saved::newest(&dir);
    let mut located = recipe.clone();
    let (mut now, mut notes) = (Inputs { folder: current_dir()?, ..Inputs::default() }, Vec::new());
    for source in Source::of(recipe) {
        let (path, files) = find(source, recipe, &dir, saved.as_ref().map(|saved| &saved.inputs))?;
        if path != source.path(recipe) {
            if let Some(saved) = &saved {
                // The next resume has to look there too.
                now.folder.clone_from(&saved.inputs.folder);
            }
            notes.push(format!("{}: {}", source.name(), path.display()));
            source.set_path(&mut located, &path);
        }
        now.files.insert(source, files);
    }
    if let Some(saved) = saved {
        refuse(&dir, saved.inputs.changes(&now))?;
        if matches!(recipe.tokenizer, TokenizerConfig::Train { .. }) {
            let path = saved.tokenizer.display().to_string();
            located.tokenizer = TokenizerConfig::File { path };
            notes.extend(saved.note_on_cache(&dir));
        }
    } else if dir.accepts_changed_data() {
        notes
            .push("--accept-changed-data changes nothing: no checkpoint names its data".to_owned());
    }
    Ok(Located { recipe: located, dir: dir.with_inputs(now), notes })
}

/// The newest checkpoint that names its inputs and has its tokenizer.
struct Saved {
    inputs: Inputs,
    /// The tokenizer of the checkpoint. A resumed run uses it instead of one trained again: with
    /// changed data that would be another one.
    tokenizer: PathBuf,
}

impl Saved {
    fn newest(dir: &RunDir) -> Option<Self> {
        let read = |(_, checkpoint): (u64, PathBuf)| {
            let inputs = checkpoint::read_state(&checkpoint).ok()?.inputs?;
            let tokenizer = checkpoint.join("tokenizer.json");
            let is_intact = hash_file(&tokenizer).is_ok_and(|hash| hash == inputs.tokenizer);
            is_intact.then_some(Self { inputs, tokenizer })
        };
        checkpoint::list(dir).into_iter().rev().find_map(read)
    }

    /// Returns a note if the tokenizer in the cache is another one. It is not used.
    fn note_on_cache(&self, dir: &RunDir) -> Option<String> {
        let cached = dir.cache().join(CACHED_TOKENIZER);
        let is_another = hash_file(&cached).is_ok_and(|hash| hash != self.inputs.tokenizer);
        is_another.then(|| {
            format!(
                "{} differs from the tokenizer of the checkpoint, which is used: {}",
                cached.display(),
                self.tokenizer.display()
            )
        })
    }
}

/// Refuses changes that the run in `dir` does not accept.
///
/// # Errors
/// If there is such a change; the error names all changes.
pub(crate) fn refuse(dir: &RunDir, changes: Vec<InputChange>) -> Result<()> {
    let is_accepted = |change: &InputChange| change.is_acceptable && dir.accepts_changed_data();
    if changes.iter().all(is_accepted) {
        return Ok(());
    }
    Err(Error::InputsChanged { path: dir.path().to_owned(), changes })
}

/// Returns the place of a source, and its hashed files.
fn find(
    source: Source,
    recipe: &Recipe,
    dir: &RunDir,
    saved: Option<&Inputs>,
) -> Result<(PathBuf, Vec<ManifestFile>)> {
    let path = source.path(recipe);
    let mut places = vec![path.clone()];
    places.extend(saved.filter(|_| path.is_relative()).map(|saved| saved.folder.join(&path)));
    let (mut found, mut is_same) = (None, false);
    for place in places.iter().filter(|place| place.exists()) {
        if is_same {
            break;
        }
        let files = source.hash(place)?;
        is_same = saved.is_some_and(|saved| saved.files.get(&source) == Some(&files));
        if is_same || found.is_none() {
            found = Some((place.clone(), files));
        }
    }
    let missing = || Error::InputMissing {
        run: dir.path().to_owned(),
        what: source.name(),
        places: places.iter().map(|place| absolute(place)).collect(),
    };
    found.ok_or_else(missing)
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}
