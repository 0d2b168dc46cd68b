//! The paged cache against the plainest model of one: a list of tokens a sequence. Tokens are written to a pool wherever
//! the cache says, and must be found there, whatever was forked, truncated, freed or refused in between.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use flash_alibi::cpu::{self, KvCache};
use flash_alibi::{Attention, Batch, Error, Inputs, PagedCache, SequenceId, View};
use flash_alibi_testing::normal;
use flash_alibi_testing::strategy::config;
use proptest::prelude::*;

const PAGE: usize = 8;

/// What one step does, to the sequence picked by a number.
#[derive(Debug, Clone)]
enum Step {
    Create,
    Fork(usize),
    Append(usize, usize),
    Truncate(usize, f64),
    Free(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let pick = || 0usize..64;
    prop_oneof![
        2 => Just(Step::Create),
        3 => pick().prop_map(Step::Fork),
        8 => (pick(), 0usize..30).prop_map(|(at, n)| Step::Append(at, n)),
        3 => (pick(), 0.0..1.0).prop_map(|(at, kept)| Step::Truncate(at, kept)),
        2 => pick().prop_map(Step::Free),
    ]
}

/// The cache, a pool that follows it, and what must be in it.
struct Checked {
    cache: PagedCache,
    pool: Vec<u32>,
    expected: BTreeMap<SequenceId, Vec<u32>>,
    next_token: u32,
    pages: usize,
}

impl Checked {
    fn new(pages: usize) -> Self {
        Self {
            cache: PagedCache::new(pages, PAGE).unwrap(),
            pool: vec![0; pages * PAGE],
            expected: BTreeMap::new(),
            next_token: 1,
            pages,
        }
    }

    fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        let pick = |at: usize| self.expected.keys().nth(at % self.expected.len()).copied();
        let of = match step {
            Step::Create => None,
            _ if self.expected.is_empty() => return Ok(()),
            Step::Fork(at) | Step::Append(at, _) | Step::Truncate(at, _) | Step::Free(at) => {
                pick(*at)
            }
        };
        match (step, of) {
            (Step::Append(_, tokens), Some(id)) => self.append(id, *tokens)?,
            (Step::Fork(_), Some(id)) => {
                let fork = self.cache.fork(id).unwrap();
                prop_assert!(!self.expected.contains_key(&fork));
                self.expected.insert(fork, self.expected[&id].clone());
            }
            (Step::Truncate(_, kept), Some(id)) => {
                let tokens = self.expected.get_mut(&id).unwrap();
                tokens.truncate((kept * (tokens.len() + 1) as f64) as usize);
                self.cache.truncate(id, tokens.len()).unwrap();
            }
            (Step::Free(_), Some(id)) => {
                self.expected.remove(&id);
                self.cache.free(id).unwrap();
                prop_assert!(self.cache.free(id).is_err(), "freed twice");
                prop_assert!(self.cache.batch(&[id]).is_err());
            }
            _ => {
                let id = self.cache.create();
                prop_assert!(self.expected.insert(id, Vec::new()).is_none());
            }
        }
        self.check()
    }

    fn append(&mut self, id: SequenceId, tokens: usize) -> Result<(), TestCaseError> {
        let before = self.cache.clone();
        let appended = match self.cache.append(id, tokens) {
            Ok(appended) => appended,
            Err(Error::CacheFull { free, needed }) => {
                prop_assert_eq!(free, before.free_pages());
                prop_assert!(needed > free);
                // Nothing has changed: not even which pages come next.
                prop_assert_eq!(format!("{:?}", self.cache), format!("{before:?}"));
                return Ok(());
            }
            Err(error) => panic!("{error}"),
        };
        for (from, to) in appended.copies {
            let at = |page: i32| page as usize * PAGE..(page as usize + 1) * PAGE;
            self.pool.copy_within(at(from), at(to).start);
        }
        prop_assert_eq!(appended.slot_mapping.len(), tokens);
        // Slots are in no page that another sequence has.
        let others: Vec<_> = self.expected.keys().copied().filter(|&o| o != id).collect();
        let others = pages(&self.cache.batch(&others).unwrap());
        for slot in appended.slot_mapping {
            prop_assert!(
                !others.contains(&((slot / PAGE as i64) as i32)),
                "writes to a shared page"
            );
            self.pool[slot as usize] = self.next_token;
            self.expected.get_mut(&id).unwrap().push(self.next_token);
            self.next_token += 1;
        }
        Ok(())
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let ids: Vec<_> = self.expected.keys().copied().collect();
        let batch = self.cache.batch(&ids).unwrap();
        let used = pages(&batch);
        prop_assert_eq!(self.cache.used_pages(), used.len(), "pages leaked or lost");
        prop_assert_eq!(self.cache.free_pages(), self.pages - used.len());
        for (b, (id, tokens)) in self.expected.iter().enumerate() {
            prop_assert_eq!(self.cache.len(*id).unwrap(), tokens.len());
            prop_assert_eq!(batch.seqused_k[b] as usize, tokens.len());
            let table = &batch.block_table[b * batch.max_pages_per_sequence..];
            for (j, &token) in tokens.iter().enumerate() {
                let slot = table[j / PAGE] as usize * PAGE + j % PAGE;
                prop_assert_eq!(self.pool[slot], token, "token {} of sequence {}", j, b);
            }
        }
        Ok(())
    }
}

