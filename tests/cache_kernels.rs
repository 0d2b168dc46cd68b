//! The kernels that copy pages and merge results, executed on the CPU with every check on, against the functions of the CPU.

use flash_alibi::cpu::{self, Element};
use flash_alibi::plan::{CopyPages, CopyPagesAddresses, MergeState, MergeStateAddresses};
use flash_alibi::{Layout, View, ViewMut, merge_states};
use flash_alibi_testing::emulator::{Emulator, OnEmulator};
use flash_alibi_testing::normal;
use half::{bf16, f16};

fn numbers<T: Element>(tag: u64, len: usize) -> Vec<T> {
    let numbers = normal(3, tag, [0; 4]).map(T::from_f32);
    numbers.take(len).collect()
}

/// Pages `[pages, page_size, heads_k, head_dim]` with the dimensions in some order of memory, the last but one `gap` apart.
fn pool(shape: [usize; 4], transposed: bool, gap: usize) -> Layout {
    let [_, rows, heads, d] = shape;
    let strides = match transposed {
        false => [rows * heads * (d + gap), heads * (d + gap), d + gap, 1],
        true => [rows * heads * (d + gap), d + gap, rows * (d + gap), 1],
    };
    Layout::new("k_pages", &shape, &strides).unwrap()
}

/// A page that was copied to is copied from, pages are copied to twice and to themselves, and some do not exist.
#[test]
fn pages_are_copied_in_order() {
    const PAGES: usize = 9;
    let copies: [(i64, i64); 9] = [
        (0, 3),
        (3, 4),
        (1, 3),
        (-1, 5),
        (5, 9),
        (i64::MAX, 5),
        (4, 0),
        (6, 6),
        (5, i64::MIN),
    ];
    let exist = |&(from, to): &(i64, i64)| {
        let page = |page| {
            i32::try_from(page)
                .ok()
                .filter(|p| (0..PAGES as i32).contains(p))
        };
        Some((page(from)?, page(to)?))
    };
    let existing: Vec<(i32, i32)> = copies.iter().filter_map(exist).collect();
    assert_eq!(existing.len(), 5);
    for (page_size, heads, d, gap) in [(8, 3, 8, 0), (16, 2, 40, 3), (24, 1, 256, 8)] {
        let shape = [PAGES, page_size, heads, d];
        for (radii, offset) in [(true, 0), (false, 1)] {
            let layouts = [pool(shape, false, gap), pool(shape, true, 2 * gap)];
            let mut expected =
                layouts.map(|layout| numbers::<f16>(layout.span() as u64, layout.span() + offset));
            let mut expected_radii: Vec<f32> = numbers(7, PAGES * heads);

            let emulator = Emulator::new(5);
            let memory = &emulator.memory;
            let pools = [0, 1].map(|i| memory.upload(&expected[i]).unwrap());
            let radii_at = memory.upload(&expected_radii).unwrap();
            let pairs: Vec<i64> = copies.iter().flat_map(|&(from, to)| [from, to]).collect();
            let first = |i: usize| pools[i].0 + 2 * offset as u64;
            let addresses = CopyPagesAddresses {
                copies: memory.upload(&pairs).unwrap().0,
                k_pages: first(0),
                v_pages: first(1),
                radii: if radii { radii_at.0 } else { 0 },
            };
            let plan = CopyPages::new(copies.len(), &layouts[0], &layouts[1]).unwrap();
            // SAFETY: the emulator checks every access itself.
            unsafe { plan.run(&emulator, &addresses) }.unwrap();

            for (data, layout) in expected.iter_mut().zip(layouts) {
                let data = &mut data[offset..];
                let pool = ViewMut::strided(data, &layout.shape(), &layout.strides()).unwrap();
                cpu::copy_pages(pool, &existing).unwrap();
            }
            for &(from, to) in existing.iter().filter(|_| radii) {
                let from = from as usize * heads;
                expected_radii.copy_within(from..from + heads, to as usize * heads);
            }
            for (at, expected) in pools.into_iter().zip(&expected) {
                assert_eq!(
                    memory.download::<f16>(at, expected.len()).unwrap(),
                    *expected
                );
            }
            let found: Vec<f32> = memory.download(radii_at, PAGES * heads).unwrap();
            assert_eq!(found, expected_radii);
        }
    }
}

