// Activation functions of numbers in registers.
#pragma once

#include "device.cuh"

/// In the order of the CPU's.
enum Activation {
    GELU,
    GELU_TANH,
    RELU,
    SILU,
    TANH,
    SIGMOID,
    LOG_SIGMOID,
    LEAKY_RELU,
    ELU,
    SELU,
    SOFTPLUS,
    MISH,
    CLAMP,
    HARD_SIGMOID,
    HARD_SWISH,
    SOFTSIGN,
    SOFTSHRINK,
    HARDSHRINK,
    TANHSHRINK,
};

/// Of which half of a row's columns an activation is, that the other half multiplies.
enum Gate { ABSENT, OF_FIRST, OF_SECOND };

/// `max(x, 0) - |x| Phi(-|x|)`, which is x Phi(x) without the difference of two that are almost 1. The logarithm of Phi,
/// to base 2, is a polynomial: the minimax fit on [-6.5, 0], by Remez' algorithm, of the error of the result. The fit's is
/// 8e-8 at most, and where the result is less than 1e-4 there, 8e-4 of it. From -14 on it is 0.
__device__ inline float gelu(float x) {
    float size = fminf(fabsf(x), 14.0f);
    float power = -9.43718703e-7f;
    power = power * size + 4.68025428e-5f;
    power = power * size - 8.3999621e-4f;
    power = power * size + 8.25319067e-3f;
    power = power * size - 5.36259301e-2f;
    power = power * size - 4.58638757e-1f;
    power = power * size - 1.15123796f;
    power = power * size - 9.99989927e-1f;
    // Not `fmaxf`, which makes 0 of NaN.
    return (x < 0.0f ? 0.0f : x) - size * power_of_two(power);
}

/// 1 / (1 + e^-x).
__device__ inline float sigmoid(float x) { return reciprocal(1.0f + power_of_two(-1.44269504f * x)); }

/// `x (1 + tanh(y)) / 2` is x sigmoid(2y), which does not cancel.
__device__ inline float gelu_tanh(float x) { return x * sigmoid(1.59576912f * (x + 0.044715f * x * x * x)); }

__device__ inline float log_sigmoid(float x) { return (x < 0.0f ? x : 0.0f * x) - log1pf(expf(-fabsf(x))); }

__device__ inline float elu(float x) { return x < 0.0f ? expf(x) - 1.0f : x; }

/// With the constants of Klambauer et al., 2017.
__device__ inline float selu(float x) { return 1.050701f * (x < 0.0f ? 1.6732632f * elu(x) : x); }

__device__ inline float softplus(float x) { return x > 20.0f ? x : log1pf(expf(x)); }

/// Not of `fminf` and `fmaxf`, which make numbers of NaN.
__device__ inline float clamp(float x, float low, float high) { return x < low ? low : x > high ? high : x; }

template <int COUNT, typename F> __device__ void map(float (&x)[COUNT], F f) {
    UNROLL for (int i = 0; i < COUNT; i++) x[i] = f(x[i]);
}

/// One choice for all values of a thread. NaN stays NaN in every one.
template <int COUNT> __device__ void apply(float (&x)[COUNT], int activation, float p, float q) {
    switch (activation) {
    case GELU: return map(x, gelu);
    case GELU_TANH: return map(x, gelu_tanh);
    case RELU: return map(x, [](float x) { return x < 0.0f ? 0.0f : x; });
    case SILU: return map(x, [](float x) { return x * sigmoid(x); });
    case TANH: return map(x, [](float x) { return tanhf(x); });
    case SIGMOID: return map(x, sigmoid);
    case LOG_SIGMOID: return map(x, log_sigmoid);
    case LEAKY_RELU: return map(x, [=](float x) { return x < 0.0f ? p * x : x; });
    case ELU: return map(x, elu);
    case SELU: return map(x, selu);
    case SOFTPLUS: return map(x, softplus);
    case MISH: return map(x, [](float x) { return x * tanhf(softplus(x)); });
    case CLAMP: return map(x, [=](float x) { return clamp(x, p, q); });
    case HARD_SIGMOID: return map(x, [](float x) { return clamp(x + 3.0f, 0.0f, 6.0f) / 6.0f; });
    case HARD_SWISH: return map(x, [](float x) { return x * clamp(x + 3.0f, 0.0f, 6.0f) / 6.0f; });
    case SOFTSIGN: return map(x, [](float x) { return x / (1.0f + fabsf(x)); });
    case SOFTSHRINK: return map(x, [](float x) { return x - clamp(x, -0.5f, 0.5f); });
    case HARDSHRINK: return map(x, [](float x) { return fabsf(x) <= 0.5f ? 0.0f : x; });
    case TANHSHRINK: return map(x, [](float x) { return x - tanhf(x); });
    }
}
