//! How a tile of keys and values is laid out for the products: in f32, or in pairs of bf16.

use super::Element;
use super::element::widen;
use super::gemm::{F32, Matrix, Multiply, STRIP, Target, multiply_strip};
use super::machine::{MAX_LANES, Machine};

/// The keys of a tile. Tiles start at multiples of it.
pub(super) const KEYS: usize = 128;

/// Buffers are padded to whole registers of any machine.
const PAD: usize = MAX_LANES;

/// `head_dim`, padded for the columns of values and outputs.
pub(super) fn padded(head_dim: usize) -> usize {
    head_dim.next_multiple_of(PAD)
}

/// The keys or values of one sequence and head.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a, T> {
    /// From the head's first row on; with pages, from the head's first row of page 0.
    pub(super) data: &'a [T],
    /// The distance between rows (of a page).
    pub(super) stride: usize,
    pub(super) head_dim: usize,
    pub(super) pages: Option<Pages<'a>>,
}

/// The pages that the rows of a sequence lie in.
#[derive(Clone, Copy)]
pub(super) struct Pages<'a> {
    /// The pages of the sequence, in order.
    pub(super) table: &'a [i32],
    /// Rows of a page.
    pub(super) size: usize,
    /// The distance between pages.
    pub(super) stride: usize,
}

/// Where the rows of a tile lie.
pub(super) type Offsets = [usize; KEYS];

impl<'a, T> Rows<'a, T> {
    /// Rows `from..from + n`, at most [`KEYS`]: each is found once, however often it is read.
    #[inline(always)]
    pub(super) fn tile<'o>(
        &self,
        from: usize,
        n: usize,
        offsets: &'o mut Offsets,
    ) -> TileRows<'a, 'o, T> {
        let offsets = &mut offsets[..n];
        match self.pages {
            None => {
                for (j, at) in offsets.iter_mut().enumerate() {
                    *at = (from + j) * self.stride;
                }
            }
            Some(pages) => {
                let (mut page, mut row) = (from / pages.size, from % pages.size);
                let mut rest = &mut *offsets;
                while !rest.is_empty() {
                    let count = rest.len().min(pages.size - row);
                    let (here, after) = std::mem::take(&mut rest).split_at_mut(count);
                    let start = pages.table[page] as usize * pages.stride;
                    for (j, at) in here.iter_mut().enumerate() {
                        *at = start + (row + j) * self.stride;
                    }
                    (rest, page, row) = (after, page + 1, 0);
                }
            }
        }
        TileRows {
            data: self.data,
            offsets,
            head_dim: self.head_dim,
        }
    }

    /// Row `j`.
    pub(super) fn row(&self, j: usize) -> &'a [T] {
        let mut offset = [0; KEYS];
        self.tile(j, 1, &mut offset).row(0)
    }
}

/// The rows of a tile.
#[derive(Clone, Copy)]
pub(super) struct TileRows<'a, 'o, T> {
    pub(super) data: &'a [T],
    pub(super) offsets: &'o [usize],
    pub(super) head_dim: usize,
}

impl<'a, T> TileRows<'a, '_, T> {
    #[inline(always)]
    pub(super) fn len(&self) -> usize {
        self.offsets.len()
    }

    #[inline(always)]
    pub(super) fn row(&self, j: usize) -> &'a [T] {
        &self.data[self.offsets[j]..][..self.head_dim]
    }
}

/// The arithmetic of a tile's two products. Items hold `STEP` consecutive factors each.
pub(super) trait Arithmetic<T>: Multiply<Item: Default + Send> {
    const STEP: usize;

    /// One query row, `head_dim / STEP` items.
    fn pack_query(self, row: &[T], to: &mut [Self::Item]);

    /// The keys of a tile, transposed: `head_dim / STEP` rows of [`KEYS`] items.
    fn pack_keys(self, keys: TileRows<'_, '_, T>, to: &mut [Self::Item], wide: &mut [f32]);

    /// The values of a tile: `KEYS / STEP` rows of `padded(head_dim)` items; rows past the tile's are zero.
    fn pack_values(self, values: TileRows<'_, '_, T>, to: &mut [Self::Item]);

    /// Zeroes column `c` of value `j` of a packed tile.
    fn clear_value(self, j: usize, c: usize, width: usize, values: &mut [Self::Item]);

