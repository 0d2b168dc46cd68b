//! A table of pages that exist once touched, shared between threads without locks.

use std::sync::OnceLock;

const FANOUT: u64 = 512;

type Slot<P> = OnceLock<Box<P>>;

/// Page index to page, in two levels so that a terabyte costs megabytes of table.
pub(crate) struct Sparse<P> {
    chunks: Vec<OnceLock<Box<[Slot<P>]>>>,
}

impl<P> Sparse<P> {
    pub fn new(pages: u64) -> Self {
        let chunks = pages.div_ceil(FANOUT);
        Self {
            chunks: (0..chunks).map(|_| OnceLock::new()).collect(),
        }
    }

    /// The page if somebody touched it.
    #[inline]
    pub fn get(&self, page: u64) -> Option<&P> {
        let chunk = self.chunks.get((page / FANOUT) as usize)?.get()?;
        chunk[(page % FANOUT) as usize].get().map(|b| &**b)
    }

    /// The page, made by `make` upon its first touch. `None` past the end of the table.
    #[inline]
    pub fn touch(&self, page: u64, make: impl FnOnce() -> P) -> Option<&P> {
        let chunk = self.chunks.get((page / FANOUT) as usize)?;
        let chunk = chunk.get_or_init(|| (0..FANOUT).map(|_| OnceLock::new()).collect());
        Some(chunk[(page % FANOUT) as usize].get_or_init(|| Box::new(make())))
    }
}
