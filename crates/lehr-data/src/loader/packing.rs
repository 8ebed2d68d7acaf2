//! Packing examples of unequal length into rows, and exchanging them between epochs.

use std::collections::BTreeMap;

use super::order::{Permutation, mix};

/// A fixed arrangement of examples in rows.
///
/// The rows are packed once, best fit, longest example first. A shuffled epoch exchanges examples
/// of equal length, and the loader permutes the rows. So every epoch has the same number of rows,
/// and any row of any epoch is found directly.
#[derive(Debug, Clone)]
pub(crate) struct Packing {
    /// Examples by descending length; place `k` belongs to example `by_length[k]`.
    by_length: Vec<usize>,
    /// For each place, the first place and the number of places of the same length.
    same_length: Vec<(usize, usize)>,
    /// Places of each row.
    rows: Vec<Vec<usize>>,
}

impl Packing {
    /// Packs examples of `lengths` tokens, each 1 to `room`, into rows of `room` tokens.
    pub(crate) fn new(lengths: &[usize], room: usize) -> Self {
        let mut by_length: Vec<usize> = (0..lengths.len()).collect();
        by_length.sort_by_key(|&example| std::cmp::Reverse(lengths[example]));
        let mut same_length = Vec::with_capacity(lengths.len());
        for group in by_length.chunk_by(|&a, &b| lengths[a] == lengths[b]) {
            let first = same_length.len();
            same_length.extend(group.iter().map(|_| (first, group.len())));
        }
        let mut rows: Vec<Vec<usize>> = Vec::new();
        let mut by_room: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (place, &example) in by_length.iter().enumerate() {
            let length = lengths[example];
            let (left, row) = match take_fitting(&mut by_room, length) {
                Some(found) => found,
                None => {
                    rows.push(Vec::new());
                    (room, rows.len() - 1)
                }
            };
            rows[row].push(place);
            by_room.entry(left - length).or_default().push(row);
        }
        Self { by_length, same_length, rows }
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows.len()
    }

    /// Returns the examples of a row in the epoch of `key`; without a key, as they were packed.
    pub(crate) fn row(&self, row: u64, key: Option<u64>) -> Vec<usize> {
        let places = &self.rows[row as usize];
        let example = |&place: &usize| match key {
            None => self.by_length[place],
            Some(key) => {
                let (first, count) = self.same_length[place];
                let order = Permutation::new(count as u64, mix(key ^ first as u64));
                self.by_length[first + order.at((place - first) as u64) as usize]
            }
        };
        places.iter().map(example).collect()
    }
}

/// Removes a row with the least room of at least `length`.
fn take_fitting(
    by_room: &mut BTreeMap<usize, Vec<usize>>,
    length: usize,
) -> Option<(usize, usize)> {
    let (&room, rows) = by_room.range_mut(length..).next()?;
    let row = rows.pop().expect("emptied entries are removed");
    if rows.is_empty() {
        by_room.remove(&room);
    }
    Some((room, row))
}
