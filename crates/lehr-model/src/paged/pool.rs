//! Which pages are in use, which are free, and which hold a prefix that another sequence may reuse.

use std::collections::{BTreeMap, HashMap};

use super::PAGE_LEN;

/// The beginning of every chain of pages.
pub(super) const ROOT: u64 = 0;

/// What a full page holds: its tokens, and those of all pages before it, which the name of the page
/// before stands for. Names are never given twice, so equal keys mean equal prefixes; there is
/// nothing that could collide.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct PageKey {
    before: u64,
    ids: [i32; PAGE_LEN],
}

/// A page that is known by what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) page: i32,
    /// The name of the prefix that ends with this page.
    pub(super) name: u64,
}

/// The bookkeeping of the pages of a pool. A page has as many users as sequences have it in their
/// table. A full page without users keeps its contents until the page is needed: the one that was
/// given back first is taken first.
#[derive(Debug, Default)]
pub(super) struct PagePool {
    /// By page.
    states: Vec<PageState>,
    /// Pages without contents. The last is taken first.
    free: Vec<i32>,
    /// Pages without users but with contents, by the time they were given back.
    reusable: BTreeMap<u64, i32>,
    known: HashMap<PageKey, Found>,
    /// How often a page was given back.
    clock: u64,
    /// The last name that was given.
    last_name: u64,
}

#[derive(Clone, Debug, Default)]
struct PageState {
    n_users: usize,
    /// Under which it is found, if it is.
    key: Option<PageKey>,
    /// When it was given back.
    time: u64,
}

impl PagePool {
    /// Pages there are.
    pub(super) fn len(&self) -> usize {
        self.states.len()
    }

    /// Pages that can be taken without growing.
    pub(super) fn n_available(&self) -> usize {
        self.free.len() + self.reusable.len()
    }

    /// Pages that can be taken and hold nothing.
    pub(super) fn n_free(&self) -> usize {
        self.free.len()
    }

    /// Adds pages up to `len`.
    pub(super) fn grow_to(&mut self, len: usize) {
        self.free.splice(0..0, (self.states.len() as i32..len as i32).rev());
        self.states.resize(len, PageState::default());
    }

    /// A page with one user, and nothing in it.
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

    /// The page that holds these tokens behind the prefix named `before`, with one more user.
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

    /// Makes a full page known by what it holds, and names the prefix that ends with it. If another
    /// page holds the same, that one stays known.
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

    /// Takes a user away from each of these pages of a sequence. The last pages count as given back
    /// first: a page is of no use without those before it.
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
        // The same tokens behind another prefix.
        assert_eq!(pool.reuse(ROOT, &ids(30)), None);
        assert_eq!(pool.reuse(second, &ids(30)), None);
        // A second page with the same contents is not known, and free when it is given back.
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
        // The end of the first sequence goes before its beginning.
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
