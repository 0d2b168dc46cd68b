//! The inner product kernel: six rows by up to four registers of columns, all in registers.
//!
//! Written here, not taken from a crate, because both products of a tile must stay in cache between each other and the
//! softmax, and because no crate multiplies bf16 pairs.

use std::marker::PhantomData;

use pulp::Simd;

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
pub(super) struct F32<S>(pub(super) S);

impl<S: Simd> Multiply for F32<S> {
    type Item = f32;
    type Register = S::f32s;
    type Accumulator = S::f32s;
    const LANES: usize = size_of::<S::f32s>() / size_of::<f32>();
    // AVX2 has 16 registers, AVX-512 and NEON have 32.
    const COLUMNS: usize = if Self::LANES == 8 { 2 } else { 4 };

    #[inline(always)]
    fn zero(self) -> S::f32s {
        self.0.splat_f32s(0.0)
    }
    #[inline(always)]
    fn splat(self, item: f32) -> S::f32s {
        self.0.splat_f32s(item)
    }
    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> S::f32s {
        // SAFETY: `LANES` numbers are readable, and any bits are a register of f32.
        unsafe { from.cast::<S::f32s>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_scaled(self, from: *const f32, scale: f32) -> S::f32s {
        // SAFETY: as required of the caller.
        let value = unsafe { self.load(from) };
        self.0.mul_f32s(value, self.0.splat_f32s(scale))
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, value: S::f32s) {
        // SAFETY: `LANES` numbers are writable.
        unsafe { to.cast::<S::f32s>().write_unaligned(value) }
    }
    #[inline(always)]
    fn multiply_add(self, a: S::f32s, b: S::f32s, c: S::f32s) -> S::f32s {
        self.0.mul_add_e_f32s(a, b, c)
    }
}

/// A row-major matrix in memory.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a, T> {
    pub(super) data: *const T,
    /// The distance between rows, in items.
    pub(super) stride: usize,
    pub(super) borrow: PhantomData<&'a [T]>,
}

impl<'a, T> Matrix<'a, T> {
    pub(super) fn new(data: &'a [T], stride: usize) -> Self {
        Self {
            data: data.as_ptr(),
            stride,
            borrow: PhantomData,
        }
    }
}

/// `c = a b` for six rows, `depth` items and `columns` registers, or `c = scale * c + a b` with a factor for each row.
///
/// # Safety
/// `a` holds 6 rows of `depth` items, `b` holds `depth` rows of `columns * LANES` items, and `c` has 6 rows of
/// `columns * LANES` numbers, `c_stride` apart.
#[inline(always)]
pub(super) unsafe fn multiply_strip<M: Multiply>(
    m: M,
    depth: usize,
    columns: usize,
    a: Matrix<'_, M::Item>,
    b: Matrix<'_, M::Item>,
    c: *mut f32,
    c_stride: usize,
    scale: Option<&[f32; STRIP]>,
) {
    let mut done = 0;
    while done < columns {
        let n = (columns - done).min(M::COLUMNS);
        let b = Matrix {
            // SAFETY: within the row, since `done < columns`.
            data: unsafe { b.data.add(done * M::LANES) },
            ..b
        };
        // SAFETY: as above; `panel` touches `n` registers of columns from there, and `done + n <= columns`.
        unsafe {
            let c = c.add(done * M::LANES);
            match n {
                1 => panel::<M, 1>(m, depth, a, b, c, c_stride, scale),
                2 => panel::<M, 2>(m, depth, a, b, c, c_stride, scale),
                3 => panel::<M, 3>(m, depth, a, b, c, c_stride, scale),
                _ => panel::<M, 4>(m, depth, a, b, c, c_stride, scale),
            }
        }
        done += n;
    }
}

/// # Safety
/// As [`multiply_strip`] with `columns = N`.
#[inline(always)]
unsafe fn panel<M: Multiply, const N: usize>(
    m: M,
    depth: usize,
    a: Matrix<'_, M::Item>,
    b: Matrix<'_, M::Item>,
    c: *mut f32,
    c_stride: usize,
    scale: Option<&[f32; STRIP]>,
) {
    // SAFETY: every offset below is within what the caller vouches for.
    unsafe {
        let mut sums = [[m.zero(); N]; STRIP];
        if let Some(scale) = scale {
            for row in 0..STRIP {
                for column in 0..N {
                    let at = c.add(row * c_stride + column * M::LANES);
                    sums[row][column] = m.load_scaled(at, scale[row]);
                }
            }
        }
        for p in 0..depth {
            let mut bs = [m.load(b.data.add(p * b.stride)); N];
            for column in 1..N {
                bs[column] = m.load(b.data.add(p * b.stride + column * M::LANES));
            }
            for row in 0..STRIP {
                let a = m.splat(*a.data.add(row * a.stride + p));
                for column in 0..N {
                    sums[row][column] = m.multiply_add(a, bs[column], sums[row][column]);
                }
            }
        }
        for row in 0..STRIP {
            for column in 0..N {
                m.store(c.add(row * c_stride + column * M::LANES), sums[row][column]);
            }
        }
    }
}
