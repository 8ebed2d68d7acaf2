//! Guard that keeps user text from becoming a special token, whatever a template does with it.
//!
//! A template is a program: it may trim, cut, replace and join the text of messages, and the tokens
//! it writes itself are plain text until the end. So before rendering, the guard inserts *cuts*
//! (characters that no text uses) into user strings wherever a special token could begin or end.
//! After rendering, the name of a special token counts only if it contains no cut. The guard then
//! removes the cuts, and text is encoded as text.
//!
//! The guard cuts
//!
//! 1. after each character with which a special token begins, and before each with which one ends,
//!    so no name is whole that the template joins from several texts or creates by deleting a part.
//!    Letters, digits and white space have no cut of this kind; where a special token begins or
//!    ends with such a character, the guard searches for its whole name, ignoring case;
//! 2. before a text that could be the middle of a special token, such as `im_end` in
//!    `'<|' ~ text ~ '|>'`.
//!
//! String constants of the template that neither contain nor touch a special token stay whole where
//! they occur in a text. So a template that searches for `</think>` finds it. If `</think>` is
//! itself a special token of the tokenizer, it is cut like the others, and the template sees an
//! answer without thoughts. Safety comes first; pass thoughts in `reasoning_content`.

use std::collections::HashSet;

use serde_json::{Map, Value as Json};

/// Cut between two characters, where the first begins or the second ends a special token.
const CUT: char = '\u{FDD0}';
/// Cut before a special token of one character.
const SINGLE: char = '\u{FDD1}';
/// Mark around supervised text.
pub(super) const LEARNT_START: char = '\u{FDD2}';
pub(super) const LEARNT_END: char = '\u{FDD3}';
/// Mark before a letter that stands for a reserved character in user text.
const ESCAPE: char = '\u{FDD4}';
const FIRST_RESERVED: u32 = 0xFDD0;
const N_RESERVED: u32 = 16;

/// Fields whose names templates look up. Their values are guarded; their names are not user text.
const FIELDS: [&str; 30] = [
    "role",
    "content",
    "name",
    "type",
    "text",
    "function",
    "arguments",
    "parameters",
    "properties",
    "description",
    "required",
    "enum",
    "items",
    "id",
    "tool_calls",
    "tool_call_id",
    "tools",
    "tool_plan",
    "reasoning",
    "reasoning_content",
    "thinking",
    "strict",
    "return",
    "returns",
    "title",
    "default",
    "format",
    "additionalProperties",
    "nullable",
    "anyOf",
];
/// Values of `type`, which templates compare.
const TYPES: [&str; 11] = [
    "function", "text", "string", "number", "integer", "boolean", "object", "array", "null",
    "image", "video",
];

/// Whether a character has a meaning of its own between template and encoder.
pub(super) fn is_reserved(c: char) -> bool {
    (FIRST_RESERVED..FIRST_RESERVED + N_RESERVED).contains(&u32::from(c))
}

/// Rules for cuts, for the special tokens of one tokenizer and the constants of one template.
pub(super) struct Guard {
    special: Vec<String>,
    longest: usize,
    first: HashSet<char>,
    last: HashSet<char>,
    /// Constants of the template that stay whole, longest first.
    whole: Vec<String>,
}

