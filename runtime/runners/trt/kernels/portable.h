// What lets the arithmetic of the kernels compile for the GPU (nvcc) and for the processor (any C++ compiler) alike.
// Nothing here or in the other headers knows threads, blocks or shared memory as CUDA spells them: a kernel's body is cut
// into phases, functions of a block's memory and a thread's number, and a .cu file puts barriers between them. The tests
// run the same phases on the processor, thread by thread.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define NNET_HD __host__ __device__ __forceinline__
#else
#define NNET_HD inline
#endif

namespace nnet {

#ifndef NNET_HEIGHT  // the bundle's; nvcc.py defines both where they are not 256
#define NNET_HEIGHT 256
#define NNET_WIDTH 256
#endif

constexpr int HEIGHT = NNET_HEIGHT, WIDTH = NNET_WIDTH;               // of the graph's input and of the anomaly map
constexpr int FUSED_HEIGHT = HEIGHT / 4, FUSED_WIDTH = WIDTH / 4;     // at which the scales are multiplied
constexpr int SCALES = 3;                                             // strides 4, 8, 16
static_assert(HEIGHT % 32 == 0 && WIDTH % 32 == 0 && HEIGHT >= 64 && WIDTH >= 64 && WIDTH <= 2048, "no size of an input");

NNET_HD bool is_finite(float value) { return value - value == 0.0f; }  // an infinity less itself is NaN, as NaN is
NNET_HD int smaller(int a, int b) { return a < b ? a : b; }
NNET_HD int larger(int a, int b) { return a > b ? a : b; }

NNET_HD float float_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

NNET_HD uint32_t bits_of_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

// The FP16 number with these 16 bits as FP32, exactly; also subnormals, infinities and NaN.
NNET_HD float float_of_half(uint16_t half) {
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
    const uint32_t rest = static_cast<uint32_t>(half & 0x7fffu) << 13;
    const bool is_number = (half & 0x7c00u) != 0x7c00u;
    const uint32_t bits =
        is_number ? bits_of_float(float_of_bits(rest) * 0x1p112f) : rest | 0x7f800000u;  // 2^(127 - 15)
    return float_of_bits(sign | bits);
}

// A whole number that orders floats as their values, with every NaN above infinity: fmaxf would lose a NaN, and a map that
// holds one must not pass as a good part.
NNET_HD int32_t order_of_float(float value) {
    const uint32_t bits = value == value ? bits_of_float(value) : 0x7fc00000u;
    return static_cast<int32_t>((bits >> 31) ? bits ^ 0x7fffffffu : bits);
}

// The same for a place of a map: minus infinity comes on top as well, where a maximum cannot pass it over.
NNET_HD int32_t order_of_place(float value) { return order_of_float(is_finite(value) ? value : value - value); }

NNET_HD float float_of_order(int32_t order) {
    const uint32_t bits = static_cast<uint32_t>(order);
    return float_of_bits(order < 0 ? bits ^ 0x7fffffffu : bits);
}

}  // namespace nnet
