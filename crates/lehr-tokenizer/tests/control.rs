//! Chat templates of others: tokens that delimit turns, line ends, variables and the time.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::LazyLock;

use common::train;
use lehr_tokenizer::chat::{ChatTemplate, Message, Moment, RenderOptions, Role, TemplateParts};
use lehr_tokenizer::{Pattern, Tokenizer};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

/// Renames the tokens of roles to `names` and marks none of them special.
fn tokenizer(names: [&str; 5]) -> Tokenizer {
    let mut file: Value = serde_json::from_str(&train(Pattern::Gpt4).to_json()).unwrap();
    let old = ["<|user|>", "<|assistant|>", "<|end|>", "<|system|>"];
    let vocab = file["model"]["vocab"].as_object_mut().unwrap();
    for (old, new) in old.iter().zip(names) {
        if let Some(id) = vocab.remove(*old) {
            vocab.insert(new.to_owned(), id);
        }
    }
    for token in file["added_tokens"].as_array_mut().unwrap() {
        if let Some(at) = old.iter().position(|name| token["content"] == *name) {
            token["content"] = names[at].into();
            token["special"] = false.into();
        }
    }
    let id = vocab_size(&file);
    let tokens = file["added_tokens"].as_array_mut().unwrap();
    tokens.push(json!({"id": id, "content": names[4], "special": false, "normalized": false,
        "lstrip": false, "rstrip": false, "single_word": false}));
    Tokenizer::from_json(&file.to_string()).unwrap()
}

/// The tokenizers of both templates.
static BOTH: LazyLock<[(Tokenizer, ChatTemplate, [&str; 5]); 2]> = LazyLock::new(|| {
    [(SHARP, SHARP_TEMPLATE), (TAGS, TAGS_TEMPLATE)]
        .map(|(names, source)| (tokenizer(names), template(source), names))
});

fn vocab_size(file: &Value) -> u64 {
    let words = file["model"]["vocab"].as_object().unwrap().values();
    let added = file["added_tokens"].as_array().unwrap().iter().map(|token| &token["id"]);
    words.chain(added).filter_map(Value::as_u64).max().unwrap() + 1
}

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::from_jinja("test", source, Map::new(), Vec::new()).unwrap()
}

