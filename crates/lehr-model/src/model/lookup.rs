//! Finding a model's tensors in a checkpoint, and the tensors that it does not use.

use std::cell::RefCell;
use std::collections::BTreeSet;

use crate::io::{Checkpoint, leftover};
use crate::{Config, Result};

/// Looks up the tensors of one model. It knows which were asked for and reports the rest.
pub(crate) struct Lookup<'a> {
    /// The configuration, fitted to the tensors.
    pub(crate) config: Config,
    /// Whether the weights have a language-model head, or one tied to the embedding.
    pub(crate) has_head: bool,
    checkpoint: &'a Checkpoint,
    used: RefCell<BTreeSet<String>>,
}

impl<'a> Lookup<'a> {
    /// Fits `config` to the tensors of `checkpoint`. A head that differs from the embedding is not
    /// tied, whatever the configuration says. An untied head that is missing makes a model without
    /// a head.
    ///
    /// # Errors
    /// If the weights are quantised or hold adapters.
    pub(crate) fn new(mut config: Config, checkpoint: &'a Checkpoint) -> Result<Self> {
        leftover::refuse(checkpoint.names())?;
        config.fit_to(&|name| checkpoint.has(name));
        let mut used = BTreeSet::new();
        let mut has_head = true;
        let names = config.clone();
        let stored =
            |name: &str| names.checkpoint_names(name).into_iter().find(|name| checkpoint.has(name));
        if let Some(tie) = config.tie() {
            match (stored(tie.head), stored(tie.embedding)) {
                (Some(head), Some(embedding)) if *tie.is_tied => {
                    *tie.is_tied = checkpoint.are_equal(&head, &embedding);
                    // A copy of the embedding, which is read instead.
                    used.insert(head);
                }
                (None, _) => has_head = *tie.is_tied,
                _ => {}
            }
        }
        Ok(Self { config, has_head, checkpoint, used: RefCell::new(used) })
    }

    /// Returns the name under which the checkpoint holds the parameter `name`.
    pub(crate) fn find(&self, name: &str) -> Option<String> {
        let names = self.config.checkpoint_names(name).into_iter();
        let mut names = names.filter(|name| self.checkpoint.has(name));
        let found = names.next()?;
        let mut used = self.used.borrow_mut();
        // Some files hold a tensor under an old and a new name.
        used.extend(names.filter(|other| self.checkpoint.are_equal(&found, other)));
        used.insert(found.clone());
        Some(found)
    }

    /// Returns the tensors that were not asked for and are not known to be harmless.
    pub(crate) fn unused(&self) -> Vec<String> {
        let used = self.used.borrow();
        let stored = self.checkpoint.stored().filter(|tensor| !used.contains(&tensor.name));
        let stored = stored.filter(|tensor| !leftover::is_harmless(&tensor.name, &tensor.shape));
        stored.map(|tensor| tensor.name).collect()
    }
}
