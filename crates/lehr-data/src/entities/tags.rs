//! The tags that a model gives to words.

use std::collections::BTreeSet;

use super::spans::{Entity, Prefix, SpanMode, parse, spans};
use crate::{Error, LabelSet, Result};

/// How the words of an entity are tagged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// `I-` for all words; neighbouring entities of one type cannot be told apart.
    Io,
    /// `B-` for the first word, `I-` for the others.
    Iob2,
    /// Also `E-` for the last word of several, `S-` for an only word.
    Bioes,
}

/// The tags of a model, as the classes of its head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagSet {
    labels: LabelSet,
    scheme: Scheme,
    /// The letters of inside, last and only words.
    letters: (char, char, char),
}

impl TagSet {
    /// The tags of IOB2 for the types of `entities`: `O`, then `B-` and `I-` of each type in the
    /// order of the alphabet.
    ///
    /// # Errors
    /// If there are no entities.
    pub fn learn<'a>(entities: impl IntoIterator<Item = &'a Entity>) -> Result<Self> {
        let types: BTreeSet<&str> = entities.into_iter().map(|e| e.label.as_str()).collect();
        if types.is_empty() {
            return Err(Error::NoEntities);
        }
        let of_type = |label: &&str| [format!("B-{label}"), format!("I-{label}")];
        let tags = types.iter().flat_map(of_type);
        Self::from_names(std::iter::once("O".to_owned()).chain(tags))
    }

    /// Uses the labels of a trained model in their order.
    ///
    /// # Errors
    /// If one occurs twice or is no tag, or `O` or an inside tag is missing.
    pub fn from_names(names: impl IntoIterator<Item = String>) -> Result<Self> {
        let labels = LabelSet::from_names(names)?;
        let names = labels.names();
        let unknown = names.iter().find(|name| parse(name).is_none());
        if let Some(name) = unknown {
            return Err(Error::NotTags { found: name.clone() });
        }
        let has = |letter: char| {
            names.iter().any(|name| name.starts_with(letter) && name[1..].starts_with('-'))
        };
        let pick = |usual, other| if has(other) { other } else { usual };
        let letters = (pick('I', 'M'), pick('E', 'L'), pick('S', 'U'));
        let scheme = match (has('B'), has(letters.1) && has(letters.2)) {
            (true, true) => Scheme::Bioes,
            (true, false) => Scheme::Iob2,
            (false, _) => Scheme::Io,
        };
        let set = Self { labels, scheme, letters };
        // Every type must have all of its tags, or an entity could not be written.
        for label in set.types() {
            let tags =
                set.tags_of_entity(&label, 3).into_iter().chain(set.tags_of_entity(&label, 1));
            for tag in tags.chain(["O".to_owned()]) {
                if set.labels.class(&tag).is_none() {
                    return Err(Error::NotTags { found: format!("no {tag}") });
                }
            }
        }
        Ok(set)
    }

    /// Returns the labels.
    pub fn labels(&self) -> &LabelSet {
        &self.labels
    }

    /// Returns the scheme.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// Returns the types of entities, in order.
    pub fn types(&self) -> BTreeSet<String> {
        let label = |name: &String| match parse(name)? {
            (Prefix::Outside, _) => None,
            (_, label) => Some(label.to_owned()),
        };
        self.labels.names().iter().filter_map(label).collect()
    }

    /// Returns the class of each of `n_words` words.
    ///
    /// # Errors
    /// If the type of an entity is not known.
    pub fn classes(&self, n_words: usize, entities: &[Entity]) -> Result<Vec<usize>> {
        let class = |tag: &str| {
            self.labels.class(tag).ok_or_else(|| Error::UnknownEntity {
                found: tag.split_once('-').map_or(tag, |(_, label)| label).to_owned(),
                known: self.types().into_iter().collect(),
            })
        };
        let mut classes = vec![class("O")?; n_words];
        for entity in entities {
            let tags = self.tags_of_entity(&entity.label, entity.words.len());
            for (at, tag) in entity.words.clone().zip(tags) {
                classes[at] = class(&tag)?;
            }
        }
        Ok(classes)
    }

    fn tags_of_entity(&self, label: &str, n_words: usize) -> Vec<String> {
        let (inside, end, single) = self.letters;
        let letter = |at: usize| match self.scheme {
            Scheme::Io => 'I',
            Scheme::Bioes if n_words == 1 => single,
            Scheme::Bioes if at + 1 == n_words => end,
            _ if at == 0 => 'B',
            _ => inside,
        };
        (0..n_words).map(|at| format!("{}-{label}", letter(at))).collect()
    }

    /// Returns the entities that the classes of words stand for.
    pub fn entities(&self, classes: &[usize], mode: SpanMode) -> Vec<Entity> {
        spans(classes.iter().map(|class| self.labels.names()[*class].as_str()), mode)
    }
}
