//! Page bookkeeping: pages in use, free pages, and pages with a reusable prefix.

use std::collections::{BTreeMap, HashMap};

use super::PAGE_LEN;

/// The name of the empty prefix.
pub(super) const ROOT: u64 = 0;

/// Key of a full page: its tokens and the name of the prefix before it. Names are never reused, so
/// equal keys mean equal prefixes, without collisions.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct PageKey {
    before: u64,
    ids: [i32; PAGE_LEN],
}

/// A page that can be found by its contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) page: i32,
    /// Name of the prefix that ends with this page.
    pub(super) name: u64,
}

/// The pages of a pool. Each page counts the sequences whose page tables contain it. A full page
/// without users keeps its contents until the page is needed; the page released first is evicted
/// first.
#[derive(Debug, Default)]
pub(super) struct PagePool {
    /// By page.
    states: Vec<PageState>,
    /// Pages without contents. The last one is taken first.
    free: Vec<i32>,
    /// Pages with contents but without users, by release time.
    reusable: BTreeMap<u64, i32>,
    known: HashMap<PageKey, Found>,
    /// Number of releases so far.
    clock: u64,
    /// The last name assigned.
    last_name: u64,
}

#[derive(Clone, Debug, Default)]
struct PageState {
    n_users: usize,
    /// Key under which the page is found, if any.
    key: Option<PageKey>,
    /// Time of its last release.
    time: u64,
}

impl PagePool {
    /// Returns the number of pages.
    pub(super) fn len(&self) -> usize {
        self.states.len()
    }

    /// Returns the number of pages that can be taken without growing.
    pub(super) fn n_available(&self) -> usize {
        self.free.len() + self.reusable.len()
    }

    /// Returns the number of free pages without contents.
    pub(super) fn n_free(&self) -> usize {
        self.free.len()
    }

    /// Adds pages up to `len`.
    pub(super) fn grow_to(&mut self, len: usize) {
        self.free.splice(0..0, (self.states.len() as i32..len as i32).rev());
        self.states.resize(len, PageState::default());
    }

    /// Takes a page with one user and no contents.
    pub(super) fn take(&mut self) -> Option<i32> {
        let page = match self.free.pop() {
            Some(page) => page,
            None => {
                let (_, page) = self.reusable.pop_first()?;
                if let Some(key) = self.states[page as usize].key.take() {
                    self.known.remove(&key);
                }
                page
            }
        };
        self.states[page as usize].n_users = 1;
        Some(page)
    }

    /// Finds the page with these tokens after the prefix named `before`, and adds a user.
    pub(super) fn reuse(&mut self, before: u64, ids: &[i32]) -> Option<Found> {
        let key = PageKey { before, ids: ids.try_into().ok()? };
        let found = *self.known.get(&key)?;
        let state = &mut self.states[found.page as usize];
        if state.n_users == 0 {
            self.reusable.remove(&state.time);
        }
        state.n_users += 1;
        Some(found)
    }

    /// Makes a full page findable, and names the prefix that ends with it. If another page has the
    /// same contents, that one stays findable.
    pub(super) fn name(&mut self, page: i32, before: u64, ids: &[i32]) -> u64 {
        let Ok(ids) = ids.try_into() else { return before };
        let key = PageKey { before, ids };
        if let Some(found) = self.known.get(&key) {
            return found.name;
        }
        self.last_name += 1;
        let found = Found { page, name: self.last_name };
        self.states[page as usize].key = Some(key.clone());
        self.known.insert(key, found);
        found.name
    }

    /// Releases a sequence's pages. The last pages count as released first, because a page is
    /// useless without those before it.
    pub(super) fn give_back(&mut self, pages: &[i32]) {
        for &page in pages.iter().rev() {
            let state = &mut self.states[page as usize];
            state.n_users -= 1;
            if state.n_users > 0 {
                continue;
            }
            match state.key {
                None => self.free.push(page),
                Some(_) => {
                    self.clock += 1;
                    state.time = self.clock;
                    self.reusable.insert(self.clock, page);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn ids(first: i32) -> [i32; PAGE_LEN] {
        std::array::from_fn(|i| first + i as i32)
    }

    fn pool(len: usize) -> PagePool {
        let mut pool = PagePool::default();
        pool.grow_to(len);
        pool
    }

    #[test]
    fn equal_prefixes_share_pages_and_others_do_not() {
        let mut pool = pool(4);
        let pages: Vec<i32> = (0..2).map(|_| pool.take().unwrap()).collect();
        assert_eq!(pages, [0, 1]);
        let first = pool.name(pages[0], ROOT, &ids(5));
        let second = pool.name(pages[1], first, &ids(30));
        assert_eq!(pool.reuse(ROOT, &ids(5)), Some(Found { page: 0, name: first }));
        assert_eq!(pool.reuse(first, &ids(30)), Some(Found { page: 1, name: second }));
        // The same tokens after another prefix.
        assert_eq!(pool.reuse(ROOT, &ids(30)), None);
        assert_eq!(pool.reuse(second, &ids(30)), None);
        // A second page with the same contents is not findable, so releasing it frees it.
        let copy = pool.take().unwrap();
        assert_eq!(pool.name(copy, ROOT, &ids(5)), first);
        pool.give_back(&[copy]);
        assert_eq!(pool.n_free(), 2);
        pool.give_back(&pages);
        assert_eq!(pool.n_available(), 2, "each page has one more user");
        pool.give_back(&pages);
        assert_eq!((pool.n_available(), pool.n_free()), (4, 2));
    }

    #[test]
    fn what_was_used_least_recently_is_forgotten_first() {
        let mut pool = pool(3);
        let pages: Vec<i32> = (0..3).map(|_| pool.take().unwrap()).collect();
        assert_eq!(pool.take(), None);
        let a = pool.name(pages[0], ROOT, &ids(1));
        let b = pool.name(pages[1], a, &ids(2));
        let c = pool.name(pages[2], ROOT, &ids(3));
        assert!(a != b && b != c);
        pool.give_back(&pages[..2]);
        pool.give_back(&pages[2..]);
        // The end of the first sequence is evicted before its beginning.
        assert_eq!(pool.take(), Some(pages[1]));
        assert_eq!(pool.reuse(a, &ids(2)), None);
        assert_eq!(pool.reuse(ROOT, &ids(1)).unwrap().page, pages[0]);
        assert_eq!(pool.take(), Some(pages[2]));
        assert_eq!(pool.reuse(ROOT, &ids(3)), None);
        assert_eq!(pool.take(), None, "the last page has a user");
        // New pages have no contents.
        pool.grow_to(5);
        assert_eq!((pool.len(), pool.n_free()), (5, 2));
        assert_eq!(pool.take(), Some(3));
    }
}
