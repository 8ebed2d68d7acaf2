//! Packed conversations and labelled texts: each exactly once an epoch, each alone in its segment.

#![expect(clippy::unwrap_used, reason = "a failed helper fails its test")]

mod common;

use common::{Cell, TOKENIZER, check_counts, rows, says};
use lehr_data::{
    Answers, Batch, ClassLoader, Conversation, LabelSet, Labelled, Loader, LoaderOptions, Reading,
    Renderer, SftLoader, conversation_lengths,
};
use lehr_tokenizer::chat::{ChatTemplate, Message, Role, render};
use proptest::prelude::*;

fn talks(answers: &[String]) -> Vec<Conversation> {
    let talk = |answer: &String| {
        let messages = vec![Message::new(Role::User, "q"), Message::new(Role::Assistant, answer)];
        Conversation::new("", messages)
    };
    answers.iter().map(talk).collect()
}

fn sft(talks: &[Conversation], options: LoaderOptions) -> SftLoader {
    SftLoader::new(talks, &TOKENIZER, &ChatTemplate::default(), options).unwrap()
}

/// The segments of a batch as lists of (token, target), padding left out.
fn segments(batch: &Batch) -> Vec<Vec<(i32, i32)>> {
    let mut segments: Vec<Vec<(i32, i32)>> = Vec::new();
    for row in rows(batch) {
        for Cell { token, target, position, .. } in row {
            if position == 0 {
                segments.push(Vec::new());
            }
            segments.last_mut().unwrap().push((token, target));
        }
    }
    // Conversations have at least three tokens, so a segment of one token is padding.
    segments.retain(|segment| segment.len() > 1);
    segments
}

/// A conversation as its segment should be, cut at `len` positions.
fn segment_of(talk: &Conversation, len: usize) -> Vec<(i32, i32)> {
    let rendered = render(&TOKENIZER, &talk.messages, false).unwrap();
    let pairs = (1..rendered.ids.len()).map(|next| {
        let target = if rendered.loss_mask[next] { rendered.ids[next] as i32 } else { -100 };
        (rendered.ids[next - 1] as i32, target)
    });
    pairs.take(len).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn each_conversation_is_one_segment_once_an_epoch(
        answers in prop::collection::vec("[a-d猫]{0,20}", 1..30),
        len in 5usize..40,
        seed in any::<u64>(),
    ) {
        let talks = talks(&answers);
        let mut expected: Vec<_> = talks.iter().map(|talk| segment_of(talk, len)).collect();
        expected.sort();
        for options in [LoaderOptions::sequential(1, len), LoaderOptions::shuffled(1, len, seed)] {
            let loader = sft(&talks, options);
            prop_assert_eq!(loader.examples(), talks.len());
            let count = loader.batches_per_epoch();
            let epochs = if options.order == lehr_data::Order::Sequential { 1 } else { 3 };
            for epoch in 0..epochs {
                let mut found = Vec::new();
                for index in epoch * count..(epoch + 1) * count {
                    let batch = loader.batch(index).unwrap();
                    check_counts(&batch, &TOKENIZER);
                    found.extend(segments(&batch));
                }
                found.sort();
                prop_assert_eq!(&found, &expected);
            }
        }
    }

    #[test]
    fn each_text_is_labelled_once_an_epoch_at_its_last_token(
        texts in prop::collection::vec("[a-d猫]{0,20}", 1..30),
        len in 1usize..30,
        seed in any::<u64>(),
    ) {
        let examples: Vec<Labelled> = texts.iter().enumerate()
            .map(|(i, text)| Labelled { text: text.clone(), label: ["x", "y", "z"][i % 3].into() })
            .collect();
        let labels = LabelSet::from_names(["z", "x", "y"].map(String::from)).unwrap();
        let end = TOKENIZER.end_of_document().unwrap() as i32;
        let options = LoaderOptions::shuffled(1, len, seed);
        let loader = ClassLoader::new(&examples, &labels, &TOKENIZER, options).unwrap();
        let count = loader.batches_per_epoch();
        for epoch in 0..2 {
            let mut seen = Vec::new();
            for index in epoch * count..(epoch + 1) * count {
                let batch = loader.batch(index).unwrap();
                rows(&batch);
                prop_assert!(batch.targets.iter().all(|&target| target == Batch::IGNORE));
                let of = loader.examples_of(index).unwrap();
                prop_assert_eq!(of.len(), batch.n_targets);
                for (n, &example) in of.iter().enumerate() {
                    let last = batch.sequence_ends()[n] as usize;
                    let first = batch.segment_starts[last] as usize;
                    let mut expected: Vec<i32> = TOKENIZER.encode(&texts[example]).unwrap()
                        .into_iter().map(|id| id as i32).collect();
                    expected.truncate(len - 1);
                    expected.push(end);
                    prop_assert_eq!(&batch.tokens[first..=last], &expected[..]);
                    // Classes have the order of the labels given, not the alphabet's.
                    let class = [1, 2, 0][example % 3];
                    prop_assert_eq!(batch.sequences[n].labels[0], class);
                }
                seen.extend(of);
            }
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..texts.len()).collect::<Vec<_>>());
        }
    }
}

