//! Texts with named entities, from records and from files of columns.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use serde_json::{Map, Value};

use super::conll;
use super::files::Format;
use super::reading::{Pass, Reading};
use super::records::{Record, records, type_name};
use crate::entities::{Entity, SpanMode, TaggedText, join, spans, words_of};
use crate::{Error, Result};

/// Names of the field with the words of a text.
const WORDS: [&str; 2] = ["tokens", "words"];
/// Names of the field with their tags.
const TAGS: [&str; 4] = ["tags", "ner_tags", "ner", "labels"];
/// Names of the field with entities and their places in the text.
const ENTITIES: [&str; 5] = ["entities", "spans", "label", "labels", "annotations"];
/// Names of the type of an entity.
const TYPES: [&str; 4] = ["label", "type", "entity_group", "entity"];

/// Reads all texts with named entities of a file or folder: columns of words and tags (CoNLL), or
/// records of the forms that `docs/data.md` lists.
///
/// # Errors
/// A file cannot be read or is not well-formed, a record has no entities in a known form (unless
/// `reading` skips it), or there is no text at all.
pub fn read_tagged(path: impl AsRef<Path>, reading: &Reading) -> Result<Vec<TaggedText>> {
    let path = path.as_ref();
    let (mut pass, files) = Pass::begin(reading, path)?;
    let mut texts = Vec::new();
    for file in files {
        if file.format == Format::Text || conll::is_conll(&file)? {
            conll::read(&file, &mut pass, &mut texts)?;
            continue;
        }
        for record in records(&file)? {
            texts.extend(pass.take(record, tagged)?);
        }
    }
    pass.end()?;
    if texts.is_empty() {
        return Err(Error::Empty { path: path.to_owned(), what: "text with entities" });
    }
    Ok(texts)
}

/// Returns whether a record has the fields of a text with entities.
pub(super) fn is_tagged(record: &Record) -> bool {
    let has_any = |names: &[&str]| names.iter().any(|name| record.has(name));
    let field = |name: &&str| record.fields.get(*name);
    let has_tags = TAGS.iter().filter_map(field).any(is_tags);
    match record.has("text") {
        true => has_tags || ENTITIES.iter().filter_map(field).any(is_places),
        false => has_any(&WORDS) && has_any(&TAGS),
    }
}

fn tagged(record: &mut Record) -> Result<TaggedText> {
    let names = |record: &Record, names: &[&'static str]| {
        names.iter().copied().find(|name| record.has(name))
    };
    let text = match (names(record, &WORDS), names(record, &TAGS), record.has("text")) {
        (Some(words), Some(tags), _) => of_words(record, words, tags)?,
        (None, Some(tags), true) if !is_places(&record.fields[tags]) => {
            of_characters(record, tags)?
        }
        // Of a text with places, tokens are not needed.
        (_, None, true) | (None, _, true) => of_places(record)?,
        _ => return Err(record.missing("tokens and tags, or text and entities")),
    };
    Ok(TaggedText { id: record.take_id(), ..text })
}

/// Whether a field has tags of words.
fn is_tags(value: &Value) -> bool {
    match value {
        Value::String(text) => {
            !text.trim().is_empty() && text.split_whitespace().all(conll::is_tag)
        }
        Value::Array(list) => {
            !list.is_empty() && list.iter().all(|tag| tag.as_str().is_some_and(conll::is_tag))
        }
        _ => false,
    }
}

/// Whether a field says where entities are, instead of having a tag for each word.
fn is_places(value: &Value) -> bool {
    match value {
        Value::Object(_) => true,
        Value::Array(list) => list.iter().all(|item| item.is_object() || item.is_array()),
        _ => false,
    }
}

/// `{"tokens": ["In", "Rome"], "tags": ["O", "B-LOC"]}`
fn of_words(record: &mut Record, words: &str, tags: &str) -> Result<TaggedText> {
    let words = take_strings(record, words)?;
    let tags = take_strings(record, tags)?;
    check_counts(record, "words", words.len(), tags.len())?;
    if let Some(at) = words.iter().position(|word| word.trim().is_empty()) {
        return Err(record.place.malformed(format!("word {} is empty", at + 1)));
    }
    let entities = entities_of(record, &tags)?;
    // The text from which the words were cut. Another one counts as unused.
    let text = record.fields.get("text").and_then(Value::as_str);
    if let Some((text, words)) =
        text.and_then(|text| Some((text.to_owned(), locate(text, &words)?)))
    {
        record.fields.shift_remove("text");
        return Ok(TaggedText::new(text, words, entities));
    }
    let (text, words) = join(&words);
    Ok(TaggedText::new(text, words, entities))
}

