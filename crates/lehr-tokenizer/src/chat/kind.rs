//! Which tokens the texts of a conversation may contain.

use super::ChatTemplate;
use crate::specials::delimits;

/// What text may do with a token that is found in it before everything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Delimits turns or texts: only the template writes it.
    Control,
    /// Delimits thoughts, tool calls or tool results within a turn: the template and the assistant
    /// write it.
    Mark,
    /// A word: every text may contain it.
    Word,
}

/// Marks within a turn, as families name them, besides the signs around the name.
const MARKS: [&str; 18] = [
    "think",
    "thinking",
    "thought",
    "reasoning",
    "scratch_pad",
    "answer",
    "tool_call",
    "tool_calls",
    "tool_response",
    "tool_result",
    "tool_results",
    "tools",
    "function",
    "function_call",
    "parameter",
    "arg_key",
    "arg_value",
    "code",
];

impl ChatTemplate {
    /// The kind of a token. A token is not marked special in many tokenizers whose templates
    /// delimit turns with it, so its name and the template decide too.
    pub(super) fn kind(&self, token: &tokenizers::AddedToken) -> Kind {
        let name = token.content.as_str();
        if token.special {
            return Kind::Control;
        }
        let inner = name.trim_matches(|c: char| !c.is_alphanumeric());
        let inner = inner.strip_prefix("seed:").unwrap_or(inner);
        let is_mark = MARKS.contains(&inner) && !name.starts_with("<|");
        // Words and white space occur in every template.
        let is_sign = !name.contains(|c: char| c.is_whitespace() || c == '▁')
            && name.contains(char::is_alphanumeric)
            && name.contains(|c: char| !c.is_alphanumeric());
        let is_written = is_sign && self.source().contains(name);
        match (is_written || delimits(name), is_mark) {
            (true, true) => Kind::Mark,
            (true, false) => Kind::Control,
            (false, _) => Kind::Word,
        }
    }
}
