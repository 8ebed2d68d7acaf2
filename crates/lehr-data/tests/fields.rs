//! Every field of a record is used, refused by place, or named with its count.

#![expect(clippy::unwrap_used, reason = "a failed helper fails its test")]

mod common;

use common::{Scratch, TOKENIZER, says};
use lehr_data::{
    Error, LabelledFields, Loader, LoaderOptions, ReadOptions, Reading, Renderer, SftLoader,
    read_conversations, read_documents, read_labelled,
};
use lehr_tokenizer::chat::ChatTemplate;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

/// A template that writes all that OpenAI's format has.
const WRITES_ALL: &str = "{% if tools %}{{ tools | tojson }}{% endif %}\
    {% for d in documents or [] %}{{ d }}{% endfor %}\
    {% for m in messages %}{{ '<|assistant|>' if m.role == 'assistant' else '<|user|>' }}\
    {{ m.name }}{{ m.tool_call_id }}{{ m.reasoning_content }}{{ m.content }}\
    {% for call in m.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}\
    {{ '<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}";

fn writes_all() -> ChatTemplate {
    ChatTemplate::from_jinja("all", WRITES_ALL, Map::new(), Vec::new()).unwrap()
}

/// What training sees of records, and the notes about them.
type Seen = Result<((Vec<i32>, Vec<i32>), String), Error>;

fn train(records: &[Value], template: &ChatTemplate) -> Seen {
    let scratch = Scratch::new();
    let lines: String = records.iter().map(|record| format!("{record}\n")).collect();
    let reading = Reading::default();
    let conversations = read_conversations(scratch.file("a.jsonl", lines), &reading)?;
    let renderer = Renderer { tokenizer: &TOKENIZER, template };
    let options = LoaderOptions::sequential(1, 4096);
    let loader = SftLoader::with_reading(&conversations, &renderer, options, &reading)?;
    let batch = loader.batch(0)?;
    Ok(((batch.tokens, batch.targets), reading.take_notes().join("\n")))
}

fn messages(more: &Value) -> Value {
    let mut answer = json!({"role": "assistant", "content": "first"});
    answer.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"messages": [
        {"role": "user", "content": "q"}, answer,
        {"role": "user", "content": "more"}, {"role": "assistant", "content": "second"},
    ]})
}

fn with(mut record: Value, name: &str, value: Value) -> Value {
    record[name] = value;
    record
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!(true)),
        any::<i32>().prop_map(Value::from),
        "[a-z]{1,5}".prop_map(Value::from),
        prop::collection::vec("[a-z]{1,3}", 1..3).prop_map(Value::from),
        "[a-z]{1,5}".prop_map(|key| json!({ key: 1 })),
    ]
}

/// Names that data sets have and no reader uses, and made-up ones.
fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(vec!["source", "meta", "score", "lang", "url", "category", "chosen"])
            .prop_map(str::to_owned),
        "x[a-z_ ]{0,8}",
    ]
}

proptest! {
    #[test]
    fn an_unknown_field_of_any_record_is_named_with_its_count(
        shape in 0usize..8, name in name(), value in value(), n in 1usize..4, others in 0usize..3,
    ) {
        let user = json!({"role": "user", "content": "q"});
        let talk = [user, json!({"role": "assistant", "content": "a"})];
        let human = json!({"from": "human", "value": "q"});
        let gpt = json!({"from": "gpt", "value": "a"});
        let in_message = json!([talk[0], with(talk[1].clone(), &name, value.clone())]);
        let record = match shape {
            0 => json!({"messages": talk}),
            1 => json!({"conversations": [human, gpt]}),
            2 => json!({"prompt": "q", "completion": "a"}),
            3 => json!({"instruction": "q", "input": "i", "output": "a"}),
            4 => json!({"prompt": [talk[0]], "completion": [talk[1]]}),
            5 => json!({"messages": in_message}),
            _ => json!({"text": "t", "label": "l", "id": 3}),
        };
        let extended = if shape == 5 { record.clone() } else { with(record.clone(), &name, value) };
        let plain = if shape == 5 { json!({"messages": talk}) } else { record };
        let records = [vec![extended; n], vec![plain; others]].concat();
        let notes = if shape < 6 {
            train(&records, &ChatTemplate::default()).unwrap().1
        } else {
            let scratch = Scratch::new();
            let lines: String = records.iter().map(|record| format!("{record}\n")).collect();
            let path = scratch.file("a.jsonl", lines);
            let reading = Reading::default();
            if shape == 6 {
                read_labelled(path, &LabelledFields::default(), &reading).unwrap();
            } else {
                let options = ReadOptions { reading: reading.clone(), ..ReadOptions::default() };
                read_documents(path, &options).unwrap();
            }
            reading.take_notes().join("\n")
        };
        let count = if n == 1 { "of 1 record".to_owned() } else { format!("of {n} records") };
        prop_assert!(notes.contains(&format!("{name:?}")) && notes.contains(&count), "{notes}");
    }
}