/// Returns the places of `words` in `text`, if nothing lies between them except white space.
fn locate(text: &str, words: &[String]) -> Option<Vec<Range<usize>>> {
    let mut rest = text.trim_start();
    let mut ranges = Vec::with_capacity(words.len());
    for word in words {
        let start = text.len() - rest.len();
        rest = rest.strip_prefix(word.as_str())?.trim_start();
        ranges.push(start..start + word.len());
    }
    rest.is_empty().then_some(ranges)
}

/// `{"text": "去罗马", "tags": "O B-LOC I-LOC"}`: a tag for each character that is no white space,
/// or for each character.
fn of_characters(record: &mut Record, tags: &str) -> Result<TaggedText> {
    let text = record.take_text("text")?;
    let tags = take_strings(record, tags)?;
    let all: Vec<Range<usize>> = text.char_indices().map(|(at, c)| at..at + c.len_utf8()).collect();
    let is_word = |word: &Range<usize>| !text[word.clone()].trim().is_empty();
    let words: Vec<_> = all.iter().filter(|word| is_word(word)).cloned().collect();
    let tags: Vec<String> = match tags.len() == all.len() {
        // Tags of white space are left out with it.
        true => all.iter().zip(tags).filter(|(word, _)| is_word(word)).map(|(_, t)| t).collect(),
        false => tags,
    };
    check_counts(record, "characters", words.len(), tags.len())?;
    let entities = entities_of(record, &tags)?;
    Ok(TaggedText::new(text, words, entities))
}

fn check_counts(record: &Record, what: &str, words: usize, tags: usize) -> Result<()> {
    match words {
        0 => Err(record.place.malformed("the text is empty".to_owned())),
        n if n == tags => Ok(()),
        n => Err(record.place.malformed(format!("{n} {what} have {tags} tags"))),
    }
}

fn entities_of(record: &Record, tags: &[String]) -> Result<Vec<Entity>> {
    if let Some(tag) = tags.iter().find(|tag| !conll::is_tag(tag)) {
        let reason =
            format!("{tag:?} is not a tag, expected O or a prefix with a type, as in B-PER");
        return Err(record.place.malformed(reason));
    }
    Ok(spans(tags.iter().map(String::as_str), SpanMode::Lenient))
}

/// Takes a list of strings, or a string of words, out of a record.
fn take_strings(record: &mut Record, field: &str) -> Result<Vec<String>> {
    match record.fields.shift_remove(field).unwrap_or_default() {
        Value::String(text) => Ok(text.split_whitespace().map(str::to_owned).collect()),
        Value::Array(list) => {
            let string = |value: Value| match value {
                Value::String(text) => Ok(text),
                Value::Number(number) => Err(record.place.malformed(format!(
                    "field {field:?} has the number {number}; its name is needed, as in B-PER"
                ))),
                other => Err(record.place.malformed(format!(
                    "field {field:?} has {}, expected strings",
                    type_name(&other)
                ))),
            };
            list.into_iter().map(string).collect()
        }
        other => Err(record.place.wrong_type(field, &other, "a list of strings")),
    }
}

/// A text with the places of its entities, in characters:
/// `{"text": …, "entities": [{"start": 3, "end": 7, "label": "LOC"}]}`, `[[3, 7, "LOC"]]`, or
/// `{"LOC": {"Rome": [[3, 6]]}}` with inclusive ends (CLUENER).
fn of_places(record: &mut Record) -> Result<TaggedText> {
    let field = ENTITIES.iter().find(|name| record.has(name));
    let Some(field) = field else { return Err(record.missing("entities")) };
    let text = record.take_text("text")?;
    let value = record.fields.shift_remove(*field).unwrap_or_default();
    let bytes: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
    let mut marks = Vec::new();
    match value {
        Value::Array(list) => {
            for item in list {
                marks.push(mark(record, item, &text, &bytes)?);
            }
        }
        Value::Object(types) => {
            for (label, surfaces) in types {
                marks.extend(by_surface(record, &label, &surfaces, &text, &bytes)?);
            }
        }
        Value::Null => {}
        other => return Err(record.place.wrong_type(field, &other, "a list of entities")),
    }
    placed(record, text, marks)
}

/// A byte range and the type of the entity there.
type Mark = (Range<usize>, String);

