//! Registers of f32 loaded from elements of any type.
//!
//! `pulp` dispatches by processor, but its tokens leave out F16C, and what a function with other features does cannot be
//! inlined into code that it dispatched: f16 would be converted behind a call, row by row, through memory.

use half::{bf16, f16};
use pulp::{Arch, Simd};
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use pulp::{NullaryFnOnce, Scalar};

/// The numbers of the largest register.
pub const MAX_LANES: usize = 16;

/// A register of f32.
pub type Floats<M> = <<M as Machine>::Simd as Simd>::f32s;

/// The instructions of a processor: those of a `pulp` token, and conversions to its registers.
pub trait Machine: Copy {
    type Simd: Simd;
    /// The numbers of a register.
    const LANES: usize = size_of::<Floats<Self>>() / size_of::<f32>();

    fn simd(self) -> Self::Simd;

    /// Converts the first [`LANES`](Self::LANES) elements exactly; a NaN stays one.
    ///
    /// # Panics
    /// If there are fewer.
    fn load_f16(self, from: &[f16]) -> Floats<Self>;

    /// As [`load_f16`](Self::load_f16).
    fn load_bf16(self, from: &[bf16]) -> Floats<Self>;

    /// Converts fewer elements than [`LANES`](Self::LANES); the rest of the register is zero.
    #[inline(always)]
    fn load_partial_f16(self, from: &[f16]) -> Floats<Self> {
        self.load_f16(&padded(from, f16::ZERO))
    }

    /// As [`load_partial_f16`](Self::load_partial_f16).
    #[inline(always)]
    fn load_partial_bf16(self, from: &[bf16]) -> Floats<Self> {
        self.load_bf16(&padded(from, bf16::ZERO))
    }

    /// As [`load_f16`](Self::load_f16).
    #[inline(always)]
    fn load_f32(self, from: &[f32]) -> Floats<Self> {
        let (registers, _) = Self::Simd::as_simd_f32s(&from[..Self::LANES]);
        registers[0]
    }
}

#[inline(always)]
fn padded<T: Copy>(from: &[T], zero: T) -> [T; MAX_LANES] {
    let mut whole = [zero; MAX_LANES];
    whole[..from.len()].copy_from_slice(from);
    whole
}

/// Work that [`dispatch`] compiles for every machine. Mark the method `#[inline(always)]`, and whatever it calls.
pub trait WithMachine {
    type Output;
    fn with_machine<M: Machine>(self, machine: M) -> Self::Output;
}

/// Runs `work` with the instructions of `arch`.
#[inline(always)]
pub fn dispatch<W: WithMachine>(arch: Arch, work: W) -> W::Output {
    match arch {
        #[cfg(target_arch = "x86_64")]
        Arch::V4(simd) => simd.vectorize(On(x86::Avx512(simd), work)),
        #[cfg(target_arch = "x86_64")]
        Arch::V3(simd) => match x86::Features::try_new() {
            Some(features) => features.vectorize(On(x86::Avx2::new(simd, features), work)),
            None => On(Portable(Scalar), work).call(),
        },
        #[cfg(target_arch = "aarch64")]
        Arch::Neon(simd) => simd.vectorize(On(aarch64::Neon(simd), work)),
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        _ => On(Portable(Scalar), work).call(),
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        _ => arch.dispatch(Portably(work)),
    }
}

/// Work on a machine.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
struct On<M, W>(M, W);

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
impl<M: Machine, W: WithMachine> NullaryFnOnce for On<M, W> {
    type Output = W::Output;

    #[inline(always)]
    fn call(self) -> W::Output {
        self.1.with_machine(self.0)
    }
}

/// Work on a machine of which only `pulp` knows more.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
struct Portably<W>(W);

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
impl<W: WithMachine> pulp::WithSimd for Portably<W> {
    type Output = W::Output;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> W::Output {
        self.0.with_machine(Portable(simd))
    }
}

/// Any processor: conversions in a form that compilers vectorise.
#[derive(Clone, Copy)]
pub struct Portable<S>(pub S);

impl<S: Simd> Portable<S> {
    #[inline(always)]
    fn load<T: Copy>(from: &[T], convert: impl Fn(T) -> f32) -> S::f32s {
        let mut numbers = [0.0; MAX_LANES];
        for (to, &from) in numbers.iter_mut().zip(&from[..Self::LANES]) {
            *to = convert(from);
        }
        S::as_simd_f32s(&numbers).0[0]
    }
}

impl<S: Simd> Machine for Portable<S> {
    type Simd = S;

    #[inline(always)]
    fn simd(self) -> S {
        self.0
    }
    #[inline(always)]
    fn load_f16(self, from: &[f16]) -> S::f32s {
        Self::load(from, f16_to_f32)
    }
    #[inline(always)]
    fn load_bf16(self, from: &[bf16]) -> S::f32s {
        Self::load(from, bf16_to_f32)
    }
}

