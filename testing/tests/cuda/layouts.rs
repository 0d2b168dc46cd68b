//! Paged caches in every layout, on random pages: the bits of pools `[pages, page_size, heads_k, head_dim]`.

use std::sync::Arc;

use flash_alibi::cuda::cudarc::driver::{CudaSlice, CudaStream};
use flash_alibi::cuda::{Inputs, Layer, Pools, View, ViewMut};
use flash_alibi::{Attention, Layout, Slopes};
use flash_alibi_testing::normal;
use flash_alibi_testing::problem::OnDevice;
use half::{bf16, f16};
use libtest_mimic::Trial;
use rand::seq::SliceRandom as _;
use rand::{SeedableRng as _, rngs::ChaCha8Rng};

use crate::device::stream;

const PAGES: usize = 21;
const HEADS_Q: usize = 4;
const HEADS: usize = 2;
const HEAD_DIM: usize = 40;

/// How many keys the sequences have; the second has none.
const KEYS: [usize; 4] = [70, 0, 21, 32];

/// Where pools of pages of some size lie: the strides of both, and where keys and values begin in one buffer, if they are in one.
struct Place {
    name: &'static str,
    strides: fn(page_size: usize) -> [usize; 3],
    starts: Option<fn(page_size: usize) -> [usize; 2]>,
}

const ROW: usize = HEADS * HEAD_DIM;

/// The first is the one that others are compared with.
const PLACES: [Place; 7] = [
    Place {
        name: "[pages, page_size, heads_k, head_dim]",
        strides: |rows| [rows * ROW, ROW, HEAD_DIM],
        starts: None,
    },
    Place {
        name: "[pages, heads_k, page_size, head_dim]",
        strides: |rows| [rows * ROW, HEAD_DIM, rows * HEAD_DIM],
        starts: None,
    },
    Place {
        name: "[2, pages, ...]",
        strides: |rows| [rows * ROW, ROW, HEAD_DIM],
        starts: Some(|rows| [0, PAGES * rows * ROW]),
    },
    Place {
        name: "[pages, 2, ...]",
        strides: |rows| [2 * rows * ROW, ROW, HEAD_DIM],
        starts: Some(|rows| [0, rows * ROW]),
    },
    Place {
        name: "[2, pages, heads_k, ...]",
        strides: |rows| [rows * ROW, HEAD_DIM, rows * HEAD_DIM],
        starts: Some(|rows| [0, PAGES * rows * ROW]),
    },
    Place {
        name: "[pages, 2, heads_k, ...]",
        strides: |rows| [2 * rows * ROW, HEAD_DIM, rows * HEAD_DIM],
        starts: Some(|rows| [0, rows * ROW]),
    },
    Place {
        name: "[pages, page_size, heads_k, 2 * head_dim], values first",
        strides: |rows| [2 * rows * ROW, 2 * ROW, 2 * HEAD_DIM],
        starts: Some(|_| [HEAD_DIM, 0]),
    },
];

/// A cache that keeps radii: in two buffers, or in one and another that nothing uses.
struct Cache<T> {
    buffers: [CudaSlice<T>; 2],
    starts: Option<[usize; 2]>,
    layout: Layout,
    centres: CudaSlice<f32>,
    radii: CudaSlice<f32>,
}

impl<T: OnDevice> Cache<T> {
    /// Of nothing but NaN.
    fn new(stream: &Arc<CudaStream>, place: &Place, page_size: usize) -> Self {
        let [page, row, head] = (place.strides)(page_size);
        let shape = [PAGES, page_size, HEADS, HEAD_DIM];
        let layout = Layout::new("pages", &shape, &[page, row, head, 1]).unwrap();
        let poison = vec![T::from_f32(f32::NAN); 2 * PAGES * page_size * ROW];
        let centres: Vec<f32> = normal(8, 8, [0; 4]).take(ROW).collect();
        Self {
            buffers: [(); 2].map(|()| stream.clone_htod(&poison).unwrap()),
            starts: place.starts.map(|starts| starts(page_size)),
            layout,
            centres: stream.clone_htod(&centres).unwrap(),
            radii: stream.clone_htod(&[f32::NAN; PAGES * HEADS]).unwrap(),
        }
    }

    /// The pools, to be written, and the radii.
    fn pools(&mut self) -> (Pools<'_, T>, &CudaSlice<f32>, &mut CudaSlice<f32>) {
        let [first, second] = &mut self.buffers;
        let (shape, strides) = (self.layout.shape(), self.layout.strides());
        let pools = match self.starts {
            Some([k, v]) => {
                Pools::of_one_buffer(first, (k, self.layout), (v, self.layout)).unwrap()
            }
            None => Pools::new(
                ViewMut::strided(first, &shape, &strides).unwrap(),
                ViewMut::strided(second, &shape, &strides).unwrap(),
            ),
        };
        (pools, &self.centres, &mut self.radii)
    }