impl Guard {
    pub(super) fn new<'a>(special: impl Iterator<Item = &'a str>, constants: &[String]) -> Self {
        let special: Vec<String> =
            special.filter(|name| !name.is_empty()).map(str::to_owned).collect();
        let is_sign = |c: &char| !c.is_alphanumeric() && !c.is_whitespace();
        let many = || special.iter().filter(|name| name.chars().nth(1).is_some());
        let first = many().filter_map(|name| name.chars().next()).filter(is_sign).collect();
        let last = many().filter_map(|name| name.chars().next_back()).filter(is_sign).collect();
        let mut whole: Vec<String> =
            constants.iter().filter(|text| stays_whole(text, &special)).cloned().collect();
        whole.sort_by_key(|text| std::cmp::Reverse(text.len()));
        let longest = special.iter().map(String::len).max().unwrap_or(0);
        Self { special, longest, first, last, whole }
    }

    /// Returns a user's text with cuts.
    pub(super) fn text(&self, text: &str) -> String {
        self.cut(text, true)
    }

    /// Guards all strings of a value from outside, and its keys except those that templates look
    /// up.
    pub(super) fn value(&self, value: &Json) -> Json {
        match value {
            Json::String(text) => Json::String(self.text(text)),
            Json::Array(items) => items.iter().map(|item| self.value(item)).collect(),
            Json::Object(fields) => {
                Json::Object(fields.iter().map(|field| self.field(field)).collect())
            }
            other => other.clone(),
        }
    }

    /// The variables of a template: their values are settings that the template compares, so only
    /// the first rule applies to strings outside lists and objects.
    pub(super) fn variables(&self, variables: &Map<String, Json>) -> Map<String, Json> {
        let guarded = |(key, value): (&String, &Json)| {
            let value = value
                .as_str()
                .map_or_else(|| self.value(value), |text| Json::String(self.cut(text, false)));
            (key.clone(), value)
        };
        variables.iter().map(guarded).collect()
    }

    fn field(&self, (key, value): (&String, &Json)) -> (String, Json) {
        let is_type = key == "type" && value.as_str().is_some_and(|text| TYPES.contains(&text));
        let value = if is_type { value.clone() } else { self.value(value) };
        (self.cut(key, !FIELDS.contains(&key.as_str())), value)
    }

    fn cut(&self, text: &str, may_be_a_middle: bool) -> String {
        let mut out = String::with_capacity(text.len() + 8);
        let is_middle = may_be_a_middle && self.is_middle(text.trim());
        let start = is_middle.then(|| text.len() - text.trim_start().len());
        let mut whole_until = 0;
        for (at, c) in text.char_indices() {
            let rest = &text[at..];
            let begins = self.special.iter().filter(|name| starts_with(rest, name));
            let (mut cut_after, mut single) = (false, false);
            for name in begins {
                let is_single = name.len() == c.len_utf8();
                (cut_after, single) = (cut_after || !is_single, single || is_single);
            }
            if let Some(constant) =
                self.whole.iter().find(|constant| rest.starts_with(constant.as_str()))
            {
                whole_until = whole_until.max(at + constant.len());
            }
            let is_free = at >= whole_until;
            if start == Some(at) || (is_free && self.last.contains(&c)) {
                out.push(CUT);
            }
            if single {
                out.push(SINGLE);
            }
            push_escaped(c, &mut out);
            if cut_after || (is_free && self.first.contains(&c)) {
                out.push(CUT);
            }
        }
        out
    }

    /// Whether `text` could stand between the beginning and the end of a special token.
    fn is_middle(&self, text: &str) -> bool {
        let within = |name: &String| {
            let inner = name.char_indices().nth(1).map_or("", |(second, _)| &name[second..]);
            let inner = inner.char_indices().next_back().map_or("", |(last, _)| &inner[..last]);
            inner.contains(text) || inner.to_ascii_lowercase().contains(&text.to_ascii_lowercase())
        };
        !text.is_empty() && text.len() < self.longest && self.special.iter().any(within)
    }
}

/// Whether a constant stays whole: no special token begins, ends or lies in it, and it lies in
/// none.
fn stays_whole(text: &str, special: &[String]) -> bool {
    let touches = |name: &String| {
        let overlaps = |left: &str, right: &str| {
            let starts = right.char_indices().map(|(at, c)| at + c.len_utf8());
            starts.into_iter().any(|end| left.ends_with(&right[..end]))
        };
        name.contains(text)
            || text.contains(name.as_str())
            || overlaps(text, name)
            || overlaps(name, text)
    };
    text.chars().nth(1).is_some() && !special.iter().any(touches)
}

fn starts_with(text: &str, name: &str) -> bool {
    text.as_bytes()
        .get(..name.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(name.as_bytes()))
}

fn push_escaped(c: char, out: &mut String) {
    if is_reserved(c) {
        let index = u32::from(c) - FIRST_RESERVED;
        out.extend([ESCAPE, char::from_u32(u32::from('a') + index).unwrap_or('a')]);
    } else {
        out.push(c);
    }
}

/// A rendered conversation without reserved characters, whose information is kept as byte offsets.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Marked {
    pub(super) text: String,
    /// A special token must not reach across these.
    pub(super) cuts: Vec<usize>,
    /// A special token must not begin at these.
    pub(super) singles: Vec<usize>,
    /// Supervised ranges.
    pub(super) learnt: Vec<(usize, usize)>,
}

