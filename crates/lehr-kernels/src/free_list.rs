//! First-fit allocation in one range of addresses, shared by the arenas of all devices.

use std::collections::BTreeMap;

/// Counters of an arena, in bytes and calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Bytes in live blocks.
    pub used_bytes: usize,
    /// Largest `used_bytes` so far.
    pub used_peak_bytes: usize,
    /// End of the highest block so far, which is the memory that the arena holds.
    pub high_water_bytes: usize,
    /// Number of times the arena grew. Only then is memory requested from the system.
    pub n_growths: u64,
    /// Number of allocated blocks.
    pub n_blocks: u64,
}

/// Free ranges: their sizes by offset. Adjacent ranges are always merged.
#[derive(Debug, Default)]
pub struct Places(BTreeMap<usize, usize>);

impl Places {
    /// Returns the offset of the first `bytes` free bytes, or `None`.
    pub fn take(&mut self, bytes: usize) -> Option<usize> {
        let fits = |(_, room): &(&usize, &usize)| **room >= bytes;
        let (offset, room) = self.0.iter().find(fits).map(|(o, r)| (*o, *r))?;
        self.0.remove(&offset);
        if room > bytes {
            self.0.insert(offset + bytes, room - bytes);
        }
        Some(offset)
    }

    /// Frees a range.
    pub fn give(&mut self, mut offset: usize, mut bytes: usize) {
        if let Some((&before, &room)) = self.0.range(..offset).next_back()
            && before + room == offset
        {
            self.0.remove(&before);
            offset = before;
            bytes += room;
        }
        if let Some(room) = self.0.remove(&(offset + bytes)) {
            bytes += room;
        }
        self.0.insert(offset, bytes);
    }

    /// Returns all free ranges as offsets and sizes.
    pub fn all(&self) -> impl Iterator<Item = (usize, usize)> {
        self.0.iter().map(|(offset, bytes)| (*offset, *bytes))
    }
}

/// The free parts of a range, with counters of the used ones.
#[derive(Debug)]
pub struct FreeList {
    free: Places,
    /// Every block starts on a multiple of this.
    align: usize,
    /// Bytes in the range.
    pub limit: usize,
    /// Counters of the allocated blocks.
    pub stats: Stats,
}

impl FreeList {
    /// Creates the list for `limit` free bytes, whose blocks start on multiples of `align`.
    pub fn new(limit: usize, align: usize) -> Self {
        let free = Places(BTreeMap::from([(0, limit)]));
        Self { free, align, limit, stats: Stats::default() }
    }

    /// Rounds `bytes` up to a multiple of the alignment. A number that would overflow is returned
    /// unchanged: it exceeds the range anyway.
    pub fn rounded(&self, bytes: usize) -> usize {
        bytes.max(1).checked_next_multiple_of(self.align).unwrap_or(bytes)
    }

    /// Allocates `bytes` (from [`FreeList::rounded`]) and returns their offset, or `None`.
    pub fn take(&mut self, bytes: usize) -> Option<usize> {
        let offset = self.free.take(bytes)?;
        self.stats.n_blocks += 1;
        self.stats.used_bytes += bytes;
        self.stats.used_peak_bytes = self.stats.used_peak_bytes.max(self.stats.used_bytes);
        if offset + bytes > self.stats.high_water_bytes {
            self.stats.high_water_bytes = offset + bytes;
            self.stats.n_growths += 1;
        }
        Some(offset)
    }

    /// Frees a block.
    pub fn give(&mut self, offset: usize, bytes: usize) {
        self.stats.used_bytes -= bytes;
        self.free.give(offset, bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_do_not_overlap_and_freed_neighbours_merge() {
        let mut list = FreeList::new(1024, 64);
        assert_eq!(list.rounded(65), 128);
        let (a, b, c) = (list.take(128), list.take(64), list.take(832));
        assert_eq!((a, b, c), (Some(0), Some(128), Some(192)));
        assert_eq!(list.take(64), None);
        list.give(0, 128);
        list.give(192, 832);
        assert_eq!(list.take(896), None, "the middle is taken");
        list.give(128, 64);
        assert_eq!(list.take(1024), Some(0));
        assert_eq!(list.stats.used_peak_bytes, 1024);
    }
}
