//! The element types: f16, bf16 and f32.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use pulp::Simd;

use super::machine::Machine;
use crate::tensor::View;

mod sealed {
    use super::super::block::Tensors;
    use super::super::machine::{Floats, Machine};
    use super::super::schedule;
    use half::{bf16, f16};
    use pulp::Simd;

    pub trait Sealed: Sized {
        /// Chooses the arithmetic of the products.
        fn run(tensors: &Tensors<'_, Self>, out: &mut [Self], lse: Option<&mut [f32]>);
        /// Converts the first elements, a register of them.
        fn load<M: Machine>(machine: M, from: &[Self]) -> Floats<M>;
        /// Converts fewer elements than that; the rest of the register is zero.
        fn load_partial<M: Machine>(machine: M, from: &[Self]) -> Floats<M>;
    }
    impl Sealed for f16 {
        fn run(tensors: &Tensors<'_, Self>, out: &mut [Self], lse: Option<&mut [f32]>) {
            schedule::run_f32(tensors, out, lse);
        }
        #[inline(always)]
        fn load<M: Machine>(machine: M, from: &[Self]) -> Floats<M> {
            machine.load_f16(from)
        }
        #[inline(always)]
        fn load_partial<M: Machine>(machine: M, from: &[Self]) -> Floats<M> {
            machine.load_partial_f16(from)
        }
    }
    impl Sealed for bf16 {
        fn run(tensors: &Tensors<'_, Self>, out: &mut [Self], lse: Option<&mut [f32]>) {
            schedule::run_bf16(tensors, out, lse);
        }
        #[inline(always)]
        fn load<M: Machine>(machine: M, from: &[Self]) -> Floats<M> {
            machine.load_bf16(from)
        }
        #[inline(always)]
        fn load_partial<M: Machine>(machine: M, from: &[Self]) -> Floats<M> {
            machine.load_partial_bf16(from)
        }
    }
    impl Sealed for f32 {
        fn run(tensors: &Tensors<'_, Self>, out: &mut [Self], lse: Option<&mut [f32]>) {
            schedule::run_f32(tensors, out, lse);
        }
        #[inline(always)]
        fn load<M: Machine>(machine: M, from: &[Self]) -> Floats<M> {
            machine.load_f32(from)
        }
        #[inline(always)]
        fn load_partial<M: Machine>(machine: M, from: &[Self]) -> Floats<M> {
            machine.simd().partial_load_f32s(from)
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
    fn narrow(from: &[f32], to: &mut [Self]) {
        to.copy_from_slice(from);
    }
}

/// Converts a slice; the lengths are equal.
#[inline(always)]
pub(super) fn widen<T: Element, M: Machine>(machine: M, from: &[T], to: &mut [f32]) {
    let (registers, tail) = M::Simd::as_mut_simd_f32s(&mut to[..from.len()]);
    let from = from.chunks_exact(M::LANES);
    if !tail.is_empty() {
        let rest = T::load_partial(machine, from.remainder());
        machine.simd().partial_store_f32s(tail, rest);
    }
    for (to, from) in registers.iter_mut().zip(from) {
        *to = T::load(machine, from);
    }
}