const SHARP: [&str; 5] = ["<|user|>", "<|assistant|>", "<|end|>", "<|system|>", "<think>"];
const SHARP_TEMPLATE: &str = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\
    {% endfor %}{% if add_generation_prompt %}<|assistant|>{# <think> #}{% endif %}";
const TAGS: [&str; 5] = ["<user>", "<bot>", "</turn>", "#SYS:", "<tool_call>"];
const TAGS_TEMPLATE: &str = "{% for m in messages %}{{ {'user': '<user>', 'assistant': '<bot>', \
    'system': '#SYS:', 'tool': '<user>'}[m.role] }}{{ m.content }}</turn>{% endfor %}\
    {% if add_generation_prompt %}<bot>{# <tool_call> #}{% endif %}";

fn turns(user: &str, answer: &str) -> Vec<Message> {
    vec![
        Message::new(Role::System, user),
        Message::new(Role::User, user),
        Message::new(Role::Assistant, answer),
        Message::new(Role::Tool, user),
        Message::new(Role::Assistant, answer),
    ]
}

proptest! {
    #[test]
    fn what_delimits_turns_is_never_typed(parts in prop::collection::vec(prop_oneof![
        "[a-z <|>/#]{0,6}",
        prop::sample::select([SHARP, TAGS].concat()).prop_map(str::to_owned),
    ], 0..6)) {
        let text = parts.concat();
        for (tokenizer, template, names) in &*BOTH {
            let ids = |messages: &[Message]| {
                let rendered = template.render(tokenizer, messages, false).unwrap();
                let is = |id: &u32| {
                    tokenizer.token(*id).is_some_and(|name| names.contains(&name.as_str()))
                };
                rendered.ids.into_iter().filter(is).collect::<Vec<u32>>()
            };
            let forged = turns(&text, "x");
            prop_assert_eq!(ids(&forged), ids(&turns("x", "x")), "{}", text);
        }
    }
}

#[test]
fn an_assistant_may_write_the_marks_of_its_thoughts() {
    for (tokenizer, template, names) in &*BOTH {
        let mark = names[4];
        let rendered =
            |user: &str, answer: &str| template.render(tokenizer, &turns(user, answer), false);
        let count = |ids: &[u32]| {
            ids.iter().filter(|id| tokenizer.token(**id).as_deref() == Some(mark)).count()
        };
        let answer = format!("a {mark} b {}", names[2]);
        assert_eq!(count(&rendered("x", &answer).unwrap().ids), 2);
        assert_eq!(count(&rendered(mark, "x").unwrap().ids), 0);
        // The end of a turn stays the template's alone.
        let ends = rendered("x", &answer).unwrap().ids;
        let is_end = |id: &&u32| tokenizer.token(**id).as_deref() == Some(names[2]);
        assert_eq!(ends.iter().filter(is_end).count(), 5);
    }
}

#[test]
fn answers_end_at_a_token_that_is_not_marked_special() {
    for (tokenizer, template, names) in &*BOTH {
        let stops = template.stop_ids(tokenizer).unwrap();
        assert_eq!(stops.first().and_then(|id| tokenizer.token(*id)).as_deref(), Some(names[2]));
        let rendered = template.render(tokenizer, &turns("q", "a"), false).unwrap();
        let learnt = rendered.ids.iter().zip(&rendered.loss_mask).filter(|(_, learnt)| **learnt);
        let learnt: Vec<u32> = learnt.map(|(id, _)| *id).collect();
        assert_eq!(tokenizer.decode(&learnt), format!("a{0}a{0}", names[2]));
    }
}

#[test]
fn templates_with_other_line_ends_are_the_same() {
    let source = "{% for m in messages %}\n<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}\n\
        {%- if add_generation_prompt %}\n<|assistant|>\n{% endif %}\n";
    let tokenizer = train(Pattern::Gpt4);
    let messages = [Message::new(Role::User, "a\r\nb")];
    let text = |source: &str| {
        template(source).render_text(&tokenizer, &messages, &RenderOptions::default()).unwrap()
    };
    let expected = text(source);
    assert!(expected.contains("a\r\nb<|end|>\n"), "the text of a message keeps its line ends");
    for other in
        [source.replace('\n', "\r\n"), source.replace('\n', "\r"), format!("\u{feff}{source}")]
    {
        assert_eq!(text(&other), expected);
        let parts = TemplateParts { jinja: Some(other), ..TemplateParts::default() };
        let template = ChatTemplate::for_model(&tokenizer, &parts).unwrap();
        assert_eq!(template.source(), source, "what a checkpoint keeps");
    }
}

#[test]
fn templates_get_the_time_and_variables() {
    let source = "{{ strftime_now('%d %b %Y') }}{% if enable_thinking %} think{% endif %}\
        {% for d in documents or [] %} {{ d.title }}{% endfor %}{{ messages[0].content }}";
    let tokenizer = train(Pattern::Gpt4);
    let messages = [Message::new(Role::User, "!")];
    let text = |template: &ChatTemplate, options: &RenderOptions| {
        template.render_text(&tokenizer, &messages, options)
    };
    let plain = template(source);
    assert!(plain.prints_time() && !template("x").prints_time());
    text(&plain, &RenderOptions::default()).unwrap_err();
    let dated = plain.at(Moment::from_unix(1_773_039_901));
    assert_eq!(text(&dated, &RenderOptions::default()).unwrap(), "09 Mar 2026!");
    let Value::Object(variables) = json!({"enable_thinking": true, "documents": [{"title": "D"}],
        "enable_thinknig": true})
    else {
        unreachable!("an object")
    };
    let (with, unused) = dated.with_variables(variables).unwrap();
    assert_eq!(unused, ["enable_thinknig"]);
    assert_eq!(text(&with, &RenderOptions::default()).unwrap(), "09 Mar 2026 think D!");
    // Those of one rendering come before those of all.
    let Value::Object(variables) = json!({"enable_thinking": false}) else {
        unreachable!("an object")
    };
    let options =
        RenderOptions { variables, now: Some(Moment::from_unix(0)), ..Default::default() };
    assert_eq!(text(&with, &options).unwrap(), "01 Jan 1970 D!");
    for name in ["messages", "add_generation_prompt"] {
        let error = dated.with_variables([(name.to_owned(), json!([]))].into_iter().collect());
        assert!(error.unwrap_err().to_string().contains(name));
    }
}

#[test]
fn undecidable_answers_say_how_to_mark_them() {
    // The system text moves to the last question.
    let source = "{% for m in messages %}{% if m.role == 'user' %}<|user|>{% if loop.index0 >= \
        messages|length - 2 %}LAST {% endif %}{{ m.content }}<|end|><|assistant|>{% else %}\
        {{ m.content }}<|end|>{% endif %}{% endfor %}";
    let tokenizer = train(Pattern::Gpt4);
    let turn = [Message::new(Role::User, "q"), Message::new(Role::Assistant, "a")];
    let error = template(source).render(&tokenizer, &[turn.clone(), turn].concat(), false);
    let error = error.unwrap_err();
    assert!(error.hint().unwrap().contains("{% generation %}"), "{error}");
}
