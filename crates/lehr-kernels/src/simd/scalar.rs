//! The vocabulary in plain Rust: the fallback, and the one every machine can test.

use super::Simd;

/// Four floats at a time, which compilers turn into whatever the target always has.
#[derive(Clone, Copy)]
pub struct Scalar;

const LANES: usize = 4;

type V = [f32; LANES];

#[inline(always)]
fn map(a: V, f: impl Fn(f32) -> f32) -> V {
    [f(a[0]), f(a[1]), f(a[2]), f(a[3])]
}

#[inline(always)]
fn zip(a: V, b: V, f: impl Fn(f32, f32) -> f32) -> V {
    [f(a[0], b[0]), f(a[1], b[1]), f(a[2], b[2]), f(a[3], b[3])]
}

impl Simd for Scalar {
    type V = V;
    const LANES: usize = LANES;

    #[inline(always)]
    fn splat(self, x: f32) -> V {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load(self, src: *const f32) -> V {
        // SAFETY: the caller gives `LANES` readable floats.
        unsafe { src.cast::<V>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(self, dst: *mut f32, v: V) {
        // SAFETY: the caller gives room for `LANES` floats.
        unsafe { dst.cast::<V>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn load_n(self, src: *const f32, n: usize) -> V {
        let mut v = [0.0; LANES];
        // SAFETY: the caller gives `n <= LANES` readable floats.
        unsafe { std::ptr::copy_nonoverlapping(src, v.as_mut_ptr(), n.min(LANES)) };
        v
    }
    #[inline(always)]
    unsafe fn store_n(self, dst: *mut f32, v: V, n: usize) {
        // SAFETY: the caller gives room for `n <= LANES` floats.
        unsafe { std::ptr::copy_nonoverlapping(v.as_ptr(), dst, n.min(LANES)) };
    }
    #[inline(always)]
    fn add(self, a: V, b: V) -> V {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: V, b: V) -> V {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: V, b: V) -> V {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: V, b: V) -> V {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn max(self, a: V, b: V) -> V {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, a: V, b: V) -> V {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn sqrt(self, a: V) -> V {
        map(a, f32::sqrt)
    }
    // Two roundings: `f32::mul_add` without the instruction is a slow library call.
    #[inline(always)]
    fn fma(self, a: V, b: V, c: V) -> V {
        [a[0] * b[0] + c[0], a[1] * b[1] + c[1], a[2] * b[2] + c[2], a[3] * b[3] + c[3]]
    }
    #[inline(always)]
    fn round(self, a: V) -> V {
        map(a, f32::round_ties_even)
    }
    #[inline(always)]
    fn pow2(self, a: V) -> V {
        map(a, |a| f32::from_bits(((a as i32 + 127) << 23) as u32))
    }
    #[inline(always)]
    fn select_gt(self, a: V, b: V, x: V, y: V) -> V {
        let pick = |i: usize| if a[i] > b[i] { x[i] } else { y[i] };
        [pick(0), pick(1), pick(2), pick(3)]
    }
    #[inline(always)]
    fn sum(self, a: V) -> f32 {
        (a[0] + a[2]) + (a[1] + a[3])
    }
    #[inline(always)]
    fn hmax(self, a: V) -> f32 {
        a[0].max(a[1]).max(a[2].max(a[3]))
    }
    #[inline(always)]
    unsafe fn transpose(
        self,
        src: *const f32,
        src_stride: usize,
        dst: *mut f32,
        dst_stride: usize,
    ) {
        for i in 0..LANES {
            for j in 0..LANES {
                // SAFETY: both blocks of `LANES` strided rows are the caller's.
                unsafe { *dst.add(j * dst_stride + i) = *src.add(i * src_stride + j) };
            }
        }
    }
}