#[test]
fn a_known_field_of_a_message_changes_what_is_learnt_or_is_named_or_refused() {
    let bare = train(&[messages(&json!({}))], &writes_all()).unwrap();
    assert_eq!(bare.1, "");
    let plain = train(&[messages(&json!({}))], &ChatTemplate::default()).unwrap();
    let call = json!([{"type": "function", "function": {"name": "f", "arguments": "{}"}}]);
    for (name, value) in [
        ("weight", json!(0)),
        ("weight", json!(0.0)),
        ("train", json!(false)),
        ("loss", json!(false)),
        ("trainable", json!(false)),
        ("masked", json!(true)),
        ("mask", json!(1)),
        ("tool_calls", call.clone()),
        ("tool_calls", json!(call.to_string())),
        ("function_call", json!({"name": "f", "arguments": "{}"})),
        ("name", json!("Ann")),
        ("reasoning_content", json!("because")),
        ("reasoning", json!("because")),
        ("thinking", json!("because")),
    ] {
        let record = messages(&json!({ name: value }));
        let seen = train(std::slice::from_ref(&record), &writes_all()).unwrap();
        assert_ne!(seen.0, bare.0, "{name} {value}");
        assert_eq!(seen.1, "", "{name} {value}");
        // The built-in template writes neither names nor calls nor thoughts.
        match train(&[record], &ChatTemplate::default()) {
            Ok(seen) => assert!(
                seen.0 != plain.0
                    || seen.1.contains(&format!("{name:?}"))
                    || seen.1.contains("\"reasoning_content\""),
                "{name}: {}",
                seen.1
            ),
            Err(error) => says(&error, &["line 1", "message 1", "\"tool_calls\""]),
        }
    }
    // Fields that say what is the case anyway change nothing.
    for more in [
        json!({"weight": 1}),
        json!({"train": true}),
        json!({"masked": false}),
        json!({"name": null}),
    ] {
        assert_eq!(train(&[messages(&more)], &writes_all()).unwrap(), bare, "{more}");
    }
    for (more, parts) in [
        (json!({"weight": 0.5}), &["line 1", "messages[1]", "\"weight\" 0.5", "0 or 1"][..]),
        (json!({"train": true, "weight": 0}), &["contradicts"]),
        (json!({"content": ""}), &["messages[1] is an empty answer"]),
        (json!({"content": [{"type": "image", "url": "u"}]}), &["messages[1]", "\"image\""]),
        (json!({"role": "narrator"}), &["messages[1]", "\"narrator\""]),
    ] {
        says(&train(&[messages(&more)], &writes_all()).unwrap_err(), parts);
    }
}

#[test]
fn a_turn_that_is_not_supervised_is_context_only() {
    let template = ChatTemplate::default();
    let all = train(&[messages(&json!({}))], &template).unwrap().0;
    let (tokens, targets) = train(&[messages(&json!({"weight": 0}))], &template).unwrap().0;
    assert_eq!(tokens, all.0, "the same text");
    let ignored = |targets: &[i32]| targets.iter().filter(|target| **target < 0).count();
    let first = TOKENIZER.encode("first").unwrap().len() + 1;
    assert_eq!(ignored(&targets), ignored(&all.1) + first);
    // An answer that is not learnt may be empty.
    train(&[messages(&json!({"weight": 0, "content": ""}))], &template).unwrap();
    // Templates without marks give the same mask.
    let (unmarked, seen) = (writes_all(), messages(&json!({"train": false})));
    let all = train(&[messages(&json!({}))], &unmarked).unwrap().0;
    let masked = train(&[seen], &unmarked).unwrap().0;
    assert_eq!(ignored(&masked.1), ignored(&all.1) + first);
}