/// Without a branch or a subnormal number on the way: both are slow.
#[inline(always)]
fn f16_to_f32(from: f16) -> f32 {
    // The exponents of f32 are larger by 112; that of infinities and NaNs by as much again.
    const REBIAS: u32 = 112 << 23;
    const INFINITE: u32 = 0x1f << 23;
    const SUBNORMAL: u32 = 1 << 23;

    let bits = u32::from(from.to_bits());
    let (sign, magnitude) = ((bits & 0x8000) << 16, (bits & 0x7fff) << 13);
    let again = if magnitude >= INFINITE { REBIAS } else { 0 };
    let normal = magnitude + REBIAS + again;
    // With the exponent of the smallest normal number, which is then subtracted: exact.
    let smallest = REBIAS + SUBNORMAL;
    let subnormal = f32::from_bits(magnitude + smallest) - f32::from_bits(smallest);
    let magnitude = if magnitude < SUBNORMAL {
        subnormal.to_bits()
    } else {
        normal
    };
    f32::from_bits(magnitude | sign)
}

#[inline(always)]
fn bf16_to_f32(from: bf16) -> f32 {
    f32::from_bits(u32::from(from.to_bits()) << 16)
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::mem::transmute;

    use half::bf16;
    use pulp::x86::{V3, V4};
    use pulp::{f32x8, f32x16};

    use super::*;

    /// The token holds AVX-512, whose conversions are part of its foundation.
    #[derive(Clone, Copy)]
    pub struct Avx512(pub V4);

    impl Machine for Avx512 {
        type Simd = V4;

        #[inline(always)]
        fn simd(self) -> V4 {
            self.0
        }
        #[inline(always)]
        fn load_f16(self, from: &[f16]) -> f32x16 {
            let from = from[..16].as_ptr();
            // SAFETY: 32 bytes are readable, and the token vouches for the features; the cast keeps the bits.
            unsafe {
                let bits = _mm256_loadu_si256(from.cast());
                transmute::<__m512, f32x16>(_mm512_cvtph_ps(bits))
            }
        }
        #[inline(always)]
        fn load_bf16(self, from: &[bf16]) -> f32x16 {
            let from = from[..16].as_ptr();
            // SAFETY: as above.
            unsafe {
                let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
                transmute::<__m512i, f32x16>(_mm512_slli_epi32::<16>(bits))
            }
        }
        #[inline(always)]
        fn load_partial_f16(self, from: &[f16]) -> f32x16 {
            // SAFETY: only as many elements are read as there are, and the token vouches for the features.
            unsafe {
                let bits = _mm256_maskz_loadu_epi16(first(from.len()), from.as_ptr().cast());
                transmute::<__m512, f32x16>(_mm512_cvtph_ps(bits))
            }
        }
        #[inline(always)]
        fn load_partial_bf16(self, from: &[bf16]) -> f32x16 {
            // SAFETY: as above.
            unsafe {
                let bits = _mm256_maskz_loadu_epi16(first(from.len()), from.as_ptr().cast());
                let bits = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits));
                transmute::<__m512i, f32x16>(bits)
            }
        }
    }

    /// The mask of the first `n` lanes.
    #[inline(always)]
    fn first(n: usize) -> __mmask16 {
        ((1u32 << n) - 1) as __mmask16
    }

    pulp::simd_type! {
        /// What `V3` has, and F16C, which every processor with AVX2 and FMA has too.
        pub struct Features {
            sse: "sse",
            sse2: "sse2",
            fxsr: "fxsr",
            sse3: "sse3",
            ssse3: "ssse3",
            sse4_1: "sse4.1",
            sse4_2: "sse4.2",
            popcnt: "popcnt",
            avx: "avx",
            avx2: "avx2",
            bmi1: "bmi1",
            bmi2: "bmi2",
            fma: "fma",
            lzcnt: "lzcnt",
            f16c: "f16c",
        }
    }

    #[derive(Clone, Copy)]
    pub struct Avx2 {
        simd: V3,
        /// That they are there; `simd` does not vouch for F16C.
        _features: Features,
    }

    impl Avx2 {
        pub fn new(simd: V3, features: Features) -> Self {
            Self {
                simd,
                _features: features,
            }
        }
    }

    impl Machine for Avx2 {
        type Simd = V3;

        #[inline(always)]
        fn simd(self) -> V3 {
            self.simd
        }
        #[inline(always)]
        fn load_f16(self, from: &[f16]) -> f32x8 {
            let from = from[..8].as_ptr();
            // SAFETY: 16 bytes are readable, and the tokens vouch for the features; the cast keeps the bits.
            unsafe {
                let bits = _mm_loadu_si128(from.cast());
                transmute::<__m256, f32x8>(_mm256_cvtph_ps(bits))
            }
        }
        #[inline(always)]
        fn load_bf16(self, from: &[bf16]) -> f32x8 {
            let from = from[..8].as_ptr();
            // SAFETY: as above.
            unsafe {
                let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
                transmute::<__m256i, f32x8>(_mm256_slli_epi32::<16>(bits))
            }
        }
    }
}

