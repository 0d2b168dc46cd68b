//! `cpu::Pools`: pools in one buffer and in pieces hold what those in buffers of their own do.

use flash_alibi::cpu::{self, Pools};
use flash_alibi::{Layout, View, ViewMut};

const PAGES: usize = 5;
const PAGE_SIZE: usize = 8;
const HEADS: usize = 3;
const HEAD_DIM: usize = 16;
const SHAPE: [usize; 4] = [PAGES, PAGE_SIZE, HEADS, HEAD_DIM];
const PAGE: usize = PAGE_SIZE * HEADS * HEAD_DIM;

/// Where an element of a pool is in a buffer.
type At = fn(page: usize, row: usize, head: usize, column: usize) -> usize;

fn plain(page: usize, row: usize, head: usize, column: usize) -> usize {
    ((page * PAGE_SIZE + row) * HEADS + head) * HEAD_DIM + column
}

fn new_rows(from: usize) -> Vec<f32> {
    (0..6 * HEADS * HEAD_DIM)
        .map(|i| (i + from) as f32)
        .collect()
}

/// What is written to each pools: appended with radii, and pages copied.
fn write(mut pools: Pools<'_, f32>) -> Vec<f32> {
    let (k, v, centres) = (new_rows(1), new_rows(1000), new_rows(7));
    let view = |x| View::new(x, &[6, HEADS, HEAD_DIM]).unwrap();
    let mut radii = vec![f32::NAN; PAGES * HEADS];
    let slots = [39, -2, 0, 17, 8, 9];
    let centres = &centres[..HEADS * HEAD_DIM];
    pools
        .append_with_radii(view(&k), view(&v), &slots, centres, &mut radii)
        .unwrap();
    pools
        .append(view(&v), view(&k), &[-1, 20, -1, -1, -1, 33])
        .unwrap();
    pools.copy_pages(&[(4, 3), (1, 4), (0, 0)]).unwrap();
    radii
}

/// Buffers of their own, and what they have after the writes.
fn expected() -> ([Vec<f32>; 2], Vec<f32>) {
    let mut pools = [vec![-1f32; PAGES * PAGE], vec![-1f32; PAGES * PAGE]];
    let [k, v] = &mut pools;
    let view = |data| ViewMut::new(data, &SHAPE).unwrap();
    let radii = write(Pools::new(view(k), view(v)).unwrap());
    (pools, radii)
}

fn assert_pool(found: &[f32], start: usize, at: At, expected: &[f32]) {
    for (page, row) in (0..PAGES).flat_map(|page| (0..PAGE_SIZE).map(move |row| (page, row))) {
        for (head, column) in (0..HEADS).flat_map(|h| (0..HEAD_DIM).map(move |c| (h, c))) {
            let found = found[start + at(page, row, head, column)];
            let expected = expected[plain(page, row, head, column)];
            assert_eq!(found, expected, "{page} {row} {head} {column}");
        }
    }
}

/// The functions for buffers of their own are the same.
#[test]
fn functions_write_what_pools_do() {
    let ([k_expected, v_expected], radii_expected) = expected();
    let mut pools = [vec![-1f32; PAGES * PAGE], vec![-1f32; PAGES * PAGE]];
    let [k_pages, v_pages] = &mut pools;
    fn view(data: &mut [f32]) -> ViewMut<'_, f32> {
        ViewMut::new(data, &SHAPE).unwrap()
    }
    let (k, v, centres) = (new_rows(1), new_rows(1000), new_rows(7));
    let new = |x| View::new(x, &[6, HEADS, HEAD_DIM]).unwrap();
    let mut radii = vec![f32::NAN; PAGES * HEADS];
    let centres = &centres[..HEADS * HEAD_DIM];
    let slots = [39, -2, 0, 17, 8, 9];
    cpu::append_with_radii(
        new(&k),
        new(&v),
        view(k_pages),
        view(v_pages),
        &slots,
        centres,
        &mut radii,
    )
    .unwrap();
    let slots = [-1, 20, -1, -1, -1, 33];
    cpu::append(new(&v), new(&k), view(k_pages), view(v_pages), &slots).unwrap();
    for pool in [k_pages, v_pages] {
        cpu::copy_pages(view(pool), &[(4, 3), (1, 4), (0, 0)]).unwrap();
    }
    assert_eq!(pools, [k_expected, v_expected]);
    let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&radii), bits(&radii_expected));
}

