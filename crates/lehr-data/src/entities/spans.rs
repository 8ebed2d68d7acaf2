//! From tags such as `B-PER` to spans of words.

use std::ops::Range;

/// A named entity.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Entity {
    /// Its words.
    pub words: Range<usize>,
    /// Its type, such as `PER`.
    pub label: String,
}

/// How faulty sequences of tags are read. Sequences that follow their scheme read the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpanMode {
    /// As conlleval and the default mode of seqeval: an `I-` without a beginning begins an entity.
    Lenient,
    /// As the strict mode of seqeval with the scheme IOB2: only `B-` begins an entity.
    Strict,
}

/// The part of a tag before the hyphen. `M` (of BMES), `L` and `U` (of BILOU) are read as `I`, `E`
/// and `S`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Prefix {
    Outside,
    Begin,
    Inside,
    End,
    Single,
}

/// Splits a tag into its prefix and the type of the entity; `None` if it is no tag.
pub(super) fn parse(tag: &str) -> Option<(Prefix, &str)> {
    if tag == "O" {
        return Some((Prefix::Outside, ""));
    }
    let (prefix, label) = tag.split_once('-')?;
    let prefix = match prefix {
        "B" => Prefix::Begin,
        "I" | "M" => Prefix::Inside,
        "E" | "L" => Prefix::End,
        "S" | "U" => Prefix::Single,
        _ => return None,
    };
    (!label.is_empty()).then_some((prefix, label))
}

/// Returns the entities that a sequence of tags stands for. IOB1, IOB2, BIOES, BMES and BILOU need
/// not be told apart. A tag that is none counts as `O`.
pub fn spans<'a>(tags: impl IntoIterator<Item = &'a str>, mode: SpanMode) -> Vec<Entity> {
    let parsed = |tag| parse(tag).unwrap_or((Prefix::Outside, ""));
    let mut entities = Vec::new();
    let mut open: Option<(usize, &str)> = None;
    let mut before = Prefix::Outside;
    let mut count = 0;
    for (at, (prefix, label)) in tags.into_iter().map(parsed).enumerate() {
        let continues = matches!(prefix, Prefix::Inside | Prefix::End)
            && !matches!(before, Prefix::Outside | Prefix::End | Prefix::Single)
            && open.is_some_and(|(_, open)| open == label);
        if !continues {
            close(&mut open, at, &mut entities);
            let begins = match mode {
                SpanMode::Lenient => prefix != Prefix::Outside,
                SpanMode::Strict => prefix == Prefix::Begin,
            };
            open = begins.then_some((at, label));
        }
        (before, count) = (prefix, at + 1);
    }
    close(&mut open, count, &mut entities);
    entities
}

fn close(open: &mut Option<(usize, &str)>, end: usize, entities: &mut Vec<Entity>) {
    if let Some((start, label)) = open.take() {
        entities.push(Entity { words: start..end, label: label.to_owned() });
    }
}