#[test]
fn a_known_field_of_a_record_equals_its_turns() {
    let turns = |system: &str| {
        json!({"messages": [
            {"role": "system", "content": system},
            {"role": "user", "content": "q1"}, {"role": "assistant", "content": "a1"},
            {"role": "user", "content": "q2"}, {"role": "assistant", "content": "a2"},
        ]})
    };
    let expected = train(&[turns("s")], &ChatTemplate::default()).unwrap();
    let human = |text: &str| json!({"from": "human", "value": text});
    let gpt = |text: &str| json!({"from": "gpt", "value": text});
    let user = |text: &str| json!({"role": "user", "content": text});
    for record in [
        json!({"system": "s", "conversations": [human("q1"), gpt("a1"), human("q2"), gpt("a2")]}),
        json!({"system": "s", "instruction": "q2", "output": "a2", "history": [["q1", "a1"]]}),
        json!({"system": "s", "prompt": "q2", "response": "a2",
            "history": [user("q1"), {"role": "assistant", "content": "a1"}]}),
        json!({"system": "s", "messages": "[{\"role\": \"user\", \"content\": \"q1\"}, \
            {\"role\": \"model\", \"content\": \"a1\"}, \
            {\"role\": \"human\", \"content\": \"q2\"}, \
            {\"role\": \"bot\", \"content\": [{\"type\": \"text\", \"text\": \"a\"}, \"2\"]}]"}),
    ] {
        assert_eq!(
            train(std::slice::from_ref(&record), &ChatTemplate::default()).unwrap(),
            expected,
            "{record}"
        );
    }
    let twice = with(turns("s"), "system", json!("t"));
    says(&train(&[twice], &ChatTemplate::default()).unwrap_err(), &["line 1", "\"system\""]);
    let history = json!({"instruction": "q", "output": "a", "history": [["q1"]]});
    says(&train(&[history], &ChatTemplate::default()).unwrap_err(), &["history[0]", "a pair"]);
    let empty = json!({"instruction": "q", "output": "a", "history": [["q", ""]]});
    says(&train(&[empty], &ChatTemplate::default()).unwrap_err(), &["history[0]", "empty answer"]);
}

#[test]
fn tools_reach_the_template_or_are_named() {
    let tool = json!({"type": "function", "function": {"name": "f", "parameters": {}}});
    let bare = messages(&json!({}));
    for (field, value) in [
        ("tools", json!([tool])),
        ("tools", json!(json!([tool]).to_string())),
        ("functions", json!([tool["function"]])),
        ("documents", json!(["a document"])),
        ("chat_template_kwargs", json!({"tools": [tool]})),
    ] {
        let record = with(bare.clone(), field, value);
        let seen = train(std::slice::from_ref(&record), &writes_all()).unwrap();
        assert_ne!(seen.0, train(std::slice::from_ref(&bare), &writes_all()).unwrap().0, "{field}");
        assert_eq!(seen.1, "", "{field}");
        let notes = train(&[record], &ChatTemplate::default()).unwrap().1;
        let variable = if field == "documents" { "\"documents\"" } else { "\"tools\"" };
        assert!(notes.contains(variable) && notes.contains("of 1 record"), "{notes}");
    }
}

#[test]
fn results_of_tools_are_rendered_or_refused_with_the_line() {
    let openai = json!({"messages": [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": null, "tool_calls": [
            {"type": "function", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "content": "4", "tool_call_id": "c"},
        {"role": "assistant", "content": "a"},
    ]});
    let sharegpt = json!({"conversations": [
        {"from": "human", "value": "q"},
        {"from": "function_call", "value": "{\"name\": \"f\", \"arguments\": \"{}\"}"},
        {"from": "observation", "value": "4"},
        {"from": "gpt", "value": "a"},
    ]});
    let talk = json!({"prompt": "q", "completion": "a"});
    for record in [openai, sharegpt] {
        let seen = train(&[talk.clone(), record.clone()], &writes_all()).unwrap();
        assert_eq!(seen.1, "");
        let error = train(&[talk.clone(), record], &ChatTemplate::default()).unwrap_err();
        says(&error, &["line 2", "tool"]);
    }
    // A template that passes over a role would drop its words.
    let source = "{% for m in messages %}{% if m.role != 'system' %}{{ '<|' ~ m.role ~ '|>' ~ \
        m.content ~ '<|end|>' }}{% endif %}{% endfor %}\
        {% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}";
    let deaf = ChatTemplate::from_jinja("deaf", source, Map::new(), Vec::new()).unwrap();
    let error = train(&[with(talk, "system", json!("s"))], &deaf).unwrap_err();
    says(&error, &["line 1", "message 0", "\"deaf\" does not write messages of role system"]);
}

#[test]
fn white_space_is_counted() {
    let blank = [json!({"prompt": "q", "completion": " "}), messages(&json!({}))];
    let notes = train(&blank, &ChatTemplate::default()).unwrap().1;
    assert!(notes.contains("1 records have learnt answers of white space only"), "{notes}");
    let scratch = Scratch::new();
    let path = scratch.file("a.jsonl", "{\"text\": \"a\"}\n{\"text\": \" \"}\n{\"text\": \"\"}\n");
    let reading = Reading::default();
    let options = ReadOptions { reading: reading.clone(), ..ReadOptions::default() };
    assert_eq!(read_documents(path, &options).unwrap().len(), 1);
    assert!(reading.take_notes().join("\n").contains("2 documents of white space only"));
}
