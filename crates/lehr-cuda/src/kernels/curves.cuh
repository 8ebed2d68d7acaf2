// The activation functions: value and derivative, as ops/activation/curve.rs defines them.
//
// All keep their relative accuracy in the tails (nothing is subtracted from 1 to get a small
// number), pass NaN on, and neither overflow nor give NaN for any finite input.
#pragma once
#include "common.cuh"

// max(x, low) and min(x, high) that are NaN if x is, unlike fmaxf and fminf.
DEVICE float at_least(float x, float low) {
#ifdef LEHR_EMULATED
    return x < low ? low : x;
#else
    float y;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(x), "f"(low));
    return y;
#endif
}
DEVICE float at_most(float x, float high) {
#ifdef LEHR_EMULATED
    return x > high ? high : x;
#else
    float y;
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(x), "f"(high));
    return y;
#endif
}
DEVICE float within(float x, float limit) { return at_most(at_least(x, -limit), limit); }

// e^x for x <= 88 and 1 / x: to the last bits for f32; one instruction for the 16-bit types, good
// to 1e-5 and with results below 1.2e-38 rounded to 0. There the arithmetic would otherwise take
// longer than the memory.
DEVICE float curve_exp(float x) {
#if LEHR_T == 0 || defined(LEHR_EMULATED)
    return expf(x);
#else
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.44269504f));
    return y;
#endif
}
DEVICE float curve_reciprocal(float x) {
#if LEHR_T == 0 || defined(LEHR_EMULATED)
    return 1.0f / x;
#else
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

// Where exp ends.
#define EXP_LIMIT 88.0f
// Beyond this magnitude the GELUs are straight to the last bit; arguments of powers and
// exponentials are held here.
#define STRAIGHT 20.0f

// sigma(x), and `rest` = 1 - sigma(x).
DEVICE float sigmoid_both(float x, float& rest) {
    float e = curve_exp(at_most(-x, EXP_LIMIT));
    float r = curve_reciprocal(1.0f + e);
    rest = e * r;
    return r;
}

// A curve is a type with `both`: f(x), and `slope` = f'(x). Where the slope is not used the
// compiler drops its arithmetic.

struct GeluTanh {
    // x (1 + tanh u) / 2 = x sigma(2 u) with u = sqrt(2 / pi) (x + 0.044715 x^3).
    static DEVICE float both(float x, float& slope) {
        // 2 sqrt(2 / pi).
        const float TWICE = 1.595769f, CUBIC = TWICE * 0.044715f;
        float inner = within(x, STRAIGHT), square = inner * inner;
        float rest, sigmoid = sigmoid_both(inner * fmaf(CUBIC, square, TWICE), rest);
        slope = sigmoid * fmaf(inner * rest, fmaf(3.0f * CUBIC, square, TWICE), 1.0f);
        return at_least(x, -STRAIGHT) * sigmoid;
    }
};

struct GeluErf {
    // x Phi(x), derivative Phi(x) + x phi(x), with one exponential for Phi and phi. Phi(-|x|) =
    // e^(-x^2 / 2) t Q(t) with t = 1 / (1 + 0.4 |x| / sqrt 2): Q is the least-maximum polynomial of
    // degree 8 for erfcx / (2 t), good to 1.3e-7 relative for all x.
    static DEVICE float both(float x, float& slope) {
        float inner = within(x, STRAIGHT);
        float t = curve_reciprocal(fmaf(0.2828427f, fabsf(inner), 1.0f));
        float q = fmaf(0.025149963f, t, -0.09152153f);
        q = fmaf(q, t, 0.08464911f);
        q = fmaf(q, t, -0.0028858555f);
        q = fmaf(q, t, 0.07075031f);
        q = fmaf(q, t, 0.08426318f);
        q = fmaf(q, t, 0.10392222f);
        q = fmaf(q, t, 0.11283476f);
        q = fmaf(q, t, 0.11283793f);
        float e = curve_exp(inner * inner * -0.5f), tail = q * t * e;
        float phi = x > 0.0f ? 1.0f - tail : tail;
        // 1 / sqrt(2 pi).
        slope = fmaf(inner * 0.3989423f, e, phi);
        return at_least(x, -STRAIGHT) * phi;
    }
};

struct Silu {
    // x sigma(x).
    static DEVICE float both(float x, float& slope) {
        float rest, sigmoid = sigmoid_both(x, rest);
        slope = sigmoid * fmaf(within(x, EXP_LIMIT), rest, 1.0f);
        return at_least(x, -EXP_LIMIT) * sigmoid;
    }
};

struct Relu {
    static DEVICE float both(float x, float& slope) {
        slope = x > 0.0f ? 1.0f : 0.0f;
        return at_least(x, 0.0f);
    }
};

struct Relu2 {
    // max(x, 0)^2.
    static DEVICE float both(float x, float& slope) {
        float r = at_least(x, 0.0f);
        slope = r + r;
        return r * r;
    }
};

// Calls f with the curve of number `kind`, so that the choice is made once and not for each
// element.
template <class F>
DEVICE void with_curve(int kind, const F& f) {
    switch (kind) {
        case 0: f(GeluTanh()); break;
        case 1: f(GeluErf()); break;
        case 2: f(Silu()); break;
        case 3: f(Relu()); break;
        case 4: f(Relu2()); break;
    }
}
template <class Curve>
DEVICE float curve_value(Curve, float x) {
    float slope;
    return Curve::both(x, slope);
}