/// Copies of 64-bit page numbers that would be pages of 32 bits; and nothing to copy.
#[test]
fn copies_that_do_not_fit() {
    let pages = |shape: &[usize]| Layout::contiguous("k_pages", shape).unwrap();
    let good = pages(&[10, 16, 2, 64]);
    let error = |k: &Layout, v: &Layout| CopyPages::new(1, k, v).unwrap_err().to_string();
    assert_eq!(
        error(&pages(&[160, 2, 64]), &good),
        "k_pages: found shape [160, 2, 64], expected [pages, page_size, heads_k, head_dim]"
    );
    assert_eq!(
        error(&good, &pages(&[10, 16, 4, 64])),
        "v_pages: found shape [10, 16, 4, 64], expected [10, 16, 2, 64], as k_pages"
    );
    let odd = pages(&[10, 16, 2, 60]);
    assert_eq!(
        error(&odd, &odd),
        "k_pages: found shape [10, 16, 2, 60], expected [pages, page_size, heads_k, a multiple of 8]"
    );
    let overlapping = Layout::new("v_pages", &[10, 16, 2, 64], &[0, 128, 64, 1]).unwrap();
    assert!(error(&good, &overlapping).starts_with("v_pages: found strides [0, 128, 64, 1]"));
    let none = pages(&[0, 16, 2, 64]);
    for (copies, pages) in [(0, &good), (3, &none)] {
        let plan = CopyPages::new(copies, pages, pages).unwrap();
        assert!(plan.launches().is_empty());
    }
}

/// A result: out and lse, of `[batch, seqlen_q, heads_q, head_dim]`.
#[derive(Debug, Clone, PartialEq)]
struct State<T> {
    layout: Layout,
    out: Vec<T>,
    lse: Vec<f32>,
}

impl<T> State<T> {
    fn row(&self, row: usize) -> &[T] {
        &self.out[first_of_row(&self.layout, row)..][..head_dim(&self.layout)]
    }
}

impl<T: OnEmulator> State<T> {
    /// Of which some rows have seen no key, and hold what they must not spread.
    fn new(tag: u64, layout: Layout, seen: impl Fn(usize) -> bool) -> Self {
        let mut state = Self {
            layout,
            out: numbers(tag, layout.span()),
            lse: numbers(tag + 1, rows(&layout)),
        };
        for (row, lse) in state.lse.iter_mut().enumerate() {
            *lse *= [1.0, 30.0, 3000.0][row % 3];
            if !seen(row) {
                *lse = f32::NEG_INFINITY;
                let first = first_of_row(&layout, row);
                state.out[first..][..head_dim(&layout)].fill(T::from_f32(f32::NAN));
            }
        }
        state
    }

    fn merged(&self, other: &Self) -> Self {
        let emulator = Emulator::new(2);
        let memory = &emulator.memory;
        let (out, lse) = (
            memory.upload(&self.out).unwrap(),
            memory.upload(&self.lse).unwrap(),
        );
        let addresses = MergeStateAddresses {
            out: out.0,
            lse: lse.0,
            other_out: memory.upload(&other.out).unwrap().0,
            other_lse: memory.upload(&other.lse).unwrap().0,
        };
        let plan = MergeState::new(T::DTYPE, &self.layout, &other.layout).unwrap();
        // SAFETY: the emulator checks every access itself.
        unsafe { plan.run(&emulator, &addresses) }.unwrap();
        Self {
            layout: self.layout,
            out: memory.download(out, self.out.len()).unwrap(),
            lse: memory.download(lse, self.lse.len()).unwrap(),
        }
    }

    /// By the CPU, in f32.
    fn merged_on_cpu(&self, other: &Self) -> State<f32> {
        let widen = |out: &[T]| -> Vec<f32> { out.iter().map(|x| x.to_f32()).collect() };
        let (mut out, mut lse) = (widen(&self.out), self.lse.clone());
        let other_out = widen(&other.out);
        let shape = self.layout.shape();
        merge_states(
            ViewMut::strided(&mut out, &shape, &self.layout.strides()).unwrap(),
            &mut lse,
            View::strided(&other_out, &shape, &other.layout.strides()).unwrap(),
            &other.lse,
        )
        .unwrap();
        State {
            layout: self.layout,
            out,
            lse,
        }
    }
}

/// The lengths and the strides of batch, rows, heads and columns; packed, the batch is 1.
fn dims(layout: &Layout) -> [[usize; 4]; 2] {
    [layout.shape(), layout.strides()].map(|of| match of[..] {
        [batch, rows, heads, columns] => [batch, rows, heads, columns],
        [rows, heads, columns] => [1, rows, heads, columns],
        _ => unreachable!("a layout has 3 dimensions or 4"),
    })
}

fn head_dim(layout: &Layout) -> usize {
    dims(layout)[0][3]
}

fn rows(layout: &Layout) -> usize {
    let [batch, rows, heads, _] = dims(layout)[0];
    batch * heads * rows
}

/// Rows in the order of an lse.
fn first_of_row(layout: &Layout, row: usize) -> usize {
    let [[_, rows, heads, _], [of_batch, of_row, of_head, _]] = dims(layout);
    row / rows / heads * of_batch + row % rows * of_row + row / rows % heads * of_head
}

