//! Text made safe for HTML.

use std::borrow::Cow;

/// Replaces characters that HTML reads as markup, and control characters with their visible
/// pictures.
///
/// The result can stand between tags and inside double-quoted attributes.
pub(super) fn escape(text: &str) -> Cow<'_, str> {
    if !text.contains(is_special) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + text.len() / 8);
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\u{7f}' => out.push('␡'),
            c if is_special(c) => out.push(picture(c)),
            c => out.push(c),
        }
    }
    Cow::Owned(out)
}

fn is_special(c: char) -> bool {
    matches!(c, '&' | '<' | '>' | '"' | '\'')
        || (c.is_control() && !matches!(c, '\n' | '\t'))
        || matches!(c, '\u{fffe}' | '\u{ffff}')
}

/// U+2400 and following show the first 32 control characters; others have no picture.
fn picture(c: char) -> char {
    let code = u32::from(c);
    if code < 0x20 { char::from_u32(0x2400 + code).unwrap_or('\u{fffd}') } else { '\u{fffd}' }
}

/// ` lang="…"` for Chinese, Japanese and Korean text, so that the browser chooses the right shapes
/// of the characters they share and breaks lines well; otherwise nothing.
pub(super) fn lang_attribute(text: &str) -> &'static str {
    if text.is_ascii() {
        return "";
    }
    let has = |range: std::ops::RangeInclusive<char>| text.chars().any(|c| range.contains(&c));
    if has('\u{3041}'..='\u{30fa}') {
        " lang=\"ja\""
    } else if has('\u{ac00}'..='\u{d7a3}') {
        " lang=\"ko\""
    } else if has('\u{4e00}'..='\u{9fff}') {
        " lang=\"zh\""
    } else {
        ""
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_becomes_text() {
        assert_eq!(
            escape("<a href=\"x\">R&D's</a>"),
            "&lt;a href=&quot;x&quot;&gt;R&amp;D&#39;s&lt;/a&gt;"
        );
        assert_eq!(escape("&amp;"), "&amp;amp;");
    }

    #[test]
    fn control_characters_become_visible_and_line_breaks_stay() {
        assert_eq!(escape("a\0b\u{1b}[31m\r\n\tc\u{7f}\u{85}"), "a␀b␛[31m␍\n\tc␡\u{fffd}");
    }

    #[test]
    fn plain_text_is_not_copied() {
        assert!(matches!(escape("混合 text 😀"), Cow::Borrowed(_)));
    }

    #[test]
    fn languages_that_share_characters_are_told_apart() {
        assert_eq!(lang_attribute("naïve"), "");
        assert_eq!(lang_attribute("语言 model"), " lang=\"zh\"");
        assert_eq!(lang_attribute("言語のモデル"), " lang=\"ja\"");
        assert_eq!(lang_attribute("한국어 漢字"), " lang=\"ko\"");
    }
}