    /// Rounds a strip of probabilities, rows of [`KEYS`], to items; `used` of each row matter. May return `from` itself.
    fn pack_probabilities<'a>(
        self,
        from: &'a [f32],
        used: usize,
        to: &'a mut [Self::Item],
    ) -> &'a [Self::Item];

    /// [`multiply_strip`] with the processor features that it needs.
    fn multiply(
        self,
        depth: usize,
        a: Matrix<'_, Self::Item>,
        b: Matrix<'_, Self::Item>,
        c: Target<'_>,
        scale: Option<&[f32; STRIP]>,
    );
}

impl<T: Element, M: Machine> Arithmetic<T> for F32<M> {
    const STEP: usize = 1;

    #[inline(always)]
    fn pack_query(self, row: &[T], to: &mut [f32]) {
        widen(self.0, row, to);
    }

    #[inline(always)]
    fn pack_keys(self, keys: TileRows<'_, '_, T>, to: &mut [f32], wide: &mut [f32]) {
        let (d, n) = (keys.head_dim, keys.len());
        for start in (0..n).step_by(PAD) {
            let count = PAD.min(n - start);
            let wide = &mut wide[..PAD * d];
            for (i, wide) in wide.chunks_exact_mut(d).enumerate() {
                match i < count {
                    true => widen(self.0, keys.row(start + i), wide),
                    false => wide.fill(0.0),
                }
            }
            transpose(wide, d, &mut to[start..]);
        }
    }

    #[inline(always)]
    fn pack_values(self, values: TileRows<'_, '_, T>, to: &mut [f32]) {
        let (d, width) = (values.head_dim, padded(values.head_dim));
        for (j, to) in to[..KEYS * width].chunks_exact_mut(width).enumerate() {
            match j < values.len() {
                true => widen(self.0, values.row(j), &mut to[..d]),
                false => to.fill(0.0),
            }
        }
    }

    #[inline(always)]
    fn clear_value(self, j: usize, c: usize, width: usize, values: &mut [f32]) {
        values[j * width + c] = 0.0;
    }

    #[inline(always)]
    fn pack_probabilities<'a>(self, from: &'a [f32], _: usize, _: &'a mut [f32]) -> &'a [f32] {
        from
    }

    #[inline(always)]
    fn multiply(
        self,
        depth: usize,
        a: Matrix<'_, f32>,
        b: Matrix<'_, f32>,
        c: Target<'_>,
        scale: Option<&[f32; STRIP]>,
    ) {
        multiply_strip(self, depth, a, b, c, scale);
    }
}