fn many_talks() -> Vec<Conversation> {
    let answers: Vec<String> = (0..200).map(|i| format!("{i} ").repeat(1 + i * 7 % 13)).collect();
    talks(&answers)
}

#[test]
fn rows_are_packed_nearly_full() {
    let talks = many_talks();
    let len = 64;
    let tokens: usize = talks.iter().map(|talk| segment_of(talk, len).len()).sum();
    let loader = sft(&talks, LoaderOptions::sequential(1, len));
    let rows = loader.batches_per_epoch() as usize;
    assert!(rows * len <= tokens + tokens / 20 + len, "{rows} rows for {tokens} tokens");
}

#[test]
fn any_batch_is_the_same_after_a_resume() {
    let talks = many_talks();
    let options = LoaderOptions::shuffled(3, 64, 9);
    let running = sft(&talks, options);
    let batches: Vec<Batch> = (0..60).map(|index| running.batch(index).unwrap()).collect();
    for index in [59, 0, 31] {
        assert_eq!(sft(&talks, options).batch(index).unwrap(), batches[index as usize]);
    }
    assert_ne!(sft(&talks, LoaderOptions::shuffled(3, 64, 8)).batch(0).unwrap(), batches[0]);
}

#[test]
fn epochs_put_other_conversations_together() {
    let answers: Vec<String> = (0..200).map(|i| format!("{i:03}")).collect();
    let loader = sft(&talks(&answers), LoaderOptions::shuffled(1, 64, 1));
    let count = loader.batches_per_epoch();
    let row = |index: u64| {
        let mut segments = segments(&loader.batch(index).unwrap());
        segments.sort();
        segments
    };
    let first: Vec<_> = (0..count).map(row).collect();
    let again = (count..2 * count).map(row).filter(|row| first.contains(row)).count();
    assert!(again <= 1, "{again} of {count} rows hold the same conversations as before");
}

#[test]
fn processes_share_the_rows_of_one_large_batch() {
    let talks = many_talks();
    let whole = sft(&talks, LoaderOptions::shuffled(4, 64, 2));
    let part = |rank| sft(&talks, LoaderOptions::shuffled(2, 64, 2).with_world(rank, 2));
    let (first, second) = (part(0), part(1));
    for index in [0, 7, 100] {
        let joined = [first.batch(index).unwrap().tokens, second.batch(index).unwrap().tokens];
        assert_eq!(joined.concat(), whole.batch(index).unwrap().tokens);
    }
}

#[test]
fn long_conversations_are_cut_and_counted_and_those_without_an_answer_left_out() {
    let mut talks = talks(&["a".repeat(100), "b".into()]);
    let mut long_question = talks[1].clone();
    long_question.messages[0].content = "q".repeat(100);
    talks.push(long_question);
    talks.push(Conversation::new("", vec![Message::new(Role::User, "q")]));
    let loader = sft(&talks, LoaderOptions::sequential(1, 20));
    assert_eq!((loader.examples(), loader.truncated(), loader.dropped()), (2, 2, 2));
    // The long answer is cut, and that of the long question is lost.
    assert_eq!(loader.answers(), Answers { all: 3, cut: 2 });
    let whole = sft(&talks, LoaderOptions::sequential(1, 200));
    assert_eq!((whole.truncated(), whole.answers()), (0, Answers { all: 3, cut: 0 }));
    let lengths = conversation_lengths(
        &talks,
        &Renderer { tokenizer: &TOKENIZER, template: &ChatTemplate::default() },
        &Reading::default(),
    )
    .unwrap();
    let longest = *lengths.iter().max().unwrap();
    assert_eq!(sft(&talks, LoaderOptions::sequential(1, longest)).truncated(), 0);
    assert!(sft(&talks, LoaderOptions::sequential(1, longest - 1)).truncated() > 0);
    let error = SftLoader::new(
        &talks[2..],
        &TOKENIZER,
        &ChatTemplate::default(),
        LoaderOptions::sequential(1, 20),
    );
    says(&error.unwrap_err(), &["none of 2 conversations", "within 20 tokens"]);
}

