//! The register file of one warp: a row of 32 lanes per register, so that lane loops vectorise.

pub(crate) const LANES: usize = 32;
pub(crate) const FULL: u32 = u32::MAX;

/// Row of a 32-bit (or narrower) register, of an immediate or of a special register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct W(pub u32);
/// Row of a 64-bit register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct D(pub u32);
/// A predicate register: one bit per lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct P(pub u32);

pub(crate) type Row32 = [u32; LANES];
pub(crate) type Row64 = [u64; LANES];

/// Immediates and constant special registers are rows too, filled when the warp starts, so every
/// source operand is read the same way. What a narrower register holds above its width is never read.
#[derive(Debug, Default)]
pub(crate) struct Regs {
    pub w: Vec<Row32>,
    pub d: Vec<Row64>,
    pub p: Vec<u32>,
}

#[inline(always)]
fn select<T: Copy>(dst: &mut [T; LANES], new: &[T; LANES], mask: u32) {
    if mask == FULL {
        *dst = *new;
    } else {
        for i in 0..LANES {
            dst[i] = if mask >> i & 1 != 0 { new[i] } else { dst[i] };
        }
    }
}

/// The lanes of a mask, lowest first.
#[inline(always)]
pub(crate) fn lanes(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        (mask != 0).then(|| {
            let lane = mask.trailing_zeros() as usize;
            mask &= mask - 1;
            lane
        })
    })
}

impl Regs {
    #[inline(always)]
    pub fn w(&self, r: W) -> &Row32 {
        &self.w[r.0 as usize]
    }

    #[inline(always)]
    pub fn d(&self, r: D) -> &Row64 {
        &self.d[r.0 as usize]
    }

    #[inline(always)]
    pub fn p(&self, r: P) -> u32 {
        self.p[r.0 as usize]
    }

    #[inline(always)]
    pub fn put_w(&mut self, r: W, new: &Row32, mask: u32) {
        select(&mut self.w[r.0 as usize], new, mask);
    }

    #[inline(always)]
    pub fn put_d(&mut self, r: D, new: &Row64, mask: u32) {
        select(&mut self.d[r.0 as usize], new, mask);
    }

    #[inline(always)]
    pub fn put_p(&mut self, r: P, new: u32, mask: u32) {
        let p = &mut self.p[r.0 as usize];
        *p = (*p & !mask) | (new & mask);
    }
}

/// A row of any register class, as lane values of one Rust type.
pub(crate) trait Reg: Copy + Send + Sync + 'static {
    type Bits: Copy + Default;
    fn row(self, r: &Regs) -> &[Self::Bits; LANES];
    fn put(self, r: &mut Regs, new: &[Self::Bits; LANES], mask: u32);
}

impl Reg for W {
    type Bits = u32;
    #[inline(always)]
    fn row(self, r: &Regs) -> &Row32 {
        r.w(self)
    }
    #[inline(always)]
    fn put(self, r: &mut Regs, new: &Row32, mask: u32) {
        r.put_w(self, new, mask);
    }
}

impl Reg for D {
    type Bits = u64;
    #[inline(always)]
    fn row(self, r: &Regs) -> &Row64 {
        r.d(self)
    }
    #[inline(always)]
    fn put(self, r: &mut Regs, new: &Row64, mask: u32) {
        r.put_d(self, new, mask);
    }
}

/// What a register-only instruction does to the lanes of a mask.
pub(crate) type Alu = Box<dyn Fn(&mut Regs, u32) + Send + Sync>;

/// `d = f(a)` per lane.
pub(crate) fn map1<R: Reg, A: Reg>(
    d: R,
    a: A,
    f: impl Fn(A::Bits) -> R::Bits + Send + Sync + 'static,
) -> Alu {
    Box::new(move |r, mask| {
        let x = a.row(r);
        let mut out = [R::Bits::default(); LANES];
        for i in 0..LANES {
            out[i] = f(x[i]);
        }
        d.put(r, &out, mask);
    })
}

/// `d = f(a, b)` per lane.
pub(crate) fn map2<R: Reg, A: Reg, B: Reg>(
    d: R,
    a: A,
    b: B,
    f: impl Fn(A::Bits, B::Bits) -> R::Bits + Send + Sync + 'static,
) -> Alu {
    Box::new(move |r, mask| {
        let (x, y) = (a.row(r), b.row(r));
        let mut out = [R::Bits::default(); LANES];
        for i in 0..LANES {
            out[i] = f(x[i], y[i]);
        }
        d.put(r, &out, mask);
    })
}

/// `d = f(a, b, c)` per lane.
pub(crate) fn map3<R: Reg, A: Reg, B: Reg, C: Reg>(
    d: R,
    a: A,
    b: B,
    c: C,
    f: impl Fn(A::Bits, B::Bits, C::Bits) -> R::Bits + Send + Sync + 'static,
) -> Alu {
    Box::new(move |r, mask| {
        let (x, y, z) = (a.row(r), b.row(r), c.row(r));
        let mut out = [R::Bits::default(); LANES];
        for i in 0..LANES {
            out[i] = f(x[i], y[i], z[i]);
        }
        d.put(r, &out, mask);
    })
}

/// The mask of lanes where `f(a, b)` holds.
#[inline(always)]
pub(crate) fn test2<A: Reg, B: Reg>(
    r: &Regs,
    a: A,
    b: B,
    f: impl Fn(A::Bits, B::Bits) -> bool,
) -> u32 {
    let (x, y) = (a.row(r), b.row(r));
    let mut out = 0;
    for i in 0..LANES {
        out |= u32::from(f(x[i], y[i])) << i;
    }
    out
}