/// The pages that sequences have, each once.
fn pages(batch: &Batch) -> BTreeSet<i32> {
    let rows = batch
        .block_table
        .chunks(batch.max_pages_per_sequence.max(1));
    rows.zip(&batch.seqused_k)
        .flat_map(|(row, &len)| row[..(len as usize).div_ceil(PAGE)].to_vec())
        .collect()
}

proptest! {
    #![proptest_config(config(600))]

    #[test]
    fn every_token_is_found_where_it_was_written(pages in 0usize..20, steps in prop::collection::vec(step(), 1..80)) {
        let mut checked = Checked::new(pages);
        for step in &steps {
            checked.step(step)?;
        }
        // Everything can be freed, and all pages are then there again.
        for id in std::mem::take(&mut checked.expected).into_keys() {
            checked.cache.free(id).unwrap();
        }
        prop_assert_eq!(checked.cache.free_pages(), pages);
        let all = checked.cache.create();
        let slots = checked.cache.append(all, pages * PAGE).unwrap().slot_mapping;
        prop_assert_eq!(slots.iter().collect::<HashSet<_>>().len(), pages * PAGE);
    }
}

#[test]
fn a_full_cache_refuses_and_goes_on() {
    let mut cache = PagedCache::new(3, PAGE).unwrap();
    let (a, b) = (cache.create(), cache.create());
    let _ = cache.append(a, 12).unwrap();
    assert_eq!(
        cache.append(b, 9).unwrap_err(),
        Error::CacheFull { free: 1, needed: 2 }
    );
    assert_eq!(
        cache.append(b, 9).unwrap_err().to_string(),
        "cache: found 1 free pages, expected at least 2"
    );
    assert_eq!((cache.used_pages(), cache.len(b).unwrap()), (2, 0));
    // A fork takes nothing until it diverges; then it takes the page that is partly filled.
    let fork = cache.fork(a).unwrap();
    assert_eq!(cache.used_pages(), 2);
    let appended = cache.append(fork, 1).unwrap();
    assert_eq!(appended.copies.len(), 1);
    assert_eq!((cache.used_pages(), cache.free_pages()), (3, 0));
    // The other has the page for itself now.
    assert_eq!(cache.append(a, 4).unwrap().copies, []);
    assert!(cache.append(a, 1).is_err());
    // Rejected tokens give pages back.
    cache.truncate(a, 8).unwrap();
    assert_eq!(cache.append(b, 8).unwrap().slot_mapping.len(), 8);
}

#[test]
fn errors_name_what_is_wrong() {
    let mut cache = PagedCache::new(3, PAGE).unwrap();
    let id = cache.create();
    let gone = cache.create();
    cache.free(gone).unwrap();
    let _ = cache.append(id, 5).unwrap();
    let unknown = "sequence: found 1, expected a sequence of this cache";
    for (result, message) in [
        (cache.append(gone, 1).map(drop), unknown),
        (cache.append(gone, 0).map(drop), unknown),
        (cache.fork(gone).map(drop), unknown),
        (cache.truncate(gone, 0), unknown),
        (cache.free(gone), unknown),
        (cache.len(gone).map(drop), unknown),
        (cache.batch(&[id, gone]).map(drop), unknown),
        (
            cache.truncate(id, 6),
            "len: found 6, expected at most 5, the tokens there are",
        ),
        (
            cache.append(id, i32::MAX as usize).map(drop),
            "tokens: found 2147483647, expected at most 2147483642",
        ),
        (
            cache.append(id, usize::MAX).map(drop),
            "tokens: found 18446744073709551615, expected at most 2147483642",
        ),
        (
            PagedCache::new(3, 12).map(drop),
            "page_size: found 12, expected a positive multiple of 8",
        ),
        (
            PagedCache::new(3, 0).map(drop),
            "page_size: found 0, expected a positive multiple of 8",
        ),
        (
            PagedCache::new(1 << 31, 8).map(drop),
            "pages: found 2147483648, expected at most 2^31 - 1, and 2^63 - 1 slots",
        ),
        (
            PagedCache::new(2, usize::MAX - 7).map(drop),
            "pages: found 2, expected at most 2^31 - 1, and 2^63 - 1 slots",
        ),
    ] {
        assert_eq!(result.unwrap_err().to_string(), message);
    }
    assert_eq!(cache.len(id).unwrap(), 5);
}

