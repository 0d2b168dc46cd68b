//! Which page of a paged cache belongs to which sequence.

use std::collections::HashMap;

use crate::error::{Error, Result, value};
use crate::sequences::check_page_size;

/// The pages of a paged cache: which sequence has which, which are shared, which are free.
///
/// It holds numbers only. The keys and values lie in pools `[pages, page_size, heads_k, head_dim]`, one pair a layer,
/// wherever the engine keeps them ([`cpu::KvCache`](crate::cpu::KvCache) on the CPU); all layers share one `PagedCache`,
/// since a token has the same slot in each. A step of an engine is then: [`append`](Self::append) for each sequence,
/// the copies it asks for, [`cpu::append`](crate::cpu::append) of the new keys and values in each layer, and attention
/// over [`Inputs::paged`](crate::Inputs::paged) with the table and lengths of [`batch`](Self::batch).
///
/// ```
/// use flash_alibi::PagedCache;
///
/// let mut cache = PagedCache::new(8, 16)?;              // 8 pages of 16 tokens
/// let first = cache.create();
/// assert_eq!(cache.append(first, 3)?.slot_mapping, [112, 113, 114]); // in some page
/// let second = cache.fork(first)?;                      // the same tokens, in the same page
/// assert_eq!(cache.used_pages(), 1);
/// let appended = cache.append(second, 1)?;              // diverges: in a copy of it
/// assert_eq!(appended.copies, [(7, 6)]);
/// assert_eq!(cache.batch(&[first, second])?.seqused_k, [3, 4]);
/// cache.free(first)?;
/// assert_eq!((cache.used_pages(), cache.free_pages()), (1, 7));
/// # Ok::<(), flash_alibi::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct PagedCache {
    page_size: usize,
    /// How many sequences have each page.
    references: Vec<u32>,
    free: Vec<i32>,
    sequences: HashMap<SequenceId, Sequence>,
    next: u64,
}

/// Names a sequence of a [`PagedCache`], which gives no name twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(u64);

#[derive(Debug, Clone, Default)]
struct Sequence {
    /// As many as `len` tokens take.
    pages: Vec<i32>,
    len: usize,
}

/// Where new tokens go; see [`PagedCache::append`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
#[must_use = "pages must be copied and tokens written where this says"]
pub struct Appended {
    /// The slot of each new token, `page * page_size + row`.
    pub slot_mapping: Vec<i64>,
    /// Pages to copy, from the first to the second of each pair, in all layers, before the tokens are written.
    pub copies: Vec<(i32, i32)>,
}

/// The sequences of a call, as [`Inputs::paged`](crate::Inputs::paged) takes them; see [`PagedCache::batch`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Batch {
    /// `[batch, max_pages_per_sequence]`; rows of sequences with fewer pages end with zeros.
    pub block_table: Vec<i32>,
    /// The columns of the block table: the pages of the longest sequence, or as many as were asked for.
    pub max_pages_per_sequence: usize,
    /// The lengths, `[batch]`.
    pub seqused_k: Vec<i32>,
}

impl Batch {
    fn new(sequences: &[&Sequence], columns: usize) -> Self {
        let row = |s: &Sequence| {
            let mut row = s.pages.clone();
            row.resize(columns, 0);
            row
        };
        Self {
            block_table: sequences.iter().flat_map(|s| row(s)).collect(),
            max_pages_per_sequence: columns,
            seqused_k: sequences.iter().map(|s| s.len as i32).collect(),
        }
    }
}

impl PagedCache {
    /// A cache of `pages` free pages of `page_size` tokens.
    ///
    /// # Errors
    /// [`Error::Value`] for a `page_size` that is not a positive multiple of 8, for more than 2^31 - 1 pages, and for more than
    /// 2^63 - 1 slots.
    pub fn new(pages: usize, page_size: usize) -> Result<Self> {
        check_page_size(page_size)?;
        let numbers = i32::try_from(pages).ok();
        let slots = i64::try_from(page_size)
            .ok()
            .and_then(|size| size.checked_mul(pages as i64));
        let (Some(numbers), Some(_)) = (numbers, slots) else {
            return Err(value(
                "pages",
                pages,
                "at most 2^31 - 1, and 2^63 - 1 slots",
            ));
        };
        Ok(Self {
            page_size,
            references: vec![0; pages],
            free: (0..numbers).collect(),
            sequences: HashMap::new(),
            next: 0,
        })
    }

    /// Makes a sequence without tokens. It takes no page yet.
    pub fn create(&mut self) -> SequenceId {
        self.insert(Sequence::default())
    }

    /// Makes a sequence with the tokens of another, in the same pages. When either of them grows and their last page is partly
    /// filled, it gets a copy of that page, so that neither sees the other's new tokens.
    ///
    /// # Errors
    /// [`Error::Value`] for a sequence that this cache does not have.
    pub fn fork(&mut self, sequence: SequenceId) -> Result<SequenceId> {
        let fork = self.get(sequence)?.clone();
        for &page in &fork.pages {
            self.references[page as usize] += 1;
        }
        Ok(self.insert(fork))
    }

