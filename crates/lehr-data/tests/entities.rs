//! Named entities: files of columns, records, words, and batches.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::Scratch;
use lehr_data::entities::{Entity, SpanMode, TagSet, TaggedText, WordToken, word_rows, words_of};
use lehr_data::{
    Batch, DatasetKind, EntityLoader, Loader, LoaderOptions, Part, Reading, guess_kind, read_tagged,
};
use lehr_tokenizer::{Tokenizer, Trainer};

fn read(name: &str, text: &str) -> lehr_data::Result<Vec<TaggedText>> {
    let scratch = Scratch::new();
    read_tagged(scratch.file(name, text), &Reading::default())
}

/// The entities of a text as types and texts.
fn shown(text: &TaggedText) -> Vec<(&str, &str)> {
    text.entities.iter().map(|e| (e.label.as_str(), text.text_of(e))).collect()
}

#[test]
fn columns_of_all_schemes_and_separators_are_read_alike() {
    let rome = [("PER", "Ada Lovelace"), ("PER", "Bea"), ("LOC", "Rome")];
    let forms = [
        // IOB1: B- only between neighbours of one type.
        "Ada I-PER\nLovelace I-PER\nBea B-PER\nsaw O\nRome I-LOC\n",
        "Ada\tB-PER\nLovelace\tI-PER\nBea\tB-PER\nsaw\tO\nRome\tB-LOC\n",
        "Ada B-PER\r\nLovelace E-PER\r\nBea S-PER\r\nsaw O\r\nRome S-LOC\r\n\r\n",
        "Ada B-PER\nLovelace L-PER\nBea U-PER\nsaw O\nRome U-LOC\n",
        "-DOCSTART- -X- -X- O\n\nAda NNP B-NP B-PER\nLovelace NNP I-NP I-PER\nBea NNP B-NP B-PER\n\
         saw VBD B-VP O\nRome NNP B-NP B-LOC\n",
        "# id 7\nAda _ _ B-PER\nLovelace _ _ I-PER\nBea _ _ B-PER\nsaw _ _ O\nRome _ _ B-LOC\n",
    ];
    for form in forms {
        for name in ["a.txt", "a.conll", "a.train", "a.tsv"] {
            let texts = read(name, form).unwrap();
            assert_eq!(texts.len(), 1, "{form}");
            assert_eq!(texts[0].text, "Ada Lovelace Bea saw Rome");
            assert_eq!(shown(&texts[0]), rome, "{form}");
        }
    }
    let two = read("a.txt", "去 O\n罗 B-LOC\n马 I-LOC\n\n\n# O\nA B-X\n").unwrap();
    assert_eq!(two.len(), 2);
    assert_eq!((two[0].text.as_str(), shown(&two[0])), ("去罗马", vec![("LOC", "罗马")]));
    assert_eq!((two[1].text.as_str(), shown(&two[1])), ("# A", vec![("X", "A")]));
}

