//! Messages to tokens: the one renderer of training, evaluation and chat.
//!
//! Every layout is a Jinja template, a model's own or one of the [built-in](ChatTemplate::names)
//! ones. It runs as in Hugging Face's transformers, and its text is encoded as by Hugging Face's
//! tokenizers, with one difference: user text is never read as a special token (see `guard.rs`).

mod builtin;
mod encode;
mod guard;
mod jinja;
mod kind;
mod learnt;
mod message;
mod python;
mod source;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

pub use message::{Message, Role, validate};
pub use python::Moment;
use serde_json::{Map, Value};
pub use source::TemplateParts;

use self::builtin::Builtin;
use self::encode::AddedTokens;
use self::guard::{Guard, Marked};
use self::jinja::{Context, Jinja};
use self::kind::Kind;
use crate::{Error, Result, Tokenizer};

/// A conversation as tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// Token ids, `[L]`.
    pub ids: Vec<u32>,
    /// `[L]`; true for supervised tokens: the assistant's content and the tokens that end its turn.
    pub loss_mask: Vec<bool>,
}

/// Options of a rendering.
#[derive(Debug, Clone, Default)]
pub struct RenderOptions {
    /// Append the generation prompt, which comes before an answer.
    pub add_generation_prompt: bool,
    /// Further variables of the template: `tools`, `documents`, `enable_thinking` and others it
    /// knows.
    pub variables: Map<String, Value>,
    /// The time, for templates that print the date. Without it templates that ask first print the
    /// date they were written for, and others fail.
    pub now: Option<Moment>,
}

/// Chat layout of a model family. Cloning is cheap.
#[derive(Clone)]
pub struct ChatTemplate {
    inner: Arc<Inner>,
}

struct Inner {
    name: String,
    source: String,
    jinja: Jinja,
    builtin: Option<&'static Builtin>,
    /// `bos_token`, `eos_token` and so on.
    special: Map<String, Value>,
    /// Ids that end generation, from its configuration.
    eos_ids: Vec<u32>,
    /// Variables of every rendering, unless its options have others.
    variables: Map<String, Value>,
    /// The time of every rendering, unless its options have another.
    now: Option<Moment>,
    /// Values derived for the most recent tokenizer.
    bound: Mutex<Option<Arc<Bound>>>,
}

/// A template with a tokenizer.
struct Bound {
    tokenizer: Tokenizer,
    /// For texts of all others than the assistant.
    guard: Guard,
    /// For texts of the assistant, which may write the marks of thoughts and tool calls.
    answers: Guard,
    added: AddedTokens,
    special: Map<String, Value>,
}

impl ChatTemplate {
    /// Compiles a Jinja template. `special` are the texts the template knows as `bos_token`,
    /// `eos_token` and so on, `eos_ids` the ids at which the model ends.
    ///
    /// # Errors
    /// `source` is not a template.
    pub fn from_jinja(
        name: &str,
        source: &str,
        special: Map<String, Value>,
        eos_ids: Vec<u32>,
    ) -> Result<Self> {
        Self::new(name, source, None, special, eos_ids)
    }

