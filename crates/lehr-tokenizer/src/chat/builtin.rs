//! Chat layouts of model families as short Jinja templates of our own, and the choice of one that
//! fits a tokenizer.
//!
//! Sources: the families' published templates and inference code; `docs` of each file say what is
//! special.

use serde_json::{Map, Value};

use super::ChatTemplate;
use crate::{Error, Result, Tokenizer};

/// A template that is part of the program.
pub(super) struct Builtin {
    pub(super) name: &'static str,
    /// Other names.
    aliases: &'static [&'static str],
    /// Settings before the file's text.
    settings: &'static str,
    source: &'static str,
    /// Special tokens without which a tokenizer cannot have this layout.
    required: &'static [&'static str],
    /// Further special tokens that end an answer, besides the one that follows it.
    pub(super) stops: &'static [&'static str],
    /// Whether [`required`](Self::required) identify the family, so they may select the template.
    is_recognised: bool,
}

const PLAIN: Builtin = Builtin {
    name: "",
    aliases: &[],
    settings: "",
    source: "",
    required: &[],
    stops: &[],
    is_recognised: false,
};

const MISTRAL: &str = include_str!("templates/mistral.jinja");

/// All built-in templates. The first recognised one that fits is used.
static ALL: [Builtin; 14] = [
    Builtin {
        name: "lehr",
        source: include_str!("templates/lehr.jinja"),
        required: &["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"],
        is_recognised: true,
        ..PLAIN
    },
    Builtin {
        name: "chatml",
        aliases: &["qwen"],
        source: include_str!("templates/chatml.jinja"),
        required: &["<|im_start|>", "<|im_end|>"],
        is_recognised: true,
        ..PLAIN
    },
    Builtin {
        name: "llama3",
        source: include_str!("templates/llama3.jinja"),
        required: &["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        stops: &["<|eom_id|>"],
        is_recognised: true,
        ..PLAIN
    },
    Builtin {
        name: "gemma",
        source: include_str!("templates/gemma.jinja"),
        required: &["<start_of_turn>", "<end_of_turn>"],
        is_recognised: true,
        ..PLAIN
    },
    Builtin {
        name: "glm4",
        aliases: &["glm4-0414", "chatglm4"],
        source: include_str!("templates/glm4.jinja"),
        required: &["[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|observation|>"],
        stops: &["<|user|>", "<|observation|>"],
        is_recognised: true,
        ..PLAIN
    },
    Builtin {
        name: "chatglm3",
        source: include_str!("templates/chatglm3.jinja"),
        required: &["[gMASK]", "sop", "<|user|>", "<|assistant|>", "<|observation|>"],
        stops: &["<|user|>", "<|observation|>"],
        is_recognised: true,
        ..PLAIN
    },
    Builtin {
        name: "chatglm2",
        source: include_str!("templates/chatglm2.jinja"),
        required: &["[gMASK]", "sop"],
        stops: &["eop"],
        is_recognised: true,
        ..PLAIN
    },
    Builtin {
        name: "chatglm",
        aliases: &["chatglm-6b"],
        source: include_str!("templates/chatglm.jinja"),
        required: &["[gMASK]", "<sop>", "<eop>"],
        stops: &["<eop>"],
        is_recognised: true,
        ..PLAIN
    },
    Builtin {
        name: "mistral-v7",
        settings: "{% set version = 7 %}{% set tekken = false %}",
        source: MISTRAL,
        required: &["[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[INST]", "[/INST]"],
        ..PLAIN
    },
    Builtin {
        name: "mistral-v7-tekken",
        settings: "{% set version = 7 %}{% set tekken = true %}",
        source: MISTRAL,
        required: &["[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[INST]", "[/INST]"],
        ..PLAIN
    },
    Builtin {
        name: "mistral-v3",
        settings: "{% set version = 3 %}{% set tekken = false %}",
        source: MISTRAL,
        required: &["[INST]", "[/INST]"],
        ..PLAIN
    },
    Builtin {
        name: "mistral-v3-tekken",
        settings: "{% set version = 3 %}{% set tekken = true %}",
        source: MISTRAL,
        required: &["[INST]", "[/INST]"],
        ..PLAIN
    },
    Builtin {
        name: "mistral-v1",
        settings: "{% set version = 1 %}{% set tekken = false %}",
        source: MISTRAL,
        ..PLAIN
    },
    Builtin { name: "llama2", source: include_str!("templates/llama2.jinja"), ..PLAIN },
];

/// Names of the tokens that begin and end a text, by family.
const BEGIN: [&str; 4] = ["<s>", "<|begin_of_text|>", "<bos>", "<|startoftext|>"];
const END: [&str; 4] = ["</s>", "<|end_of_text|>", "<eos>", "<|endoftext|>"];

impl Builtin {
    fn text(&self) -> String {
        format!("{}{}", self.settings, self.source)
    }

    fn template(
        &'static self,
        special: Map<String, Value>,
        eos_ids: Vec<u32>,
    ) -> Result<ChatTemplate> {
        ChatTemplate::new(self.name, &self.text(), Some(self), special, eos_ids)
    }

    /// # Errors
    /// The tokenizer lacks a special token of the template.
    pub(super) fn check(&self, tokenizer: &Tokenizer) -> Result<()> {
        let missing = self.required.iter().find(|name| tokenizer.added(name).is_none());
        missing.map_or(Ok(()), |name| {
            Err(Error::MissingSpecial {
                action: "rendering a conversation",
                wanted: vec![(*name).to_owned()],
            })
        })
    }

    /// Sets the names of the tokens that begin and end a text, if the model's files do not.
    pub(super) fn name_special(&self, tokenizer: &Tokenizer, special: &mut Map<String, Value>) {
        for (key, names) in [("bos_token", BEGIN), ("eos_token", END)] {
            let known = names.iter().find(|name| tokenizer.special(name).is_some());
            if let (None, Some(name)) = (special.get(key), known) {
                special.insert(key.to_owned(), (*name).into());
            }
        }
    }
}

pub(super) fn lehr() -> ChatTemplate {
    ALL[0].template(Map::new(), Vec::new()).expect("the built-in templates compile")
}

/// The built-in template whose Jinja text is `source`.
pub(super) fn with_source(source: &str) -> Option<&'static Builtin> {
    ALL.iter().find(|builtin| builtin.text().trim_end() == source.trim_end())
}