#[cfg(target_arch = "aarch64")]
mod aarch64 {
    use std::arch::aarch64::*;
    use std::mem::transmute;

    use half::bf16;
    use pulp::f32x4;

    use super::*;

    #[derive(Clone, Copy)]
    pub struct Neon(pub pulp::aarch64::Neon);

    impl Machine for Neon {
        type Simd = pulp::aarch64::Neon;

        #[inline(always)]
        fn simd(self) -> Self::Simd {
            self.0
        }
        #[inline(always)]
        fn load_f16(self, from: &[f16]) -> f32x4 {
            let from = from[..4].as_ptr();
            // SAFETY: 8 bytes are readable. Every processor with NEON has the instruction, which needs no feature for f16;
            // only its intrinsic is not stable.
            unsafe {
                let bits = vld1_u16(from.cast());
                let numbers: float32x4_t;
                std::arch::asm!(
                    "fcvtl {numbers:v}.4s, {bits:v}.4h",
                    numbers = lateout(vreg) numbers,
                    bits = in(vreg) bits,
                    options(pure, nomem, nostack, preserves_flags),
                );
                transmute::<float32x4_t, f32x4>(numbers)
            }
        }
        #[inline(always)]
        fn load_bf16(self, from: &[bf16]) -> f32x4 {
            let from = from[..4].as_ptr();
            // SAFETY: 8 bytes are readable, and the token vouches for the features; the cast keeps the bits.
            unsafe {
                let bits = vshll_n_u16::<16>(vld1_u16(from.cast()));
                transmute::<uint32x4_t, f32x4>(bits)
            }
        }
    }
}

/// What this machine can run, the best last.
#[cfg(test)]
pub fn arches() -> Vec<Arch> {
    let mut arches = vec![Arch::Scalar];
    #[cfg(target_arch = "x86_64")]
    {
        arches.extend(pulp::x86::V3::try_new().map(Arch::V3));
        arches.extend(pulp::x86::V4::try_new().map(Arch::V4));
    }
    #[cfg(target_arch = "aarch64")]
    arches.extend(pulp::aarch64::Neon::try_new().map(Arch::Neon));
    arches
}

#[cfg(test)]
mod tests {
    use super::super::Element;
    use super::super::element::widen;
    use super::*;

    struct Widen<'a, T> {
        from: &'a [T],
        to: &'a mut [f32],
    }

    impl<T: Element> WithMachine for Widen<'_, T> {
        type Output = ();

        #[inline(always)]
        fn with_machine<M: Machine>(self, machine: M) {
            widen(machine, self.from, self.to);
        }
    }

    /// Every value converts exactly on every machine, in whole registers and in what is left of one.
    fn every_value_converts<T: Element>(values: impl Fn(u16) -> T, exact: impl Fn(T) -> f32) {
        let values: Vec<T> = (0..=u16::MAX).map(values).collect();
        for length in [1 << 16, 1, 3, 7, 13, 19] {
            for from in values.chunks(length) {
                let mut converted = Vec::new();
                for arch in arches() {
                    let mut to = vec![-1.0; from.len()];
                    dispatch(arch, Widen { from, to: &mut to });
                    converted.push((format!("{arch:?}"), to));
                }
                // What other processors get, in registers of several numbers.
                #[cfg(target_arch = "x86_64")]
                if let Some(simd) = pulp::x86::V3::try_new() {
                    let mut to = vec![-1.0; from.len()];
                    widen(Portable(simd), from, &mut to);
                    converted.push(("portable".into(), to));
                }
                for (name, to) in converted {
                    for (&from, to) in from.iter().zip(to) {
                        let exact = exact(from);
                        let same = match exact.is_nan() {
                            true => {
                                to.is_nan() && to.is_sign_negative() == exact.is_sign_negative()
                            }
                            false => to.to_bits() == exact.to_bits(),
                        };
                        assert!(same, "{name}, {length}: {from:?} is {exact}, not {to}");
                    }
                }
            }
        }
    }

    #[test]
    fn every_f16_converts_exactly_on_every_machine() {
        every_value_converts(f16::from_bits, |x| x.to_f32_const());
    }

    #[test]
    fn every_bf16_converts_exactly_on_every_machine() {
        every_value_converts(bf16::from_bits, |x| x.to_f32_const());
    }
}