#[test]
fn prose_is_not_taken_for_columns() {
    let scratch = Scratch::new();
    let kind = |name: &str, text: &str| guess_kind(scratch.file(name, text)).unwrap();
    assert_eq!(
        kind("a.txt", "Plan B-1\nwas a success O\n\nso they say\nand go home\n"),
        DatasetKind::Text
    );
    assert_eq!(kind("b.txt", "I O\nO I\n"), DatasetKind::Text);
    assert_eq!(kind("c.txt", "I O\nsaw O\n"), DatasetKind::Entities);
    assert_eq!(kind("d.jsonl", r#"{"tokens":["a"],"ner_tags":["O"]}"#), DatasetKind::Entities);
    assert_eq!(kind("e.jsonl", r#"{"text":"a","entities":[]}"#), DatasetKind::Entities);
    assert_eq!(kind("f.jsonl", r#"{"text":"a","label":"x"}"#), DatasetKind::Labelled);
}

#[test]
fn other_data_is_not_taken_for_entities() {
    let scratch = Scratch::new();
    let kind = |name: &str, text: &str| guess_kind(scratch.file(name, text)).unwrap();
    let topics = r#"{"text": "a", "label": "x", "tags": ["news"]}"#;
    assert_eq!(kind("a.jsonl", topics), DatasetKind::Labelled);
    assert_eq!(kind("b.jsonl", r#"{"text": "a", "tags": ["python"]}"#), DatasetKind::Text);
    assert_eq!(kind("c.jsonl", r#"{"text": "a", "labels": ["sport"]}"#), DatasetKind::Text);
    assert_eq!(kind("d.jsonl", r#"{"text": "a", "tags": "O"}"#), DatasetKind::Entities);
}

#[test]
fn splits_of_columns_are_recognised() {
    let names = |files: &[&str], part| {
        let scratch = Scratch::new();
        for name in files {
            scratch.file(&format!("d/{name}"), format!("{} O\n", name.replace('.', "-")));
        }
        let texts = read_tagged(scratch.path("d"), &Reading::new(part, false)).unwrap();
        texts.into_iter().map(|text| text.text).collect::<Vec<_>>()
    };
    assert_eq!(names(&["train.conll", "dev.conll", "test.conll"], Part::Train), ["train-conll"]);
    assert_eq!(names(&["train.txt", "test.conll"], Part::Evaluation), ["test-conll"]);
    assert_eq!(names(&["a.train", "a.dev", "a.test"], Part::Train), ["a-train"]);
    assert_eq!(names(&["a_train.bio", "b.test.bio"], Part::Train), ["a_train-bio"]);
}

#[test]
fn counts_of_words_and_spaces_within_words_are_understood() {
    let scratch = Scratch::new();
    let counted = "1\tRome\tB-LOC\tO\n2\tis\tO\tO\n\n1\tA\tO\tO\n2\tb\tO\tB-X\n";
    let reading = Reading::default();
    let texts = read_tagged(scratch.file("a.conll", counted), &reading).unwrap();
    assert_eq!([&*texts[0].text, &*texts[1].text], ["Rome is", "A b"]);
    assert_eq!((shown(&texts[1]), &*texts[1].id), (vec![("X", "b")], "a.conll:4"));
    let notes = reading.take_notes().join("\n");
    assert!(notes.contains("\"other columns\" of 2 records"), "{notes}");
    let texts = read("a.conll", "10\u{a0}000 O\nRome B-LOC\n").unwrap();
    assert_eq!(texts[0].text, "10\u{a0}000 Rome");
}

#[test]
fn bad_lines_are_named_and_may_be_left_out() {
    let scratch = Scratch::new();
    let path = scratch.file("a.conll", "a O\nb O\n\nc X\n\nd B-PER\ne\n\nf O\n");
    let error = read_tagged(&path, &Reading::default()).unwrap_err().to_string();
    for part in ["2 records are bad", "line 4", "\"X\"", "line 7", "B-PER"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    let reading = Reading::new(Part::Train, true);
    let texts = read_tagged(&path, &reading).unwrap();
    assert_eq!(texts.iter().map(|t| t.text.as_str()).collect::<Vec<_>>(), ["a b", "f"]);
    assert!(reading.take_notes()[0].contains("2 bad records are left out"));
}

#[test]
fn records_of_all_shapes_are_read_alike() {
    let forms = [
        r#"{"tokens": ["Ada", "saw", "Rome"], "tags": ["B-PER", "O", "B-LOC"]}"#,
        r#"{"words": ["Ada", "saw", "Rome"], "ner_tags": "B-PER O B-LOC", "id": 3}"#,
        r#"{"tokens": ["Ada", "saw", "Rome"], "labels": ["U-PER", "O", "U-LOC"], "text": "Ada saw Rome"}"#,
        r#"{"text": "Ada saw Rome", "entities": [{"start": 8, "end": 12, "label": "LOC", "text": "Rome"},
            {"start": 0, "end": 3, "type": "PER"}]}"#,
        r#"{"text": "Ada saw Rome", "label": [[0, 3, "PER"], [8, 12, "LOC"]]}"#,
        r#"{"text": "Ada saw Rome", "tokens": [{"text": "Ada", "start": 0}],
            "spans": [{"start": 0, "end": 3, "label": "PER"},
                {"start": 8, "end": 12, "label": "LOC"}]}"#,
        r#"{"text": "Ada saw Rome", "label": {"PER": {"Ada": [[0, 2]]}, "LOC": {"Rome": [[8, 11]]}}}"#,
        r#"{"text": "Ada saw Rome", "tags": "B-PER I-PER I-PER O O O B-LOC I-LOC I-LOC I-LOC"}"#,
    ];
    for form in forms {
        let texts = read("a.jsonl", &form.replace('\n', " ")).unwrap();
        assert_eq!(texts[0].text, "Ada saw Rome", "{form}");
        assert_eq!(shown(&texts[0]), [("PER", "Ada"), ("LOC", "Rome")], "{form}");
    }
    // Offsets count characters, and an entity within a word cuts it.
    let text = r#"{"text": "在纽约和ibm-pc", "entities": [[1, 3, "LOC"], [4, 7, "ORG"]]}"#;
    let texts = read("a.jsonl", text).unwrap();
    assert_eq!(shown(&texts[0]), [("LOC", "纽约"), ("ORG", "ibm")]);
    let words: Vec<_> = texts[0].words.iter().map(|w| &texts[0].text[w.clone()]).collect();
    assert_eq!(words, ["在", "纽", "约", "和", "ibm", "-", "pc"]);
}

#[test]
fn records_that_contradict_themselves_are_refused() {
    for (form, part) in [
        (r#"{"tokens": ["a", "b"], "tags": ["O"]}"#, "2 words have 1 tags"),
        (r#"{"tokens": ["a"], "tags": [0]}"#, "number 0"),
        (r#"{"tokens": ["a"], "tags": ["PER"]}"#, "\"PER\" is not a tag"),
        (r#"{"tokens": ["a", " "], "tags": ["O", "O"]}"#, "word 2 is empty"),
        (r#"{"text": "a b", "entities": [[0, 9, "X"]]}"#, "0 to 9 of a text of 3 characters"),
        (r#"{"text": "a b", "entities": [[2, 2, "X"]]}"#, "2 to 2"),
        (r#"{"text": "a b", "entities": [[1, 2, "X"]]}"#, "white space"),
        (r#"{"text": "a b c", "entities": [[0, 3, "X"], [2, 5, "Y"]]}"#, "overlap"),
        (
            r#"{"text": "a b", "entities": [{"start": 0, "end": 1, "label": "X", "text": "b"}]}"#,
            "says \"b\"",
        ),
        (
            r#"{"text": "a b", "entities": [{"start": 0, "label": "X"}]}"#,
            "lacks start, end or label",
        ),
        (r#"{"text": "a b", "label": {"X": {"b": [[0, 0]]}}}"#, "says \"b\""),
        (r#"{"text": "a b"}"#, "entities"),
    ] {
        let error = read("a.jsonl", form).unwrap_err().to_string();
        assert!(error.contains(part) && error.contains("line 1"), "{form}: {error}");
    }
    let scratch = Scratch::new();
    let path = scratch.file(
        "a.jsonl",
        r#"{"text":"a","entities":[{"start":0,"end":1,"label":"X","score":0.5}],"topic":1}"#,
    );
    let reading = Reading::default();
    read_tagged(path, &reading).unwrap();
    let notes = reading.take_notes().join("\n");
    assert!(notes.contains("\"score\" of an entity") && notes.contains("\"topic\""), "{notes}");
}

#[test]
fn words_are_runs_of_letters_and_single_signs() {
    let words = |text| -> Vec<String> {
        words_of(text).into_iter().map(|word| text[word].to_owned()).collect()
    };
    assert_eq!(words("It's U.S. naïve_2 "), ["It", "'", "s", "U", ".", "S", ".", "naïve_2"]);
    assert_eq!(words("北京2008，ok"), ["北", "京", "2008", "，", "ok"]);
    assert!(words(" \n").is_empty());
}

fn tokenizer() -> Tokenizer {
    let text = "the glass of Ada Lovelace and Rome cools 罗马 玻璃 slowly in the lehr";
    Trainer::new(300).train([text].repeat(4)).unwrap()
}

fn examples() -> Vec<TaggedText> {
    let mut lines = String::new();
    for index in 0..40 {
        for word in 0..(3 + index % 17) {
            let tag = match word % 7 {
                1 => "B-A",
                2 | 3 => "I-A",
                5 => "B-B",
                _ => "O",
            };
            lines += &format!("w{index}x{word} {tag}\n");
        }
        lines += "\n";
    }
    read("a.conll", &lines).unwrap()
}

/// Each word is a target once, with its class, at its first or last token, whatever the length of
/// the rows.
#[test]
fn every_word_is_one_target() {
    let (texts, tokenizer) = (examples(), tokenizer());
    let tags = TagSet::learn(texts.iter().flat_map(|t| &t.entities)).unwrap();
    assert_eq!(tags.labels().names(), ["O", "B-A", "I-A", "B-B", "I-B"]);
    let mut expected: Vec<(String, i32)> = Vec::new();
    for text in &texts {
        let classes = tags.classes(text.words.len(), &text.entities).unwrap();
        for (word, class) in text.words.iter().zip(classes) {
            expected.push((text.text[word.clone()].to_owned(), class as i32));
        }
    }
    expected.sort();
    for token in [WordToken::First, WordToken::Last] {
        for seq_len in [12, 40, 200] {
            let options = LoaderOptions::sequential(3, seq_len);
            let loader = EntityLoader::new(&texts, &tags, &tokenizer, token, options).unwrap();
            let counts = loader.counts();
            assert_eq!((counts.words, counts.without_token, counts.cut), (expected.len(), 0, 0));
            let mut found = Vec::new();
            for index in 0..loader.batches_per_epoch() {
                let batch = loader.batch(index).unwrap();
                batch.validate().unwrap();
                let n = batch.targets.iter().filter(|t| **t != Batch::IGNORE).count();
                assert_eq!(batch.n_targets, n);
                found.extend(targets(&batch, token, &tokenizer));
            }
            found.sort();
            assert_eq!(found, expected, "{token:?}, rows of {seq_len}");
        }
    }
}

/// The words at the targets of a batch, with their classes.
fn targets(batch: &Batch, token: WordToken, tokenizer: &Tokenizer) -> Vec<(String, i32)> {
    let ids = |range: std::ops::Range<usize>| -> String {
        let ids: Vec<u32> = batch.tokens[range].iter().map(|id| *id as u32).collect();
        tokenizer.decode(&ids)
    };
    let n = batch.targets.len();
    let mut words = Vec::new();
    for at in (0..n).filter(|at| batch.targets[*at] != Batch::IGNORE) {
        let row = at / batch.seq_len * batch.seq_len;
        let same = |t: usize| batch.segment_starts[t] == batch.segment_starts[at];
        // A word of the examples is w…x…, so its bounds show in its text.
        let word = match token {
            WordToken::First => {
                let end =
                    (at..row + batch.seq_len).find(|t| !same(*t)).unwrap_or(row + batch.seq_len);
                let text = ids(at..end);
                text.trim_start().split(' ').next().unwrap().to_owned()
            }
            WordToken::Last => {
                let text = ids(row + batch.segment_starts[at] as usize..at + 1);
                text.rsplit(' ').next().unwrap().to_owned()
            }
        };
        words.push((word, batch.targets[at]));
    }
    words
}

#[test]
fn no_entity_that_fits_into_a_row_is_divided() {
    let (texts, tokenizer) = (examples(), tokenizer());
    let parts: Vec<_> = texts.iter().map(TaggedText::parts).collect();
    let rows = word_rows(&tokenizer, &parts, WordToken::Last, 36).unwrap();
    assert!(rows.iter().any(|rows| rows.len() > 2));
    for (text, rows) in texts.iter().zip(&rows) {
        for row in rows {
            assert!(row.ids.len() <= 36);
            let tagged: Vec<usize> = row.places.iter().map(|(word, _)| *word).collect();
            let (first, last) = (tagged[0], tagged[tagged.len() - 1]);
            assert_eq!(tagged, (first..=last).collect::<Vec<_>>());
            for Entity { words, .. } in &text.entities {
                let inside = words.clone().filter(|word| tagged.contains(word)).count();
                assert!(inside == 0 || inside == words.len(), "{words:?} in {first}..={last}");
            }
        }
    }
}

#[test]
fn words_without_tokens_are_counted_and_long_ones_are_cut() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../lehr-infer/tests/embedder/tokenizer.json");
    let tokenizer = Tokenizer::from_file(path).unwrap();
    // BERT's normaliser drops control characters.
    let texts = read("a.conll", "the O\n\u{200b} B-A\nglass B-A\nnononononono I-A\n").unwrap();
    let tags = TagSet::learn(&texts[0].entities).unwrap();
    let options = LoaderOptions::sequential(1, 6);
    let loader = EntityLoader::new(&texts, &tags, &tokenizer, WordToken::First, options).unwrap();
    let counts = loader.counts();
    assert_eq!((counts.words, counts.without_token, counts.cut, counts.divided), (4, 1, 1, 1));
}

#[test]
fn tags_of_a_model_are_its_scheme() {
    let set = |names: &[&str]| TagSet::from_names(names.iter().map(|n| (*n).to_owned()));
    let entities = [
        Entity { words: 0..3, label: "A".to_owned() },
        Entity { words: 3..4, label: "A".to_owned() },
    ];
    for (names, tags) in [
        (vec!["B-A", "O", "I-A"], "B-A I-A I-A B-A O"),
        (vec!["O", "B-A", "I-A", "E-A", "S-A"], "B-A I-A E-A S-A O"),
        (vec!["O", "B-A", "M-A", "E-A", "S-A"], "B-A M-A E-A S-A O"),
        (vec!["O", "B-A", "I-A", "L-A", "U-A"], "B-A I-A L-A U-A O"),
        (vec!["O", "I-A"], "I-A I-A I-A I-A O"),
    ] {
        let set = set(&names).unwrap();
        let classes = set.classes(5, &entities).unwrap();
        let found: Vec<_> = classes.iter().map(|c| set.labels().names()[*c].as_str()).collect();
        assert_eq!(found.join(" "), tags);
        let again = set.entities(&classes, SpanMode::Lenient);
        // Inside tags alone cannot tell neighbours apart.
        assert_eq!(again.len(), if names.len() == 2 { 1 } else { 2 });
    }
    let error = set(&["O", "B-A"]).unwrap_err().to_string();
    assert!(error.contains("no I-A"), "{error}");
    let error = set(&["NOUN", "VERB"]).unwrap_err().to_string();
    assert!(error.contains("NOUN"), "{error}");
    let other = [Entity { words: 0..1, label: "Z".to_owned() }];
    let error = set(&["O", "B-A", "I-A"]).unwrap().classes(1, &other).unwrap_err().to_string();
    assert!(error.contains("\"Z\"") && error.contains("\"A\""), "{error}");
}