    fn new(
        name: &str,
        source: &str,
        builtin: Option<&'static Builtin>,
        special: Map<String, Value>,
        eos_ids: Vec<u32>,
    ) -> Result<Self> {
        let source = jinja::normalized(source);
        let inner = Inner {
            name: name.to_owned(),
            jinja: Jinja::new(name, &source)?,
            source,
            builtin,
            special,
            eos_ids,
            variables: Map::new(),
            now: None,
            bound: Mutex::new(None),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The same template, changed by `change`.
    fn changed(&self, change: impl FnOnce(&mut Inner)) -> Self {
        let Inner { name, source, jinja, builtin, special, eos_ids, variables, now, .. } =
            &*self.inner;
        let mut inner = Inner {
            name: name.clone(),
            source: source.clone(),
            jinja: jinja.clone(),
            builtin: *builtin,
            special: special.clone(),
            eos_ids: eos_ids.clone(),
            variables: variables.clone(),
            now: *now,
            bound: Mutex::new(None),
        };
        change(&mut inner);
        Self { inner: Arc::new(inner) }
    }

    /// Sets the time that the template prints, if it prints one, in every rendering.
    #[must_use]
    pub fn at(&self, now: Moment) -> Self {
        self.changed(|inner| inner.now = Some(now))
    }

    /// Whether the template asks for the time.
    #[must_use]
    pub fn prints_time(&self) -> bool {
        self.source().contains("strftime_now")
    }

    /// Sets variables of the template in every rendering: `enable_thinking`, `tools`, `documents`
    /// and others it knows. Also returns the names that the template does not use.
    ///
    /// # Errors
    /// A variable has the name of one that a rendering sets itself.
    pub fn with_variables(&self, variables: Map<String, Value>) -> Result<(Self, Vec<String>)> {
        const OWN: [&str; 2] = ["messages", "add_generation_prompt"];
        if let Some(name) = OWN.iter().find(|name| variables.contains_key(**name)) {
            return Err(Error::Template {
                action: "setting variables of",
                name: self.name().to_owned(),
                reason: format!("found {name:?}, which the conversation sets"),
            });
        }
        let unused = self.inner.jinja.unused(variables.keys());
        let unused = unused.into_iter().map(str::to_owned).collect();
        Ok((self.changed(|inner| inner.variables = variables), unused))
    }

    /// Returns the name of the template.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The template as Jinja.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.inner.source
    }

    /// The texts the template knows as `bos_token`, `eos_token` and so on.
    #[must_use]
    pub fn special(&self) -> &Map<String, Value> {
        &self.inner.special
    }

    /// The same template for a model that ends at other ids.
    ///
    /// # Errors
    /// None.
    pub fn with_eos_ids(&self, eos_ids: Vec<u32>) -> Result<Self> {
        Ok(self.changed(|inner| inner.eos_ids = eos_ids))
    }

    /// Renders `messages`; `add_generation_prompt` appends the tokens after which the assistant
    /// speaks.
    ///
    /// # Errors
    /// As [`render_with`](Self::render_with).
    pub fn render(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<Rendered> {
        self.render_with(
            tokenizer,
            messages,
            &RenderOptions { add_generation_prompt, ..RenderOptions::default() },
        )
    }

    /// Renders `messages`.
    ///
    /// # Errors
    /// The messages are not a conversation (see [`validate`]), a generation prompt is requested
    /// after an assistant's message, the template refuses them or does not show which tokens are
    /// supervised, or the tokenizer lacks a special token of the template.
    pub fn render_with(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        options: &RenderOptions,
    ) -> Result<Rendered> {
        let bound = self.bind(tokenizer)?;
        let text = self.marked(&bound, messages, options)?;
        let learnt = learnt::spans(self, &bound, messages, options, &text)?;
        let learnt = learnt.of_supervised(self, messages)?;
        let tokens = bound.added.encode(tokenizer, &text)?;
        let is_learnt = |&(_, (start, end)): &(u32, (usize, usize))| {
            learnt.spans.iter().any(|&(from, to)| {
                (start < to && end > from) || (start == end && (from..to).contains(&start))
            })
        };
        let mut loss_mask: Vec<bool> = tokens.iter().map(is_learnt).collect();
        let mut ids: Vec<u32> = tokens.into_iter().map(|(id, _)| id).collect();
        let closing = learnt.closing.filter(|_| !options.add_generation_prompt);
        ids.extend(closing);
        loss_mask.resize(ids.len(), true);
        Ok(Rendered { ids, loss_mask })
    }

    /// The text of `messages` as the template writes it, special tokens by name. For people to read
    /// only: encoding it would turn user text into special tokens.
    ///
    /// # Errors
    /// As [`render_with`](Self::render_with).
    pub fn render_text(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        options: &RenderOptions,
    ) -> Result<String> {
        Ok(self.marked(&*self.bind(tokenizer)?, messages, options)?.text)
    }

    /// The ids at which generation of an answer ends: those that end an assistant's turn in this
    /// template, the model's own, and the end of a document.
    ///
    /// # Errors
    /// The tokenizer lacks a special token of the template.
    pub fn stop_ids(&self, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        let bound = self.bind(tokenizer)?;
        let mut ids = learnt::ends_of_turn(self, &bound);
        ids.extend(&self.inner.eos_ids);
        ids.extend(tokenizer.end_of_document().ok());
        let mut seen = std::collections::HashSet::new();
        ids.retain(|id| seen.insert(*id));
        Ok(ids)
    }

    /// A conversation with guards, rendered.
    fn marked(
        &self,
        bound: &Bound,
        messages: &[Message],
        options: &RenderOptions,
    ) -> Result<Marked> {
        validate(messages)?;
        let last = messages.len() - 1;
        if options.add_generation_prompt && messages[last].role == Role::Assistant {
            let reason = "found assistant last, expected user before an answer".to_owned();
            return Err(Error::Conversation { index: last, reason });
        }
        let guard = |message: &Message| match message.role {
            Role::Assistant => guarded(&bound.answers, &message.to_json()),
            _ => guarded(&bound.guard, &message.to_json()),
        };
        let messages: Vec<Value> = messages.iter().map(guard).collect();
        let mut variables = self.inner.variables.clone();
        variables.extend(options.variables.clone());
        let context = Context {
            add_generation_prompt: options.add_generation_prompt,
            special: &bound.special,
            variables: &bound.guard.variables(&variables),
            now: options.now.or(self.inner.now),
        };
        Ok(Marked::new(&self.inner.jinja.render(&messages, &context)?))
    }

    /// Values that depend on the tokenizer. They are cached, because conversations are rendered by
    /// the thousand.
    fn bind(&self, tokenizer: &Tokenizer) -> Result<Arc<Bound>> {
        let mut slot = self.inner.bound.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bound) = slot.as_ref().filter(|bound| bound.tokenizer.is_same(tokenizer)) {
            return Ok(Arc::clone(bound));
        }
        let mut special = self.inner.special.clone();
        if let Some(builtin) = self.inner.builtin {
            builtin.check(tokenizer)?;
            builtin.name_special(tokenizer, &mut special);
        }
        let tokens = tokenizer.hf().get_added_vocabulary().get_added_tokens_decoder();
        let of = |kind: Kind| {
            let names = tokens.values().filter(move |t| self.kind(t) == kind);
            names.map(|token| token.content.clone()).collect::<Vec<_>>()
        };
        let (control, mut marks) = (of(Kind::Control), of(Kind::Mark));
        let literals = self.inner.jinja.literals();
        let names = || control.iter().map(String::as_str);
        let guard = Guard::new(names().chain(marks.iter().map(String::as_str)), literals);
        marks.extend_from_slice(literals);
        let answers = Guard::new(names(), &marks);
        let added = AddedTokens::new(tokenizer, |token| self.kind(token))?;
        let bound =
            Arc::new(Bound { tokenizer: tokenizer.clone(), guard, answers, added, special });
        *slot = Some(Arc::clone(&bound));
        Ok(bound)
    }
}

/// A message whose texts are guarded; its role is one of ours.
fn guarded(guard: &Guard, message: &Value) -> Value {
    let mut guarded = guard.value(message);
    if let (Some(fields), Some(role)) = (guarded.as_object_mut(), message.get("role")) {
        fields.insert("role".to_owned(), role.clone());
    }
    guarded
}

impl Default for ChatTemplate {
    /// The template of models trained here from scratch.
    fn default() -> Self {
        builtin::lehr()
    }
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate").field("name", &self.inner.name).finish_non_exhaustive()
    }
}

/// Renders with the default template.
///
/// # Errors
/// As [`ChatTemplate::render`].
pub fn render(
    tokenizer: &Tokenizer,
    messages: &[Message],
    add_generation_prompt: bool,
) -> Result<Rendered> {
    ChatTemplate::default().render(tokenizer, messages, add_generation_prompt)
}

/// Renders JSON messages without guards, for comparison with transformers: the golden files of
/// templates contain messages that are not valid conversations.
///
/// # Errors
/// The template refuses the messages.
#[doc(hidden)]
pub fn render_unguarded(
    template: &ChatTemplate,
    messages: &[Value],
    options: &RenderOptions,
) -> Result<String> {
    let RenderOptions { add_generation_prompt, variables, now } = options;
    let (special, now) = (&template.inner.special, *now);
    let context =
        Context { add_generation_prompt: *add_generation_prompt, special, variables, now };
    Ok(Marked::new(&template.inner.jinja.render(messages, &context)?).text)
}
