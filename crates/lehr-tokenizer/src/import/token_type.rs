//! Types of the tokens of a vocabulary.

/// Purpose of a token, numbered as in GGUF and SentencePiece files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TokenType {
    /// A piece of text.
    #[default]
    Normal,
    /// Replaces text that the vocabulary cannot express.
    Unknown,
    /// Control token, which only programs insert.
    Control,
    /// Symbol that is never split.
    UserDefined,
    /// Unused id.
    Unused,
    /// One byte, named `<0xAB>`.
    Byte,
}

impl TokenType {
    /// Returns the number in files.
    pub fn number(self) -> i32 {
        match self {
            Self::Normal => 1,
            Self::Unknown => 2,
            Self::Control => 3,
            Self::UserDefined => 4,
            Self::Unused => 5,
            Self::Byte => 6,
        }
    }

    /// Returns the type with this number, or `None` if there is none.
    pub fn from_number(number: i32) -> Option<Self> {
        Some(match number {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return None,
        })
    }
}
