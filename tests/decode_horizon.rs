//! Decoding within the certified horizon: what is launched, and the radii that appends keep. What is left out, and what that
//! changes, is tested with all paths in `horizon.rs`.

use flash_alibi::plan::{Append, AppendAddresses};
use flash_alibi::{Horizon, Layout, View, ViewMut, cpu};
use flash_alibi_testing::emulator::{Emulator, OnEmulator};
use flash_alibi_testing::horizon::{Path, Probe};
use flash_alibi_testing::{Case, SlopeKind, normal, random};
use half::{bf16, f16};
use ptx_emulator::DevicePtr;

/// With nothing left out, the kernel that reads a list has the result of the other, bit by bit.
#[test]
fn a_list_of_all_tiles_changes_nothing() {
    let case = Case {
        slopes: SlopeKind::Zero,
        ..Case::dense(2, 2, 2500, (4, 2), 64)
    };
    let mut probe = Probe::<bf16>::new(Path::Decode, case, 16);
    let (whole, found) = (probe.attend(Horizon::Off), probe.attend(Horizon::default()));
    assert!(found.kernels[0].starts_with("live"));
    assert_eq!((whole.out, whole.lse), (found.out, found.lse));
}

#[test]
fn what_launches_a_list() {
    let kernels = |case: &Case, horizon| {
        let mut probe = Probe::<f16>::new(Path::Decode, case.clone(), 64);
        probe.attend(horizon).kernels
    };
    let long = Case::dense(1, 1, 2048, (2, 2), 64);
    let with_list = ["live_f16_r16", "decode_f16_d64_r16", "combine_f16"];
    assert_eq!(kernels(&long, Horizon::default()), with_list);
    assert_eq!(kernels(&long, Horizon::Off), with_list[1..]);
    assert_eq!(kernels(&long, Horizon::Bitwise), with_list[1..]);
    // The table has a column more than the keys need.
    let short = Case::dense(1, 1, 1920, (2, 2), 64);
    assert_eq!(kernels(&short, Horizon::default()), with_list[1..]);
    let window = Case {
        window: (Some(1000), Some(0)),
        ..long
    };
    assert_eq!(kernels(&window, Horizon::default()), with_list[1..]);
}

/// Pages of a cache that appends fill, on the CPU and by the kernels, and what its radii must be at least.
struct Filled<T> {
    emulator: Emulator,
    heads: usize,
    head_dim: usize,
    page_size: usize,
    pools: [DevicePtr; 2],
    centres: Vec<f32>,
    centres_at: DevicePtr,
    radii: DevicePtr,
    cpu_pools: [Vec<T>; 2],
    cpu_radii: Vec<f32>,
    /// The keys of each page, by row.
    pages: Vec<Vec<Option<Vec<T>>>>,
}

impl<T: OnEmulator> Filled<T> {
    fn new(pages: usize, page_size: usize, heads: usize, head_dim: usize) -> Self {
        let emulator = Emulator::new(9);
        let memory = &emulator.memory;
        let marks = vec![T::from_f32(f32::NAN); pages * page_size * heads * head_dim];
        let centres: Vec<f32> = normal(2, 5, [0; 4]).take(heads * head_dim).collect();
        Self {
            heads,
            head_dim,
            page_size,
            pools: [(); 2].map(|()| memory.upload(&marks).unwrap()),
            centres_at: memory.upload(&centres).unwrap(),
            centres,
            radii: memory.upload(&vec![f32::NAN; pages * heads]).unwrap(),
            cpu_pools: [marks.clone(), marks],
            cpu_radii: vec![f32::NAN; pages * heads],
            pages: vec![vec![None; page_size]; pages],
            emulator,
        }
    }

    /// Appends a token to each slot, with keys that begin with `first`.
    fn append(&mut self, slots: &[i64], first: impl Fn(usize) -> f32) {
        let (heads, d, page_size) = (self.heads, self.head_dim, self.page_size);
        let key = |token: usize| -> Vec<T> {
            let numbers = normal(slots[0] as u64, 1, [token, 0, 0, 0]);
            let mut key: Vec<T> = numbers.map(T::from_f32).take(heads * d).collect();
            key[0] = T::from_f32(first(token));
            key
        };
        let keys: Vec<Vec<T>> = (0..slots.len()).map(key).collect();
        let new = Layout::contiguous("k", &[slots.len(), heads, d]).unwrap();
        let shape = [self.pages.len(), page_size, heads, d];
        let pool = Layout::contiguous("k_pages", &shape).unwrap();
        let append = Append::with_radii(T::DTYPE, &new, &new, &pool, &pool).unwrap();
        let memory = &self.emulator.memory;
        let uploaded = memory.upload(&keys.concat()).unwrap().0;
        let addresses = AppendAddresses {
            k: uploaded,
            v: uploaded,
            k_pages: self.pools[0].0,
            v_pages: self.pools[1].0,
            slot_mapping: memory.upload(slots).unwrap().0,
            centres: self.centres_at.0,
            radii: self.radii.0,
        };
        // SAFETY: the emulator checks every access itself.
        unsafe { append.run(&self.emulator, &addresses) }.unwrap();
        self.append_on_cpu(&keys.concat(), slots);
        let place = |slot: i64| {
            let slot = usize::try_from(slot).ok()?;
            let page = slot / page_size;
            (page < shape[0]).then_some((page, slot % page_size))
        };
        // All pages that begin anew do so before any key comes.
        for (page, row) in slots.iter().filter_map(|&slot| place(slot)) {
            if row == 0 {
                self.pages[page].fill(None);
            }
        }
        for (&slot, key) in slots.iter().zip(&keys) {
            if let Some((page, row)) = place(slot) {
                self.pages[page][row] = Some(key.clone());
            }
        }
    }