fn labelled(pairs: &[(&str, &str)]) -> Vec<Labelled> {
    let example =
        |&(text, label): &(&str, &str)| Labelled { text: text.into(), label: label.into() };
    pairs.iter().map(example).collect()
}

#[test]
fn labels_are_learnt_sorted_and_unknown_ones_are_named() {
    let train = labelled(&[("good", "pos"), ("bad", "neg"), ("fine", "pos")]);
    let labels = LabelSet::learn(&train).unwrap();
    assert_eq!(labels.names(), ["neg", "pos"]);
    assert_eq!((labels.class("pos"), labels.class("other")), (Some(1), None));
    let numbers = labelled(&[("a", "10"), ("b", "9"), ("c", "-1")]);
    assert_eq!(LabelSet::learn(&numbers).unwrap().names(), ["-1", "9", "10"]);
    let stored = ["z", "x", "y"].map(String::from);
    assert_eq!(LabelSet::from_names(stored).unwrap().names(), ["z", "x", "y"], "as stored");
    let error = LabelSet::from_names(["x", "y", "x"].map(String::from)).unwrap_err();
    says(&error, &["\"x\" is the name of class 0 and of class 2"]);
    let test = labelled(&[("good", "pos"), ("so so", "neutral")]);
    let options = LoaderOptions::sequential(1, 20);
    let error = ClassLoader::new(&test, &labels, &TOKENIZER, options).unwrap_err();
    says(&error, &["text 1", "\"neutral\"", "one of \"neg\", \"pos\""]);
    let error = LabelSet::learn(&test[..1]).unwrap_err();
    says(&error, &["found \"pos\"", "at least two"]);
    let error = ClassLoader::new(&[], &labels, &TOKENIZER, options).unwrap_err();
    says(&error, &["none of 0 labelled texts"]);
}

#[test]
fn labels_keep_the_order_of_the_head_and_differences_are_listed() {
    let names = |all: &[&str]| all.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let head = LabelSet::from_names(names(&["zeta", "alpha", "mid"])).unwrap();
    assert_eq!(head.names(), ["zeta", "alpha", "mid"]);
    assert_eq!(["zeta", "alpha", "mid"].map(|name| head.class(name)), [Some(0), Some(1), Some(2)]);
    let examples = labelled(&[("a", "mid"), ("b", "new"), ("c", "also"), ("d", "new")]);
    assert_eq!(head.compare(&examples), (names(&["also", "new"]), names(&["zeta", "alpha"])));
    let error = LabelSet::from_names(names(&["a", "b", "a"])).unwrap_err();
    says(&error, &["\"a\"", "class 0 and of class 2"]);
}

#[test]
fn rows_too_short_for_the_tokens_around_a_text_are_refused() {
    let text = std::fs::read_to_string("../lehr-infer/tests/embedder/tokenizer.json").unwrap();
    // It puts [CLS] and [SEP] around a text.
    let tokenizer = lehr_tokenizer::Tokenizer::from_json(&text).unwrap();
    let examples = labelled(&[("a", "x"), ("b", "y")]);
    let labels = LabelSet::learn(&examples).unwrap();
    let with = |seq_len| {
        let options = LoaderOptions::sequential(1, seq_len);
        ClassLoader::new(&examples, &labels, &tokenizer, options)
    };
    let error = with(1).unwrap_err();
    says(&error, &["rows have 1 tokens", "at least 2"]);
    assert!(with(2).is_ok());
}

#[test]
fn long_texts_keep_their_end_token_and_are_counted() {
    let long = "x".repeat(50);
    let examples = labelled(&[(&long, "a"), ("y", "b"), (&long[..9], "a"), (&long[..10], "b")]);
    let labels = LabelSet::learn(&examples).unwrap();
    let options = LoaderOptions::sequential(2, 10);
    let loader = ClassLoader::new(&examples, &labels, &TOKENIZER, options).unwrap();
    assert_eq!(loader.truncated(), 2, "nine tokens and the end fit into ten");
    let end = TOKENIZER.end_of_document().unwrap() as i32;
    for index in 0..loader.batches_per_epoch() {
        let batch = loader.batch(index).unwrap();
        let at_end = |&at: &i32| batch.tokens[at as usize] == end;
        assert!(batch.sequence_ends().iter().all(at_end));
    }
}
