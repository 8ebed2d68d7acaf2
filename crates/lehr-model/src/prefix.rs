//! How a text with a bidirectional context is divided.

/// The division of one text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Prefix {
    /// Tokens before `<sop>`.
    pub(crate) len: usize,
    /// Position of `<sop>`, were it counted on.
    pub(crate) start: i32,
    /// Where `<sop>` and all that follows stand, if they do not count on.
    pub(crate) frozen: Option<i32>,
}

impl Prefix {
    /// The position of the token that is number `index` of the text and would stand at `position`,
    /// and its position in the continuation: 0 in the context, 1 for `<sop>`.
    pub(crate) fn positions(&self, index: usize, position: i32) -> (i32, i32) {
        if index < self.len {
            return (position, 0);
        }
        (self.frozen.unwrap_or(position), position - self.start + 1)
    }
}
