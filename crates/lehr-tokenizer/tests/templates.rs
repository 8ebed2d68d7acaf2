//! Published chat templates against jinja2 as transformers runs it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Read as _;

use lehr_tokenizer::chat::{ChatTemplate, Moment, RenderOptions, render_unguarded};
use serde_json::{Map, Value, json};

fn golden() -> Value {
    let bytes: &[u8] = include_bytes!("golden/templates.json.gz");
    let mut text = String::new();
    flate2::read::GzDecoder::new(bytes).read_to_string(&mut text).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// The golden file's time: 2026-03-09 07:05:01.
fn options(settings: &Value) -> RenderOptions {
    let mut variables = settings.as_object().unwrap().clone();
    let add_generation_prompt =
        variables.remove("add_generation_prompt") == Some(Value::Bool(true));
    RenderOptions { add_generation_prompt, variables, now: Some(Moment::from_unix(1_773_039_901)) }
}

#[test]
fn published_templates_write_what_jinja2_writes() {
    let golden = golden();
    let special: Map<String, Value> =
        json!({"bos_token": "<s>", "eos_token": "</s>"}).as_object().unwrap().clone();
    let conversations = golden["conversations"].as_array().unwrap();
    let templates = golden["templates"].as_object().unwrap();
    assert!(templates.len() >= 70 && conversations.len() >= 12);
    let (mut n, mut wrong) = (0, Vec::new());
    for (name, source) in templates {
        let template =
            ChatTemplate::from_jinja(name, source.as_str().unwrap(), special.clone(), Vec::new())
                .unwrap();
        for (conversation, expected) in
            conversations.iter().zip(golden["texts"][name].as_array().unwrap())
        {
            let messages = conversation["messages"].as_array().unwrap();
            let found = render_unguarded(&template, messages, &options(&conversation["settings"]));
            let found_text = found.as_ref().ok().map(String::as_str);
            // Python itself fails: there is nothing to compare with.
            if expected.is_null() {
                continue;
            }
            n += 1;
            if let Some(reason) = expected["refused"].as_str() {
                let error = found.unwrap_err().to_string();
                assert!(error.contains(reason), "{name}: {error}, expected {reason}");
                continue;
            }
            // What `safe` marks, jinja2 joins to other text by escaping that text as HTML; no model
            // wants this.
            let is_escaped = name == "meetkai-functionary-medium-v3.1"
                && expected.as_str().unwrap().contains("&#34;");
            if found_text != expected.as_str() && !is_escaped {
                let place =
                    found_text.unwrap_or("").bytes().zip(expected.as_str().unwrap_or("").bytes());
                let same = place.take_while(|(a, b)| a == b).count().saturating_sub(20);
                let cut = |text: &str| text.chars().skip(same).take(120).collect::<String>();
                let found = found.map_or_else(|error| error.to_string(), |text| cut(&text));
                let expected = expected.as_str().map(cut);
                wrong.push(format!(
                    "{name}, {}:\n  found    {found:?}\n  expected {expected:?}",
                    conversation["name"]
                ));
            }
        }
    }
    assert!(n > 1150, "only {n} texts compared");
    assert!(wrong.is_empty(), "{} of {n} differ:\n{}", wrong.len(), wrong.join("\n"));
}