/// Two continuations of one prompt, each as if it were alone.
#[test]
fn forks_attend_like_sequences_of_their_own() {
    let (heads, d, pages) = (2, 16, 12);
    let values = |tag, tokens: usize| -> Vec<f32> {
        let n = tokens * heads * d;
        normal(7, tag, [0; 4]).take(n).collect()
    };
    let attention = Attention::new(heads, heads, d).build().unwrap();
    let mut cache = PagedCache::new(pages, PAGE).unwrap();
    let mut pools = KvCache::<f32>::new(pages, PAGE, heads, d).unwrap();
    let mut write = |cache: &mut PagedCache, id, tag, tokens| {
        let appended = cache.append(id, tokens).unwrap();
        pools.copy_pages(&appended.copies).unwrap();
        let (k, v) = (values(tag, tokens), values(tag + 100, tokens));
        let shape = [tokens, heads, d];
        let (k, v) = (View::new(&k, &shape), View::new(&v, &shape));
        let slots = &appended.slot_mapping;
        pools.append(k.unwrap(), v.unwrap(), slots).unwrap();
    };
    let first = cache.create();
    write(&mut cache, first, 1, 21);
    let second = cache.fork(first).unwrap();
    write(&mut cache, first, 2, 10);
    write(&mut cache, second, 3, 4);
    assert_eq!(cache.used_pages(), 6, "two whole pages are shared");

    let q = values(9, 2);
    let shape_q = [2, 1, heads, d];
    let batch = cache.batch(&[first, second]).unwrap();
    let inputs = Inputs::paged(
        View::new(&q, &shape_q).unwrap(),
        pools.k(),
        pools.v(),
        &batch.block_table,
        &batch.seqused_k,
    );
    let together = cpu::attend(&attention, &inputs).unwrap();
    for (b, (tag, tokens)) in [(2u64, 10), (3, 4)].into_iter().enumerate() {
        let rows = |offset: u64| [values(1 + offset, 21), values(tag + offset, tokens)].concat();
        let (k, v) = (rows(0), rows(100));
        let shape_k = [1, 21 + tokens, heads, d];
        let inputs = Inputs::new(
            View::new(&q[b * heads * d..], &[1, 1, heads, d]).unwrap(),
            View::new(&k, &shape_k).unwrap(),
            View::new(&v, &shape_k).unwrap(),
        );
        let alone = cpu::attend(&attention, &inputs).unwrap();
        assert_eq!(together.out[b * heads * d..][..heads * d], alone.out);
        assert_eq!(together.lse[b * heads..][..heads], alone.lse);
    }
}

#[test]
fn the_columns_of_a_block_table_can_be_fixed() {
    let mut cache = PagedCache::new(8, 8).unwrap();
    let (long, short) = (cache.create(), cache.create());
    let _ = cache.append(long, 20).unwrap();
    let _ = cache.append(short, 3).unwrap();
    let sequences = [long, short];
    let tight = cache.batch(&sequences).unwrap();
    assert_eq!(tight.max_pages_per_sequence, 3);
    assert_eq!(cache.batch_with_columns(&sequences, 3).unwrap(), tight);
    let wide = cache.batch_with_columns(&sequences, 5).unwrap();
    assert_eq!(
        (wide.max_pages_per_sequence, wide.block_table.len()),
        (5, 10)
    );
    assert_eq!(wide.seqused_k, tight.seqused_k);
    for (wide, tight) in wide.block_table.chunks(5).zip(tight.block_table.chunks(3)) {
        assert_eq!((&wide[..3], &wide[3..]), (tight, &[0, 0][..]));
    }
    let error = cache.batch_with_columns(&sequences, 2).unwrap_err();
    let message = "columns: found 2, expected at least 3, the pages of the longest sequence";
    assert_eq!(error.to_string(), message);
    for columns in [usize::MAX, usize::MAX / 16] {
        let error = cache.batch_with_columns(&sequences, columns).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with(&format!("columns: found {columns}"))
        );
    }
}