/// Writes 16 rows of `d` items as `d` rows, [`KEYS`] apart.
#[inline(always)]
fn transpose<I: Copy>(from: &[I], d: usize, to: &mut [I]) {
    assert!(from.len() >= PAD * d && d > 0 && to.len() >= (d - 1) * KEYS + PAD);
    for p in 0..d {
        let to = &mut to[p * KEYS..][..PAD];
        for (i, to) in to.iter_mut().enumerate() {
            *to = from[i * d + p];
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::Bf16;

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use half::bf16;

    use super::*;

    /// Pairs of bf16, multiplied and summed in f32 by AVX512-BF16.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Bf16(());

    impl Bf16 {
        /// `None` where the processor lacks the instructions.
        pub(in super::super) fn new() -> Option<Self> {
            let available =
                is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512f");
            available.then_some(Self(()))
        }

        /// Whether they are the faster way: AMD's processors start as many of them in a cycle as products in f32, of which
        /// one does half the work; Intel's a quarter as many. Only AMD's have SSE4a.
        pub(in super::super) fn is_fast() -> bool {
            is_x86_feature_detected!("sse4a")
        }
    }

    impl Multiply for Bf16 {
        type Item = [bf16; 2];
        type Register = __m512i;
        type Accumulator = __m512;
        const LANES: usize = 16;
        const COLUMNS: usize = 4;

        #[inline(always)]
        fn zero(self) -> __m512 {
            // SAFETY: a `Bf16` exists only where AVX-512 does.
            unsafe { _mm512_setzero_ps() }
        }
        #[inline(always)]
        fn splat(self, item: [bf16; 2]) -> __m512i {
            let [low, high] = item.map(|x| i32::from(x.to_bits()));
            // SAFETY: as `zero`.
            unsafe { _mm512_set1_epi32(low | high << 16) }
        }
        #[inline(always)]
        unsafe fn load(self, from: *const [bf16; 2]) -> __m512i {
            // SAFETY: 16 items of 4 bytes are readable.
            unsafe { _mm512_loadu_si512(from.cast()) }
        }
        #[inline(always)]
        unsafe fn load_scaled(self, from: *const f32, scale: f32) -> __m512 {
            // SAFETY: 16 numbers are readable.
            unsafe { _mm512_mul_ps(_mm512_loadu_ps(from), _mm512_set1_ps(scale)) }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32, value: __m512) {
            // SAFETY: 16 numbers are writable.
            unsafe { _mm512_storeu_ps(to, value) }
        }
        #[inline(always)]
        fn multiply_add(self, a: __m512i, b: __m512i, c: __m512) -> __m512 {
            // SAFETY: as `zero`; the casts keep the bits.
            unsafe {
                let (a, b) = (
                    std::mem::transmute::<__m512i, __m512bh>(a),
                    std::mem::transmute::<__m512i, __m512bh>(b),
                );
                _mm512_dpbf16_ps(c, a, b)
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    fn multiply_strip_bf16(
        depth: usize,
        a: Matrix<'_, [bf16; 2]>,
        b: Matrix<'_, [bf16; 2]>,
        c: Target<'_>,
        scale: Option<&[f32; STRIP]>,
    ) {
        multiply_strip(Bf16(()), depth, a, b, c, scale);
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    fn round_rows(from: &[f32], used: usize, to: &mut [[bf16; 2]]) {
        for (from, to) in from.chunks_exact(KEYS).zip(to.chunks_exact_mut(KEYS / 2)) {
            for at in (0..used).step_by(PAD) {
                let from = &from[at..][..PAD];
                let to = &mut to[at / 2..][..PAD / 2];
                // SAFETY: 16 numbers are readable, 32 bytes writable.
                unsafe {
                    let rounded = _mm512_cvtneps_pbh(_mm512_loadu_ps(from.as_ptr()));
                    _mm256_storeu_si256(
                        to.as_mut_ptr().cast(),
                        std::mem::transmute::<__m256bh, __m256i>(rounded),
                    );
                }
            }
        }
    }

    impl Arithmetic<bf16> for Bf16 {
        const STEP: usize = 2;

        #[inline(always)]
        fn pack_query(self, row: &[bf16], to: &mut [[bf16; 2]]) {
            to.copy_from_slice(pairs(row));
        }

        #[inline(always)]
        fn pack_keys(self, keys: TileRows<'_, '_, bf16>, to: &mut [[bf16; 2]], _: &mut [f32]) {
            let (d, n) = (keys.head_dim / 2, keys.len());
            for start in (0..n).step_by(PAD) {
                let rows: [&[[bf16; 2]]; PAD] =
                    std::array::from_fn(|i| pairs(keys.row((start + i).min(n - 1))));
                for p in 0..d {
                    let to = &mut to[p * KEYS + start..][..PAD];
                    for (row, to) in rows.iter().zip(to) {
                        *to = row[p];
                    }
                }
            }
        }

        #[inline(always)]
        fn pack_values(self, values: TileRows<'_, '_, bf16>, to: &mut [[bf16; 2]]) {
            let (d, width) = (values.head_dim, padded(values.head_dim));
            let n = values.len();
            for (pair, to) in to[..KEYS / 2 * width].chunks_exact_mut(width).enumerate() {
                let j = 2 * pair;
                if j + 1 < n {
                    let (low, high) = (values.row(j), values.row(j + 1));
                    for (to, (low, high)) in to.iter_mut().zip(low.iter().zip(high)) {
                        *to = [*low, *high];
                    }
                } else if j < n {
                    for (to, low) in to.iter_mut().zip(values.row(j)) {
                        *to = [*low, bf16::ZERO];
                    }
                } else {
                    to[..d].fill([bf16::ZERO; 2]);
                }
            }
        }

        #[inline(always)]
        fn clear_value(self, j: usize, c: usize, width: usize, values: &mut [[bf16; 2]]) {
            values[j / 2 * width + c][j % 2] = bf16::ZERO;
        }

        #[inline(always)]
        fn pack_probabilities<'a>(
            self,
            from: &'a [f32],
            used: usize,
            to: &'a mut [[bf16; 2]],
        ) -> &'a [[bf16; 2]] {
            // SAFETY: a `Bf16` exists only where the features do.
            unsafe { round_rows(from, used, to) };
            to
        }

        #[inline(always)]
        fn multiply(
            self,
            depth: usize,
            a: Matrix<'_, [bf16; 2]>,
            b: Matrix<'_, [bf16; 2]>,
            c: Target<'_>,
            scale: Option<&[f32; STRIP]>,
        ) {
            // SAFETY: a `Bf16` exists only where the features do.
            unsafe { multiply_strip_bf16(depth, a, b, c, scale) }
        }
    }

    /// Neighbours in pairs; the length is even.
    #[inline(always)]
    fn pairs(row: &[bf16]) -> &[[bf16; 2]] {
        row.as_chunks().0
    }
}