    /// Appends all keys of every sequence, some rows of padding among them; then copies pages, in order.
    fn fill(&mut self, stream: &Arc<CudaStream>, layer: &Layer, table: &[i32], page_size: usize) {
        let columns = table.len() / KEYS.len();
        let slot = |b: usize, j: usize| {
            let page = table[b * columns + j / page_size] as usize;
            (page * page_size + j % page_size) as i64
        };
        for (b, keys) in KEYS.into_iter().enumerate() {
            let slots: Vec<i64> = (0..keys + 3)
                .map(|j| if j < keys { slot(b, j) } else { -1 })
                .collect();
            let [k, v] = [1, 2].map(|tag| numbers(stream, tag + 10 * b as u64, slots.len() * ROW));
            let shape = [slots.len(), HEADS, HEAD_DIM];
            let [k, v] = [&k, &v].map(|x: &CudaSlice<T>| View::new(x, &shape).unwrap());
            let slots = stream.clone_htod(&slots).unwrap();
            let (mut pools, centres, radii) = self.pools();
            // Radii of the last sequence are not known.
            let appended = match b {
                3 => pools.append(layer, stream, k, v, &slots),
                _ => pools.append_with_radii(layer, stream, k, v, &slots, centres, radii),
            };
            appended.unwrap();
        }
        // The last page of the first sequence goes to one that it does not have, and that to another.
        let spare = |n: usize| {
            (0..PAGES as i32)
                .filter(|page| !table.contains(page))
                .nth(n)
        };
        let (last, to, then) = (table[columns - 1], spare(0).unwrap(), spare(1).unwrap());
        let copies = [last, to, to, then, last, last].map(i64::from);
        let copies = stream.clone_htod(&copies).unwrap();
        let (mut pools, _, radii) = self.pools();
        (pools.copy_pages(layer, stream, &copies, Some(radii))).unwrap();
    }

    /// Every element of keys and of values, in the order of their shape.
    fn elements(&self, stream: &Arc<CudaStream>) -> Vec<T> {
        let buffers = (self.buffers.each_ref()).map(|x| stream.clone_dtoh(x).unwrap());
        let strides = self.layout.strides();
        let [pages, rows, heads, _] = self.layout.shape()[..] else {
            unreachable!("pools have four dimensions");
        };
        let mut all = Vec::new();
        for pool in 0..2 {
            let (data, start) = match self.starts {
                Some(starts) => (&buffers[0], starts[pool]),
                None => (&buffers[pool], 0),
            };
            for n in 0..pages * rows * heads {
                let (page, row, head) = (n / heads / rows, n / heads % rows, n % heads);
                let at = start + page * strides[0] + row * strides[1] + head * strides[2];
                all.extend_from_slice(&data[at..][..HEAD_DIM]);
            }
        }
        all
    }

    /// Attention over the pages by the kernels for decoding, or by those for prefill: out and lse.
    fn attend(
        &self,
        stream: &Arc<CudaStream>,
        layer: &Layer,
        table: &CudaSlice<i32>,
        queries: usize,
        decode: bool,
    ) -> (Vec<T>, Vec<f32>) {
        let shape = [KEYS.len(), queries, HEADS_Q, HEAD_DIM];
        let len = shape.iter().product();
        let q: CudaSlice<T> = numbers(stream, 5, len);
        let used = stream.clone_htod(&KEYS.map(|n| n as i32)).unwrap();
        let parts = match self.starts {
            Some([k, v]) => [self.buffers[0].slice(k..), self.buffers[0].slice(v..)],
            None => self.buffers.each_ref().map(|buffer| buffer.slice(..)),
        };
        let (of, strides) = (self.layout.shape(), self.layout.strides());
        let [k, v] = (parts.each_ref()).map(|part| View::strided(part, &of, &strides).unwrap());
        let q = View::new(&q, &shape).unwrap();
        let inputs = Inputs::paged(q, k, v, table, &used).radii(&self.centres, &self.radii);
        let mut out: CudaSlice<T> = numbers(stream, 6, len);
        let mut lse = stream.alloc_zeros::<f32>(len / HEAD_DIM).unwrap();
        let most = table.len() / KEYS.len() * self.layout.shape()[1];
        let bytes = layer.workspace_bytes(KEYS.len(), queries, most);
        let mut workspace = stream.alloc_zeros::<u8>(bytes).unwrap();
        let to = ViewMut::new(&mut out, &shape).unwrap();
        let called = match decode {
            true => layer.decode(stream, &inputs, to, Some(&mut lse), &mut workspace),
            false => layer.prefill(stream, &inputs, to, Some(&mut lse), &mut workspace),
        };
        called.unwrap();
        (
            stream.clone_dtoh(&out).unwrap(),
            stream.clone_dtoh(&lse).unwrap(),
        )
    }
}

