//! The element types: f16, bf16 and f32.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::tensor::View;

mod sealed {
    use super::super::block::Tensors;
    use super::super::schedule;
    use half::{bf16, f16};

    /// Chooses the arithmetic of the products.
    pub trait Sealed: Sized {
        fn run(tensors: &Tensors<'_, Self>, out: &mut [Self], lse: Option<&mut [f32]>);
    }
    impl Sealed for f16 {
        fn run(tensors: &Tensors<'_, Self>, out: &mut [Self], lse: Option<&mut [f32]>) {
            schedule::run_f32(tensors, out, lse);
        }
    }
    impl Sealed for bf16 {
        fn run(tensors: &Tensors<'_, Self>, out: &mut [Self], lse: Option<&mut [f32]>) {
            schedule::run_bf16(tensors, out, lse);
        }
    }
    impl Sealed for f32 {
        fn run(tensors: &Tensors<'_, Self>, out: &mut [Self], lse: Option<&mut [f32]>) {
            schedule::run_f32(tensors, out, lse);
        }
    }
}

/// An element type of tensors: [`struct@f16`], [`struct@bf16`] or [`f32`].
pub trait Element:
    sealed::Sealed + Copy + Default + std::fmt::Debug + Send + Sync + 'static
{
    /// Converts exactly.
    fn to_f32(self) -> f32;
    /// Rounds to nearest, ties to even.
    fn from_f32(value: f32) -> Self;
    /// Neither infinite nor NaN.
    fn is_finite(self) -> bool;
    /// Converts a slice; the lengths are equal.
    #[doc(hidden)]
    fn widen(from: &[Self], to: &mut [f32]);
    /// The same slice, if it is f32 already.
    #[doc(hidden)]
    fn as_f32(_: &[Self]) -> Option<&[f32]> {
        None
    }
    /// Converts a slice; the lengths are equal.
    #[doc(hidden)]
    fn narrow(from: &[f32], to: &mut [Self]);
}

/// An element type of keys and values that queries of type `Q` can attend to: today `Q` itself.
///
/// It is a type parameter of its own so that caches of other types can be added without breaking callers.
pub trait CacheElement<Q>: Copy + sealed::Sealed {
    /// The tensor as one of the queries' type.
    #[doc(hidden)]
    fn as_query_type(view: View<'_, Self>) -> View<'_, Q>;
}

impl<T: Element> CacheElement<T> for T {
    fn as_query_type(view: View<'_, T>) -> View<'_, T> {
        view
    }
}

impl Element for f16 {
    fn is_finite(self) -> bool {
        self.is_finite()
    }
    fn to_f32(self) -> f32 {
        self.to_f32()
    }
    fn from_f32(value: f32) -> Self {
        f16::from_f32(value)
    }
    #[inline(always)]
    fn widen(from: &[Self], to: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx") && is_x86_feature_detected!("f16c") {
            // SAFETY: the processor has the features.
            return unsafe { widen_f16c(from, to) };
        }
        from.convert_to_f32_slice(to);
    }
    fn narrow(from: &[f32], to: &mut [Self]) {
        to.convert_from_f32_slice(from);
    }
}

impl Element for bf16 {
    fn is_finite(self) -> bool {
        self.is_finite()
    }
    fn to_f32(self) -> f32 {
        self.to_f32()
    }
    fn from_f32(value: f32) -> Self {
        bf16::from_f32(value)
    }
    #[inline(always)]
    fn widen(from: &[Self], to: &mut [f32]) {
        // A shift, so that the loop vectorises; it keeps a NaN's payload where `to_f32` would quiet it.
        for (to, from) in to.iter_mut().zip(from) {
            *to = f32::from_bits(u32::from(from.to_bits()) << 16);
        }
    }
    fn narrow(from: &[f32], to: &mut [Self]) {
        to.convert_from_f32_slice(from);
    }
}

impl Element for f32 {
    fn is_finite(self) -> bool {
        self.is_finite()
    }
    fn to_f32(self) -> f32 {
        self
    }
    fn from_f32(value: f32) -> Self {
        value
    }
    #[inline(always)]
    fn widen(from: &[Self], to: &mut [f32]) {
        to.copy_from_slice(from);
    }
    #[inline(always)]
    fn as_f32(from: &[Self]) -> Option<&[f32]> {
        Some(from)
    }
    #[inline(always)]
    fn narrow(from: &[f32], to: &mut [Self]) {
        to.copy_from_slice(from);
    }
}

/// `half` converts eight at a time behind a call; this loop is one.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx,f16c")]
fn widen_f16c(from: &[f16], to: &mut [f32]) {
    use std::arch::x86_64::{_mm_loadu_si128, _mm256_cvtph_ps, _mm256_storeu_ps};

    let ((from, from_tail), (to, to_tail)) = (from.as_chunks::<8>(), to.as_chunks_mut::<8>());
    for (from, to) in from.iter().zip(to) {
        // SAFETY: 16 bytes are readable and 32 writable.
        unsafe {
            _mm256_storeu_ps(
                to.as_mut_ptr(),
                _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast())),
            )
        };
    }
    for (from, to) in from_tail.iter().zip(to_tail) {
        *to = from.to_f32();
    }
}
