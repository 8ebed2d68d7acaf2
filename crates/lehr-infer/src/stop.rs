//! Texts that end a generation.

/// A buffer that releases text only when it can no longer be the start of a stop text.
pub(crate) struct StopText {
    stop: Vec<String>,
    held: String,
    /// The released text.
    pub(crate) released: String,
    /// Whether a stop text was found.
    pub(crate) stopped: bool,
}

impl StopText {
    pub(crate) fn new(stop: Vec<String>) -> Self {
        Self { stop, held: String::new(), released: String::new(), stopped: false }
    }

    /// Takes new text. Returns the text that may be shown, and whether a stop text was found.
    pub(crate) fn push(&mut self, piece: &str) -> (String, bool) {
        self.held.push_str(piece);
        let found =
            self.stop.iter().filter(|s| !s.is_empty()).filter_map(|s| self.held.find(s)).min();
        let free = match found {
            Some(at) => at,
            None => self.held.len() - self.longest_beginning(),
        };
        let shown: String = self.held.drain(..free).collect();
        self.released.push_str(&shown);
        self.stopped = found.is_some();
        (shown, self.stopped)
    }

    /// Returns the length of the longest suffix of the held text that is a prefix of a stop text.
    fn longest_beginning(&self) -> usize {
        let ends = self.held.char_indices().map(|(i, _)| i);
        let may_begin = |i: &usize| self.stop.iter().any(|s| s.starts_with(&self.held[*i..]));
        ends.into_iter().find(may_begin).map_or(0, |i| self.held.len() - i)
    }

    /// Releases the rest when no more text comes.
    pub(crate) fn flush(&mut self) -> String {
        let rest = std::mem::take(&mut self.held);
        self.released.push_str(&rest);
        rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(stop: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let mut text = StopText::new(stop.iter().map(|s| (*s).to_owned()).collect());
        let mut shown = Vec::new();
        for piece in pieces {
            let (out, stopped) = text.push(piece);
            shown.push(out);
            if stopped {
                return (shown, true);
            }
        }
        shown.push(text.flush());
        (shown, false)
    }

    #[test]
    fn a_stop_text_across_tokens_is_never_shown() {
        let (shown, stopped) = feed(&["\nUser:"], &["Hello", "\n", "Us", "er:", "x"]);
        assert!(stopped);
        assert_eq!(shown.concat(), "Hello");
    }

    #[test]
    fn a_false_beginning_is_shown_in_the_end() {
        let (shown, stopped) = feed(&["终了"], &["a终", "b", "终"]);
        assert!(!stopped);
        assert_eq!(shown, ["a", "终b", "", "终"]);
    }
}