#[test]
fn pools_of_one_buffer() {
    let ([k, v], radii) = expected();
    // One after the other; by pages; by rows; by heads; heads before rows.
    let (row, head) = (HEADS * HEAD_DIM, HEAD_DIM);
    let cases: [([usize; 4], usize, At); 5] = [
        ([PAGE, row, head, 1], PAGES * PAGE, plain),
        ([2 * PAGE, row, head, 1], PAGE, |p, r, h, c| {
            plain(2 * p, r, h, c)
        }),
        ([2 * PAGE, 2 * row, head, 1], row, |p, r, h, c| {
            ((p * PAGE_SIZE + r) * 2 * HEADS + h) * HEAD_DIM + c
        }),
        ([2 * PAGE, 2 * row, 2 * head, 1], head, |p, r, h, c| {
            2 * (plain(p, r, h, c) - c) + c
        }),
        ([2 * PAGE, head, PAGE_SIZE * head, 1], PAGE, |p, r, h, c| {
            ((2 * p * HEADS + h) * PAGE_SIZE + r) * HEAD_DIM + c
        }),
    ];
    for (strides, apart, at) in cases {
        let layout = Layout::new("pages", &SHAPE, &strides).unwrap();
        // Keys first, and values first.
        for (k_start, v_start) in [(3, 3 + apart), (3 + apart, 3)] {
            let mut kv = vec![-1f32; 2 * PAGES * PAGE + 6];
            let pools = Pools::of_one_buffer(&mut kv, (k_start, layout), (v_start, layout));
            let found = write(pools.unwrap());
            assert_pool(&kv, k_start, at, &k);
            assert_pool(&kv, v_start, at, &v);
            let outside = kv[..3].iter().chain(&kv[kv.len() - 3..]);
            assert!(outside.into_iter().all(|&x| x == -1.0));
            assert_eq!(found.map_bits(), radii.map_bits());
        }
    }
}

#[test]
fn pools_in_pieces() {
    let ([k, v], radii) = expected();
    let mut pools = [vec![-1f32; PAGES * PAGE], vec![-1f32; PAGES * PAGE]];
    let [k_pages, v_pages] = &mut pools;
    let found = write(Pools::split_x(k_pages, v_pages, SHAPE).unwrap());
    // Four numbers have 16 bytes.
    assert_pool(
        &pools[0],
        0,
        |p, r, h, c| (((p * HEADS + h) * (HEAD_DIM / 4) + c / 4) * PAGE_SIZE + r) * 4 + c % 4,
        &k,
    );
    assert_pool(
        &pools[1],
        0,
        |p, r, h, c| ((p * HEADS + h) * HEAD_DIM + c) * PAGE_SIZE + r,
        &v,
    );
    assert_eq!(found.map_bits(), radii.map_bits());
}

/// Exact, NaN included.
trait Bits {
    fn map_bits(&self) -> Vec<u32>;
}

impl Bits for Vec<f32> {
    fn map_bits(&self) -> Vec<u32> {
        self.iter().map(|x| x.to_bits()).collect()
    }
}

#[test]
fn errors_of_pools() {
    let layout = |shape: &[usize], strides: &[usize]| Layout::new("pages", shape, strides).unwrap();
    let of_one = |k: (usize, Layout), v: (usize, Layout)| {
        let mut kv = vec![0f32; 1 << 12];
        Pools::of_one_buffer(&mut kv, k, v).unwrap_err().to_string()
    };
    let whole = layout(&[2, 8, 2, 8], &[128, 16, 8, 1]);
    let shared = "v_pages: found a tensor in the memory of k_pages, expected memory of its own";
    // The last row and the first; the same; a column.
    assert_eq!(of_one((0, whole), (255, whole)), shared);
    assert_eq!(of_one((9, whole), (9, whole)), shared);
    let halves = layout(&[2, 8, 2, 8], &[256, 32, 16, 1]);
    assert_eq!(of_one((0, halves), (7, halves)), shared);
    // Apart, but nothing says so.
    let transposed = layout(&[2, 8, 2, 8], &[256, 16, 128, 1]);
    assert_eq!(of_one((0, halves), (8, transposed)), shared);
    assert_eq!(
        of_one((0, whole), (256, layout(&[2, 8, 1, 8], &[128, 16, 8, 1]))),
        "v_pages: found shape [2, 8, 1, 8], expected [2, 8, 2, 8], as k_pages"
    );
    assert_eq!(
        of_one((0, whole), ((1 << 12) - 255, whole)),
        "v_pages: found 255 elements, expected at least 256 for shape [2, 8, 2, 8] and strides [128, 16, 8, 1]"
    );
    assert_eq!(
        of_one((0, layout(&[2, 8, 2, 8], &[0, 16, 8, 1])), (256, whole)),
        "k_pages: found strides [0, 16, 8, 1], expected strides that keep the output's elements apart"
    );
    assert_eq!(
        of_one((0, layout(&[16, 2, 8], &[16, 8, 1])), (256, whole)),
        "k_pages: found shape [16, 2, 8], expected [pages, page_size, heads_k, head_dim]"
    );
    let split = |len: usize, shape| {
        let (mut k, mut v) = (vec![0f32; len], vec![0f32; 256]);
        Pools::split_x(&mut k, &mut v, shape)
            .map(drop)
            .map_err(|error| error.to_string())
    };
    assert_eq!(split(256, [2, 8, 2, 8]), Ok(()));
    assert_eq!(
        split(256, [2, 8, 2, 6]).unwrap_err(),
        "head_dim: found 6, expected a multiple of 4"
    );
    assert_eq!(
        split(256, [2, 12, 2, 8]).unwrap_err(),
        "page_size: found 12, expected a positive multiple of 8"
    );
    assert_eq!(
        split(255, [2, 8, 2, 8]).unwrap_err(),
        "k_pages: found 255 elements, expected at least 256 for shape [2, 8, 4, 4] and strides [128, 4, 32, 1]"
    );
}