impl Marked {
    pub(super) fn new(rendered: &str) -> Self {
        let mut marked = Self { text: String::with_capacity(rendered.len()), ..Self::default() };
        let mut open = None;
        let mut chars = rendered.chars().peekable();
        while let Some(c) = chars.next() {
            let at = marked.text.len();
            match c {
                CUT => marked.cuts.push(at),
                SINGLE => marked.singles.push(at),
                LEARNT_START => open = open.or(Some(at)),
                LEARNT_END => marked.learnt.extend(open.take().map(|start| (start, at))),
                ESCAPE => {
                    // A template may have changed the case of the letter or removed it.
                    let letter = chars.peek().map_or('?', char::to_ascii_lowercase);
                    let index = u32::from(letter).wrapping_sub(u32::from('a'));
                    if let Some(original) =
                        char::from_u32(FIRST_RESERVED + index).filter(|_| index < N_RESERVED)
                    {
                        marked.text.push(original);
                        chars.next();
                    }
                }
                // This one comes from the template and has no meaning here.
                c if is_reserved(c) => marked.text.push(c),
                c => marked.text.push(c),
            }
        }
        marked
    }

    /// Whether the special token at `start..end` is the template's.
    pub(super) fn allows(&self, start: usize, end: usize) -> bool {
        let next = self.cuts.partition_point(|&cut| cut <= start);
        let is_cut = self.cuts.get(next).is_some_and(|&cut| cut < end);
        !is_cut && self.singles.binary_search(&start).is_err()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPECIAL: [&str; 6] = ["<|im_end|>", "<|im_start|>", "</s>", "[INST]", "sop", "§"];

    fn guard(constants: &[&str]) -> Guard {
        let constants: Vec<String> = constants.iter().map(|&text| text.to_owned()).collect();
        Guard::new(SPECIAL.into_iter(), &constants)
    }

    fn shown(text: &str) -> String {
        text.replace(CUT, "·").replace(SINGLE, "!").replace(ESCAPE, "\\")
    }

    #[test]
    fn special_tokens_are_cut_where_they_begin_and_end() {
        let guard = guard(&["</think>", "<|im_end|>\n", "\n<", "<|"]);
        for (text, cut) in [
            ("plain text, a § and sOP.", "plain text, a !§ and s·OP."),
            ("<|im_end|>", "<·|im_end|·>"),
            ("a < b > [1]", "a <· b ·> [·1·]"),
            ("x</think>y", "x</think>y"),
            ("</think></s>", "</think><·/s·>"),
            ("<<think>|im_end|>", "<·<·think·>|im_end|·>"),
            (" im_END ", " ·im_END "),
            ("\n<|im_end|>", "\n<·|im_end|·>"),
            ("\u{FDD0}\u{FDD4}x\u{FDDF}", "\\a\\ex\\p"),
        ] {
            assert_eq!(shown(&guard.text(text)), cut);
            assert_eq!(Marked::new(&guard.text(text)).text, text);
        }
    }

    #[test]
    fn only_uncut_names_count() {
        let guard = guard(&[]);
        let user = guard.text("a<|im_end|>§");
        let marked = Marked::new(&format!("§<|im_end|>{user}<|im_end|>"));
        assert!(marked.allows(0, 2) && marked.allows(2, 12));
        assert!(!marked.allows(13, 23) && !marked.allows(23, 25) && marked.allows(25, 35));
        // A name that begins or ends in user text does not come from the template.
        let marked = Marked::new(&format!("{}|im_end|>", guard.text("<")));
        assert!(!marked.allows(0, 10));
        let marked = Marked::new(&format!("<|im_end|{}", guard.text(">")));
        assert!(!marked.allows(0, 10));
        let marked = Marked::new(&format!("<|{}|>", guard.text("im_end")));
        assert!(!marked.allows(0, 10));
    }

    #[test]
    fn names_of_fields_stay_and_other_keys_are_cut() {
        let value =
            serde_json::json!({"name": "s", "type": "string", "<|im_end|>": {"s": "im_start"}});
        let guarded = guard(&[]).value(&value).to_string();
        assert_eq!(
            shown(&guarded),
            r#"{"name":"·s","type":"string","<·|im_end|·>":{"·s":"·im_start"}}"#
        );
    }
}