    /// There, slots that no page has are errors.
    fn append_on_cpu(&mut self, keys: &[T], slots: &[i64]) {
        let (heads, d, pages) = (self.heads, self.head_dim, self.pages.len());
        let far = (pages * self.page_size) as i64;
        let slots: Vec<i64> = slots
            .iter()
            .map(|&slot| if slot < far { slot } else { -1 })
            .collect();
        let k = View::new(keys, &[slots.len(), heads, d]).unwrap();
        let shape = [pages, self.page_size, heads, d];
        let pools = self.cpu_pools.each_mut();
        let [k_pool, v_pool] = pools.map(|pool| ViewMut::new(pool, &shape).unwrap());
        let (centres, radii) = (&self.centres, &mut self.cpu_radii);
        cpu::append_with_radii(k, k, k_pool, v_pool, &slots, centres, radii).unwrap();
    }

    /// The radii are the largest distances, rounded up by little, and the pools hold the keys.
    fn check(&self) {
        let (pages, heads) = (self.pages.len(), self.heads);
        let memory = &self.emulator.memory;
        let radii: Vec<f32> = memory.download(self.radii, pages * heads).unwrap();
        let elements = pages * self.page_size * heads * self.head_dim;
        let pools = self
            .pools
            .map(|pool| memory.download::<T>(pool, elements).unwrap());
        self.check_found(&pools, &radii);
        self.check_found(&self.cpu_pools, &self.cpu_radii);
    }

    fn check_found(&self, pools: &[Vec<T>; 2], radii: &[f32]) {
        let (heads, d) = (self.heads, self.head_dim);
        for (number, page) in self.pages.iter().enumerate() {
            for (row, key) in page.iter().enumerate() {
                let Some(key) = key else { continue };
                let at = (number * self.page_size + row) * heads * d;
                for pool in pools {
                    let same = |(a, b): (&T, &T)| a.to_f32().to_bits() == b.to_f32().to_bits();
                    assert!(
                        pool[at..].iter().zip(key).all(same),
                        "page {number}, row {row}"
                    );
                }
            }
            for head in 0..heads {
                let norm = |key: &Vec<T>| -> f64 {
                    let of_head = key[head * d..][..d].iter().zip(&self.centres[head * d..]);
                    let squares =
                        of_head.map(|(x, &c)| (f64::from(x.to_f32()) - f64::from(c)).powi(2));
                    squares.sum::<f64>().sqrt()
                };
                let norms: Vec<f64> = page.iter().flatten().map(norm).collect();
                let found = f64::from(radii[number * heads + head]);
                if norms.is_empty() || norms.iter().any(|x| x.is_nan()) {
                    assert!(found.is_nan(), "page {number}, head {head}: {found}");
                    continue;
                }
                let largest = norms.into_iter().fold(0.0, f64::max);
                let bounds = found == largest || found > largest && found <= 1.001 * largest;
                assert!(
                    bounds,
                    "page {number}, head {head}: {found}, norm {largest}"
                );
            }
        }
    }
}

#[test]
fn appended_keys_raise_the_radii_of_their_pages() {
    fn check<T: OnEmulator>(heads: usize, head_dim: usize) {
        const PAGES: usize = 5;
        let mut cache = Filled::<T>::new(PAGES, 16, heads, head_dim);
        let slots = |page: usize, rows: std::ops::Range<usize>| {
            rows.map(move |row| (page * 16 + row) as i64)
        };
        let plain = |token| random(4, 4, [token, 0, 0, 0]);
        // Two pages at once, one of them whole; and what is left out.
        let far = (PAGES * 16) as i64;
        cache.append(
            &slots(3, 0..16)
                .chain([-1, far])
                .chain(slots(1, 0..5))
                .collect::<Vec<_>>(),
            plain,
        );
        cache.check();
        // One at a time, with a large key first, and small ones later.
        for row in 5..9 {
            cache.append(&slots(1, row..row + 1).collect::<Vec<_>>(), |_| {
                if row == 5 { 90.0 } else { 0.5 }
            });
            cache.check();
        }
        // Used again, from the first row on, which comes last.
        cache.append(&slots(1, 0..7).rev().collect::<Vec<_>>(), plain);
        cache.check();
        // Not finite, and then used again.
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -f32::NAN] {
            cache.append(&slots(0, 0..3).collect::<Vec<_>>(), |token| {
                if token == 1 { value } else { 1.0 }
            });
            cache.check();
        }
        cache.append(&slots(0, 0..1).collect::<Vec<_>>(), plain);
        cache.check();
        cache.append(&[-1, i64::MIN], plain);
        cache.check();
    }
    for (heads, head_dim) in [(1, 8), (3, 24), (2, 64), (5, 80), (2, 128), (2, 256)] {
        check::<f16>(heads, head_dim);
        check::<bf16>(heads, head_dim);
    }
}