fn numbers<T: OnDevice>(stream: &Arc<CudaStream>, tag: u64, len: usize) -> CudaSlice<T> {
    let numbers: Vec<T> = (normal(7, tag, [0; 4]).map(T::from_f32))
        .take(len)
        .collect();
    stream.clone_htod(&numbers).unwrap()
}

/// A row of the table for each sequence, its pages drawn from all; what none needs is no page.
fn table(page_size: usize, seed: u64) -> Vec<i32> {
    let mut free: Vec<i32> = (0..PAGES as i32).collect();
    free.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    let columns = KEYS[0].div_ceil(page_size);
    let mut free = free.into_iter();
    let row = |keys: usize| -> Vec<i32> {
        let mut row: Vec<i32> = free.by_ref().take(keys.div_ceil(page_size)).collect();
        row.resize(columns, -1);
        row
    };
    KEYS.map(row).concat()
}

fn check<T: OnDevice>(page_size: usize) {
    let (_shared, stream) = stream();
    let slopes = Slopes::per_head(&[0.5, 0.1, -0.1, 0.02]);
    let attention = Attention::new(HEADS_Q, HEADS, HEAD_DIM).slopes(slopes);
    let layer = Layer::new(&stream, attention.build().unwrap()).unwrap();
    let table = table(page_size, page_size as u64);
    let on_device = stream.clone_htod(&table).unwrap();
    let bits = |x: &[T]| x.iter().map(|x| x.to_f32().to_bits()).collect::<Vec<_>>();
    let results = PLACES.map(|place| {
        let mut cache = Cache::<T>::new(&stream, &place, page_size);
        cache.fill(&stream, &layer, &table, page_size);
        let calls = [(1, true), (20, false)].map(|(queries, decode)| {
            let (out, lse) = cache.attend(&stream, &layer, &on_device, queries, decode);
            assert!(out.iter().all(|x| !x.to_f32().is_nan()), "{}", place.name);
            (bits(&out), lse)
        });
        let radii = stream.clone_dtoh(&cache.radii).unwrap();
        let radii: Vec<u32> = radii.iter().map(|x| x.to_bits()).collect();
        (place.name, bits(&cache.elements(&stream)), radii, calls)
    });
    let [(_, elements, radii, calls), others @ ..] = &results;
    for (name, of_layout, radii_of_layout, calls_of_layout) in others {
        assert!(of_layout == elements, "{name}: pools");
        assert!(radii_of_layout == radii, "{name}: radii");
        assert!(calls_of_layout == calls, "{name}: results");
    }
}

fn layouts_in_f16_give_the_bits_of_the_plain_one() {
    check::<f16>(8);
}

fn layouts_in_bf16_give_the_bits_of_the_plain_one() {
    check::<bf16>(16);
}

/// Where pools may have elements in common, or leave their buffer, there are none.
fn pools_that_do_not_fit_one_buffer_are_refused() {
    let (_shared, stream) = stream();
    let mut kv = stream.alloc_zeros::<f16>(1 << 12).unwrap();
    let mut of_one = |k_start, v_start, strides: &[usize]| {
        let layout = Layout::new("pages", &[2, 8, 2, 8], strides).unwrap();
        let pools = Pools::of_one_buffer(&mut kv, (k_start, layout), (v_start, layout));
        pools.err().map(|error| error.to_string())
    };
    let (whole, halves) = ([128, 16, 8, 1], [256, 32, 16, 1]);
    assert_eq!(of_one(0, 256, &whole), None);
    assert_eq!(of_one(8, 0, &halves), None);
    let shared = "v_pages: found a tensor in the memory of k_pages, expected memory of its own";
    // The last row and the first; the same; a column.
    for (k_start, v_start, strides) in [(0, 255, &whole), (9, 9, &whole), (7, 0, &halves)] {
        assert_eq!(of_one(k_start, v_start, strides).unwrap(), shared);
    }
    assert_eq!(
        of_one(0, (1 << 12) - 255, &whole).unwrap(),
        "v_pages: found 255 elements, expected at least 256 for shape [2, 8, 2, 8] and strides [128, 16, 8, 1]"
    );
    assert_eq!(
        of_one(usize::MAX, 0, &whole).unwrap(),
        "k_pages: found 0 elements, expected at least 256 for shape [2, 8, 2, 8] and strides [128, 16, 8, 1]"
    );
    assert_eq!(
        of_one(0, 256, &[0, 16, 8, 1]).unwrap(),
        "k_pages: found strides [0, 16, 8, 1], expected strides that keep the output's elements apart"
    );
}

pub fn trials() -> Vec<Trial> {
    trials![
        layouts_in_f16_give_the_bits_of_the_plain_one,
        layouts_in_bf16_give_the_bits_of_the_plain_one,
        pools_that_do_not_fit_one_buffer_are_refused,
    ]
}