fn merges<T: OnEmulator>(epsilon: f32) {
    let layout = |shape: &[usize], strides: &[usize]| Layout::new("out", shape, strides).unwrap();
    for (ours, theirs) in [
        // In the same order, and in another whose rows begin anywhere.
        (
            layout(&[2, 5, 3, 64], &[960, 192, 64, 1]),
            layout(&[2, 5, 3, 64], &[1200, 75, 385, 1]),
        ),
        (
            layout(&[2, 37, 3, 40], &[4440, 120, 40, 1]),
            layout(&[2, 37, 3, 40], &[4440, 40, 1480, 1]),
        ),
        (
            layout(&[7, 4, 8], &[33, 8, 1]),
            layout(&[7, 4, 8], &[32, 8, 1]),
        ),
        (
            layout(&[3, 1, 256], &[256, 256, 1]),
            layout(&[3, 1, 256], &[0, 0, 1]),
        ),
        // So many elements that a sum which is rounded in the order of its terms gives some other bits in the other order.
        (
            layout(&[4, 100, 8, 64], &[51200, 512, 64, 1]),
            layout(&[4, 100, 8, 64], &[51200, 512, 64, 1]),
        ),
    ] {
        let a = State::<T>::new(10, ours, |row| row % 4 > 1);
        let b = State::<T>::new(20, theirs, |row| row % 2 > 0);
        let found = a.merged(&b);
        let expected = a.merged_on_cpu(&b);
        for row in 0..rows(&ours) {
            let bits = |x: &[T]| -> Vec<u32> { x.iter().map(|x| x.to_f32().to_bits()).collect() };
            let seen = (
                a.lse[row] > f32::NEG_INFINITY,
                b.lse[row] > f32::NEG_INFINITY,
            );
            match seen {
                (false, false) => {
                    assert_eq!(found.lse[row], f32::NEG_INFINITY);
                    assert!(bits(found.row(row)).iter().all(|&x| x == 0));
                }
                (true, false) | (false, true) => {
                    let one = if seen.0 { &a } else { &b };
                    assert_eq!(bits(found.row(row)), bits(one.row(row)));
                    assert_eq!(found.lse[row].to_bits(), one.lse[row].to_bits());
                }
                (true, true) => {
                    let lse = expected.lse[row];
                    assert!((found.lse[row] - lse).abs() <= 1e-6 * lse.abs().max(1.0));
                    for (x, y) in found.row(row).iter().zip(expected.row(row)) {
                        assert!(
                            (x.to_f32() - y).abs() <= epsilon * (y.abs() + 1e-3),
                            "{x:?}, {y}"
                        );
                    }
                }
            }
        }
        // Everything that is no row of either stays as it is.
        let mut rest = found.out.clone();
        for row in 0..rows(&ours) {
            let first = first_of_row(&ours, row);
            rest[first..][..head_dim(&ours)].copy_from_slice(&a.out[first..][..head_dim(&ours)]);
        }
        let bits = |x: &[T]| -> Vec<u32> { x.iter().map(|x| x.to_f32().to_bits()).collect() };
        assert_eq!(bits(&rest), bits(&a.out));
        // Either order gives the same bits, where both can be written.
        if !theirs.strides().contains(&0) {
            let other = b.merged(&a);
            for row in 0..rows(&ours) {
                assert_eq!(bits(other.row(row)), bits(found.row(row)));
                assert_eq!(other.lse[row].to_bits(), found.lse[row].to_bits());
            }
        }
    }
}

#[test]
fn states_are_merged_as_on_the_cpu() {
    merges::<f16>(f16::EPSILON.to_f32());
    merges::<bf16>(bf16::EPSILON.to_f32());
}

#[test]
fn states_that_do_not_fit() {
    use flash_alibi::plan::Dtype::F16;
    let of = |shape: &[usize]| Layout::contiguous("out", shape).unwrap();
    let out = of(&[2, 5, 3, 64]);
    let error = |a: &Layout, b: &Layout| MergeState::new(F16, a, b).unwrap_err().to_string();
    assert_eq!(
        error(&out, &of(&[2, 5, 4, 64])),
        "other_out: found shape [2, 5, 4, 64], expected [2, 5, 3, 64], as out"
    );
    let odd = of(&[5, 3, 60]);
    assert_eq!(
        error(&odd, &odd),
        "out: found shape [5, 3, 60], expected [batch, seqlen_q, heads_q, a multiple of 8 up to 256], each up to 2147483647"
    );
    let wide = of(&[5, 3, 264]);
    assert!(error(&wide, &wide).starts_with("out: found shape [5, 3, 264]"));
    let overlapping = Layout::new("out", &[2, 5, 3, 64], &[0, 192, 64, 1]).unwrap();
    assert!(error(&overlapping, &out).starts_with("out: found strides [0, 192, 64, 1]"));
    let none = of(&[0, 5, 3, 64]);
    assert!(
        MergeState::new(F16, &none, &none)
            .unwrap()
            .launches()
            .is_empty()
    );
}
