//! Sides of text files, known after one pass over them.

use super::TextHash;
use super::runs::{Place, Runs};

/// Text files are many if about this many of them would be on the smaller side of a split. The
/// held-out share then differs from the wanted one by a fifth, as a rule.
const MANY_FILES: f64 = 30.0;
/// A file of so few documents is on one side as a whole.
const SMALL_FILE: u64 = 4;

/// A text file, its name aside.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TextFile {
    pub(crate) documents: u64,
    pub(crate) bytes: u64,
    /// Hash of its documents. Copies of a file have the same sides.
    pub(crate) hash: TextHash,
}

/// The side of a text file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileSide {
    Training,
    HeldOut,
    Runs(Runs),
}

impl FileSide {
    /// Returns the side of one of its documents.
    pub(crate) fn place(&self, document: u64) -> Place {
        match self {
            Self::Training => Place::Training,
            Self::HeldOut => Place::HeldOut,
            Self::Runs(runs) => runs.place(document),
        }
    }

    fn trains(&self) -> bool {
        *self != Self::HeldOut
    }

    fn holds_out(&self) -> bool {
        *self != Self::Training
    }
}

/// Chooses the sides of all text files. Whole files are held out by their hash if they are many,
/// otherwise runs of documents in each file. `others` says whether there are training and held-out
/// documents besides.
pub(crate) fn sides_of_files(
    files: &[TextFile],
    fraction: f64,
    others: [bool; 2],
) -> Vec<FileSide> {
    let whole = |file: &TextFile| match file.hash.place() < fraction {
        true => FileSide::HeldOut,
        false => FileSide::Training,
    };
    let side = |file: &TextFile| match are_many(files, fraction) {
        true => whole(file),
        false if file.documents <= SMALL_FILE => whole(file),
        false => runs(file, wanted(file, fraction)),
    };
    let mut sides: Vec<FileSide> = files.iter().map(side).collect();
    let [others_train, others_held_out] = others;
    if !others_train && !any(files, &sides, FileSide::trains) {
        let highest = filled(files).max_by(|a, b| a.hash.place().total_cmp(&b.hash.place()));
        let side = highest.map_or(FileSide::Training, |file| runs(file, file.documents));
        set(files, highest, side, &mut sides);
    }
    if !others_held_out && !any(files, &sides, FileSide::holds_out) {
        hold_out_one(files, fraction, &mut sides);
    }
    sides
}

/// The files with documents; others have white space only.
fn filled(files: &[TextFile]) -> impl Iterator<Item = &TextFile> + Clone {
    files.iter().filter(|file| file.documents > 0)
}

/// Whether a file with documents has such a side.
fn any(files: &[TextFile], sides: &[FileSide], is_it: impl Fn(&FileSide) -> bool) -> bool {
    files.iter().zip(sides).any(|(file, side)| file.documents > 0 && is_it(side))
}

/// Whether whole files can be held out and the share is about right: few large files among many
/// small ones count as few.
fn are_many(files: &[TextFile], fraction: f64) -> bool {
    let bytes: f64 = files.iter().map(|file| file.bytes as f64).sum();
    let squares: f64 = files.iter().map(|file| (file.bytes as f64).powi(2)).sum();
    bytes * bytes / squares * fraction.min(1.0 - fraction) >= MANY_FILES
}

/// Number of documents of a file to hold out. The hash rounds it up or down, so that the share of
/// many files is right.
fn wanted(file: &TextFile, fraction: f64) -> u64 {
    (file.documents as f64 * fraction + file.hash.sample_place()) as u64
}

fn runs(file: &TextFile, held_out: u64) -> FileSide {
    let key = file.hash.short() as u64;
    Runs::new(file.documents, held_out, key).map_or(FileSide::Training, FileSide::Runs)
}

/// Holds out part of the largest file, or the file nearest to the border if all are small.
fn hold_out_one(files: &[TextFile], fraction: f64, sides: &mut [FileSide]) {
    let key = |file: &&TextFile| (file.documents, file.hash.short());
    let Some(largest) = filled(files).max_by_key(key) else { return };
    let n = ((largest.documents as f64 * fraction).round() as u64).max(1);
    let lowest = filled(files).min_by(|a, b| a.hash.place().total_cmp(&b.hash.place()));
    match runs(largest, n) {
        FileSide::Training if filled(files).any(|file| file.hash != largest.hash) => {
            set(files, lowest, FileSide::HeldOut, sides);
        }
        side => set(files, Some(largest), side, sides),
    }
}

/// Sets the side of a file and of its copies.
fn set(files: &[TextFile], chosen: Option<&TextFile>, side: FileSide, sides: &mut [FileSide]) {
    let Some(chosen) = chosen else { return };
    for (file, of) in files.iter().zip(sides) {
        if file.hash == chosen.hash {
            *of = side;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: u64, documents: u64) -> TextFile {
        TextFile { documents, bytes: documents * 2048, hash: TextHash::new(&name.to_string(), 1) }
    }

    #[test]
    fn many_files_are_whole_and_their_sides_stay_when_files_are_added() {
        let files: Vec<_> = (0..2000).map(|i| file(i, 1 + i % 9)).collect();
        let sides = sides_of_files(&files, 0.1, [false; 2]);
        let held = sides.iter().filter(|side| **side == FileSide::HeldOut).count();
        assert!((150..250).contains(&held), "{held}");
        assert!(!sides.iter().any(|side| matches!(side, FileSide::Runs(_))));
        assert_eq!(sides_of_files(&files[..1500], 0.1, [false; 2]), sides[..1500]);
        // One of them is half of all.
        let large = file(9999, 20_000);
        let with_large = [&files[..], &[large]].concat();
        let sides = sides_of_files(&with_large, 0.1, [false; 2]);
        assert!(matches!(sides[2000], FileSide::Runs(_)));
    }

    #[test]
    fn few_files_give_runs_that_other_files_do_not_move() {
        let files: Vec<_> = (0..12).map(|i| file(i, 90 + i)).collect();
        let sides = sides_of_files(&files, 0.05, [false; 2]);
        assert!(sides.iter().all(|side| matches!(side, FileSide::Runs(_))));
        assert_eq!(sides_of_files(&files[3..], 0.05, [false; 2]), sides[3..]);
    }

    #[test]
    fn no_side_is_empty_if_that_can_be() {
        for n in 1..6 {
            for documents in 1..7 {
                for fraction in [0.01, 0.5, 0.99] {
                    let files: Vec<_> = (0..n).map(|i| file(i, documents)).collect();
                    let sides = sides_of_files(&files, fraction, [false; 2]);
                    let has = |place| {
                        let of = |side: &FileSide| (0..documents).any(|i| side.place(i) == place);
                        sides.iter().any(of)
                    };
                    assert!(
                        has(Place::Training),
                        "{n} files of {documents}, {fraction}: {sides:?}"
                    );
                    let can = n > 1 || documents > 2;
                    assert_eq!(has(Place::HeldOut), can, "{n} of {documents}, {fraction}");
                }
            }
        }
        // One text and one copy of it cannot be on two sides.
        let copies = [file(1, 2), file(1, 2)];
        assert_eq!(sides_of_files(&copies, 0.5, [false; 2]), [FileSide::Training; 2]);
        // Where records are held out, no file has to be.
        let one = sides_of_files(&[file(3, 5)], 1e-9, [false, true]);
        assert_eq!(one, [FileSide::Training]);
    }
}
