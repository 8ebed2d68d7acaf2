//! Who runs when: requests begin in the order of their arrival, and the last one gives way when
//! pages run out.

use lehr_model::PagedCache;

use super::sequence::{Choice, Sequence};
use super::step::on_host;
use super::{Engine, Event, PREFILL_CHUNK};
use crate::{Error, Finish, Result};

impl Engine<'_> {
    /// Begins waiting requests, the first first, as long as there is a row of the cache and there
    /// are pages for the tokens and for one more page of each running sequence, so that nobody is
    /// preempted at once. If none is running, the first begins anyway.
    pub(super) fn admit(&mut self, events: &mut Vec<Event>) {
        while let Some(first) = self.waiting.front() {
            let n_running = self.running.len();
            let wanted = PagedCache::pages_for(first.tokens.len() + 1) + n_running;
            let has_row = n_running < self.cache.max_sequences();
            if n_running > 0 && !(has_row && wanted <= self.cache.n_available()) {
                return;
            }
            let Some(mut sequence) = self.waiting.pop_front() else { return };
            if sequence.is_complete() {
                finish(sequence, Finish::Length, events);
                continue;
            }
            match self.cache.begin(&sequence.tokens, sequence.layout.clone()) {
                Ok(row) => sequence.row = row,
                Err(error) => {
                    events.push(Event::Failed { id: sequence.id, error: error.into() });
                    continue;
                }
            }
            sequence.is_decoding = false;
            let n_reused = self.cache.len(sequence.row).unwrap_or(0);
            sequence.n_reused.get_or_insert(n_reused);
            self.running.push(sequence);
        }
    }

    /// Generates one more token for each sequence whose prompt has been read.
    pub(super) fn decode(&mut self, events: &mut Vec<Event>) -> Result<()> {
        let choices = loop {
            let n_running = self.running.len();
            let mut ready: Vec<_> = self.running.iter_mut().filter(|s| s.is_decoding).collect();
            if ready.is_empty() {
                return Ok(());
            }
            match self.step.next(self.model, &mut self.cache, &mut ready) {
                Ok(choices) => break choices,
                Err(error) if is_full(&error) && n_running > 1 => self.preempt_last(),
                // With a single sequence there is no doubt whose error it is.
                Err(error) if ready.len() == 1 => break vec![Err(error)],
                Err(error) => return Err(error),
            }
        };
        let mut choices = choices.into_iter();
        let mut running = std::mem::take(&mut self.running).into_iter();
        for sequence in running.by_ref() {
            match sequence.is_decoding.then(|| choices.next()).flatten() {
                Some(choice) => self.go_on(sequence, choice, events),
                None => self.running.push(sequence),
            }
        }
        Ok(())
    }

    /// Reads prompts, those that arrived first first, up to the budget of tokens.
    pub(super) fn prefill(&mut self, events: &mut Vec<Event>) {
        let mut budget = self.prefill_budget;
        let mut at = 0;
        while at < self.running.len() && budget > 0 {
            let sequence = &self.running[at];
            if sequence.is_decoding {
                at += 1;
                continue;
            }
            let done = self.cache.len(sequence.row).unwrap_or(0);
            let left = sequence.tokens.len() - done;
            let n = left
                .min(budget)
                .min(PREFILL_CHUNK)
                .max(sequence.layout.prefix_len.saturating_sub(done));
            let (ids, is_last) = (&sequence.tokens[done..done + n], n == left);
            let read = self.cache.prefill(self.model, sequence.row, ids, is_last);
            match read.map_err(Error::from) {
                Ok(logits) => {
                    budget = budget.saturating_sub(n);
                    let Some(logits) = logits else { continue };
                    let mut sequence = self.running.remove(at);
                    // The host chooses the first token everywhere: once per prompt, a row of logits
                    // is little.
                    let logits = on_host(&logits, self.n_ids);
                    let choice = logits.and_then(|logits| sequence.choose(logits));
                    // It is back at the same place if it goes on.
                    let n_before = self.running.len();
                    self.go_on(sequence, choice, events);
                    at += self.running.len() - n_before;
                }
                // The last one gives way, be it this one.
                Err(error) if is_full(&error) && self.running.len() > 1 => {
                    self.preempt_last();
                }
                Err(error) => {
                    let sequence = self.running.remove(at);
                    self.cache.end(sequence.row);
                    events.push(Event::Failed { id: sequence.id, error });
                }
            }
        }
    }

    /// Appends the token that was chosen for a sequence, which then runs on or has ended.
    fn go_on(&mut self, mut sequence: Sequence, choice: Result<Choice>, events: &mut Vec<Event>) {
        let row = sequence.row;
        let pushed = choice.and_then(|choice| {
            let finish = sequence.push(choice, self.cache.context(), events);
            if finish.is_none() && !sequence.is_decoding {
                self.step.begin(&sequence)?;
            }
            Ok(finish)
        });
        match pushed {
            Ok(None) => {
                sequence.is_decoding = true;
                let at = self.running.partition_point(|other| other.id < sequence.id);
                self.running.insert(at, sequence);
                return;
            }
            Ok(Some(reason)) => finish(sequence, reason, events),
            Err(error) => events.push(Event::Failed { id: sequence.id, error }),
        }
        self.cache.end(row);
    }

    /// Makes the sequence that arrived last wait: its pages are given back and its tokens are run
    /// again later. It goes on before all that arrived after it.
    fn preempt_last(&mut self) {
        if let Some(last) = self.running.pop() {
            self.cache.end(last.row);
            self.waiting.push_front(last);
        }
    }
}

/// Ends a sequence with all its events.
fn finish(sequence: Sequence, reason: Finish, events: &mut Vec<Event>) {
    let id = sequence.id;
    let (piece, generated) = sequence.end(reason);
    if !piece.is_empty() {
        events.push(Event::Text { id, piece });
    }
    events.push(Event::Finished { id, generated });
}

/// Whether pages ran out.
fn is_full(error: &Error) -> bool {
    matches!(error, Error::Model(lehr_model::Error::PagesFull { .. }))
}
