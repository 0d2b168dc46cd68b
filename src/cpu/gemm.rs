//! The inner product kernel: six rows by up to four registers of columns, all in registers.
//!
//! Written here, not taken from a crate, because both products of a tile must stay in cache between each other and the
//! softmax, and because no crate multiplies bf16 pairs.

#![allow(clippy::needless_range_loop)] // Fixed bounds over arrays of registers: the form that the compiler unrolls.

use pulp::Simd;

use super::machine::{Floats, Machine};

/// The height of a strip: the rows that the kernel computes at once.
pub(super) const STRIP: usize = 6;

/// How products are formed: `acc[lane] += a * b[lane]`, or the sum of two products where an item is a pair.
pub(super) trait Multiply: Copy {
    /// What one lane holds: an f32, or two bf16.
    type Item: Copy;
    type Register: Copy;
    type Accumulator: Copy;
    /// The lanes of a register.
    const LANES: usize;
    /// How many registers of columns fit the register file beside six rows.
    const COLUMNS: usize;

    fn zero(self) -> Self::Accumulator;
    fn splat(self, item: Self::Item) -> Self::Register;
    /// # Safety
    /// `LANES` items are readable at `from`.
    unsafe fn load(self, from: *const Self::Item) -> Self::Register;
    /// # Safety
    /// `LANES` numbers are readable at `from`.
    unsafe fn load_scaled(self, from: *const f32, scale: f32) -> Self::Accumulator;
    /// # Safety
    /// `LANES` numbers are writable at `to`.
    unsafe fn store(self, to: *mut f32, value: Self::Accumulator);
    fn multiply_add(
        self,
        a: Self::Register,
        b: Self::Register,
        c: Self::Accumulator,
    ) -> Self::Accumulator;
}

/// Single precision in whatever registers the machine has.
#[derive(Clone, Copy)]
pub(super) struct F32<M>(pub(super) M);

impl<M: Machine> Multiply for F32<M> {
    type Item = f32;
    type Register = Floats<M>;
    type Accumulator = Floats<M>;
    const LANES: usize = M::LANES;
    // AVX2 has 16 registers, AVX-512 and NEON have 32.
    const COLUMNS: usize = if Self::LANES == 8 { 2 } else { 4 };

    #[inline(always)]
    fn zero(self) -> Floats<M> {
        self.0.simd().splat_f32s(0.0)
    }
    #[inline(always)]
    fn splat(self, item: f32) -> Floats<M> {
        self.0.simd().splat_f32s(item)
    }
    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> Floats<M> {
        // SAFETY: `LANES` numbers are readable, and any bits are a register of f32.
        unsafe { from.cast::<Floats<M>>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_scaled(self, from: *const f32, scale: f32) -> Floats<M> {
        // SAFETY: as required of the caller.
        let value = unsafe { self.load(from) };
        self.0
            .simd()
            .mul_f32s(value, self.0.simd().splat_f32s(scale))
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, value: Floats<M>) {
        // SAFETY: `LANES` numbers are writable.
        unsafe { to.cast::<Floats<M>>().write_unaligned(value) }
    }
    #[inline(always)]
    fn multiply_add(self, a: Floats<M>, b: Floats<M>, c: Floats<M>) -> Floats<M> {
        self.0.simd().mul_add_e_f32s(a, b, c)
    }
}

/// A row-major matrix.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a, T> {
    pub(super) data: &'a [T],
    /// The distance between rows, in items.
    pub(super) stride: usize,
}

/// The rows that a strip's product is written to.
pub(super) struct Target<'a> {
    pub(super) data: &'a mut [f32],
    /// The distance between rows.
    pub(super) stride: usize,
    /// Registers of columns.
    pub(super) columns: usize,
}

/// `c = a b` for six rows of `depth` items, or `c = scale * c + a b` with a factor for each row.
///
/// `a` has six rows of at least `depth` items, `b` has `depth` rows.
#[inline(always)]
pub(super) fn multiply_strip<M: Multiply>(
    m: M,
    depth: usize,
    a: Matrix<'_, M::Item>,
    b: Matrix<'_, M::Item>,
    c: Target<'_>,
    scale: Option<&[f32; STRIP]>,
) {
    let width = c.columns * M::LANES;
    assert!(a.data.len() >= (STRIP - 1) * a.stride + depth);
    assert!(depth > 0 && b.data.len() >= (depth - 1) * b.stride + width);
    assert!(c.data.len() >= (STRIP - 1) * c.stride + width);
    let (a, b, c, columns) = (
        (a.data.as_ptr(), a.stride),
        (b.data.as_ptr(), b.stride),
        (c.data.as_mut_ptr(), c.stride),
        c.columns,
    );
    let mut done = 0;
    while done < columns {
        let n = (columns - done).min(M::COLUMNS);
        // SAFETY: the lengths cover the strip, and `panel` touches the `n` registers of columns from `done` on.
        unsafe {
            let b = (b.0.add(done * M::LANES), b.1);
            let c = (c.0.add(done * M::LANES), c.1);
            match n {
                1 => panel::<M, 1>(m, depth, a, b, c, scale),
                2 => panel::<M, 2>(m, depth, a, b, c, scale),
                3 => panel::<M, 3>(m, depth, a, b, c, scale),
                _ => panel::<M, 4>(m, depth, a, b, c, scale),
            }
        }
        done += n;
    }
}

/// [`multiply_strip`] for `N` registers of columns; matrices are pointers and strides.
///
/// # Safety
/// `a` has 6 rows of `depth` items, `b` has `depth` rows of `N * LANES` items, `c` has 6 rows of `N * LANES` numbers.
#[inline(always)]
unsafe fn panel<M: Multiply, const N: usize>(
    m: M,
    depth: usize,
    a: (*const M::Item, usize),
    b: (*const M::Item, usize),
    c: (*mut f32, usize),
    scale: Option<&[f32; STRIP]>,
) {
    // SAFETY: every offset below is within what the caller vouches for.
    unsafe {
        let at = |row: usize, column: usize| c.0.add(row * c.1 + column * M::LANES);
        let mut sums = [[m.zero(); N]; STRIP];
        if let Some(scale) = scale {
            for row in 0..STRIP {
                for column in 0..N {
                    sums[row][column] = m.load_scaled(at(row, column), scale[row]);
                }
            }
        }
        for p in 0..depth {
            let mut bs = [m.load(b.0.add(p * b.1)); N];
            for column in 1..N {
                bs[column] = m.load(b.0.add(p * b.1 + column * M::LANES));
            }
            for row in 0..STRIP {
                let a = m.splat(*a.0.add(row * a.1 + p));
                for column in 0..N {
                    sums[row][column] = m.multiply_add(a, bs[column], sums[row][column]);
                }
            }
        }
        for row in 0..STRIP {
            for column in 0..N {
                m.store(at(row, column), sums[row][column]);
            }
        }
    }
}