/// Reads an entity that is an object or a list of start, end and type.
fn mark(record: &mut Record, item: Value, text: &str, bytes: &[usize]) -> Result<Mark> {
    let mut fields = match item {
        Value::Object(fields) => fields,
        Value::Array(list) if list.len() == 3 => {
            ["start", "end", "label"].iter().map(|name| (*name).to_owned()).zip(list).collect()
        }
        other => {
            let reason =
                format!("an entity is {}, expected start, end and label", type_name(&other));
            return Err(record.place.malformed(reason));
        }
    };
    let mut number = |names: [&str; 2]| {
        names.iter().find_map(|name| fields.shift_remove(*name)?.as_u64()).map(|n| n as usize)
    };
    let (start, end) = (number(["start", "start_offset"]), number(["end", "end_offset"]));
    let label = TYPES.iter().find_map(|name| take_string(&mut fields, name));
    let (Some(start), Some(end), Some(label)) = (start, end, label) else {
        let reason = "an entity lacks start, end or label".to_owned();
        return Err(record.place.malformed(reason));
    };
    let range = byte_range(record, (start, end), bytes)?;
    for name in ["text", "word"] {
        let Some(said) = take_string(&mut fields, name) else { continue };
        if said.trim() != text[range.clone()].trim() {
            let found = &text[range];
            let reason = format!(
                "an entity says {said:?}, but the text has {found:?} from character {start} to \
                 {end}"
            );
            return Err(record.place.malformed(reason));
        }
    }
    fields.shift_remove("id");
    record.note_unused(fields.keys().map(|name| format!("{name:?} of an entity")));
    Ok((range, label))
}

fn take_string(fields: &mut Map<String, Value>, name: &str) -> Option<String> {
    fields.get(name)?.as_str()?;
    fields.shift_remove(name)?.as_str().map(str::to_owned)
}

/// Reads the places of one type: surfaces with lists of start and last character.
fn by_surface(
    record: &Record,
    label: &str,
    surfaces: &Value,
    text: &str,
    bytes: &[usize],
) -> Result<Vec<Mark>> {
    let fault = |reason: String| record.place.malformed(reason);
    let surfaces: BTreeMap<String, Vec<(usize, usize)>> = serde_json::from_value(surfaces.clone())
        .map_err(|_| {
            fault(format!("{label:?} must map names to lists of [first, last] characters"))
        })?;
    let mut marks = Vec::new();
    for (surface, places) in surfaces {
        for (first, last) in places {
            let range = byte_range(record, (first, last.saturating_add(1)), bytes)?;
            if text[range.clone()] != surface {
                let found = &text[range];
                return Err(fault(format!(
                    "{label} says {surface:?}, but the text has {found:?} from character {first} \
                     to {last}, both included"
                )));
            }
            marks.push((range, label.to_owned()));
        }
    }
    Ok(marks)
}

fn byte_range(
    record: &Record,
    (start, end): (usize, usize),
    bytes: &[usize],
) -> Result<Range<usize>> {
    match (bytes.get(start), bytes.get(end)) {
        (Some(&first), Some(&after)) if first < after => Ok(first..after),
        _ => Err(record.place.malformed(format!(
            "an entity is from character {start} to {end} of a text of {} characters",
            bytes.len() - 1
        ))),
    }
}

/// Cuts a text into words, at the bounds of its entities too.
fn placed(record: &Record, text: String, mut marks: Vec<Mark>) -> Result<TaggedText> {
    marks.sort_by_key(|(range, _)| (range.start, range.end));
    if let Some([(a, first), (b, second)]) =
        marks.array_windows().find(|[(a, _), (b, _)]| b.start < a.end)
    {
        let reason = format!(
            "the entities {:?} ({first}) and {:?} ({second}) overlap, expected entities that do \
             not",
            &text[a.clone()],
            &text[b.clone()]
        );
        return Err(record.place.malformed(reason));
    }
    let bounds: Vec<usize> = marks.iter().flat_map(|(range, _)| [range.start, range.end]).collect();
    let mut words = Vec::new();
    for mut word in words_of(&text) {
        let first = bounds.partition_point(|bound| *bound <= word.start);
        for &bound in bounds[first..].iter().take_while(|bound| **bound < word.end) {
            words.push(word.start..bound);
            word.start = bound;
        }
        words.push(word);
    }
    words.retain(|word| !word.is_empty());
    let mut entities = Vec::new();
    for (range, label) in marks {
        let start = words.partition_point(|word| word.start < range.start);
        let end = words.partition_point(|word| word.end <= range.end);
        if start >= end {
            let reason = format!("an entity of type {label} is white space");
            return Err(record.place.malformed(reason));
        }
        entities.push(Entity { words: start..end, label });
    }
    match words.is_empty() {
        true => Err(record.place.malformed("field \"text\" is empty".to_owned())),
        false => Ok(TaggedText::new(text, words, entities)),
    }
}
