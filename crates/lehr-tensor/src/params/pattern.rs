//! Patterns that select parameters or layers by name.

use std::fmt;

/// A name in which each `*` matches any characters, or none: `model.layers.*.mlp.*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamePattern(String);

impl NamePattern {
    /// The pattern of this text.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Whether the whole of `name` matches.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        let mut pieces = self.0.split('*');
        let Some(mut rest) = pieces.next().and_then(|first| name.strip_prefix(first)) else {
            return false;
        };
        let mut pieces = pieces.peekable();
        if pieces.peek().is_none() {
            return rest.is_empty();
        }
        while let Some(piece) = pieces.next() {
            if pieces.peek().is_none() {
                return rest.ends_with(piece);
            }
            // The earliest match leaves the most text for the following pieces.
            match rest.find(piece) {
                Some(at) => rest = &rest[at + piece.len()..],
                None => return false,
            }
        }
        true
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::NamePattern;

    #[test]
    fn a_star_stands_for_any_characters_and_the_whole_name_must_match() {
        for (pattern, name, want) in [
            ("lm_head", "lm_head", true),
            ("lm_head", "lm_head.weight", false),
            ("*", "", true),
            ("*.bias", "h.0.attn.bias", true),
            ("*.bias", "h.0.attn.biases", false),
            ("h.*.attn.*", "h.11.attn.c_attn.weight", true),
            ("h.*.attn.*", "h.11.mlp.c_fc.weight", false),
            ("a*ab", "ab", false),
            ("a*ab", "aab", true),
            ("*a*a*", "xaxax", true),
            ("*a*a*", "xax", false),
        ] {
            assert_eq!(NamePattern::new(pattern).matches(name), want, "{pattern} of {name}");
        }
    }
}
