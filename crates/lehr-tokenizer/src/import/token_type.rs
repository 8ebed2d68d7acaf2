//! What a token of a vocabulary is for.

/// What a token is for, with the numbers of GGUF and SentencePiece.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TokenType {
    /// A piece of text.
    #[default]
    Normal,
    /// Stands for what the vocabulary cannot express.
    Unknown,
    /// Written by programs only.
    Control,
    /// A symbol that is never cut.
    UserDefined,
    /// Not used.
    Unused,
    /// One byte, named `<0xAB>`.
    Byte,
}

impl TokenType {
    /// Its number.
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

    /// The type of this number; none if there is no such type.
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
