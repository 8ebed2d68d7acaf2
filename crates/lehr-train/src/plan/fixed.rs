//! Settings that the user has fixed, by which the planner chooses the others.

use toml::{Table, Value};

use crate::recipe::table_of;
use crate::{Recipe, Result};

/// The overrides of a fitted recipe (`--set`). The planner knows them before it chooses the rest,
/// so what depends on them is fitted to them.
#[derive(Clone, Debug, Default)]
pub struct Fixed {
    sets: Vec<String>,
    table: Table,
}

impl Fixed {
    /// Reads `section.key=value` overrides. Their keys and values are checked with the recipe.
    ///
    /// # Errors
    /// If one is not of this form.
    pub fn new(sets: &[String]) -> Result<Self> {
        Ok(Self { sets: sets.to_vec(), table: table_of(sets)? })
    }

    /// Returns the text that is fixed for `section.key`, if there is one.
    #[must_use]
    pub fn text(&self, key: &str) -> Option<&str> {
        self.value(key)?.as_str()
    }

    /// Returns the number that is fixed for `section.key`; `None` also for what is no number or
    /// less than 1, which the check of the recipe reports.
    pub(super) fn count(&self, key: &str) -> Option<usize> {
        usize::try_from(self.value(key)?.as_integer()?).ok().filter(|n| *n > 0)
    }

    /// Returns whether `section.key` is fixed.
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        self.value(key).is_some()
    }

    fn value(&self, key: &str) -> Option<&Value> {
        let (section, key) = key.split_once('.')?;
        self.table.get(section)?.as_table()?.get(key)
    }

    /// Applies the overrides to a fitted recipe.
    pub(super) fn apply(&self, recipe: Recipe) -> Result<Recipe> {
        if self.sets.is_empty() {
            recipe.validate()?;
            return Ok(recipe);
        }
        recipe.with_overrides(&self.sets)
    }
}
