//! Jinja templates, run as transformers runs them.

use minijinja::value::{Serde, Value, ValueKind};
use minijinja::{AutoEscape, Environment, ErrorKind, State, syntax::SyntaxConfig};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde_json::{Map, Value as Json};

use super::guard::{LEARNT_END, LEARNT_START};
use super::python::{Moment, indent, tojson};
use crate::{Error, Result};

/// Instructions a template may run, plus [`FUEL_PER_BYTE`] per byte of its input. About a second.
const FUEL: u64 = 2_000_000;
const FUEL_PER_BYTE: u64 = 64;

/// A compiled template.
#[derive(Clone)]
pub(super) struct Jinja {
    environment: Environment<'static>,
    /// The constants of the template's expressions.
    literals: Vec<String>,
    /// Whether it marks the assistant's text with `{% generation %}`.
    marks_generation: bool,
    name: String,
}

/// Variables of the template besides the messages.
pub(super) struct Context<'a> {
    pub(super) add_generation_prompt: bool,
    /// `bos_token`, `eos_token` and so on.
    pub(super) special: &'a Map<String, Json>,
    /// Further variables, such as `tools`, `documents` and `enable_thinking`.
    pub(super) variables: &'a Map<String, Json>,
    pub(super) now: Option<Moment>,
}

impl Jinja {
    /// Compiles `source`.
    pub(super) fn new(name: &str, source: &str) -> Result<Self> {
        let (source_of_blocks, marks_generation) = with_generation_blocks(source);
        let mut environment = Environment::new();
        let mut syntax = SyntaxConfig::builder();
        let syntax = syntax.trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| fault(name, "reading", &error))?);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_unknown_method_callback(python_method);
        environment.add_filter("tojson", tojson);
        environment.add_filter("indent", indent);
        environment
            .add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
        environment.add_filter("learnt", |text: &str| format!("{LEARNT_START}{text}{LEARNT_END}"));
        environment.add_function(
            "raise_exception",
            |message: &str| -> std::result::Result<Value, _> {
                Err(minijinja::Error::new(ErrorKind::InvalidOperation, message.to_owned()))
            },
        );
        environment
            .add_template_owned("chat", source_of_blocks)
            .map_err(|error| fault(name, "reading", &error))?;
        Ok(Self {
            environment,
            literals: literals(source),
            marks_generation,
            name: name.to_owned(),
        })
    }

    pub(super) fn literals(&self) -> &[String] {
        &self.literals
    }

    /// Returns those of `names` that the template does not use.
    pub(super) fn unused<'n>(&self, names: impl Iterator<Item = &'n String>) -> Vec<&'n str> {
        let used = self
            .environment
            .get_template("chat")
            .map(|template| template.undeclared_variables(false))
            .unwrap_or_default();
        names.filter(|name| !used.contains(*name)).map(String::as_str).collect()
    }

    pub(super) fn marks_generation(&self) -> bool {
        self.marks_generation
    }

    /// Renders `messages`, which are JSON as in transformers.
    pub(super) fn render(&self, messages: &[Json], context: &Context<'_>) -> Result<String> {
        let mut variables = Map::new();
        // transformers always passes these two.
        variables.insert("tools".to_owned(), Json::Null);
        variables.insert("documents".to_owned(), Json::Null);
        variables.extend(context.special.clone());
        variables.extend(context.variables.clone());
        variables.insert("messages".to_owned(), messages.iter().map(with_reasoning).collect());
        variables.insert("add_generation_prompt".to_owned(), context.add_generation_prompt.into());
        let bytes: u64 = variables.values().map(size).sum();
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(FUEL + FUEL_PER_BYTE * bytes));
        if let Some(now) = context.now {
            environment.add_function("strftime_now", move |format: &str| now.format(format));
        }
        let template = environment
            .get_template("chat")
            .map_err(|error| fault(&self.name, "reading", &error))?;
        let text = template.render(Serde(Json::Object(variables)));
        text.map_err(|error| fault(&self.name, "rendering a conversation with", &error))
    }
}

/// Returns the text of a template as jinja2 reads it: every kind of line end is `\n`. A byte order
/// mark is not part of the text.
pub(super) fn normalized(source: &str) -> String {
    let source = source.strip_prefix('\u{feff}').unwrap_or(source);
    source.replace("\r\n", "\n").replace('\r', "\n")
}

/// Methods of Python that templates call and the interpreter lacks.
fn python_method(
    state: &mut State,
    value: &Value,
    method: &str,
    args: &[Value],
) -> std::result::Result<Value, minijinja::Error> {
    if value.kind() == ValueKind::String && (method == "removeprefix" || method == "removesuffix") {
        let (text, affix) = (
            value.as_str().unwrap_or_default(),
            args.first().and_then(Value::as_str).unwrap_or_default(),
        );
        let rest = if method == "removeprefix" {
            text.strip_prefix(affix)
        } else {
            text.strip_suffix(affix)
        };
        return Ok(Value::from(rest.unwrap_or(text)));
    }
    unknown_method_callback(state, value, method, args)
}

