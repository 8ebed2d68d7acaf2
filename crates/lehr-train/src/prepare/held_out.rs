//! What a split of texts holds out, for the log and for the run directory.

use std::path::Path;

use lehr_data::{Amount, HeldOut, HeldOutSource};
use lehr_model::io::write_file;

use super::Notes;
use crate::{Error, Result};

/// The file in the cache.
const FILE: &str = "held_out.json";
/// Maximum number of files that the log names.
const NAMED_MAX: usize = 5;

/// Notes the held-out files or parts of files, and what is dropped for them.
pub(super) fn say(report: &HeldOut, notes: Notes<'_>) {
    let HeldOut { share, margin, copies, sources, n_more_sources, .. } = report;
    let mut parts: Vec<String> = sources.iter().take(NAMED_MAX).map(source).collect();
    let n_more = sources.len().saturating_sub(NAMED_MAX) as u64 + n_more_sources;
    if n_more > 0 {
        parts.push(format!("and of {n_more} more files"));
    }
    notes(&format!("held out: {:.1} % of the text: {}", 100.0 * share, parts.join("; ")));
    let mut dropped = |amount: &Amount, why: &str| {
        if amount.documents > 0 {
            let size = amount.bytes as f64 / 1e6;
            notes(&format!("not used: {} documents of {size:.2} MB {why}", amount.documents));
        }
    };
    dropped(margin, "beside held-out ones, so that no neighbour of those is trained on");
    dropped(copies, "that are copies of held-out ones or their neighbours");
}

fn source(source: &HeldOutSource) -> String {
    let HeldOutSource { file, all, held_out, runs, .. } = source;
    let (n, all) = (held_out.documents, all.documents);
    match (source.is_whole(), runs) {
        (true, _) => format!("all of {file}"),
        (false, 0) => format!("{n} of {all} records of {file}"),
        (false, 1) => format!("{n} of {all} documents of {file}, all in a row"),
        (false, runs) => format!("{n} of {all} documents of {file} in {runs} runs"),
    }
}

/// Keeps the report in the cache of a run.
pub(super) fn keep(report: &HeldOut, cache: &Path) -> Result<()> {
    std::fs::create_dir_all(cache).map_err(Error::io("creating", cache))?;
    let text = serde_json::to_string_pretty(report).expect("numbers and text") + "\n";
    Ok(write_file(&cache.join(FILE), text.as_bytes())?)
}
