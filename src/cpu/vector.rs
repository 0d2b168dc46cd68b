//! Vector functions on top of pulp's run-time dispatched registers.

use pulp::Simd;

/// `2^x` of a non-positive `x`, to 1.5 ulp: zero below 2^-125, NaN for NaN.
#[inline(always)]
pub(super) fn exp2<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    // 2^x = 2^n * 2^f with n = round(x). Adding 1.5 * 2^23 leaves n in the low bits of the sum.
    const MAGIC: f32 = 12_582_912.0;
    // (2^f - 1) / f interpolated at the Chebyshev nodes of [-1/2, 1/2]: relative error of 2^f 5.1e-9.
    const COEFFICIENTS: [f32; 6] = [
        std::f32::consts::LN_2,
        0.240_226_5,
        0.055_503_57,
        0.009_618_083,
        0.001_339_086_3,
        0.000_154_531_63,
    ];
    // No closure or array of registers: the compiler would call them out of line, without the vector features.
    let lowest = simd.splat_f32s(-125.0);
    let magic = simd.splat_f32s(MAGIC);
    let underflow = simd.less_than_f32s(x, lowest);
    let x = simd.select_f32s(underflow, lowest, x);
    let shifted = simd.add_f32s(x, magic);
    let f = simd.sub_f32s(x, simd.sub_f32s(shifted, magic));
    let mut y = simd.splat_f32s(COEFFICIENTS[5]);
    for c in [4, 3, 2, 1, 0] {
        y = simd.mul_add_e_f32s(y, f, simd.splat_f32s(COEFFICIENTS[c]));
    }
    let y = simd.mul_add_e_f32s(y, f, simd.splat_f32s(1.0));
    let n = simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(shifted), simd.splat_u32s(23));
    let power = simd.transmute_f32s_u32s(simd.add_u32s(n, simd.splat_u32s(1.0f32.to_bits())));
    simd.select_f32s(underflow, simd.splat_f32s(0.0), simd.mul_f32s(y, power))
}

/// `tanh(x)`, to 2e-7 absolute; NaN for NaN.
#[inline(always)]
pub(super) fn tanh<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let one = simd.splat_f32s(1.0);
    let doubled = simd.mul_f32s(
        simd.abs_f32s(x),
        simd.splat_f32s(-2.0 * std::f32::consts::LOG2_E),
    );
    let e = exp2(simd, doubled);
    let magnitude = simd.div_f32s(simd.sub_f32s(one, e), simd.add_f32s(one, e));
    let negative = simd.less_than_f32s(x, simd.splat_f32s(0.0));
    simd.select_f32s(negative, simd.neg_f32s(magnitude), magnitude)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pulp::{Arch, WithSimd};

    struct Map<'a, F>(&'a mut [f32], F);

    trait VectorFn {
        fn call<S: Simd>(&self, simd: S, x: S::f32s) -> S::f32s;
    }
    struct Exp2;
    impl VectorFn for Exp2 {
        fn call<S: Simd>(&self, simd: S, x: S::f32s) -> S::f32s {
            exp2(simd, x)
        }
    }
    struct Tanh;
    impl VectorFn for Tanh {
        fn call<S: Simd>(&self, simd: S, x: S::f32s) -> S::f32s {
            tanh(simd, x)
        }
    }

    impl<F: VectorFn> WithSimd for Map<'_, F> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let (body, tail) = S::as_mut_simd_f32s(self.0);
            assert!(tail.is_empty());
            for x in body {
                *x = self.1.call(simd, *x);
            }
        }
    }

    /// Inputs in a row, a multiple of every vector length.
    fn grid(from: f32, to: f32) -> Vec<f32> {
        let n = 1 << 16;
        (0..n)
            .map(|i| from + (to - from) * i as f32 / (n - 1) as f32)
            .collect()
    }

    #[test]
    fn exp2_is_accurate_and_keeps_nan() {
        for x in [grid(-1.0, 0.0), grid(-124.9, 0.0)] {
            let mut y = x.clone();
            Arch::new().dispatch(Map(&mut y, Exp2));
            for (x, y) in x.iter().zip(&y) {
                let exact = f64::from(*x).exp2();
                let error = (f64::from(*y) / exact - 1.0).abs();
                assert!(
                    error < 1.5 * f64::from(f32::EPSILON),
                    "2^{x} = {y}: {error}"
                );
            }
        }
        let mut special = vec![0.0; 16];
        special[..5].copy_from_slice(&[f32::NAN, f32::NEG_INFINITY, -126.0, -0.0, -1e30]);
        // A NaN whose payload reaches into the bits that the exponent is built from.
        special[5] = f32::from_bits(0x7fc0_01ff);
        Arch::new().dispatch(Map(&mut special, Exp2));
        assert!(special[0].is_nan() && special[5].is_nan());
        assert_eq!(special[1..5], [0.0, 0.0, 1.0, 0.0]);
    }

    #[test]
    fn tanh_is_accurate_and_keeps_nan() {
        for x in [grid(-0.01, 0.01), grid(-2.0, 2.0), grid(-200.0, 200.0)] {
            let mut y = x.clone();
            Arch::new().dispatch(Map(&mut y, Tanh));
            for (x, y) in x.iter().zip(&y) {
                let error = (f64::from(*y) - f64::from(*x).tanh()).abs();
                assert!(error < 2e-7, "tanh {x} = {y}: {error}");
            }
        }
        let mut special = vec![f32::NAN; 16];
        special[1..3].copy_from_slice(&[f32::INFINITY, f32::NEG_INFINITY]);
        Arch::new().dispatch(Map(&mut special, Tanh));
        assert!(special[0].is_nan());
        assert_eq!(special[1..3], [1.0, -1.0]);
    }
}