    /// Adds `tokens` tokens to a sequence, taking pages as needed, and says where their keys and values go.
    ///
    /// If the last page is partly filled and shared, the sequence gets a page of its own in its place, and
    /// [`Appended::copies`] asks for a copy of the one to the other. A step with several appends makes all copies first, in the
    /// order of the appends, and then writes the new tokens.
    ///
    /// # Errors
    /// [`Error::CacheFull`] when it takes more pages than are free, [`Error::Value`] for a sequence that this cache does
    /// not have or that would grow beyond 2^31 - 1 tokens. Nothing is changed then.
    pub fn append(&mut self, sequence: SequenceId, tokens: usize) -> Result<Appended> {
        let page_size = self.page_size;
        let found = self.sequences.get_mut(&sequence);
        let Sequence { pages, len } = found.ok_or_else(|| unknown(sequence))?;
        let (start, held) = (*len, pages.len());
        if tokens == 0 {
            return Ok(Appended::default());
        }
        let most = i32::MAX as usize - start;
        if tokens > most {
            return Err(value("tokens", tokens, format!("at most {most}")));
        }
        let shared = match pages.last() {
            Some(&last) if start % page_size != 0 && self.references[last as usize] > 1 => {
                Some(last)
            }
            _ => None,
        };
        let needed = (start + tokens).div_ceil(page_size) - held + usize::from(shared.is_some());
        let Some(rest) = self.free.len().checked_sub(needed) else {
            return Err(Error::CacheFull {
                free: self.free.len(),
                needed,
            });
        };

        // From here on nothing fails.
        let mut taken = self.free.split_off(rest);
        for &page in &taken {
            self.references[page as usize] = 1;
        }
        let mut copies = Vec::new();
        if let (Some(last), Some(own)) = (shared, shared.and_then(|_| taken.pop())) {
            self.references[last as usize] -= 1;
            pages[held - 1] = own;
            copies.push((last, own));
        }
        pages.extend(taken.into_iter().rev());
        *len += tokens;
        let slot = |at: usize| {
            i64::from(pages[at / page_size]) * page_size as i64 + (at % page_size) as i64
        };
        Ok(Appended {
            slot_mapping: (start..start + tokens).map(slot).collect(),
            copies,
        })
    }

    /// Keeps the first `len` tokens of a sequence and frees the pages that only the rest had: speculative tokens that
    /// were rejected, or the prefix of a fork.
    ///
    /// # Errors
    /// [`Error::Value`] for a sequence that this cache does not have, or that has fewer tokens.
    pub fn truncate(&mut self, sequence: SequenceId, len: usize) -> Result<()> {
        let found = self.sequences.get_mut(&sequence);
        let found = found.ok_or_else(|| unknown(sequence))?;
        if len > found.len {
            let expected = format!("at most {}, the tokens there are", found.len);
            return Err(value("len", len, expected));
        }
        found.len = len;
        let dropped = found.pages.split_off(len.div_ceil(self.page_size));
        self.release(dropped);
        Ok(())
    }

    /// Ends a sequence and frees the pages that only it had.
    ///
    /// # Errors
    /// [`Error::Value`] for a sequence that this cache does not have.
    pub fn free(&mut self, sequence: SequenceId) -> Result<()> {
        let found = self.sequences.remove(&sequence);
        self.release(found.ok_or_else(|| unknown(sequence))?.pages);
        Ok(())
    }

    /// The number of tokens of a sequence.
    ///
    /// # Errors
    /// [`Error::Value`] for a sequence that this cache does not have.
    pub fn len(&self, sequence: SequenceId) -> Result<usize> {
        Ok(self.get(sequence)?.len)
    }

    /// The block table and the lengths of some sequences, in their order.
    ///
    /// # Errors
    /// [`Error::Value`] for a sequence that this cache does not have.
    pub fn batch(&self, sequences: &[SequenceId]) -> Result<Batch> {
        let sequences = self.all(sequences)?;
        let longest = sequences.iter().map(|s| s.pages.len()).max().unwrap_or(0);
        Ok(Batch::new(&sequences, longest))
    }

    /// As [`PagedCache::batch`], with a fixed number of columns: the block table of a step that was captured in a graph
    /// keeps its shape while sequences grow.
    ///
    /// # Errors
    /// As [`PagedCache::batch`], and [`Error::Value`] for fewer columns than the longest sequence has pages.
    pub fn batch_with_columns(&self, sequences: &[SequenceId], columns: usize) -> Result<Batch> {
        let sequences = self.all(sequences)?;
        let longest = sequences.iter().map(|s| s.pages.len()).max().unwrap_or(0);
        if longest > columns {
            let expected = format!("at least {longest}, the pages of the longest sequence");
            return Err(value("columns", columns, expected));
        }
        let entries = columns.checked_mul(sequences.len());
        if entries.is_none_or(|entries| Vec::<i32>::new().try_reserve_exact(entries).is_err()) {
            let expected = "as many as a block table that fits in memory has";
            return Err(value("columns", columns, expected));
        }
        Ok(Batch::new(&sequences, columns))
    }

    /// The number of tokens of a page.
    pub fn page_size(&self) -> usize {
        self.page_size
    }

    /// The number of pages that sequences have. A shared page counts once.
    pub fn used_pages(&self) -> usize {
        self.references.len() - self.free.len()
    }

    /// The number of pages that no sequence has.
    pub fn free_pages(&self) -> usize {
        self.free.len()
    }

    fn all(&self, sequences: &[SequenceId]) -> Result<Vec<&Sequence>> {
        sequences.iter().map(|&id| self.get(id)).collect()
    }

    fn get(&self, sequence: SequenceId) -> Result<&Sequence> {
        let found = self.sequences.get(&sequence);
        found.ok_or_else(|| unknown(sequence))
    }

    fn insert(&mut self, sequence: Sequence) -> SequenceId {
        let id = SequenceId(self.next);
        self.next += 1;
        self.sequences.insert(id, sequence);
        id
    }

    fn release(&mut self, pages: Vec<i32>) {
        for page in pages.into_iter().rev() {
            self.references[page as usize] -= 1;
            if self.references[page as usize] == 0 {
                self.free.push(page);
            }
        }
    }
}

fn unknown(sequence: SequenceId) -> Error {
    value("sequence", sequence.0, "a sequence of this cache")
}