/// A message's reasoning goes by several names; transformers fills in the others.
fn with_reasoning(message: &Json) -> Json {
    const NAMES: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];
    let Json::Object(fields) = message else { return message.clone() };
    let mut fields = fields.clone();
    let reasoning =
        NAMES.iter().find_map(|name| fields.get(*name).filter(|value| !value.is_null())).cloned();
    if let Some(reasoning) = reasoning {
        fields.entry("thinking").or_insert_with(|| reasoning.clone());
        fields.insert("reasoning_content".to_owned(), reasoning);
    }
    Json::Object(fields)
}

fn size(value: &Json) -> u64 {
    match value {
        Json::String(text) => text.len() as u64,
        Json::Array(items) => items.iter().map(size).sum::<u64>() + 8,
        Json::Object(fields) => {
            fields.iter().map(|(key, value)| key.len() as u64 + size(value)).sum::<u64>() + 8
        }
        _ => 8,
    }
}

fn fault(name: &str, action: &'static str, error: &minijinja::Error) -> Error {
    let line = error.line().map(|line| format!("line {line}: ")).unwrap_or_default();
    let reason = error.detail().map_or_else(
        || error.kind().to_string(),
        |detail| match error.kind() {
            // The text of raise_exception goes to the user unchanged.
            ErrorKind::InvalidOperation => detail.to_owned(),
            kind => format!("{kind}: {detail}"),
        },
    );
    Error::Template { action, name: name.to_owned(), reason: format!("{line}{reason}") }
}

/// `{% generation %}` … `{% endgeneration %}` as blocks the interpreter knows, with the same
/// treatment of white space; and whether there are any.
fn with_generation_blocks(source: &str) -> (String, bool) {
    let (mut out, mut rest, mut found) = (String::with_capacity(source.len()), source, false);
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start + 2);
        out.push_str(before);
        let body = tag.trim_start_matches(['-', '+']).trim_start();
        let new = [("generation", "filter learnt"), ("endgeneration", "endfilter")]
            .iter()
            .find_map(|(word, new)| {
                let after = body.strip_prefix(word)?;
                let end = after.trim_start().trim_start_matches(['-', '+']);
                end.starts_with("%}").then_some((*new, after))
            });
        rest = tag;
        if let Some((new, after)) = new {
            out.push_str(&tag[..tag.len() - body.len()]);
            out.push_str(new);
            (rest, found) = (after, true);
        }
    }
    out.push_str(rest);
    (out, found)
}

/// The string constants in the tags and expressions of a template.
fn literals(source: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = source;
    while let Some(start) = rest.find("{%").into_iter().chain(rest.find("{{")).min() {
        let end = if rest[start..].starts_with("{%") { "%}" } else { "}}" };
        rest = &rest[start + 2..];
        while !rest.is_empty() && !rest.starts_with(end) {
            let first = rest.chars().next().unwrap_or(' ');
            rest = &rest[first.len_utf8()..];
            if first != '"' && first != '\'' {
                continue;
            }
            let (text, after) = literal(rest, first);
            found.push(text);
            rest = after;
        }
    }
    found.sort();
    found.dedup();
    found
}

/// The constant at the start of `text` up to the `quote`, and what follows it.
fn literal(text: &str, quote: char) -> (String, &str) {
    let mut out = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        if c == quote {
            return (out, &text[at + c.len_utf8()..]);
        }
        out.push(match c {
            '\\' => match chars.next() {
                Some((_, 'n')) => '\n',
                Some((_, 't')) => '\t',
                Some((_, 'r')) => '\r',
                Some((_, other)) => other,
                None => c,
            },
            _ => c,
        });
    }
    (out, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generation_blocks_keep_their_white_space_control() {
        let (source, found) =
            with_generation_blocks("a {%- generation -%} b {%endgeneration%}{% if generation %}");
        assert_eq!(source, "a {%- filter learnt -%} b {%endfilter%}{% if generation %}");
        assert!(found);
        assert!(!with_generation_blocks("{% set generation = 1 %}").1);
    }

    #[test]
    fn line_ends_of_all_systems_are_the_same_template() {
        for source in ["\u{feff}a\r\nb\rc\n", "a\r\nb\nc\r\n", "a\nb\nc\n"] {
            assert_eq!(normalized(source), "a\nb\nc\n");
        }
    }

    #[test]
    fn constants_of_expressions_are_found() {
        let found = literals("<raw> {% if '</think>' in x %}{{ \"a\\n'b\" + '\\'' }}{% endif %}");
        assert_eq!(found, ["'", "</think>", "a\n'b"]);
    }
}