impl ChatTemplate {
    /// The names of the built-in templates.
    #[must_use]
    pub fn names() -> Vec<&'static str> {
        ALL.iter().map(|builtin| builtin.name).collect()
    }

    /// A built-in template.
    ///
    /// # Errors
    /// There is none of that name; the error lists the names.
    pub fn by_name(name: &str) -> Result<Self> {
        Self::by_name_with(name, Map::new(), Vec::new())
    }

    /// A built-in template for a model with special tokens `special` (`bos_token`, `eos_token`)
    /// that ends at `eos_ids`.
    ///
    /// # Errors
    /// As [`by_name`](Self::by_name).
    pub fn by_name_with(
        name: &str,
        special: Map<String, Value>,
        eos_ids: Vec<u32>,
    ) -> Result<Self> {
        let is_named =
            |builtin: &&'static Builtin| builtin.name == name || builtin.aliases.contains(&name);
        let builtin = ALL.iter().find(is_named).ok_or_else(|| Error::NoTemplate {
            found: format!("found the name {name:?}"),
            names: Self::names(),
        })?;
        builtin.template(special, eos_ids)
    }

    /// Returns the built-in template that a tokenizer's special tokens identify.
    pub(super) fn recognise(tokenizer: &Tokenizer) -> Option<&'static str> {
        let fits = |builtin: &&Builtin| builtin.is_recognised && builtin.check(tokenizer).is_ok();
        ALL.iter().find(fits).map(|builtin| builtin.name)
    }
}
